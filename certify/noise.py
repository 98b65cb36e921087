"""Noise that is added to inputs, keyed by sample and block of draws."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robustkit.core.keyed import Draws
from robustkit.core.types import Bounds


class Noise(Protocol):
    """Noisy copies of inputs.

    Attributes:
        slack: how far the distribution of one noisy copy is from the stated one, in total variation.
        arithmetic: what a reader must know of it.
    """

    @property
    def slack(self) -> float: ...

    @property
    def arithmetic(self) -> str: ...

    def noisy(self, x: Tensor, rows: Tensor, blocks: Tensor, draws: Draws, sigma: float, size: int) -> Tensor:
        """``size`` copies (P, size, *S) for each of P pairs of a sample and the number of a block of its draws.

        Args:
            x: inputs (N, *S).
            rows: (P,), samples.
            blocks: (P,), numbers of blocks.
            draws: of the N samples.
            sigma: standard deviation, in units of the input.
            size: draws in a block.
        """


class Gaussian:
    """N(0, sigma^2) for every value, drawn in floating point; not clipped unless ``clip`` names bounds."""

    slack = 0.0

    def __init__(self, clip: Bounds | None = None) -> None:
        self.clip = clip

    @property
    def arithmetic(self) -> str:
        clipped = ", clipped to the bounds as part of the certified function" if self.clip else ", not clipped"
        return (
            f"Gaussian noise in floating point{clipped}; the proof is about real numbers, and rounding of the noise is "
            "not covered by it (the option grid=true covers it)"
        )

    def noisy(self, x: Tensor, rows: Tensor, blocks: Tensor, draws: Draws, sigma: float, size: int) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        drawn = draws.normal_of(rows, blocks, wide.new_empty((0, size, *x.shape[1:])))
        found = drawn.mul_(sigma).add_(wide[rows.to(x.device)][:, None])
        if self.clip is not None:
            found.clamp_(self.clip.low, self.clip.high)
        return found.to(x.dtype)
