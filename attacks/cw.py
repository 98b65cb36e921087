"""CW: the l2 attack of Carlini and Wagner (https://arxiv.org/abs/1608.04644, sec. V and VI-A).

A point is written ``x(w) = mid + half * tanh(w)``, so that it lies in the bounds by itself, and Adam minimises

    ``||x(w) - x||_2^2 + c * max(0, confidence - margin(x(w)))``,

where the margin is positive for adversarial points. The weight c is searched for by bisection, sample by sample; the
closest adversarial point over all c is kept. Shapes: x, adv, grad (N, *S); c, margin (N,). Units: those of
``model.bounds``. Cost: at most ``search_steps * steps`` forwards and as many backwards; samples that make no more
progress leave a search step early.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS
from robustkit.core.nearest import MinimumNorm, Nearest
from robustkit.core.objective import LabelObjective
from robustkit.core.options import method
from robustkit.core.task import Task
from robustkit.core.types import Bounds
from robustkit.kernels.balls import norm, per_sample

SQUEEZE = 1 - 1e-6
"""Pixels are drawn this much towards the middle: at the bounds themselves w would be infinite, and stay there."""
BETAS, STABLE = (0.9, 0.999), 1e-8
"""Of Adam, as published."""
CHECKS = 10
"""Looks per search step at whether the objective still falls."""
PROGRESS = 0.9999
"""The objective must have fallen below this share of what it was at the last look."""
LARGEST, BRACKETED = 1e10, 1e9
"""The upper end of c while none has succeeded, and below which it is known that one has."""
FROZEN = 1e-3
"""Of share * (1 - share), at most 1/4: while no pixel of a sample is above, all lie at the bounds, where the objective
is flat in w. Such a sample has not begun to move and must not be taken for one that has arrived."""
SURE = 10
"""With this many search steps the last one tries the largest c that may be needed."""


@ATTACKS.register("cw", paper="https://arxiv.org/abs/1608.04644")
@method
class CW(MinimumNorm):
    """Carlini-Wagner: distance plus a weighted margin, minimised by Adam, with a search for the weight.

    >>> CW(search_steps=6, steps=200).initial_c
    0.001
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    norm: Literal["l2"] | None = Field(default=None, description="what is minimised: l2, the only one")
    search_steps: int = Field(default=9, ge=1, description="weights c tried for every sample, by bisection")
    steps: int = Field(
        default=1000,
        ge=1,
        description="gradient steps for each c; the paper takes 10000, which most networks do not need",
    )
    initial_c: float = Field(default=1e-3, gt=0, description="the first weight of the margin against the distance")
    lr: float = Field(default=0.01, gt=0, description="learning rate of Adam, on the scale of w = atanh(x)")
    confidence: float = Field(
        default=0.0, ge=0, description="kappa, by how much the logit of the label must be exceeded to count"
    )
    abort_early: bool = Field(
        default=True, description="a sample leaves a search step when a tenth of it has brought nothing"
    )

    def objective(self, task: Task, y: Tensor, target: Tensor | None) -> LabelObjective:
        return LabelObjective(task, y, target, "margin", confidence=self.confidence)

    def minimise(self, search: Nearest) -> None:
        weight = Weight.first(search.problem.x, self.initial_c)
        for turn in range(self.search_steps):
            point = search.begin(turn, random=False)
            if search.done:
                return
            last = turn == self.search_steps - 1 and self.search_steps >= SURE
            c = weight.upper if last else weight.c
            weight.update(c, self._descend(search, point, c))

    def _descend(self, search: Nearest, point: Tensor, c: Tensor) -> Tensor:
        """Minimise at the weights c (N,) from ``point`` (M, *S); which samples were broken on the way, (N,) bool."""
        broken = torch.zeros_like(search.found)
        descent = Descent(point, search.model.bounds, c[search.index], self.confidence, self.lr)
        every = -(-self.steps // CHECKS)
        for step in range(self.steps):
            adv = descent.point() if step else point  # x(w) up to the squeeze; an input that is wrong is at distance 0
            value, grad = search.value_and_grad(adv)
            broken[search.index] |= search.reached
            look = self.abort_early and step % every == 0
            stuck = descent.stuck(adv, search.x, value) if look else search.reached
            descent.step(adv, search.x, value, grad)
            if look:
                descent.state = search.drop(stuck, *descent.state)
            elif self.stop_inside:
                descent.state = search.compact(*descent.state)
            if search.done:
                break
        return broken


@dataclass(slots=True)
class Weight:
    """The bisection for the weight c of every sample: the smallest that succeeds lies between lower and upper, (N,)."""

    c: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def first(cls, x: Tensor, c: float) -> Weight:
        """Before anything was tried."""
        like = torch.ones(len(x), dtype=_wide(x), device=x.device)
        return cls(c * like, 0 * like, LARGEST * like)

    def update(self, tried: Tensor, broken: Tensor) -> None:
        """Learn which samples (N,) bool the weights ``tried`` (N,) have broken."""
        self.upper = torch.where(broken, torch.minimum(self.upper, tried), self.upper)
        self.lower = torch.where(broken, self.lower, torch.maximum(self.lower, tried))
        self.c = torch.where(self.upper < BRACKETED, (self.lower + self.upper) / 2, self.c * 10)


class Descent:
    """Adam on w, written out: no graph runs through tanh, and few passes are made over the batch.

    The variable is ``u = 2 w``, for ``(1 + tanh(w)) / 2 = sigmoid(u)`` is quicker and exact for dark pixels; steps on u
    are then twice those on w.

    Args:
        start: (M, *S), where it begins.
        bounds: of the points.
        c: (M,), weights of the margin.
        confidence, lr: options of the attack.

    Attributes:
        state: u and Adam's two moments (M, *S), c and the objective at the last look (M,): what samples carry.
    """

    def __init__(self, start: Tensor, bounds: Bounds, c: Tensor, confidence: float, lr: float) -> None:
        self._bounds, self._confidence, self._lr, self._taken = bounds, confidence, lr, 0
        middled = (2 * (start.to(_wide(start)) - bounds.low) / bounds.width - 1) * SQUEEZE
        u = torch.atanh(middled).mul_(2)
        self._share = torch.sigmoid(u)
        self._dtype = start.dtype
        self.state: tuple[Tensor, ...] = (u, torch.zeros_like(u), torch.zeros_like(u), c, torch.full_like(c, torch.inf))

    def point(self) -> Tensor:
        """x(w), (M, *S)."""
        self._share = torch.sigmoid(self.state[0])
        return (self._share * self._bounds.width).add_(self._bounds.low).to(self._dtype)

    def stuck(self, adv: Tensor, x: Tensor, value: Tensor) -> Tensor:
        """(M,) bool: the objective at ``adv`` has hardly fallen since the last look, and that is not because all pixels
        still lie at the bounds. ``value`` is the margin (M,)."""
        *others, c, before = self.state
        now = norm(adv - x, 2).to(c).square() + c * (self._confidence - value.to(c)).clamp_min(0)
        self.state = (*others, c, now)
        moves = (self._share * (1 - self._share)).flatten(1).amax(1) > FROZEN
        return moves & (now > before * PROGRESS)

    def step(self, adv: Tensor, x: Tensor, value: Tensor, grad: Tensor) -> None:
        """One step of Adam at ``adv`` (M, *S), where the margin is ``value`` (M,) and its gradient ``grad`` (M, *S)."""
        u, first, second, c, _ = self.state
        self._taken += 1
        slope = self._slope(adv, x, torch.where(value < self._confidence, c, 0), grad)
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        # both moments divided by 1 - beta ** t, with that of the second taken out of the root
        root = math.sqrt(1 - BETAS[1] ** self._taken)
        size = 2 * self._lr * root / (1 - BETAS[0] ** self._taken)
        u.addcdiv_(first, torch.sqrt(second, out=slope).add_(STABLE * root), value=-size)

    def _slope(self, adv: Tensor, x: Tensor, pull: Tensor, grad: Tensor) -> Tensor:
        """The gradient of the objective with respect to w: 2 (adv - x) - pull * grad, times dx/dw."""
        share, width = self._share, self._bounds.width
        slope = torch.empty_like(share)  # the layout of w, whatever that of the gradient
        torch.mul(grad, per_sample(pull * (-2 * width), grad), out=slope)
        slope.add_(adv - x, alpha=4 * width)
        return slope.mul_(share).addcmul_(slope, share, value=-1)  # dx/dw = 2 width share (1 - share)


def _wide(x: Tensor) -> torch.dtype:
    """In what the variable is kept: at least single precision, for in less the squeeze is lost."""
    return torch.promote_types(x.dtype, torch.float32)
