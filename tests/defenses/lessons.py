"""Networks, batches and slow attacks of the tests of defenses; everything in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import robustkit as rk
from robustkit.core.defense import Defense
from robustkit.core.lesson import TrainState

CLASSES = 4


class ConvNet(nn.Module):
    """Convolution, BatchNorm with statistics that are not new, Linear; for (2, 5, 5) images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 25, CLASSES)
        _fill(self)
        self.bn.running_mean.fill_(0.2)
        self.bn.running_var.fill_(1.3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(x)).tanh().flatten(1))


def conv_net() -> nn.Module:
    return ConvNet()


def mlp() -> nn.Module:
    """Without anything that mixes samples."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    _fill(net)
    return net.double()


def _fill(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.ndim > 1 else 0.1))


def batch(n: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, 5, 5, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (n,), generator=draws)


def grads(net: nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter, as they are."""
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def gradients_of(loss: torch.Tensor, net: nn.Module) -> dict[str, torch.Tensor]:
    """Of a loss that a test has worked out by itself."""
    found = torch.autograd.grad(loss, list(net.parameters()))
    return dict(zip(dict(net.named_parameters()), found, strict=True))


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], atol: float = 1e-11) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def trained(defense: Defense, make: Callable[[], nn.Module], steps: int = 4) -> dict[str, torch.Tensor]:
    """Weights and buffers after some steps of gradient descent with weight decay."""
    net, state = make(), TrainState(seed=5)
    net.train()
    model = rk.wrap(net)
    for step in range(steps):
        for _ in range(defense.replays):
            defense.step(model, *batch(seed=step), state)
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.2 * (p.grad + 1e-3 * p)
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def weights_of(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the running statistics."""
    return {name: tensor for name, tensor in found.items() if "running" not in name and "tracked" not in name}


def slow_ascent(
    value: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    start: torch.Tensor,
    eps: float,
    size: float,
    steps: int,
    norm: str = "linf",
) -> list[torch.Tensor]:
    """The path of projected gradient ascent on ``value(x' (1, *S), index)``, sample by sample, in [0, 1]."""
    path = [start]
    for _ in range(steps):
        path.append(
            torch.stack(
                [_slow_step(lambda z, i=i: value(z, i), path[-1][i], x[i], eps, size, norm) for i in range(len(x))]
            )
        )
    return path


def _slow_step(value, point, x, eps, size, norm):
    leaf = point.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(leaf[None]), leaf)
    if norm == "linf":
        return torch.minimum(torch.maximum(point + size * grad.sign(), x - eps), x + eps).clamp(0, 1)
    moved = point + size * grad / grad.norm() - x
    inside = x + moved * min(1.0, eps / float(moved.norm()))
    return inside.clamp(0, 1)
