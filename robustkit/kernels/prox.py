"""Proximal operators: soft threshold of values, and of groups of pixels under any label map, for a whole batch.

``prox(v) = argmin_u h(u) + ||u - v||^2 / 2``: for ``h = t ||u||_1`` every value shrinks by t, for ``h = sum_g t_g
||u_g||_2`` every group shrinks in length by t_g. What is shorter becomes exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.kernels.balls import Size, sized


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of the pixels of every sample.

    Attributes:
        label: (N, H * W) int64, from 0.
        count: labels in use; a sample need not have all of them.
    """

    label: Tensor
    count: int

    @property
    def pixels(self) -> Tensor:
        """Pixels of each group, (N, count); 0 where a sample lacks it."""
        return torch.zeros(len(self.label), self.count, device=self.label.device).scatter_add_(
            1, self.label, torch.ones_like(self.label, dtype=torch.float32)
        )

    def take(self, rows: Tensor) -> Groups:
        """The groups of some of the samples."""
        return Groups(self.label[rows], self.count)

    def lengths(self, x: Tensor) -> Tensor:
        """l2 norm of every group over all channels of its pixels, (N, count); 0 where a sample lacks it.

        Args:
            x: (N, *channels, H, W), of the pixels that were partitioned.
        """
        squares = x.reshape(len(x), -1, self.label.shape[1]).square().sum(1, dtype=_wide(x))
        total = squares.new_zeros(len(x), self.count).scatter_add_(1, self.label, squares)
        return total.sqrt_().to(x.dtype)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Values of groups (N, count) on their pixels, so that they broadcast against ``like`` (N, *channels, H, W)."""
        return values.gather(1, self.label).view(len(like), *[1] * (like.ndim - 3), *like.shape[-2:])


def groups_of(labels: Tensor, n: int) -> Groups:
    """Groups from any integer label map, (H, W) for all of ``n`` samples or (n, H, W).

    >>> groups_of(torch.tensor([[7, -1], [7, 7]]), 1).label
    tensor([[1, 0, 1, 1]])
    """
    values, label = labels.unique(return_inverse=True)
    flat = label.reshape(-1, label.shape[-2] * label.shape[-1])
    return Groups(flat.expand(n, -1) if len(flat) != n else flat, len(values))


def square_labels(height: int, width: int, size: int, device: torch.device | None = None) -> Tensor:
    """Labels (H, W) of squares from the top left corner; those at the other two edges are cut.

    >>> square_labels(2, 3, 2)
    tensor([[0, 0, 1],
            [0, 0, 1]])
    """
    row = torch.arange(height, device=device) // size
    column = torch.arange(width, device=device) // size
    return row[:, None] * -(-width // size) + column


def soft_threshold(x: Tensor, threshold: Size) -> Tensor:
    """Every value moved towards 0 by the threshold, one number or (N,), and no further.

    >>> soft_threshold(torch.tensor([[3.0, -0.5, -2.0]]), 1.0)
    tensor([[ 2., -0., -1.]])
    """
    return x.sign() * (x.abs() - sized(threshold, x)).clamp_min_(0)


def group_soft_threshold(x: Tensor, groups: Groups, threshold: Size) -> Tensor:
    """Every group shortened in l2 by its threshold, or set to 0 if it is shorter.

    Args:
        x: (N, *channels, H, W); all channels of a pixel belong to its group.
        threshold: one number, (N,), or (N, count) for each group.
    """
    length = groups.lengths(x)
    limit = threshold if not isinstance(threshold, Tensor) or threshold.ndim == 2 else threshold[:, None]
    kept = (length - limit).clamp_min_(0) / torch.where(length > 0, length, 1)
    return x * groups.spread(kept, x)


def _wide(x: Tensor) -> torch.dtype:
    """In what squares are added up: atomic sums in float64 round to the same float32 in any order, in practice."""
    return x.dtype if x.device.type == "mps" else torch.float64
