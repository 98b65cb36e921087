"""FMN: the fast minimum-norm attack (https://arxiv.org/abs/2102.12827, algorithm 1).

One walk along the boundary. Every step climbs the margin by ``alpha * g / ||g||_2`` and is projected onto a ball around
x whose radius adapts, sample by sample: at an adversarial point it shrinks by ``1 - gamma``, at any other it grows by
``1 + gamma``. Before the first adversarial point it is the distance at which the linearised margin is zero, here times
``1 + gamma``: on a straight boundary rounding would otherwise keep the walk on this side of it. alpha and gamma decay
as a cosine. Shapes: x, adv, grad (N, *S); radius, margin (N,). Units: those of ``model.bounds``. Cost: ``steps``
forwards and backwards and one forward for the last point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS
from robustkit.core.nearest import MinimumNorm, Nearest
from robustkit.core.objective import LabelObjective
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.task import Task
from robustkit.core.types import Bounds
from robustkit.kernels.balls import norm, project_linf_box, steepest_l2
from robustkit.kernels.l1 import project_l1_box
from robustkit.kernels.l2 import project_l2_ball_box

PROJECT: dict[str, Callable[..., Tensor]] = {"linf": project_linf_box, "l2": project_l2_ball_box, "l1": project_l1_box}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
FINAL_STEP = 1 / 100
"""Of the first step, how long the last one is."""
FINAL_GAMMA = 1e-3
CLOSER = 1 - 1e-6
"""The published radius is at most the smallest distance so far; at that very distance rounding would decide which of
two points is the closer one."""


@ATTACKS.register("fmn", paper="https://arxiv.org/abs/2102.12827")
@method
class FMN(MinimumNorm):
    """Fast minimum-norm: ascent on the margin inside a ball whose radius adapts, in 100 steps.

    >>> FMN(norm="l1", steps=50).gamma
    0.05
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    steps: int = Field(default=100, ge=1, description="gradient steps")
    step_size: Fraction | None = Field(
        default=None,
        gt=0,
        description="alpha, l2 length of the first step, in units of the input; by default the width of the bounds",
    )
    gamma: float = Field(default=0.05, gt=0, lt=1, description="share by which the radius changes at first")

    def objective(self, task: Task, y: Tensor, target: Tensor | None) -> LabelObjective:
        return LabelObjective(task, y, target, "margin")

    def minimise(self, search: Nearest) -> None:
        adv, bounds = search.begin(0, random=False), search.model.bounds
        radius = search.kept[1].to(torch.promote_types(adv.dtype, torch.float32))  # gamma is lost in half precision
        alpha = bounds.width if self.step_size is None else self.step_size
        for step in range(self.steps):
            if search.done:
                return
            value, grad = search.value_and_grad(adv)
            gamma = cosine(step / self.steps, self.gamma, min(FINAL_GAMMA, self.gamma))
            radius = self._radius(search, adv, value, grad, radius, gamma)
            adv, grad, radius = search.compact(adv, grad, radius)
            moved = steepest_l2(grad).mul_(cosine(step / self.steps, alpha, alpha * FINAL_STEP)).add_(adv)
            adv = PROJECT[search.threat.norm](moved, search.x, radius, bounds.low, bounds.high)
        search.score(adv)

    @staticmethod
    def _radius(search: Nearest, adv: Tensor, value: Tensor, grad: Tensor, radius: Tensor, gamma: float) -> Tensor:
        """The next radius, (M,), after the margin ``value`` (M,) and its gradient at ``adv`` (M, *S) are known."""
        threat, nearest = search.threat, search.kept[1]
        slope = norm(grad, DUAL[threat.norm]).clamp_min(torch.finfo(grad.dtype).tiny)
        boundary = threat.distance(adv, search.x) + value.abs() / slope
        outside = torch.where(nearest.isfinite(), radius, boundary) * (1 + gamma)
        closer = torch.minimum(radius * (1 - gamma), nearest * CLOSER)
        radius = torch.where(search.reached, closer, outside)
        return torch.minimum(radius, farthest(search.x, search.model.bounds, threat.p))


def cosine(progress: float, first: float, last: float) -> float:
    """From ``first`` to ``last`` along half a cosine, as ``progress`` goes from 0 to 1.

    >>> cosine(0.5, 3.0, 1.0)
    2.0
    """
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def farthest(x: Tensor, bounds: Bounds, p: float) -> Tensor:
    """The largest lp distance from each x (N, *S) that the bounds allow, (N,)."""
    return norm(torch.maximum(x - bounds.low, bounds.high - x), p)
