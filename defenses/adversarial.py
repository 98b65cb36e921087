"""PGD-AT: training on the worst inputs that projected ascent finds (https://arxiv.org/abs/1706.06083, eq. 2.1).

``min E max_{x' in B(x)} CE(f(x'), y)``: the inner maximum by K steps from a uniform point of the ball, the outer
minimum by the optimiser. The network is attacked in eval mode unless told otherwise.
Shapes: x, x' (N, *S). Units: those of ``model.bounds``. Cost of a step: K + 1 forwards and backwards of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from robustkit.core.defense import DEFENSES, AdversarialDefense
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.options import method


@DEFENSES.register("pgd-at", paper="https://arxiv.org/abs/1706.06083")
@method
class PGDAT(AdversarialDefense):
    """Adversarial training by PGD: the baseline that every other defense is held against.

    >>> PGDAT(steps=7, step_size="2/255").text
    'pgd-at:steps=7,step_size=0.00784313725490196'
    """

    def craft(self, lesson: Lesson) -> Parts:
        return {"adversarial": self.attack(lesson)[-1]}

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        return {"adversarial": lesson.cross_entropy(outputs["adversarial"], self.label_smoothing).mean()}
