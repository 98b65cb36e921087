"""What an attack maximises: a loss of the outputs, away from the label or towards a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.task import Classification, Task

Loss = Literal["ce", "margin", "dlr"]


class Objective(Protocol):
    """A function of the outputs that an attack maximises, sample by sample."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """(N,), differentiable."""

    def reached(self, outputs: Tensor) -> Tensor:
        """(N,) bool: the attack has what it wants."""

    def take(self, index: Tensor | slice) -> Objective:
        """The same objective for some of the samples."""


@dataclass(frozen=True, eq=False)
class LabelObjective:
    """Away from the labels ``y``, or towards ``target``.

    ``ce`` is the task's own loss (cross-entropy for classifiers); ``margin`` the largest other logit minus the
    label's; ``dlr`` the margin divided by a difference of sorted logits, so that scaling the logits changes nothing
    (https://arxiv.org/abs/2003.01690, eq. 6 and 8).

    Raises:
        UsageError: ``margin`` or ``dlr`` on a task that is not a classification.
    """

    task: Task
    y: Tensor
    target: Tensor | None = None
    loss: Loss = "ce"

    def __post_init__(self) -> None:
        if self.loss != "ce" and not isinstance(self.task, Classification):
            raise UsageError(
                f"the {self.loss} loss needs class logits",
                expected="a classification task",
                got=self.task.name,
                where=f"loss={self.loss}",
                fix="Use loss=ce.",
            )

    def __call__(self, outputs: Tensor) -> Tensor:
        if self.loss == "margin":
            return margin(outputs, self.y) if self.target is None else -margin(outputs, self.target)
        if self.loss == "dlr":
            return dlr(outputs, self.y, self.target)
        return self.task.loss(outputs, self.y) if self.target is None else -self.task.loss(outputs, self.target)

    def reached(self, outputs: Tensor) -> Tensor:
        if self.target is None:
            return self.task.failed(outputs, self.y)
        return ~self.task.failed(outputs, self.target)

    def take(self, index: Tensor | slice) -> LabelObjective:
        return replace(self, y=self.y[index], target=None if self.target is None else self.target[index])


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus that of ``y``, (N,): positive where the network does not say ``y``.

    >>> margin(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    tensor([-2.,  2.])
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio, (N,), untargeted or targeted.

    The published denominators need three classes (four with a target). With fewer, the root mean square of the
    centred logits takes their place: it, too, makes the loss blind to shifts and scalings of the logits.
    """
    classes = logits.shape[1]
    top = logits.topk(min(4, classes), dim=1).values
    if target is None:
        gap = margin(logits, y)
        scale = top[:, 0] - top[:, 2] if classes >= 3 else _spread(logits)
    else:
        gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]
        scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 if classes >= 4 else _spread(logits)
    return gap / (scale + 1e-12)


def _spread(logits: Tensor) -> Tensor:
    return (logits - logits.mean(1, keepdim=True)).square().mean(1).sqrt()
