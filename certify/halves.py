"""The two halves of an image that dual smoothing votes with: the diagonals of a checkerboard, each filled in.

The left half keeps the pixels whose row and column add up to an even number, the right half the others; all channels
alike. What a network sees of a half is a fixed function of its pixels alone, at the full size of the image. Halves are
taken after the normaliser. Shapes: (N, C, H, W), of any height and width from 2 on.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.errors import UsageError
from robustkit.core.outputs import as_tensor

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
Fill = Literal["paper", "mean", "zero"]
FILL = (
    "what stands in place of the other half: paper (0, and the largest of each 2x2 block is added to what is kept, as "
    "in the authors' code; a reconstruction), mean (of the kept neighbours) or zero"
)


def keep(x: Tensor, side: Side) -> Tensor:
    """Where a half keeps its pixels: (H, W) bool."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    return (rows[:, None] + columns) % 2 == SIDES.index(side)


def half(x: Tensor, side: Side, fill: Fill = "paper") -> Tensor:
    """What is made of one half, (N, C, H, W): a function of its own pixels alone.

    >>> half(torch.tensor([[[[1.0, 9.0], [9.0, 3.0]]]]), "left", "mean")[0, 0].tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    mask = keep(x, side)
    kept = torch.where(mask, x, 0)
    if fill == "zero":
        return kept
    if fill == "mean":
        # a kept pixel has no kept neighbours: 0 / 0 would be masked forwards, and still be NaN backwards
        beside = _around(mask.to(x.dtype).expand(1, 1, -1, -1)).clamp_min(1)
        return torch.where(mask, x, _around(kept) / beside)
    return torch.where(mask, kept + _largest(kept), 0)


class Half(nn.Module):
    """A network that sees one half of its input.

    Raises:
        UsageError: unknown side or fill; when called: the inputs are no images of at least 2x2 pixels.
    """

    def __init__(self, net: nn.Module, side: Side, fill: Fill = "paper") -> None:
        super().__init__()
        _check_name(side, SIDES, "side")
        _check_name(fill, get_args(Fill), "fill")
        self.net, self.side, self.fill = net, side, fill

    def forward(self, x: Tensor) -> Tensor:
        check_images(tuple(x.shape[1:]), f"the {self.side} half")
        return as_tensor(self.net(half(x, self.side, self.fill)))


class SplitModel(nn.Module):
    """Two networks, or one twice, each for one half; together they answer with the logarithm of their mean probability.

    Attributes:
        left, right: the network of each half, from inputs of the full size to logits.
        fill: how a half is filled in.

    Raises:
        UsageError: unknown fill; when called: the inputs are no images of at least 2x2 pixels.
    """

    def __init__(self, left: nn.Module, right: nn.Module | None = None, fill: Fill = "paper") -> None:
        super().__init__()
        _check_name(fill, get_args(Fill), "fill")
        self.left, self.right, self.fill = left, left if right is None else right, fill

    def of(self, side: Side) -> Half:
        """The network of one half, from whole images."""
        return Half(self.left if side == "left" else self.right, side, self.fill)

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the left and of the right half."""
        left, right = (self.of(side)(x) for side in SIDES)
        return left, right

    def forward(self, x: Tensor) -> Tensor:
        """log((softmax(left) + softmax(right)) / 2), (N, C) or (N, C, H, W)."""
        logs = torch.stack([logits.log_softmax(1) for logits in self.apart(x)])
        return logs.logsumexp(0) - math.log(2)


def check_images(shape: tuple[int, ...], where: str) -> None:
    """Whether inputs of this shape (without the batch) have two halves.

    Raises:
        UsageError: they have not.
    """
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise UsageError(
            "dual smoothing takes images apart",
            expected="inputs (N, C, H, W) of at least 2x2 pixels",
            got=f"(N, {', '.join(map(str, shape))})",
            where=where,
            fix="Use smoothing for inputs that are no images.",
        )


def _check_name(value: str, names: tuple[str, ...], where: str) -> None:
    if value not in names:
        raise UsageError("unknown name", expected=", ".join(names), got=repr(value), where=where)


def _around(x: Tensor) -> Tensor:
    """Sum of the four neighbours."""
    wide = F.pad(x, (1, 1, 1, 1))
    return wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]


def _largest(x: Tensor) -> Tensor:
    """The largest value of each 2x2 block, at all its pixels; blocks at an odd edge are cut."""
    height, width = x.shape[-2:]
    blocks = F.max_pool2d(x, 2, ceil_mode=True)
    return blocks.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]
