"""Free adversarial training: one backward gives the gradients of the weights and of the inputs, m times a batch.

Shafahi et al. (https://arxiv.org/abs/1904.12843, alg. 1). A perturbation delta lives on from step to step and from
batch to batch. Each of the m replays of a batch passes ``x' = project(x + delta)`` forward and backward once, trains
the weights by it, and moves ``delta = project(x' + alpha * steepest(grad CE(f(x'), y))) - x`` for the next replay, with
alpha = eps. The attack sees what training sees: the network in train mode, in the precision of training.
Shapes: x, delta (N, *S). Units: those of ``model.bounds``. Cost of a step (a replay): 1 forward and 1 backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.defense import DEFENSES, Defense
from robustkit.core.lesson import Lesson, TrainState
from robustkit.core.model import NoGradient
from robustkit.core.options import method
from robustkit.core.specs import Fraction

DELTA = "free/delta"


@DEFENSES.register("free", paper="https://arxiv.org/abs/1904.12843")
@method
class Free(Defense):
    """Free adversarial training: the weights' own backward also moves a perturbation that is kept.

    The perturbation lies in ``state.memory``, as many rows as the largest batch had; a smaller batch takes the first
    ones. It begins at zero, and again when the shape of the inputs changes.

    Raises, when stepped:
        NoGradient: the loss does not depend on the inputs through differentiable operations.

    >>> Free(replays=4).text
    'free:replays=4'
    """

    adversarial: ClassVar[bool] = True
    replays: int = Field(default=8, ge=1, description="m, steps with every batch; the epochs are divided by it")
    step_size: Fraction | None = Field(default=None, gt=0, description="alpha, in units of the input; by default eps")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the label that is given to all classes alike"
    )

    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        delta = _kept(lesson.state, lesson.x)
        rows, bounds = len(lesson.x), lesson.model.bounds
        leaf = lesson.ball.project(lesson.x + delta[:rows], lesson.x, bounds).requires_grad_()
        outputs = lesson.forward({"adversarial": leaf})["adversarial"]
        loss = lesson.cross_entropy(outputs, self.label_smoothing).mean()
        lesson.backward(loss)
        if leaf.grad is None:
            raise NoGradient(
                "the network has no gradient: no differentiable path leads from its inputs to its outputs",
                where="the network's forward",
                fix="Look for argmax, round, detach, no_grad or numpy inside.",
            )
        alpha = lesson.ball.eps if self.step_size is None else self.step_size * lesson.state.strength
        moved = lesson.ball.step(leaf.detach(), lesson.x, leaf.grad, alpha, bounds) - lesson.x
        lesson.state.memory[DELTA] = torch.cat([moved, delta[rows:]])
        return {"adversarial": loss}


def _kept(state: TrainState, x: Tensor) -> Tensor:
    """The perturbation of the step before, with at least as many rows as ``x``; zero where there is none."""
    delta = state.memory.get(DELTA)
    if delta is None or delta.shape[1:] != x.shape[1:]:
        return torch.zeros_like(x)
    delta = delta.to(x)
    return delta if len(delta) >= len(x) else torch.cat([delta, torch.zeros_like(x[len(delta) :])])
