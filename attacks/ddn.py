"""DDN: decoupled direction and norm (https://arxiv.org/abs/1811.09600, algorithm 1).

The direction follows the gradient of the cross-entropy; the length is set apart from it, sample by sample: a point that
is adversarial is followed by one at ``(1 - gamma)`` times the distance, any other by one at ``(1 + gamma)`` times. The
step alpha decays as a cosine. Shapes: x, adv, direction, grad (N, *S); radius (N,). Units: those of ``model.bounds``.
Cost: ``steps`` forwards and backwards and one forward for the last point.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustkit.attacks.fmn import FINAL_STEP, cosine, farthest
from robustkit.core.attack import ATTACKS
from robustkit.core.nearest import MinimumNorm, Nearest
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.types import Bounds
from robustkit.kernels.balls import per_sample, steepest_l2


@ATTACKS.register("ddn", paper="https://arxiv.org/abs/1811.09600")
@method
class DDN(MinimumNorm):
    """Decoupled direction and norm: l2 steps whose length is set by the last verdict, in 100 steps.

    >>> DDN(steps=300).gamma
    0.05
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    norm: Literal["l2"] | None = Field(default=None, description="what is minimised: l2, the only one")
    steps: int = Field(default=100, ge=1, description="gradient steps")
    init_norm: Fraction | None = Field(
        default=None,
        gt=0,
        description="distance of the first step, in units of the input; by default the width of the bounds",
    )
    step_size: Fraction | None = Field(
        default=None,
        gt=0,
        description="alpha, length of the first step, in units of the input; by default the width of the bounds",
    )
    gamma: float = Field(default=0.05, gt=0, lt=1, description="share by which the distance changes in every step")
    loss: Literal["ce", "margin", "dlr"] = Field(
        default="ce", description="what gives the direction: ce (cross-entropy, as published), margin, or dlr"
    )
    levels: int | None = Field(
        default=None, ge=2, description="values a pixel may take: with 256 results survive 8-bit images; by default any"
    )

    def minimise(self, search: Nearest) -> None:
        adv, bounds = search.begin(0, random=False), search.model.bounds
        width = bounds.width
        alpha = self.step_size or width
        radius = torch.full_like(search.kept[1], self.init_norm or width)
        most = farthest(search.x, bounds, 2)
        for step in range(self.steps):
            if search.done:
                return
            grad = search.gradient(adv)
            radius = torch.where(search.reached, radius * (1 - self.gamma), radius * (1 + self.gamma))
            adv, grad, radius, most = search.compact(adv, grad, torch.minimum(radius, most), most)
            length = cosine(step / self.steps, alpha, alpha * FINAL_STEP)
            adv = self._move(adv, search.x, steepest_l2(grad).mul_(length), radius, bounds)
        search.score(adv)

    def _move(self, adv: Tensor, x: Tensor, step: Tensor, radius: Tensor, bounds: Bounds) -> Tensor:
        """The point at distance ``radius`` (M,) from x in the direction of ``adv + step``, inside the bounds."""
        direction = step.add_(adv - x)
        moved = steepest_l2(direction).mul_(per_sample(radius, x)).add_(x).clamp_(bounds.low, bounds.high)
        return moved if self.levels is None else _rounded(moved, bounds, self.levels)


def _rounded(points: Tensor, bounds: Bounds, levels: int) -> Tensor:
    """The nearest of so many evenly spaced values between the bounds, both included."""
    scale = (levels - 1) / bounds.width
    return ((points - bounds.low) * scale).round_().div_(scale).add_(bounds.low)
