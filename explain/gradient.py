"""The gradient of the target, and its product with the input (https://arxiv.org/abs/1312.6034, sec. 3).

Both are signed: what raises the target is positive. Shapes: x and map (N, *S). Units: of the output per unit of the
input, and of the output. Cost: one forward and one backward for each sample, and one forward for the target.
"""

from __future__ import annotations

from robustkit.core.explainer import EXPLAINERS, Explainer, Map, Subject
from robustkit.core.options import method


@EXPLAINERS.register("gradient", paper="https://arxiv.org/abs/1312.6034")
@method
class Gradient(Explainer):
    """Gradient of the target: how the output moves when a value of the input does.

    >>> Gradient(output="probability").output
    'probability'
    """

    def attribute(self, subject: Subject) -> Map:
        return Map(subject.gradient())


@EXPLAINERS.register("input-times-gradient", paper="https://arxiv.org/abs/1605.01713")
@method
class InputTimesGradient(Explainer):
    """Input times gradient: the share of every value if the network were linear and black meant nothing.

    >>> InputTimesGradient().signed
    True
    """

    def attribute(self, subject: Subject) -> Map:
        return Map(subject.gradient() * subject.x)
