"""CosPGD: gradient ascent that weighs pixels by how well they still agree (https://arxiv.org/abs/2302.02213).

The loss of a pixel is multiplied by the cosine between its softmax and its one-hot label (between two softmaxes for
values such as flow), without a gradient; the steps are those of PGD. Shapes: x, adv, grad (N, *S). Units: those of
``model.bounds``. Cost: that of PGD.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from robustkit.attacks.pgd import PGD
from robustkit.core.attack import ATTACKS
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.threat import Eps, Threat


@method
class PixelPGD(PGD):
    """What CosPGD and SegPGD share: the step of the published runs, 0.01 at eps 0.03."""

    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)

    steps: int = Field(default=20, ge=1, description="gradient steps a restart (T)")
    step_size: Fraction | None = Field(
        default=None, gt=0, description="alpha, in units of the input; by default eps / 3, and eps for a single step"
    )

    def size(self, threat: Threat) -> Eps:
        if self.step_size is not None:
            return self.step_size
        return threat.eps if self.steps == 1 else threat.eps / 3


@ATTACKS.register("cospgd", paper="https://arxiv.org/abs/2302.02213")
@method
class CosPGD(PixelPGD):
    """PGD on the pixels that still agree with the label: for segmentation, optical flow, depth, restoration.

    >>> CosPGD(steps=10).loss
    'cospgd'
    """

    tasks: ClassVar[tuple[str, ...]] = ("segmentation", "regression")

    loss: Literal["cospgd"] = Field(default="cospgd", description="what is maximised")
