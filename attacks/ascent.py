"""How a directional attack moves: ascent with gradients by two rules, and questions where there are none."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.direction import DirectionObjective
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.threat import Threat
from robustkit.kernels.balls import per_sample

MOMENTUM = 0.75
"""Share of the new step in APGD (https://arxiv.org/abs/2003.01690, eq. 3), and of the rises that keep a step size."""


def pick(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Sample by sample (N,) bool: ``yes`` or ``no``, each (N, *S)."""
    return torch.where(per_sample(which, yes), yes, no)


class Ascent:
    """The best point of every sample, and the two rules that look for it. The first point passed must be x."""

    def __init__(self, model: Model, x: Tensor, objective: DirectionObjective, threat: Threat) -> None:
        self.model, self.x, self.objective, self.threat = model, x, objective, threat
        self.best = x
        self.value = x.new_full((len(x),), -torch.inf)
        self.base: Tensor | None = None

    @property
    def gain(self) -> Tensor:
        """(N,), over the value at x."""
        return self.value - self.value if self.base is None else self.value - self.base

    def pgd(self, adv: Tensor, steps: int, size: float | None) -> None:
        """Steps of one length."""
        length = 2.5 * self.threat.eps / steps if size is None else size
        for _ in range(steps):
            _, grad = self._look(adv)
            adv = self.threat.step(adv, self.x, grad, length, self.model.bounds)
        self._measure(adv)

    def apgd(self, adv: Tensor, steps: int) -> None:
        """Steps with momentum, halved sample by sample at the checkpoints of the paper."""
        rule = _Halving(2 * self.threat.eps * torch.ones(len(adv), dtype=adv.dtype, device=adv.device), steps)
        value, grad = self._look(adv)
        top, peak, slope, before = value, adv, grad, adv
        for k in range(steps):
            step = self.threat.step(adv, self.x, grad, rule.size, self.model.bounds)
            if k:
                step = adv + MOMENTUM * (step - adv) + (1 - MOMENTUM) * (adv - before)
                step = self.threat.project(step, self.x, self.model.bounds)
            before, adv = adv, step
            if k == steps - 1:
                break
            new, grad = self._look(adv)
            better = new > top
            top, peak, slope = torch.maximum(top, new), pick(better, adv, peak), pick(better, grad, slope)
            halved = rule.halved(k + 1, new > value, top)
            value = torch.where(halved, top, new)
            adv, grad, before = pick(halved, peak, adv), pick(halved, slope, grad), pick(halved, peak, before)
        self._measure(adv)

    def _look(self, adv: Tensor) -> tuple[Tensor, Tensor]:
        value, grad, _ = self.model.value_and_grad(adv, self.objective)
        self._keep(adv, value)
        return value, grad

    def _measure(self, adv: Tensor) -> None:
        self._keep(adv, self.objective(self.model(adv)))

    def _keep(self, adv: Tensor, value: Tensor) -> None:
        self.base = value if self.base is None else self.base
        better = value > self.value
        self.best, self.value = pick(better, adv, self.best), torch.where(better, value, self.value)


class _Halving:
    """When APGD halves the step of a sample (https://arxiv.org/abs/2003.01690, sec. 3.1, conditions 1 and 2)."""

    def __init__(self, size: Tensor, steps: int) -> None:
        self.size, self._left, self._steps = size, 0.22, steps
        self._gap, self._last, self._rises = 0.22, 0, torch.zeros_like(size)
        self._reduced = torch.zeros_like(size, dtype=torch.bool)
        self._top = torch.full_like(size, -torch.inf)

    def halved(self, k: int, rose: Tensor, top: Tensor) -> Tensor:
        """(N,) bool: these go back to their best point with half the step."""
        self._rises = self._rises + rose
        if k < int(self._left * self._steps + 1 - 1e-9):
            return torch.zeros_like(rose)
        few = self._rises < MOMENTUM * (k - self._last)
        still = ~self._reduced & (top <= self._top)
        now = few | still
        self.size = torch.where(now, self.size / 2, self.size)
        self._reduced, self._top, self._last, self._rises = now, top, k, torch.zeros_like(self.size)
        self._gap = max(self._gap - 0.03, 0.06)
        self._left += self._gap
        return now


class Walk:
    """Which coordinates every sample moves next: its own random order, renewed when it is used up."""

    def __init__(self, x: Tensor, block: int, draws: Draws) -> None:
        self._x, self._block, self._draws = x, block, draws
        self._n = x.flatten(1).shape[1]
        self._count = max(1, self._n // block)
        self._at = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._side = torch.ones(len(x), dtype=x.dtype, device=x.device)
        self._order = torch.zeros_like(x.flatten(1), dtype=torch.long)
        self._signs = torch.ones_like(x.flatten(1))
        self._renew(torch.ones_like(self._at, dtype=torch.bool))

    def move(self, size: float | Tensor) -> Tensor:
        """(N, *S): the next question of every sample."""
        columns = (self._at % self._count)[:, None] * self._block + torch.arange(self._block, device=self._x.device)
        chosen = self._order.gather(1, columns)
        signs = self._signs.gather(1, chosen) * self._side[:, None]
        moved = torch.zeros(len(self._x), self._n, dtype=self._x.dtype, device=self._x.device)
        moved.scatter_(1, chosen, signs)
        return moved.view_as(self._x) * (per_sample(size.to(moved), self._x) if isinstance(size, Tensor) else size)

    def tell(self, better: Tensor) -> None:
        """Go on with other coordinates where the last question gained or was the second of its pair."""
        over = better | (self._side < 0)
        self._at = self._at + over
        self._side = torch.where(over, 1.0, -1.0).to(self._side)
        self._renew(over & (self._at % self._count == 0))

    def _renew(self, which: Tensor) -> None:
        """A new order and new signs for some samples, keyed by how often they had one."""
        like = self._x.new_empty(1, self._n)
        for i in which.nonzero()[:, 0].tolist():
            draws = self._draws.take(torch.tensor([i])).again(int(self._at[i]) // self._count)
            self._order[i] = draws.child("order").uniform(like)[0].argsort()
            self._signs[i] = torch.where(draws.child("signs").uniform(like)[0] < 0.5, -1.0, 1.0)
