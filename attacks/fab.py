"""FAB: the fast adaptive boundary attack (https://arxiv.org/abs/1907.02044, algorithm 1).

At x_i the decision boundary is linearised to the hyperplane pi where the leading other class draws level. With d_i and
d_0 the shortest steps to pi from x_i and from the input x_0, inside the bounds,

    ``x_(i+1) = clamp((1 - alpha) (x_i + eta d_i) + alpha (x_0 + eta d_0))``,
    ``alpha = min(||d_i|| / (||d_i|| + ||d_0||), alpha_max)``:

onto the boundary, drawn towards the input. An adversarial point is recorded and pulled back,
``x_(i+1) = x_0 + beta (x_i - x_0)``. Shapes: x, adv, grad (N, *S); value, alpha (N,). Units: those of ``model.bounds``.

Cost of a run of ``steps`` steps: a forward a step and one for the last iterate; a backward a step, towards one target,
or one for every other class. There are ``restarts * max(1, targets)`` runs, and a forward for ``targets`` where the
order of the classes is not known. In the end ``final`` forwards draw the closest point back along its line to x.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkit.attacks.linearised import Rivals, nearest_plane
from robustkit.core.attack import ATTACKS
from robustkit.core.nearest import MinimumNorm, Nearest
from robustkit.core.objective import LabelObjective
from robustkit.core.options import method
from robustkit.core.task import Task
from robustkit.kernels.balls import norm, per_sample
from robustkit.kernels.hyperplane import step_to_hyperplane

MARGIN = 1e-4
"""How far, relative to its distance, the last search stays on the adversarial side of where it sees the boundary."""


@ATTACKS.register("fab", paper="https://arxiv.org/abs/1907.02044")
@method
class FAB(MinimumNorm):
    """Fast adaptive boundary: alternates between the linearised decision boundary and the way back to the input.

    >>> FAB(targets=9, stop_inside=True).steps
    100
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    steps: int = Field(default=100, ge=1, description="gradient steps a run")
    restarts: int = Field(default=1, ge=1, description="the first starts from the input, the others at random near it")
    targets: int = Field(
        default=0,
        ge=0,
        description="runs towards so many classes, likeliest first, one backward a step; 0: one run towards the "
        "nearest class, a backward a step for every class",
    )
    alpha_max: float = Field(default=0.1, ge=0, le=1, description="the largest share of the step taken from the input")
    eta: float = Field(default=1.05, ge=1, description="how far to step towards the boundary, 1 is onto it")
    beta: float = Field(default=0.9, gt=0, lt=1, description="what is kept of a perturbation that has succeeded")
    final: int = Field(
        default=4,
        ge=0,
        description="forwards in the end that draw the closest point back along its line to the input; "
        "none with stop_inside",
    )

    def objective(self, task: Task, y: Tensor, target: Tensor | None) -> LabelObjective:
        return LabelObjective(task, y, target, "margin")

    def minimise(self, search: Nearest) -> None:
        for restart in range(self.restarts):
            for rank in range(self.runs(search)):
                adv = search.begin(restart, random=False)
                if search.done:
                    return
                if restart > 0:
                    adv = self._random_start(search, restart, rank)
                if self._targeted(search):
                    search.aim(search.rivals()[:, rank])
                self._run(search, adv)
        if not self.stop_inside:
            self._draw_back(search)

    def runs(self, search: Nearest) -> int:
        """How many runs make a restart."""
        return min(self.targets, search.rivals().shape[1]) if self._targeted(search) else 1

    def _targeted(self, search: Nearest) -> bool:
        return self.targets > 0 and _objective(search).target is None

    def _random_start(self, search: Nearest, restart: int, rank: int) -> Tensor:
        """A random point (M, *S) at half the distance of the closest adversarial point so far, or half of eps."""
        x, threat = search.x, search.threat
        draws = search.active.draws.again(restart).child(str(rank))
        away = 2 * draws.uniform(x) - 1 if threat.norm == "linf" else draws.normal(x)
        radius = torch.minimum(search.kept[1], torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device)) / 2
        length = norm(away, threat.p).clamp_min(torch.finfo(x.dtype).tiny)
        return search.model.bounds.clamp(x + away * per_sample(radius / length, x))

    def _run(self, search: Nearest, adv: Tensor) -> None:
        pulled = torch.zeros_like(search.reached)
        for _ in range(self.steps):
            if search.done:
                return
            value, grad = self._linearise(search, adv)
            back = search.reached & ~pulled
            adv, value, grad, pulled = search.compact(adv, value, grad, back)
            nearer = search.x + self.beta * (adv - search.x)
            adv = torch.where(per_sample(pulled, adv), nearer, self._towards(search, adv, value, grad))
        search.score(adv)

    def _linearise(self, search: Nearest, adv: Tensor) -> tuple[Tensor, Tensor]:
        """The lead (M,) of the class to go for over the label at ``adv``, and its gradient (M, *S)."""
        if self.targets > 0 or _objective(search).target is not None:
            return search.value_and_grad(adv)
        classes = search.model.output_shape(adv)[0]
        values, grads = search.jacobian(adv, Rivals(_objective(search).y, classes - 1))
        return nearest_plane(values, grads, search.threat.norm)

    def _towards(self, search: Nearest, adv: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        """One step from ``adv`` (M, *S) to the hyperplane value + <grad, z - adv> = 0, drawn towards x."""
        x, bounds, n = search.x, search.model.bounds, len(adv)
        missing = -value
        missing_from_x = missing + ((adv - x) * grad).flatten(1).sum(1)
        steps = step_to_hyperplane(
            torch.cat([adv, x]),
            torch.cat([grad, grad]),
            torch.cat([missing, missing_from_x]),
            bounds.low,
            bounds.high,
            search.threat.norm,
        )
        own, clean = norm(steps[:n], search.threat.p), norm(steps[n:], search.threat.p)
        alpha = (own / (own + clean).clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(self.alpha_max)
        there = torch.lerp(adv + self.eta * steps[:n], x + self.eta * steps[n:], per_sample(alpha, x))
        return bounds.clamp(there)

    def _draw_back(self, search: Nearest) -> None:
        """Search the line from x to the closest point of each sample for the boundary, by false position."""
        search.begin(0, random=False)  # aims at no class
        x, way = search.x, search.kept[0] - search.x
        high, low = torch.ones_like(search.kept[1]), torch.zeros_like(search.kept[1])
        above, below, bracketed = low, low, torch.zeros_like(search.reached)
        share = high
        for _ in range(self.final):
            value = search.query(x + way * per_sample(share, x)).to(share)
            hit = search.reached
            high, above = torch.where(hit, share, high), torch.where(hit, value, above)
            low, below = torch.where(hit, low, share), torch.where(hit, below, value)
            bracketed = bracketed | ~hit
            share = torch.where(bracketed, _false_position(low, high, below, above), self.beta * high)


def _false_position(low: Tensor, high: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Where a line through (low, below) and (high, above) crosses zero, or a little beyond, (N,); below < 0 < above."""
    tiny = torch.finfo(low.dtype).tiny
    zero = low + (high - low) * (-below / (above - below).clamp_min(tiny)).clamp(0, 1)
    return zero + ((high - zero) * 0.05).clamp_min(MARGIN)


def _objective(search: Nearest) -> LabelObjective:
    objective = search.active.objective
    assert isinstance(objective, LabelObjective)
    return objective
