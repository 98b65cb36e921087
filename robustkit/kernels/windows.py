"""Square windows at a place of its own in every image, and the profile that Square fills them with.

Shapes: images (N, C, H, W); places (N,); masks and planes (N, 1, H, W).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def places(u: Tensor, side: int, length: int) -> Tensor:
    """Where windows begin along an axis, from ``u`` ~ U[0, 1), (N,): all places are equally likely.

    >>> places(torch.tensor([0.0, 0.99]), 3, 5)
    tensor([0, 2])
    """
    return (u * (length - side + 1)).floor().long().clamp_max(length - side)


def mask(top: Tensor, left: Tensor, side: int, height: int, width: int) -> Tensor:
    """True inside the window of each sample, (N, 1, H, W)."""
    row = torch.arange(height, device=top.device) - top[:, None]
    column = torch.arange(width, device=top.device) - left[:, None]
    inside_row, inside_column = (row >= 0) & (row < side), (column >= 0) & (column < side)
    return (inside_row[:, :, None] & inside_column[:, None, :])[:, None]


def paste(patch: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """``patch`` (N, s, s) at the window of each sample, 0 elsewhere, (N, 1, H, W)."""
    n, side = len(top), patch.shape[-1]
    row = (torch.arange(height, device=top.device) - top[:, None]).clamp(0, side - 1)
    column = (torch.arange(width, device=top.device) - left[:, None]).clamp(0, side - 1)
    sample = torch.arange(n, device=top.device)[:, None, None]
    spread = patch[sample, row[:, :, None], column[:, None, :]][:, None]
    return spread * mask(top, left, side, height, width)


@lru_cache(maxsize=64)
def pyramid(side: int, p: float) -> Tensor:
    """Two pyramids of opposite sign side by side, (s, s) float64, of unit length in lp: eta of Square, sec. 4.

    Each is a sum of nested rectangles, of which the k-th from the middle adds 1 / k^2.

    >>> round(float(pyramid(3, 1.0).abs().sum()), 6)
    1.0
    """
    half = side // 2
    whole = torch.cat([_heap(half, side, p), -_heap(side - half, side, p)])
    return _unit(whole, p)


def _heap(height: int, width: int, p: float) -> Tensor:
    heap = torch.zeros(height, width, dtype=torch.float64)
    if height == 0:
        return heap
    row, column = height // 2, width // 2
    for k in range(max(row, column) + 1):
        heap[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return _unit(heap, p)


def _unit(patch: Tensor, p: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(patch, ord=p)
    return patch / length
