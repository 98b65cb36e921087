"""Exact projection onto an l2 ball inside a box, by finding the root of its one-dimensional dual."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.kernels.balls import Size, norm, per_sample

ROUNDS = 8
"""Newton steps on the dual. Each is exact on its piece and stays inside the ball; few pieces are crossed."""


def project_l2_ball_box(adv: Tensor, x: Tensor, eps: Size, low: float, high: float) -> Tensor:
    """The nearest point with ||p - x||_2 <= eps and low <= p <= high, (N, *S); x must lie in the box.

    The solution is p = clamp(x + s * d), d = adv - x, for the largest s <= 1 with ||p - x||_2 <= eps: what the box cuts
    off is spent on the other coordinates. Onto the ball first and onto the box then leaves it unspent.
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # sums of many small parts need more digits
        return project_l2_ball_box(adv.float(), x.float(), eps, low, high).to(x.dtype)
    d = (adv - x).flatten(1)
    room = torch.where(d > 0, high - x.flatten(1), x.flatten(1) - low).square_()
    square, length = d.square(), norm(d, 2)
    radius = eps.to(length) if isinstance(eps, Tensor) else torch.full_like(length, eps)
    tiny = torch.finfo(length.dtype).tiny
    scale = (radius / length.clamp_min(tiny)).clamp_max(1)
    for _ in range(ROUNDS):
        free = square * scale.square()[:, None] < room
        left = (radius.square() - torch.where(free, 0, room).sum(1)).clamp_min(0)
        longer = (left / torch.where(free, square, 0).sum(1).clamp_min(tiny)).sqrt()
        scale = torch.maximum(scale, longer.clamp_max(1))
    moved = (x + (d * scale[:, None]).view_as(x)).clamp_(low, high)
    return torch.where(per_sample(scale < 1, x), moved, adv.clamp(low, high))
