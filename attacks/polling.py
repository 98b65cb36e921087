"""Poll sets of direct search: directions that span space positively, row by row and never as a matrix.

``H = I - 2 q q^T`` reflects at the plane across a uniform unit vector q. Its rows are orthonormal, so that the rows and
minus their sum (n + 1 directions), or the rows and their negatives (2n), are positive spanning sets: every vector has
a positive inner product with one of them (https://doi.org/10.1137/1.9780898719147, thm. 2.3). A direction costs O(n),
the slopes of all of them along a gradient O(n) together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["n+1", "2n"]


@dataclass(frozen=True, eq=False)
class PollSet:
    """The directions of one poll, each of l-infinity norm 1.

    Attributes:
        q: (n,), normal of the reflection, of l2 norm 1.
        kind: ``n+1`` or ``2n`` directions.

    >>> PollSet(torch.tensor([0.6, 0.8]), "n+1").rows(torch.arange(3))
    tensor([[ 0.2917, -1.0000],
            [-1.0000, -0.2917],
            [ 0.5484,  1.0000]])
    """

    q: Tensor
    kind: Kind = "n+1"

    @staticmethod
    def of(normal: Tensor, kind: Kind) -> PollSet:
        """From a vector (n,) with independent normal entries: its direction is uniform on the sphere."""
        return PollSet(normal / torch.linalg.vector_norm(normal), kind)

    def __len__(self) -> int:
        n = len(self.q)
        return n + 1 if self.kind == "n+1" else 2 * n

    def rows(self, index: Tensor) -> Tensor:
        """Some of the directions, (k, n): row ``i`` of H, and from ``n`` on minus the sum, or minus row ``i - n``."""
        n, q = len(self.q), self.q
        row = index % n if self.kind == "2n" else index.clamp(max=n - 1)
        found = -2 * q[row, None] * q
        found[torch.arange(len(index), device=q.device), row] += 1
        if self.kind == "2n":
            found = torch.where((index >= n)[:, None], -found, found)
        else:
            found = torch.where((index == n)[:, None], -self._reflected(torch.ones_like(q)), found)
        return found / found.abs().amax(1, keepdim=True)

    def slopes(self, gradient: Tensor) -> Tensor:
        """<d, gradient> of every direction d, in the order of their index."""
        along = self._reflected(gradient)
        scaled = along / self._lengths()
        if self.kind == "2n":
            return torch.cat([scaled, -scaled])
        length = self._reflected(torch.ones_like(self.q)).abs().amax()
        return torch.cat([scaled, -along.sum().reshape(1) / length])

    def _reflected(self, v: Tensor) -> Tensor:
        return v - 2 * (self.q @ v) * self.q

    def _lengths(self) -> Tensor:
        """The l-infinity norm of every row of H, (n,): its diagonal entry or 2 |q_i| times the largest other |q_j|."""
        size = self.q.abs()
        if len(size) == 1:
            return (1 - 2 * size.square()).abs()
        (most, second), at = size.topk(2)
        others = torch.where(torch.arange(len(size), device=size.device) == at[0], second, most)
        return torch.maximum((1 - 2 * size.square()).abs(), 2 * size * others)
