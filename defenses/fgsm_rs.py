"""FGSM-RS: adversarial training with one large step from a random point (https://arxiv.org/abs/2001.03994, alg. 3).

``d ~ U(B)``, ``d = project(d + alpha * steepest(grad CE(f(x + d), y)))`` with alpha = 1.25 * eps: PGD-AT with K = 1 and
this step. The authors' code attacks in train mode; here the network is attacked in eval mode unless told otherwise.
Shapes: x, x' (N, *S). Units: those of ``model.bounds``. Cost of a step: 2 forwards and backwards of the batch.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from robustkit.core.defense import DEFENSES
from robustkit.core.lesson import Lesson
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.threat import Eps
from robustkit.defenses.adversarial import PGDAT


@DEFENSES.register("fgsm-rs", paper="https://arxiv.org/abs/2001.03994")
@method
class FGSMRS(PGDAT):
    """Fast adversarial training: one step of 1.25 eps from a random point; cheap, and liable to collapse.

    >>> FGSMRS(step_size="10/255").text
    'fgsm-rs:step_size=0.0392156862745098'
    """

    STEP: ClassVar[float] = 1.25
    steps: int = Field(default=1, init=False)
    step_size: Fraction | None = Field(
        default=None, gt=0, description="alpha, in units of the input; by default 1.25 * eps"
    )

    def size(self, lesson: Lesson) -> Eps:
        return self.STEP * lesson.ball.eps if self.step_size is None else super().size(lesson)
