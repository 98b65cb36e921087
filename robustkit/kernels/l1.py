"""Exact projection onto an l1 ball inside a box, by finding the root of its one-dimensional dual: no sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.kernels.balls import Size, per_sample

ROUNDS = 30
"""Evaluations of the dual, three kinds in turn: Newton from below, Newton from above, the middle. A Newton step that
starts in the right linear piece ends at the root. Points up to four radii away, of any spread, are then exact to
rounding; of points hundreds of radii away that mix orders of magnitude the result may lie a little inside the ball.
Most roots are hit within ten; on the CPU, where a look costs nothing, the search ends when all are."""


def project_l1_box(adv: Tensor, x: Tensor, eps: Size, low: float, high: float) -> Tensor:
    """The nearest point with ||p - x||_1 <= eps and low <= p <= high, (N, *S); x must lie in the box.

    The solution is p = x + sign(d) * min(max(|d| - t, 0), room), d = adv - x, room the way to the box on that side, for
    the smallest t >= 0 with ||p - x||_1 <= eps. That norm falls with t, piece by piece linearly.
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # sums of many small parts need more digits
        return project_l1_box(adv.float(), x.float(), eps, low, high).to(x.dtype)
    boxed = adv.clamp(low, high)
    size = (adv - x).flatten(1)
    sign = size.sign()
    size = size.abs_()
    room = ((high + low) / 2 - x.flatten(1)).mul_(sign).add_((high - low) / 2)  # the way to the bound on that side
    length = torch.minimum(size, room).sum(1)
    radius = eps.to(length) if isinstance(eps, Tensor) else torch.full_like(length, eps)
    shift = _root(size, room, radius, length <= radius)
    pulled = torch.minimum((size - shift[:, None]).clamp_min_(0), room).mul_(sign)
    moved = pulled.view_as(x).add_(x).clamp_(low, high)
    return torch.where(per_sample(length > radius, x), moved, boxed)


def _root(size: Tensor, room: Tensor, radius: Tensor, done: Tensor) -> Tensor:
    """The smallest t with sum(min(max(size - t, 0), room)) <= radius up to rounding, (N,); never an infeasible one.

    ``done`` (N,) bool: rows for which nobody wants it.
    """
    rounding = torch.finfo(radius.dtype).eps
    target = radius * (1 - 8 * rounding)  # so that rounding hides no root that Newton has hit
    hit = radius * (1 - 16 * rounding)
    low, high = torch.zeros_like(radius), size.amax(1) if size.shape[1] else torch.zeros_like(radius)
    from_low, from_high = _newton(size, room, low, target)[1], high - target  # the largest coordinate alone
    for turn in range(ROUNDS):
        middle = (low + high) / 2
        guess = (from_low, from_high, middle)[turn % 3]
        t = torch.where((guess > low) & (guess < high), guess, middle)
        value, newton = _newton(size, room, t, target)
        feasible = value <= radius
        low, high = torch.where(feasible, low, t), torch.where(feasible, t, high)
        done = done | (feasible & (value >= hit))
        if not size.is_cuda and bool(done.all()):
            break
        from_low, from_high = torch.where(feasible, from_low, newton), torch.where(feasible, newton, from_high)
    return high


def _newton(size: Tensor, room: Tensor, t: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The norm at t, (N,), and where its linear piece meets the radius; at a kink, the piece to the right.

    The slope counts coordinates strictly inside their room. Signs of products count them in a third of the time that
    comparisons take.
    """
    step = torch.minimum((size - t[:, None]).clamp_min_(0), room)
    value = step.sum(1)
    slope = (room - step).mul_(step).sign_().sum(1)
    return value, t + (value - radius) / slope.clamp_min(1)
