"""Small networks of the contract suites: whatever a careless method disturbs, with fixed weights."""

from __future__ import annotations

import torch
from torch import nn


class Seeded(nn.Module):
    """Layers with fixed weights; the second is a BatchNorm whose statistics are not those of new ones."""

    def __init__(self, *layers: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.1))
            self.body[1].running_var.fill_(1.3)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class SmallNet(Seeded):
    """Convolution, BatchNorm, dropout: everything that a careless attack disturbs; for 6x6 images."""

    def __init__(self, dtype: torch.dtype = torch.float32, classes: int = 5) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(8 * 36, classes),
            dtype=dtype,
        )
