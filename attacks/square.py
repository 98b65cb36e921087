"""Square: random search on windows of the image, by queries alone (https://arxiv.org/abs/1912.00049, alg. 1 to 3).

A proposal changes one square window; it is kept where the loss rises. In l-infinity the window takes +-2 eps in every
channel; in l2 and l1 it takes a pyramid profile and the budget of a second window, which is emptied. Windows shrink
on a fixed schedule. Every sample draws windows of its own, so that a result does not depend on the batch. Shapes: x,
adv (N, C, H, W), of any height, width and number of channels. Cost: ``queries`` forwards, less what broken samples
save.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.errors import UsageError
from robustkit.core.objective import Loss
from robustkit.core.options import method
from robustkit.core.search import Search
from robustkit.kernels import windows
from robustkit.kernels.balls import per_sample, sized

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which the share of the image that a window covers is halved."""
BLOCK = 100
"""Queries whose random numbers are drawn at once: a generator for every sample and query would cost more than it."""


@ATTACKS.register("square", paper="https://arxiv.org/abs/1912.00049")
@method
class Square(Attack):
    """Square attack: random search by queries, blind to masked gradients."""

    knowledge: ClassVar[Literal["white-box", "black-box"]] = "black-box"

    queries: int = Field(default=5000, ge=1, description="queries a sample; broken samples ask no more")
    p: float = Field(default=0.8, gt=0, le=1, description="share of the image that the first windows cover")
    rescale_schedule: bool = Field(
        default=False, description="fit the schedule of window sizes, made for 10,000 queries, to the queries given"
    )
    loss: Loss = Field(default="margin", description="what rises: margin, ce, or dlr")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise UsageError(
                "square changes windows of images",
                expected="inputs (N, C, H, W)",
                got=f"inputs (N, {', '.join(map(str, shape))})",
                where="x",
                fix="Use apgd or pgd, which take inputs of any shape; cut suites: --stages apgd-ce,apgd-t,fab-t.",
            )

    def perturb(self, search: Search) -> None:
        linf = search.threat.norm == "linf"
        adv, draws = self._begin(search)
        low, high = _edges(search) if linf else (adv, adv)
        value = search.query(adv)
        for query in range(1, self.queries):
            if query % BLOCK == 0:
                draws = _draw(search, query // BLOCK)
            adv, value, draws, low, high = search.compact(adv, value, draws, low, high)
            if search.done:
                return
            u, share = draws[:, query % BLOCK], self._share(query)
            proposal = _stamp(adv, low, high, u, share) if linf else _shift(search, adv, u, share)
            risen = search.query(proposal)
            better = risen > value
            adv = torch.where(per_sample(better, adv), proposal, adv)
            value = torch.where(better, risen, value)

    def _begin(self, search: Search) -> tuple[Tensor, Tensor]:
        """The first point: the one given, stripes in l-infinity, tiles in l2 and l1; and the first block of draws."""
        adv = search.begin(0, random=False)
        if search.problem.start is None:
            adv = _stripes(search) if search.threat.norm == "linf" else _tiles(search)
        return adv, _draw(search, 0)

    def _share(self, query: int) -> float:
        """Share of the image that a window covers at this query."""
        scale = 10_000 / self.queries if self.rescale_schedule else 1
        return float(self.p / 2 ** sum(query * scale > limit for limit in HALVINGS))


def _draw(search: Search, block: int) -> Tensor:
    """U[0, 1), (M, BLOCK, 5 + C): for each query two windows, an orientation, and a sign for each channel."""
    like = search.x.new_empty((len(search.x), BLOCK, 5 + search.x.shape[1]), dtype=torch.float32)
    return search.active.draws.again(block).uniform(like)


def _edges(search: Search) -> tuple[Tensor, Tensor]:
    """The ends of the threat set in l-infinity, (M, C, H, W) each."""
    x, eps, bounds = search.x, sized(search.threat.eps, search.x), search.model.bounds
    return (x - eps).clamp_min_(bounds.low), (x + eps).clamp_max_(bounds.high)


def _stamp(adv: Tensor, low: Tensor, high: Tensor, u: Tensor, share: float) -> Tensor:
    """l-infinity: one window moves by +-2 eps in every channel, back onto the threat set: to one of its ends."""
    height, width = adv.shape[2:]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    top, left = windows.places(u[:, 0], side, height), windows.places(u[:, 1], side, width)
    window = windows.mask(top, left, side, height, width)
    return torch.where(window, torch.where(u[:, 5:, None, None] < 0.5, low, high), adv)


def _shift(search: Search, adv: Tensor, u: Tensor, share: float) -> Tensor:
    """l2 and l1: a window takes the profile, and the budget of the window that is emptied and of what was unused."""
    height, width = adv.shape[2:]
    p, delta = search.threat.p, adv - search.x
    side = _odd(max(round(math.sqrt(share * height * width)), 3), min(height, width))
    top, left = windows.places(u[:, 0], side, height), windows.places(u[:, 1], side, width)
    filled = windows.mask(top, left, side, height, width)
    emptied = windows.mask(
        windows.places(u[:, 2], side, height), windows.places(u[:, 3], side, width), side, height, width
    )
    profile = windows.paste(_turned(side, p, u[:, 4], adv), top, left, height, width)
    sign = torch.where(u[:, 5:, None, None] < 0.5, -1.0, 1.0).to(adv)
    old = delta * filled
    new = (profile * sign + old / _length(old, p, (1, 2, 3))) * filled
    new = new / _length(new, p, (2, 3)) * _budget(search, delta, filled | emptied)
    return _spread(search, torch.where(filled, new, delta * ~emptied))


def _budget(search: Search, delta: Tensor, both: Tensor) -> Tensor:
    """Length that each channel of the window may have, (M, C, 1, 1)."""
    p, eps = search.threat.p, sized(search.threat.eps, delta)
    unused = (eps**p - _length(delta, p, (1, 2, 3)) ** p).clamp_min(0) / delta.shape[1]
    held = torch.linalg.vector_norm(delta * both, ord=p, dim=(2, 3), keepdim=True)
    budget: Tensor = (held**p + unused) ** (1 / p)
    return budget


def _spread(search: Search, delta: Tensor) -> Tensor:
    """The perturbation at the full length of eps, inside the bounds."""
    scaled = delta / _length(delta, search.threat.p, (1, 2, 3)) * sized(search.threat.eps, delta)
    return search.threat.project(search.x + scaled, search.x, search.model.bounds)


def _stripes(search: Search) -> Tensor:
    """Vertical stripes of +-eps, one sign for each channel and column."""
    x = search.x
    u = search.active.draws.child("start").uniform(x[:, :, :1, :])
    sign = torch.where(u < 0.5, -1.0, 1.0).to(x)
    return search.threat.project(x + sign * sized(search.threat.eps, x), x, search.model.bounds)


def _tiles(search: Search) -> Tensor:
    """The profile on a grid of five tiles along the shorter side, each with a sign of its own."""
    x, draws = search.x, search.active.draws.child("start")
    height, width = x.shape[2:]
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    u = draws.uniform(x.new_empty((len(x), x.shape[1], rows, columns)))
    sign = torch.where(u < 0.5, -1.0, 1.0).to(x).repeat_interleave(side, 2).repeat_interleave(side, 3)
    turn = draws.child("turn").uniform(x.new_empty((len(x), 1)))[:, 0]
    tile = _turned(side, search.threat.p, turn, x).repeat(1, rows, columns)[:, None]
    delta = torch.zeros_like(x)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    delta[:, :, top : top + rows * side, left : left + columns * side] = tile * sign
    return _spread(search, delta)


def _turned(side: int, p: float, u: Tensor, like: Tensor) -> Tensor:
    """The profile (M, s, s), one half of the time on its side."""
    profile = windows.pyramid(side, p).to(like)
    return torch.where(u[:, None, None] < 0.5, profile, profile.T)


def _odd(side: int, most: int) -> int:
    """An odd side of at most ``most``, which itself may be even where nothing smaller fits."""
    side = min(side + (side % 2 == 0), most)
    return side - (side % 2 == 0) if side > 2 else side


def _length(delta: Tensor, p: float, dims: tuple[int, ...]) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta, ord=p, dim=dims, keepdim=True)
    return length.clamp_min(1e-12)
