"""Exact projections onto a hyperplane inside a box, by finding the root of a one-dimensional dual: no sorting.

From x in the box, a nearest point of {z: <w, z> = b} moves every coordinate towards the plane, each by a step that
grows with one number t until the box stops it, after ``room``:

- linf: min(t, room), the same for all;
- l2: min(t * abs(w), room);
- l1: all of the room or none of it: first where abs(w) is largest, since there the least way gains the most.

What the steps gain, <abs(w), step(t)>, rises with t: in linf and l2 it is concave and piecewise linear, so that
secants come from below and end at the root once both of their points lie in its piece; in l1 it is a staircase, whose
stair is found by halving. What rounding or too few rounds leave is made up on the way to a step that gains more: the
answer is on the plane and in the box in any case.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS_SECANT = 16
"""Six are needed where the plane asks for a third of what the box allows, nine at nine tenths, 16 at 99.9 percent. On
the CPU, where a look costs nothing, the search ends when all samples have."""
ROUNDS_HALVING = 24
"""The stair is then known to 6e-8 of the largest weight; coordinates closer than that share what is left."""


def project_hyperplane_box(x: Tensor, w: Tensor, b: Tensor, low: float, high: float, norm: str) -> Tensor:
    """The nearest point in lp with <w, z> = b and low <= z <= high; where none exists, the corner that comes closest.

    Args:
        x: points inside the box, (N, *S).
        w, b: the hyperplanes, (N, *S) and (N,).
        low, high: the box.
        norm: ``linf``, ``l2`` or ``l1``.

    >>> project_hyperplane_box(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]), torch.tensor([2.0]), 0.0, 1.0, "linf")
    tensor([[0.5000, 0.5000]])
    """
    missing = b - torch.linalg.vecdot(w.flatten(1), x.flatten(1))
    return (x + step_to_hyperplane(x, w, missing, low, high, norm)).clamp_(low, high)


def step_to_hyperplane(x: Tensor, w: Tensor, missing: Tensor, low: float, high: float, norm: str) -> Tensor:
    """The shortest step d in lp with <w, d> = missing and low <= x + d <= high, (N, *S), else to the closest corner.

    For callers who know what is missing, (N,), better than the difference of two large products would say. Samples
    with w = 0 or nothing missing do not move.
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # sums of many small parts need more digits
        return step_to_hyperplane(x.float(), w.float(), missing.float(), low, high, norm).to(x.dtype)
    if x.numel() == 0:
        return torch.zeros_like(x)
    gain, point = w.flatten(1) * missing.sign()[:, None], x.flatten(1)
    side = gain.sign()
    room = torch.maximum((high - point).mul_(side), (low - point).mul_(side)).clamp_min_(0)
    gain = gain.abs_().mul_(room.sign())  # coordinates at their bound have no say in the scale either
    scale = gain.amax(1)
    scale = torch.where(scale > 0, scale, 1)
    gain = gain.div_(scale[:, None])  # so that the squares of small gradients do not vanish
    need = missing.abs() / scale
    step = _fill(gain, room, need) if norm == "l1" else _stretch(gain, room, need, norm)
    return step.mul_(side).view_as(x)


def _stretch(gain: Tensor, room: Tensor, need: Tensor, norm: str) -> Tensor:
    """The steps (N, d) of linf and l2 with <gain, step> = need, (N,); gain in [0, 1], zero where there is no room."""
    tiny, huge = torch.finfo(gain.dtype).tiny, torch.finfo(gain.dtype).max
    noise = 4 * torch.finfo(gain.dtype).eps * need
    stop, slope = (room, gain) if norm == "linf" else (room / gain.clamp_min(tiny), gain.square())
    before, gained_before = torch.zeros_like(need), torch.zeros_like(need)
    t = (need / slope.sum(1).clamp_min_(tiny)).clamp_max_(huge)
    reach, done = torch.empty_like(gain), (need <= 0) | (need >= torch.linalg.vecdot(gain, room))
    for _ in range(ROUNDS_SECANT):
        gained = torch.minimum(stop, t[:, None], out=reach).mul_(slope).sum(1)
        more, lacking = gained - gained_before, need - gained
        done = done | (more <= noise) | (lacking <= noise)  # a step more would follow the noise
        if not gain.is_cuda and bool(done.all()):
            break
        change = torch.where(done, 0, lacking / more.clamp_min(tiny) * (t - before))
        before, gained_before, t = t, gained, (t + change).clamp_max_(huge)
    step = torch.minimum(stop, t[:, None], out=reach)
    return _between(step if norm == "linf" else step.mul_(gain), room, gain, need)


def _fill(gain: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The step (N, d) of l1: coordinates above a threshold use their room, those between two thresholds a share."""
    gains, above = gain * room, torch.empty_like(gain)
    top, bottom = torch.ones_like(need), torch.zeros_like(need)
    most, least = torch.full_like(need, gain.shape[1]), torch.zeros_like(need)  # coordinates above them
    settled = (need <= 0) | (need >= gains.sum(1))
    for _ in range(ROUNDS_HALVING):
        middle = (top + bottom) / 2
        count = torch.gt(gain, middle[:, None], out=above).sum(1)
        short = above.mul_(gains).sum(1) <= need
        top, least = torch.where(short, middle, top), torch.where(short, count, least)
        bottom, most = torch.where(short, bottom, middle), torch.where(short, most, count)
        if not gain.is_cuda and bool(((most - least <= 1) | settled).all()):  # one coordinate is left to share
            break
    fewer = torch.gt(gain, top[:, None], out=above).mul_(room)
    more = torch.gt(gain, bottom[:, None], out=torch.empty_like(gain)).mul_(room)
    return _between(fewer, more, gain, need)


def _between(short: Tensor, far: Tensor, gain: Tensor, need: Tensor) -> Tensor:
    """The point of the way from one step (N, d) to the other that gains what is needed, or the far end."""
    gained, more = torch.linalg.vecdot(gain, short), torch.linalg.vecdot(gain, far)
    share = ((need - gained) / (more - gained).clamp_min_(torch.finfo(need.dtype).tiny)).clamp_(0, 1)
    return torch.lerp(short, far, share[:, None])
