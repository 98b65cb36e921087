"""Networks whose smoothed answers have a closed form, and slow versions of what certifiers draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkit.core.keyed import Draws

BLOCK = 32


class Linear(nn.Module):
    """Two classes, (N, 2): class 0 where ``w . x > b``, at any shape of inputs."""

    def __init__(self, w: Tensor, b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.w.to(x.dtype) - self.b
        return torch.stack([margin, torch.zeros_like(margin)], 1)


class Bands(nn.Module):
    """Classes by the first value t of the input: 0 for t > 0, the last for t <= -width, and bands between them."""

    def __init__(self, width: float, bands: int) -> None:
        super().__init__()
        self.width, self.bands = width, bands

    def forward(self, x: Tensor) -> Tensor:
        depth = -x.flatten(1)[:, 0] * self.bands / self.width
        return nn.functional.one_hot(depth.ceil().long().clamp(0, self.bands + 1), self.bands + 2).to(x.dtype)


class Pixels(nn.Module):
    """Three classes of every pixel, (N, 3, H, W), from (N, 1, H, W): dark, grey and bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.35 - x, 0.15 - (x - 0.5).abs(), x - 0.65], 1)


class Watched(nn.Module):
    """A network, and all inputs that it has seen."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)


def copies(x: Tensor, sample: int, purpose: str, n: int, sigma: float, seed: int = 0, method="smoothing") -> Tensor:
    """The n noisy copies (n, *S) of one input (*S), block by block."""
    draws = Draws(seed, torch.tensor([sample]), f"{method}/{purpose}")
    like = x.new_empty((1, BLOCK, *x.shape))
    blocks = [draws.again(j).normal(like)[0] for j in range(-(-n // BLOCK))]
    return x + sigma * torch.cat(blocks)[:n]


def counts(net: nn.Module, x: Tensor, purpose: str, n: int, sigma: float, ids=None, seed: int = 0) -> Tensor:
    """(N, C + 1, *P): every answer to every copy, one at a time; the last is NaN."""
    rows = []
    for i, one in enumerate(x):
        noisy = copies(one, i if ids is None else int(ids[i]), purpose, n, sigma, seed)
        outputs = torch.cat([net(copy[None]) for copy in noisy]).detach()
        classes = torch.where(outputs.isnan().any(1), outputs.shape[1], outputs.argmax(1))
        rows.append(torch.stack([(classes == c).sum(0) for c in range(outputs.shape[1] + 1)]))
    return torch.stack(rows)
