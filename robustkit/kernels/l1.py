"""Exact projection onto an l1 ball inside a box, by finding the root of its one-dimensional dual: no sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.kernels.balls import Size, norm, per_sample

ROUNDS = 30
"""Evaluations of the dual, three kinds in turn: Newton from below, Newton from above, the middle. A Newton step that
starts in the right linear piece ends at the root. Points up to four radii away, of any spread, are then exact to
rounding; of points hundreds of radii away that mix orders of magnitude the result may lie a little inside the ball."""


def project_l1_box(adv: Tensor, x: Tensor, eps: Size, low: float, high: float) -> Tensor:
    """The nearest point with ||p - x||_1 <= eps and low <= p <= high, (N, *S); x must lie in the box.

    The solution is p = x + sign(d) * min(max(|d| - t, 0), room), d = adv - x, room the way to the box on that side, for
    the smallest t >= 0 with ||p - x||_1 <= eps. That norm falls with t, piece by piece linearly.
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # sums of many small parts need more digits
        return project_l1_box(adv.float(), x.float(), eps, low, high).to(x.dtype)
    boxed = adv.clamp(low, high)
    length = norm(boxed - x, 1)
    radius = eps.to(length) if isinstance(eps, Tensor) else torch.full_like(length, eps)
    delta = (adv - x).flatten(1)
    room = torch.where(delta > 0, high - x.flatten(1), x.flatten(1) - low)
    size = delta.abs()
    shift = _root(size, room, radius)
    pulled = torch.minimum((size - shift[:, None]).clamp_min_(0), room).mul_(delta.sign())
    moved = (x + pulled.view_as(x)).clamp_(low, high)
    return torch.where(per_sample(length > radius, x), moved, boxed)


def _root(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The smallest t with sum(min(max(size - t, 0), room)) <= radius up to rounding, (N,); never an infeasible one."""
    target = radius * (1 - 8 * torch.finfo(radius.dtype).eps)  # so that rounding hides no root that Newton has hit
    low, high = torch.zeros_like(radius), size.amax(1) if size.shape[1] else torch.zeros_like(radius)
    from_low, from_high = _newton(size, room, low, target)[1], high - target  # the largest coordinate alone
    for turn in range(ROUNDS):
        middle = (low + high) / 2
        guess = (from_low, from_high, middle)[turn % 3]
        t = torch.where((guess > low) & (guess < high), guess, middle)
        value, newton = _newton(size, room, t, target)
        feasible = value <= radius
        low, high = torch.where(feasible, low, t), torch.where(feasible, t, high)
        from_low, from_high = torch.where(feasible, from_low, newton), torch.where(feasible, newton, from_high)
    return high


def _newton(size: Tensor, room: Tensor, t: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The norm at t, (N,), and where its linear piece meets the radius; at a kink, the piece to the right."""
    rest = size - t[:, None]
    slope = ((rest > 0) & (rest < room)).sum(1)
    value = torch.minimum(rest.clamp_min_(0), room).sum(1)
    return value, t + (value - radius) / slope.clamp_min(1)
