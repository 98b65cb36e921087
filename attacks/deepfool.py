"""DeepFool: step after step onto the nearest linearised decision boundary (https://arxiv.org/abs/1511.04599, alg. 2).

With the gaps ``f_k = z_k - z_y`` and their gradients ``w_k`` at the point reached so far, the nearest boundary is that
of the class k with the least ``abs(f_k) / ||w_k||_q``, 1/p + 1/q = 1, and the step r the shortest onto it:

    ``abs(f_k) / ||w_k||_2 * w_k / ||w_k||_2`` in l2, ``abs(f_k) / ||w_k||_1 * sign(w_k)`` in l-infinity,

and where pixels reach their bounds, which the paper does not know, the shortest inside the bounds. The point tried is
``clamp(x + (1 + overshoot) * sum of all r)``; a sample leaves as soon as that is adversarial. Shapes: x, adv, total
(N, *S); value (N,); grad (N, *S). Units: those of ``model.bounds``. Cost: a forward a step and a backward for each of
``candidates - 1`` classes (for one with a target), and a forward for the last point.
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
from robustkit.kernels.balls import per_sample
from robustkit.kernels.hyperplane import step_to_hyperplane


@ATTACKS.register("deepfool", paper="https://arxiv.org/abs/1511.04599")
@method
class DeepFool(MinimumNorm):
    """DeepFool: steps onto the nearest linearised decision boundary until the answer changes.

    >>> DeepFool(candidates=3).overshoot
    0.02
    """

    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    steps: int = Field(default=50, ge=1, description="most steps; few samples take more than ten")
    candidates: int = Field(
        default=10,
        ge=2,
        description="classes compared in each step, the label and the likeliest others there; one backward for each",
    )
    overshoot: float = Field(default=0.02, ge=0, description="how far to go beyond the boundary, relative to the way")

    def objective(self, task: Task, y: Tensor, target: Tensor | None) -> LabelObjective:
        return LabelObjective(task, y, target, "margin")

    def minimise(self, search: Nearest) -> None:
        adv = search.begin(0, random=False)
        total = adv - search.x
        for _ in range(self.steps):
            if search.done:
                return
            value, grad = self._linearise(search, adv)
            search.leave(search.reached)
            arrived = search.reached
            adv, total, value, grad, arrived = search.compact(adv, total, value, grad, arrived)
            bounds, x = search.model.bounds, search.x
            step = step_to_hyperplane(adv, grad, -value, bounds.low, bounds.high, search.threat.norm)
            total = torch.where(per_sample(arrived, x), total, total + step)  # those who have arrived stay there
            adv = torch.where(per_sample(arrived, x), adv, bounds.clamp(x + (1 + self.overshoot) * total))
        search.score(adv)

    def _linearise(self, search: Nearest, adv: Tensor) -> tuple[Tensor, Tensor]:
        """The lead (M,) of the class with the nearest boundary over the label at ``adv``, and its gradient (M, *S)."""
        objective = search.active.objective
        assert isinstance(objective, LabelObjective)
        if objective.target is not None:
            return search.value_and_grad(adv)
        classes = min(self.candidates, search.model.output_shape(adv)[0])
        values, grads = search.jacobian(adv, Rivals(objective.y, classes - 1))
        return nearest_plane(values, grads, search.threat.norm)
