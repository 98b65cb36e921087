"""APGD: projected gradient ascent that chooses its own steps (https://arxiv.org/abs/2003.01690, algorithm 1).

``z <- project(x_k + eta * steepest(g_k))``, ``x_{k+1} <- project(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1}))`` with
a = 0.75. At checkpoints that come closer together, each sample whose loss rose too seldom, or whose best loss did not
move, halves its step and goes on from its best point. In l1 a step moves only the coordinates of the largest gradients,
and their number follows the sparsity of the best point (https://arxiv.org/abs/2103.01208); by default it begins
in balls three and two times as large. Shapes: x, adv, grad (N, *S). Cost a run: ``steps`` F + B and one F,
less what broken samples save; ``restarts`` runs, times ``targets`` where targets are set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.objective import LabelObjective, Loss
from robustkit.core.options import method
from robustkit.core.search import Search
from robustkit.kernels.balls import per_sample

MOMENTUM = 0.75
FIRST_CHECK, SOONER, LEAST_CHECK = 0.22, 0.03, 0.06
"""Checkpoints as shares of the steps: the first interval, by how much each is shorter, the shortest."""
SPARSE_CHECK, SPARSE_FIRST, SPARSER, FEWER = 0.04, 0.2, 0.95, 1.5
"""In l1: interval of the checks, first share of coordinates moved, the fall of sparsity that counts, the reduction."""
WIDER = ((3, 0.3), (2, 0.3))
"""The larger balls that the l1 schedule begins in, in eps, and their shares of the steps."""


@ATTACKS.register("apgd", paper="https://arxiv.org/abs/2003.01690")
@method
class APGD(Attack):
    """Auto-PGD: gradient ascent whose step sizes adapt to each sample.

    >>> APGD(loss="dlr", targets=9).steps
    100
    """

    steps: int = Field(default=100, ge=1, description="gradient steps a run")
    restarts: int = Field(default=1, ge=1, description="random starts; samples that broke are not attacked again")
    random_start: bool = Field(
        default=True, description="begin at a random point of the ball; later restarts always do"
    )
    loss: Loss = Field(default="ce", description="what is maximised: ce, margin, dlr; cospgd or segpgd for dense tasks")
    targets: int = Field(
        default=0, ge=0, description="run once towards each of so many likeliest wrong classes (APGD-T); 0 runs once"
    )
    rho: float = Field(default=0.75, gt=0, le=1, description="share of rising steps below which the step is halved")
    large_eps: bool = Field(default=True, description="in l1, begin in balls of 3 and 2 eps")

    @property
    def purpose(self) -> str:
        return f"apgd/{self.loss}/{self.targets}"

    def perturb(self, search: Search) -> None:
        for run, rank in enumerate(self._ranks(search)):
            adv = search.begin(run, random=self.random_start or run > 0)
            if search.done:
                return
            if rank is not None:
                search.aim(search.rivals()[:, rank])
            ascent = self._sparse(search, adv) if search.threat.norm == "l1" else self._dense(search, adv)
            search.score(ascent)

    def _ranks(self, search: Search) -> list[int | None]:
        """For each run the rank of the class it steers to; with a target of the user's there is nothing to choose."""
        objective = search.problem.objective
        given = isinstance(objective, LabelObjective) and objective.target is not None
        if given or not self.targets:
            return [None] * self.restarts
        return [rank for rank in range(min(self.targets, search.rivals().shape[1])) for _ in range(self.restarts)]

    def _dense(self, search: Search, adv: Tensor) -> Tensor:
        return _ascend(search, _Momentum(search, adv, self.steps, self.rho), self.steps)

    def _sparse(self, search: Search, adv: Tensor) -> Tensor:
        """The l1 schedule: the best point in a larger ball, pulled in, is where the smaller one begins."""
        wider = [(factor, int(share * self.steps)) for factor, share in WIDER] if self.large_eps else []
        rest = self.steps - sum(steps for _, steps in wider)
        control: _Sparse | None = None
        for factor, steps in (*wider, (1, rest)):
            if steps == 0:
                continue
            if control is not None:
                adv = control.best
            elif factor > 1 and search.problem.start is None:  # the random point of the threat, stretched
                adv = search.x + factor * (adv - search.x)
            search.widen(factor)
            control = _Sparse(search, search.threat.project(adv, search.x, search.model.bounds), steps, wider != [])
            adv = _ascend(search, control, steps)
        return adv


def _ascend(search: Search, control: _Control, steps: int) -> Tensor:
    """``steps`` gradients and as many moves; what is returned is the last point, not looked at yet."""
    for step in range(steps):
        search.at(step / steps)
        control.see(search, *search.value_and_grad(control.adv))
        control.compact(search)
        if search.done:
            break
        control.move(search)
    return control.adv


