"""Clipping activations whose backward reads the output: nothing but that is kept, and in place nothing is copied.

``hardtanh`` (and so ReLU6) keeps its input for the backward, in place a copy of it. The output tells as well where the
gradient passes: strictly between the ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Clip(torch.autograd.Function):
    """min(max(x, low), high); the gradient is 0 at both ends, as that of hardtanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, inplace: bool) -> Tensor:
        y = x.clamp_(low, high) if inplace else x.clamp(low, high)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        ctx.ends = low, high
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], y, *ctx.ends), None, None, None


class Clipped(nn.Module):
    """A hardtanh or ReLU6."""

    def __init__(self, layer: nn.Hardtanh) -> None:
        super().__init__()
        self.low, self.high, self.inplace = layer.min_val, layer.max_val, layer.inplace

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Clip.apply(x, self.low, self.high, self.inplace and not x.is_leaf)
        return y
