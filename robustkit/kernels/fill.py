"""The steepest l1 step inside a box: spend a budget where the gradient is largest, each coordinate up to its bound."""

from __future__ import annotations

import torch
from torch import Tensor


def fill_l1_box(grad: Tensor, adv: Tensor, size: float | Tensor, low: float, high: float) -> Tensor:
    """The step d that maximises <grad, d> over {||d||_1 <= size, low <= adv + d <= high}, (N, *S).

    A linear function over that set is largest where coordinates are filled in the order of |grad|; the last one
    takes what is left of the budget. Coordinates without gradient do not move.

    Args:
        grad, adv: (N, *S); adv inside [low, high].
        size: budget, one number or (N,).

    >>> fill_l1_box(torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([[0.5, 0.5, 0.5]]), 0.7, 0.0, 1.0)
    tensor([[ 0.5000,  0.0000, -0.2000]])
    """
    g, point = grad.flatten(1), adv.flatten(1)
    room = torch.where(g > 0, high - point, point - low).clamp_min(0) * (g != 0)
    order = g.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order)
    budget = torch.as_tensor(size, dtype=g.dtype, device=g.device).reshape(-1, 1)
    spent_before = sorted_room.cumsum(1) - sorted_room
    amount = torch.minimum(sorted_room, (budget - spent_before).clamp_min(0))
    step = torch.zeros_like(g).scatter(1, order, amount) * g.sign()
    return step.view_as(grad)