class _Control(ABC):
    """What a run remembers of each sample: where it is, its best point so far, its step size; (M, ...) each."""

    def __init__(self, search: Search, adv: Tensor, size: float) -> None:
        self.adv = self.best = adv
        self.grad = self.best_grad = torch.zeros_like(adv)
        self.best_value = adv.new_full((len(adv),), -torch.inf)
        self.eps = torch.as_tensor(search.threat.eps, dtype=adv.dtype, device=adv.device).expand(len(adv))
        self.size = size * self.eps
        self.since, self.interval = -1, 1

    def see(self, search: Search, value: Tensor, grad: Tensor) -> None:
        """Take in the loss and its gradient where we are; check the step sizes when it is time."""
        better = value > self.best_value
        wide = per_sample(better, grad)
        self.grad = grad
        self.best, self.best_grad = torch.where(wide, self.adv, self.best), torch.where(wide, grad, self.best_grad)
        self.best_value = torch.where(better, value.to(self.best_value.dtype), self.best_value)
        self.since += 1
        if self.since == self.interval:
            self.check(search)
            self.since = 0

    def back(self, which: Tensor) -> None:
        """Go on from the best point, (M,) bool."""
        wide = per_sample(which, self.adv)
        self.adv, self.grad = torch.where(wide, self.best, self.adv), torch.where(wide, self.best_grad, self.grad)

    def compact(self, search: Search) -> None:
        """Let broken samples leave."""
        names = [name for name, held in vars(self).items() if isinstance(held, Tensor)]
        for name, kept in zip(names, search.compact(*(getattr(self, name) for name in names)), strict=True):
            setattr(self, name, kept)

    @abstractmethod
    def check(self, search: Search) -> None:
        """Choose new step sizes."""

    @abstractmethod
    def move(self, search: Search) -> None:
        """Take a step."""


class _Momentum(_Control):
    """l-infinity and l2: steps with momentum, halved where the loss rises too seldom or stays."""

    def __init__(self, search: Search, adv: Tensor, steps: int, rho: float) -> None:
        super().__init__(search, adv, 2.0)
        self.rho, self.shorter = rho, max(int(SOONER * steps), 1)
        self.interval, self.least = max(int(FIRST_CHECK * steps), 1), max(int(LEAST_CHECK * steps), 1)
        self.previous, self.moved = adv, False
        self.last = torch.full_like(self.best_value, torch.inf)
        self.checked, self.rises = self.best_value, torch.zeros_like(self.best_value)
        self.halved = torch.ones_like(self.best_value, dtype=torch.bool)

    def see(self, search: Search, value: Tensor, grad: Tensor) -> None:
        self.rises, self.last = self.rises + (value > self.last), value
        super().see(search, value, grad)

    def check(self, search: Search) -> None:
        seldom = self.rises <= self.rho * self.interval
        stuck = ~self.halved & (self.checked >= self.best_value)
        self.halved = seldom | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.back(self.halved)
        self.checked, self.rises = self.best_value, torch.zeros_like(self.rises)
        self.interval = max(self.interval - self.shorter, self.least)

    def move(self, search: Search) -> None:
        here, there = self.adv, search.advance(self.adv, self.grad, self.size)
        if self.moved:
            there = here + MOMENTUM * (there - here) + (1 - MOMENTUM) * (here - self.previous)
            there = search.threat.project(there, search.x, search.model.bounds)
        self.previous, self.adv, self.moved = here, there, True


class _Sparse(_Control):
    """l1: steps along the largest gradients, on as many coordinates as the sparsity of the best point asks for."""

    def __init__(self, search: Search, adv: Tensor, steps: int, begun: bool) -> None:
        super().__init__(search, adv, 1.0)
        self.interval = max(int(SPARSE_CHECK * steps), 1)
        self.d = max(adv.flatten(1).shape[1], 1)
        changed = _changed(adv, search.x)
        self.spread = changed if begun else torch.full_like(changed, self.d)
        self.share = changed / self.d / FEWER if begun else torch.full_like(changed, SPARSE_FIRST)
        self.most = self._most()

    def check(self, search: Search) -> None:
        now = _changed(self.best, search.x)
        sparser = now / self.spread < SPARSER
        self.size = torch.where(sparser, self.eps, (self.size / FEWER).clamp(self.eps / 10, self.eps))
        self.share, self.spread = now / self.d / FEWER, now
        self.back(sparser)
        self.most = self._most()

    def move(self, search: Search) -> None:
        size = self.grad.flatten(1).abs()
        count = self._count()
        least = size.topk(self.most, dim=1).values.gather(1, count[:, None] - 1)
        chosen = (self.grad.flatten(1).sign() * (size >= least)).view_as(self.grad)
        length = chosen.flatten(1).abs().sum(1).clamp_min(1)
        moved = self.adv + chosen * per_sample(self.size / length, chosen)
        self.adv = search.threat.project(moved, search.x, search.model.bounds)

    def _count(self) -> Tensor:
        """Coordinates that move, (M,)."""
        return (self.d - ((1 - self.share) * self.d).floor()).clamp(1, self.d).long()

    def _most(self) -> int:
        """The largest count: one look at the device for every check of the steps."""
        return int(self._count().max()) if len(self.share) else 1


def _changed(adv: Tensor, x: Tensor) -> Tensor:
    """How many coordinates differ, (M,)."""
    return (adv != x).flatten(1).sum(1).to(x.dtype)
