"""Defenses that move the weights: the gradients are taken at weights near the present ones, where the loss is larger.

What they have in common stands here: weights that move for a while and come back to the last bit, and the wrapping of
the loss that is trained (``awp:gamma=0.01+pgd-at:steps=10``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from robustkit.core.defense import Defense, LossDefense
from robustkit.core.lesson import Lesson, Parts, Statistics
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.threat import Threat


@contextmanager
def moving(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Let these parameters be changed in place inside; afterwards they have every bit of before, also on error.

    Yields where they were, in their order: one copy of these parameters, which is all that is copied. The storage stays
    the same, so that views of it (processes that train together, recurrent layers) see the moved weights, too.
    """
    homes = [parameter.detach().clone() for parameter in parameters]
    try:
        yield homes
    finally:
        with torch.no_grad():
            for parameter, home in zip(parameters, homes, strict=True):
                parameter.copy_(home)
        torch.clear_autocast_cache()  # a caller's own autocast would go on with the moved ones


@method
class WeightDefense(Defense):
    """A defense around a loss: its inputs are made at the present weights, its gradients are taken at others.

    ``threat`` is that of the whole; the loss inside gets it, and where none is given, that of the loss is taken.

    What is inside has to be a loss: ``free``, which fills the gradients in its own way, and a second weight defense are
    refused.
    """

    around: InstanceOf[LossDefense]

    def __post_init__(self) -> None:
        if self.threat is None:
            object.__setattr__(self, "threat", self.around.threat)
        elif self.around.threat != self.threat:
            object.__setattr__(self, "around", replace(self.around, threat=self.threat))

    @abstractmethod
    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """``craft`` once, :meth:`climb`, move the weights, and :meth:`settle` where they are then."""

    def climb(self, lesson: Lesson, parts: Parts, *, learns: bool) -> None:
        """Gradients where the weights are now, by which they are then moved.

        The pass after it draws the same dropout: the loss that is climbed is the one that is learnt from.

        Args:
            lesson: the step at work.
            parts: of the batch, as crafted.
            learns: whether running statistics take notice of this pass.
        """
        device = lesson.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.settle(lesson, parts, learns=learns)

    def settle(self, lesson: Lesson, parts: Parts, *, learns: bool) -> Mapping[str, Tensor]:
        """Gradients where the weights are now, for the optimiser, and the terms of the loss there."""
        lesson.forget()
        torch.clear_autocast_cache()  # inside a caller's own autocast the weights would be those of the pass before
        with nullcontext() if learns else lesson.unlearnt():
            return self.around.fit(lesson, parts)

    # -- what the loss inside says of itself ---------------------------------------------------------------------------

    @property
    def adversarial(self) -> bool:  # type: ignore[override]  # elsewhere of the class; here of what is inside
        """Whether the loss inside attacks."""
        return self.around.adversarial

    @property
    def logits(self) -> bool:  # type: ignore[override]
        """Whether the loss inside takes classifiers alone."""
        return self.around.logits

    @property
    def norms(self) -> tuple[str, ...]:  # type: ignore[override]
        """In which norms the loss inside works."""
        return self.around.norms

    @property
    def bn(self) -> Statistics:
        return self.around.bn

    @property
    def replays(self) -> int:
        return self.around.replays

    @property
    def parts(self) -> int:
        return self.around.parts

    def prepare(self, model: Model) -> Model:
        return self.around.prepare(model)

    def check(self, model: Model, x: Tensor) -> None:
        self.around.check(model, x)

    def with_threat(self, threat: Threat | None) -> WeightDefense:
        return replace(self, threat=threat, around=replace(self.around, threat=threat))

    @property
    def text(self) -> str:
        return f"{super().text}+{self.around.text}"
