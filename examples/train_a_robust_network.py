"""Train a small network by TRADES, look at what was chosen and why, and attack the result."""

import torch
from torch import nn

import robustkit as rk

x, y = rk.open_data("demo:mnist-train").take(range(600))
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 16, 4, stride=2, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 4, stride=2, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(32 * 49, 10),
)

found = rk.train(
    net,
    (x, y),
    defense=rk.TRADES(beta=6, steps=5),
    threat=rk.Linf(0.1),
    epochs=6,
    batch_size=64,
    out="trained",  # killed half-way, the same script goes on
)
for row in found.data["epochs"]:
    held = row["held_out"]
    print(f"epoch {row['epoch']}: loss {row['loss']:.3f}, held out: {held['clean']:.1%}, robust {held['robust']:.1%}")
print(found)
print("the page:", found.path / "report.html")

# The network holds the best weights now. Test data have chosen nothing so far: what they say is honest.
test = rk.open_data("demo:mnist").take(range(200))
print(rk.evaluate(found.model, test, attacks=["apgd", "pgd:steps=20,loss=margin"], threat=rk.Linf(0.1)))
