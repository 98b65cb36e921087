"""TRADES: clean accuracy traded for answers that stay as they are (https://arxiv.org/abs/1901.08573, eq. 5).

``min E [CE(f(x), y) + beta * max_{x' in B(x)} KL(p(x) || p(x'))]``. The attack maximises the same divergence and sees
no label. The paper leaves the divergence open; its direction, the start of the attack and that gradients pass through
p(x), too, are those of the authors' code.
Shapes: x, x' (N, *S). Units: those of ``model.bounds``; losses in nats. Cost of a step: K + 3 forwards and K + 2
backwards of the batch, for the clean answers are computed once for the whole attack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from robustkit.core.defense import DEFENSES, AdversarialDefense
from robustkit.core.divergence import Divergence, kl
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.objective import Objective
from robustkit.core.options import method
from robustkit.core.starts import START, Start, start_of


@DEFENSES.register("trades", paper="https://arxiv.org/abs/1901.08573")
@method
class TRADES(AdversarialDefense):
    """TRADES: cross-entropy of clean inputs, plus how far the worst input near them changes the answer.

    >>> TRADES(beta=1, steps=40).text
    'trades:steps=40,beta=1.0'
    """

    logits: ClassVar[bool] = True
    beta: float = Field(default=6.0, ge=0, description="weight of the divergence")
    detach_clean: bool = Field(
        default=False, description="whether the divergence teaches the adversarial answer alone, not the clean one, too"
    )
    random_start: Start = Field(default="uniform", description=START)

    @property
    def parts(self) -> int:
        return 2

    def start(self, lesson: Lesson) -> Tensor:
        return start_of(lesson, self.random_start)

    def objective(self, lesson: Lesson) -> Objective:
        return Divergence(lesson.model.task, lesson.y, answers=lesson.model(lesson.x))

    def craft(self, lesson: Lesson) -> Parts:
        return {"clean": lesson.x, "adversarial": self.attack(lesson)[-1]}

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        clean = outputs["clean"]
        taught = clean.detach() if self.detach_clean else clean
        return {
            "clean": lesson.cross_entropy(clean, self.label_smoothing).mean(),
            "kl": self.beta * kl(taught, outputs["adversarial"]).mean(),
        }
