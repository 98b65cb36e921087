"""What an attack maximises: a loss of the outputs, away from the label or towards a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from robustkit.core.dense import cospgd_labels, cospgd_values, segpgd_labels
from robustkit.core.errors import UsageError
from robustkit.core.task import Classification, DenseClassification, Graded, Regression, Task

Loss = Literal["ce", "margin", "dlr", "cospgd", "segpgd"]
SUITS: dict[Loss, tuple[type[Task], ...]] = {
    "margin": (Classification,),
    "dlr": (Classification,),
    "cospgd": (DenseClassification, Regression),
    "segpgd": (DenseClassification,),
}
"""The tasks that a loss is defined for; ``ce`` is the own loss of any."""


class Objective(Protocol):
    """A function of the outputs that an attack maximises, sample by sample."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """(N,), differentiable."""

    def reached(self, outputs: Tensor) -> Tensor:
        """(N,) bool: the attack has what it wants."""

    @property
    def graded(self) -> bool:
        """Whether an answer is wrong to a degree (:class:`robustkit.core.task.Graded`)."""

    def harm(self, outputs: Tensor) -> Tensor:
        """(N,), how far the attack has come; of graded objectives only."""

    def take(self, index: Tensor | slice) -> Objective:
        """The same objective for some of the samples."""

    def at(self, progress: float) -> Objective:
        """The objective at a share of the steps, 0 at the first: some change on the way."""

    def aimed(self, classes: Tensor) -> Objective:
        """The objective steered towards classes (N,); what counts as reached stays the same."""


class Functions(Protocol):
    """Several functions of the outputs, sample by sample."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """(N, K), differentiable."""

    def take(self, index: Tensor | slice) -> Functions:
        """The same for some of the samples."""


@dataclass(frozen=True, eq=False)
class LabelObjective:
    """Away from the labels ``y``, or towards ``target``.

    ``ce`` is the task's own loss (cross-entropy for classifiers); ``margin`` the largest other logit minus the
    label's; ``dlr`` the margin divided by a difference of sorted logits, so that scaling the logits changes nothing
    (https://arxiv.org/abs/2003.01690, eq. 6 and 8); ``cospgd`` and ``segpgd`` weigh the pixels of dense tasks
    (:mod:`robustkit.core.dense`).

    Attributes:
        task, y, target, loss: what the outputs mean, the labels, the classes to reach, the name of the loss.
        aim: classes to steer towards where any mistake counts: the loss is that of a targeted attack, the verdict that
            of an untargeted one.
        confidence: by how much the logit of the label must be exceeded (of the target: exceed all others) to count.
        progress: share of the steps that are done; for losses that change on the way.

    Raises:
        UsageError: a loss on a task that it is not defined for.
    """

    task: Task
    y: Tensor
    target: Tensor | None = None
    loss: Loss = "ce"
    aim: Tensor | None = None
    confidence: float = 0.0
    progress: float = 0.0

    def __post_init__(self) -> None:
        if self.loss in SUITS and not isinstance(self.task, SUITS[self.loss]):
            raise _unsuited(self.loss, self.task)

    def __call__(self, outputs: Tensor) -> Tensor:
        towards = self.aim if self.target is None else self.target
        if self.loss == "margin":
            return self._margin(outputs)
        if self.loss == "dlr":
            return dlr(outputs, self.y, towards)
        return self._loss(outputs, self.y, False) if towards is None else -self._loss(outputs, towards, True)

    def _loss(self, outputs: Tensor, y: Tensor, towards: bool) -> Tensor:
        if self.loss == "ce":
            return self.task.loss(outputs, y)
        if not isinstance(self.task, DenseClassification):
            return cospgd_values(outputs, y, towards=towards)
        if self.loss == "cospgd":
            return cospgd_labels(outputs, y, self.task.ignore_index, towards=towards)
        return segpgd_labels(outputs, y, self.task.ignore_index, self.progress, towards=towards)

    def _margin(self, outputs: Tensor) -> Tensor:
        if self.target is not None:
            return -margin(outputs, self.target)
        if self.aim is not None:
            return (outputs.gather(1, self.aim[:, None]) - outputs.gather(1, self.y[:, None]))[:, 0]
        return margin(outputs, self.y)

    def reached(self, outputs: Tensor) -> Tensor:
        won = self.task.failed(outputs, self.y) if self.target is None else ~self.task.failed(outputs, self.target)
        if self.confidence == 0:
            return won
        lead = margin(outputs, self.y) if self.target is None else -margin(outputs, self.target)
        return won & (lead >= self.confidence)

    @property
    def graded(self) -> bool:
        return isinstance(self.task, Graded)

    def harm(self, outputs: Tensor) -> Tensor:
        assert isinstance(self.task, Graded)
        return self.task.harm(outputs, self.y) if self.target is None else -self.task.harm(outputs, self.target)

    def take(self, index: Tensor | slice) -> LabelObjective:
        return replace(self, y=self.y[index], target=_part(self.target, index), aim=_part(self.aim, index))

    def at(self, progress: float) -> LabelObjective:
        return replace(self, progress=progress)

    def aimed(self, classes: Tensor) -> LabelObjective:
        return replace(self, aim=classes)


def _unsuited(loss: Loss, task: Task) -> UsageError:
    suits = " or ".join(f"task {kind.name}" for kind in SUITS[loss])
    why, fix = f"the {loss} loss needs class logits", "Use loss=ce."
    if loss in ("cospgd", "segpgd"):
        why = f"the {loss} loss weighs the pixels of an answer"
        if isinstance(task, Classification):
            why += ": with one label a sample the weight is one positive number, and every step is that of plain PGD"
            fix = "Use --attack pgd; for a network that labels pixels say --task segmentation."
        else:
            fix = "Use loss=cospgd, which is defined for values too."
    return UsageError(why, expected=suits, got=f"task {task.name}", where=f"loss={loss}", fix=fix)


def _part(tensor: Tensor | None, index: Tensor | slice) -> Tensor | None:
    return None if tensor is None else tensor[index]


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
