"""AMP: adversarial model perturbation (https://arxiv.org/abs/2010.04925, alg. 1).

``min_w max_{|d| <= eps} L(w + d)``, ``L`` the loss of ordinary training or of another defense, whose inputs are made at
``w``. N steps of ascent, ``d = clip(d + zeta * grad L(w + d))`` from ``d = 0``, where ``clip`` shortens d to a norm of
at most eps; then the weights learn from ``grad L(w + d)``, taken as a gradient at ``w``. The authors' code has a ball
for each tensor by itself, the paper one for all of them together.
Shapes: d as w. Units: eps and d those of the weights. Cost of a step: that of the defense inside, and N forwards and
backwards more of every part of its batch; memory: one copy of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from robustkit.core.defense import DEFENSES, LossDefense
from robustkit.core.lesson import Lesson
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.weights import WeightDefense, moving
from robustkit.defenses.erm import ERM

Scope = Literal["tensor", "global"]


@DEFENSES.register("amp", paper="https://arxiv.org/abs/2010.04925")
@method
class AMP(WeightDefense):
    """Adversarial model perturbation: gradients where the weights are worst in a ball, to regularise training.

    >>> AMP(eps=0.1, norm_scope="global").text
    'amp:eps=0.1,norm_scope=global+erm'
    """

    eps: Fraction = Field(default=0.5, ge=0, description="radius of the ball of perturbations, in units of the weights")
    zeta: Fraction = Field(default=1.0, gt=0, description="length of a step of ascent, in gradients")
    inner_steps: int = Field(default=1, ge=1, description="steps of ascent, N")
    norm_scope: Scope = Field(
        default="tensor", description="what the ball is of: tensor (each parameter by itself) or global (all together)"
    )
    clip: Fraction | None = Field(
        default=None, gt=0, description="largest norm of all gradients together that a step of ascent uses"
    )
    freeze_bn: bool = Field(
        default=True, description="whether running statistics learn only from the pass at the weights as they are"
    )
    around: InstanceOf[LossDefense] = Field(default_factory=ERM)

    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        parts = self.around.craft(lesson)
        self.climb(lesson, parts, learns=True)
        tensors = [p for p in lesson.model.net.parameters() if p.grad is not None]
        with moving(tensors) as homes:
            self._ascend(tensors, homes)
            for _ in range(self.inner_steps - 1):
                self.climb(lesson, parts, learns=not self.freeze_bn)
                self._ascend(tensors, homes)
            return self.settle(lesson, parts, learns=not self.freeze_bn)

    @torch.no_grad()
    def _ascend(self, tensors: Sequence[nn.Parameter], homes: Sequence[Tensor]) -> None:
        """Move the parameters to the end of the next step; their gradients are used up."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(tensors, self.clip)
        steps = [_moved(w.grad, self.zeta, w - home) for w, home in zip(tensors, homes, strict=True)]
        for w, home, step, factor in zip(tensors, homes, steps, self._factors(steps), strict=True):
            w.copy_(home).addcmul_(step, factor)

    def _factors(self, steps: Sequence[Tensor]) -> list[Tensor]:
        """By what each perturbation is shortened, so that it lies in the ball, ()."""
        norms = [torch.linalg.vector_norm(step) for step in steps]
        if self.norm_scope == "global":
            norms = [torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))] * len(norms)
        return [torch.where(n > self.eps, self.eps / n, 1).to(step) for n, step in zip(norms, steps, strict=True)]


def _moved(grad: Tensor | None, zeta: float, moved: Tensor) -> Tensor:
    """A perturbation and a step of ascent more, in the memory of the gradient.

    The perturbation so far is read off the weights, so that no second copy of them has to be kept.
    """
    return moved if grad is None else grad.mul_(zeta).add_(moved)
