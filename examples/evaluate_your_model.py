"""Evaluate your own network: wrap it once, attack it, read the evidence."""

from torch.utils.data import DataLoader, TensorDataset

import robustkit as rk

# Stand-ins for your own network and data: any nn.Module, any DataLoader of images in [0, 1].
net = rk.load("demo:mnist-robust").net
x, y = rk.open_data("demo:mnist").take(range(100))
loader = DataLoader(TensorDataset(x, y), batch_size=50)

model = rk.wrap(net)  # give mean=... and std=... if the network wants normalised inputs
result = rk.evaluate(model, loader, attacks=[rk.FGSM(), rk.PGD(steps=20)], threat=rk.Linf(0.2))

print(result)
for row in result.diagnostics:
    print(f"{row.status:8} {row.id:4} {row.title}: {row.message}")
