"""A training that takes a moment: four blurred patterns, and a network with everything that is hard to resume."""

from __future__ import annotations

import torch
from torch import nn

import robustkit as rk
from robustkit.run.train_result import Training

SHORT = {"threat": rk.Linf(0.1), "epochs": 3, "batch_size": 12, "lr": 0.05, "select": ["pgd:steps=2"]}


class TinyNet(nn.Sequential):
    """BatchNorm and dropout between two linear layers, after a convolution; weights from a seed."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Flatten(),
                nn.Dropout(dropout),
                nn.Linear(64, 4),
            )


def patterns(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 4, 4) of four classes, in turn."""
    draws = torch.Generator().manual_seed(1)
    centres = torch.rand(4, 1, 4, 4, generator=draws)
    y = torch.arange(n) % 4
    return (centres[y] + 0.1 * torch.randn(n, 1, 4, 4, generator=draws)).clamp(0, 1), y


def short(defense: object = "pgd-at:steps=2", net: nn.Module | None = None, **options: object) -> Training:
    """A training with :data:`SHORT` options, unless others are given."""
    return rk.train(TinyNet() if net is None else net, patterns(), defense=defense, **{**SHORT, **options})
