"""What attacks share that go to the nearest linearised decision boundary: the classes to compare, and which is nearest.

To first order the points where class k overtakes the label y are a hyperplane, at the distance
``(z_y - z_k) / ||grad(z_k - z_y)||_q`` in lp with 1/p + 1/q = 1 (https://arxiv.org/abs/1511.04599, eq. 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
"""q for each norm."""


@dataclass(frozen=True, eq=False)
class Rivals:
    """By how much the ``count`` best of the other classes lead the label ``y`` (N,): (N, count), negative where behind.

    >>> Rivals(torch.tensor([0]), 2)(torch.tensor([[3.0, 1.0, 0.0, 2.0]]))
    tensor([[-1., -2.]])
    """

    y: Tensor
    count: int

    def __call__(self, outputs: Tensor) -> Tensor:
        others = outputs.scatter(1, self.y[:, None], -torch.inf)
        return others.topk(self.count, dim=1).values - outputs.gather(1, self.y[:, None])

    def take(self, index: Tensor | slice) -> Rivals:
        return Rivals(self.y[index], self.count)


def nearest_plane(values: Tensor, grads: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The value (N,) and the gradient (N, *S) of the function whose zero lies nearest to first order.

    Args:
        values: (N, K) of K functions.
        grads: (N, K, *S), their gradients; functions without one are never the nearest, unless none has one.
        norm: in which the distance counts.
    """
    rows = torch.arange(len(values), device=values.device)
    chosen = plane_distance(values, grads.flatten(2), norm).argmin(1)
    return values[rows, chosen], grads[rows, chosen]


def plane_distance(values: Tensor, grads: Tensor, norm: str) -> Tensor:
    """abs(value) / ||grad||_q, (...), of values (...) and gradients (..., d); inf where a gradient is zero."""
    largest = grads.abs().amax(-1)
    scale = torch.where(largest > 0, largest, 1)
    length = torch.linalg.vector_norm(grads / scale[..., None], ord=DUAL[norm], dim=-1)  # no square vanishes
    return torch.where(largest > 0, values.abs() / scale / length.clamp_min(1), torch.inf)
