"""ERM and Gaussian augmentation: the two trainings that attack nothing.

``erm`` is ordinary training, ``min E CE(f(x), y)``; ``noise`` trains on x + N(0, sigma^2), which leaves the bounds on
purpose and prepares a network for randomized smoothing (https://arxiv.org/abs/1902.02918, sec. 4).
Shapes: x (N, *S). Units: those of ``model.bounds``. Cost of a step: 1 forward and 1 backward of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from robustkit.core.defense import DEFENSES, LossDefense
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.options import method
from robustkit.core.specs import Fraction


@DEFENSES.register("erm", paper="https://doi.org/10.1007/978-1-4757-3264-1")
@method
class ERM(LossDefense):
    """Empirical risk minimisation: ordinary training, on clean inputs.

    >>> ERM(label_smoothing=0.1).text
    'erm:label_smoothing=0.1'
    """

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the label that is given to all classes alike"
    )

    def craft(self, lesson: Lesson) -> Parts:
        return {"clean": lesson.x}

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        return {"clean": lesson.cross_entropy(outputs["clean"], self.label_smoothing).mean()}


@DEFENSES.register("noise", paper="https://arxiv.org/abs/1902.02918")
@method
class Noise(LossDefense):
    """Gaussian augmentation: training on noisy inputs, for randomized smoothing.

    >>> Noise(sigma=0.5).sigma
    0.5
    """

    sigma: Fraction = Field(default=0.25, gt=0, description="standard deviation of the noise, in units of the input")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the label that is given to all classes alike"
    )

    def craft(self, lesson: Lesson) -> Parts:
        return {"noisy": lesson.x + self.sigma * lesson.draws.normal(lesson.x)}

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        return {"noisy": lesson.cross_entropy(outputs["noisy"], self.label_smoothing).mean()}
