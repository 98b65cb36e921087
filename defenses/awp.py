"""AWP: adversarial weight perturbation (https://arxiv.org/abs/2004.05884, alg. 1).

``min_w max_v L(w + v)``, ``L`` the loss of another defense on inputs that were made at ``w``. One step of ascent:
``v = gamma * |w| / (|g| + 1e-20) * g``, ``g = grad L(w)``, for each tensor by itself; then the weights learn from
``grad L(w + v)``, taken as a gradient at ``w``. Which tensors are moved, those of weights with two dimensions or more,
and that running statistics learn at ``w + v`` alone, is as in the authors' code.
Shapes: v as w. Units: gamma is a share of the norm of each tensor. Cost of a step: that of the defense inside, and one
forward and backward more of every part of its batch; memory: one copy of the tensors that are moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from robustkit.core.defense import DEFENSES, LossDefense
from robustkit.core.errors import UsageError
from robustkit.core.lesson import Lesson
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.weights import WeightDefense, moving
from robustkit.defenses.adversarial import PGDAT

TINY = 1e-20


@DEFENSES.register("awp", paper="https://arxiv.org/abs/2004.05884")
@method
class AWP(WeightDefense):
    """Adversarial weight perturbation: gradients where the weights are worst, relative to each tensor's norm.

    Raises, when stepped:
        UsageError: besides those of the defense inside: no tensor of the network is one of weights; a warm-up in a
            training of unknown length.

    >>> AWP(gamma=0.02, around=PGDAT(steps=7)).text
    'awp:gamma=0.02+pgd-at:steps=7'
    """

    gamma: Fraction = Field(
        default=0.01, ge=0, description="length of the perturbation of a tensor, as a share of the tensor's norm"
    )
    warmup: Fraction = Field(
        default=0.0, ge=0, lt=1, description="share of the training that passes before weights are perturbed"
    )
    around: InstanceOf[LossDefense] = Field(default_factory=PGDAT)

    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        if not self._perturbs(lesson):
            return self.around.learn(lesson)
        parts = self.around.craft(lesson)
        self.climb(lesson, parts, learns=False)
        tensors = [p for p in tensors_of_weights(lesson.model.net) if p.grad is not None]
        with moving(tensors):
            ascend(tensors, self.gamma)
            return self.settle(lesson, parts, learns=True)

    def check(self, model: Model, x: Tensor) -> None:
        super().check(model, x)
        if self.gamma and next(tensors_of_weights(model.net), None) is None:
            raise UsageError(
                "there are no weights to perturb",
                expected="a trainable parameter of two dimensions or more whose name contains 'weight'",
                got=", ".join(name for name, _ in list(model.net.named_parameters())[:5]) or "no parameters",
                where=self.name,
                fix="Rename the parameters, or train with amp, which moves all of them.",
            )

    def _perturbs(self, lesson: Lesson) -> bool:
        if self.gamma == 0:
            return False
        if self.warmup and lesson.state.total is None:
            raise UsageError(
                "a warm-up is a share of the training, whose length is not known",
                expected="the number of steps in all",
                where=f"{self.name}:warmup=",
                fix="Give it: TrainState(total=steps).",
            )
        return lesson.state.progress >= self.warmup


def tensors_of_weights(net: nn.Module) -> Iterator[nn.Parameter]:
    """What is perturbed: no biases, and of normalising layers nothing."""
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.ndim > 1 and "weight" in name:
            yield parameter


@torch.no_grad()
def ascend(tensors: list[nn.Parameter], gamma: float) -> None:
    """Move each tensor along its gradient by a share of its own norm, in place."""
    for w in tensors:
        if w.grad is not None:
            size = torch.linalg.vector_norm(w) / (torch.linalg.vector_norm(w.grad) + TINY)
            w.addcmul_(w.grad, gamma * size)
