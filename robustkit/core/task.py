"""Tasks turn outputs and labels into a per-sample loss and a per-sample verdict."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from robustkit.core.dense import right
from robustkit.core.errors import UsageError, near
from robustkit.core.specs import MethodSpec, unreadable


@runtime_checkable
class Task(Protocol):
    """What a network is for."""

    @property
    def name(self) -> str:
        """As it stands in configurations."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """(N,), larger is worse for the model; never averaged over the batch."""

    def failed(self, outputs: Tensor, y: Tensor) -> Tensor:
        """(N,) bool."""

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Whether labels fit outputs of this shape; outputs may hold fewer samples than y.

        Raises:
            UsageError: wrong shape, dtype or range.
        """


@runtime_checkable
class Graded(Task, Protocol):
    """A task whose answers are wrong to a degree: attacks go on to the worst point instead of the first bad one."""

    def harm(self, outputs: Tensor, y: Tensor) -> Tensor:
        """(N,), 0 for a perfect answer; the larger, the further off."""


@dataclass(frozen=True)
class Classification:
    """One label a sample: outputs (N, C) logits, y (N,) int64."""

    name: ClassVar[str] = "classification"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="none")

    def failed(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.argmax(1) != y

    def check(self, outputs: Tensor, y: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise UsageError(
                "a classifier must return logits",
                expected="outputs of shape (N, C) with C >= 2",
                got=str(tuple(outputs.shape)),
                where="the network's outputs",
                fix='Wrap dense models with task="segmentation"; a single logit z as stack([-z, z], 1).',
            )
        _check_labels(y, outputs.shape[1], (), None)


@dataclass(frozen=True)
class DenseClassification:
    """One label a pixel: outputs (N, C, H, W), y (N, H, W) int64.

    Attributes:
        fraction: an image counts as broken when at least this share of its labelled pixels is wrong.
        ignore_index: label of pixels that count for nothing.
    """

    fraction: float = 0.5
    ignore_index: int = 255
    name: ClassVar[str] = "segmentation"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, y, reduction="none", ignore_index=self.ignore_index)
        return loss.flatten(1).sum(1) / self._labelled(y).sum(1).clamp_min(1)

    def failed(self, outputs: Tensor, y: Tensor) -> Tensor:
        labelled = self._labelled(y).sum(1)
        return self._wrong(outputs, y) >= self.fraction * labelled.clamp_min(1)

    def harm(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Share of the labelled pixels that are wrong, (N,)."""
        return self._wrong(outputs, y) / self._labelled(y).sum(1).clamp_min(1)

    def _wrong(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (~right(outputs, y)).flatten(1).logical_and(self._labelled(y)).sum(1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        if outputs.ndim != 4:
            raise UsageError(
                "a dense classifier must return logits",
                expected="outputs of shape (N, C, H, W)",
                got=str(tuple(outputs.shape)),
                where="the network's outputs",
            )
        _check_labels(y, outputs.shape[1], tuple(outputs.shape[2:]), self.ignore_index)

    def _labelled(self, y: Tensor) -> Tensor:
        return (y != self.ignore_index).flatten(1)


@dataclass(frozen=True)
class Regression:
    """Values to predict: outputs and y (N, *T), of any number of channels.

    Attributes:
        tolerance: a sample counts as broken when any of its values is off by more than this.
        peak: range of the values, for PSNR; where outputs are images like the inputs, that of the inputs is taken.
    """

    tolerance: float = 1.0
    peak: float | None = None
    name: ClassVar[str] = "regression"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).flatten(1).square().mean(1)

    def failed(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).flatten(1).abs().amax(1) > self.tolerance

    def harm(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean squared error, (N,): the worst point is that of the lowest PSNR."""
        return self.loss(outputs, y)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        if y.shape[1:] != outputs.shape[1:] or not y.is_floating_point():
            raise UsageError(
                "targets do not fit the outputs",
                expected=f"float values of shape (N, {_dims(outputs)})",
                got=f"{y.dtype} of shape {tuple(y.shape)}",
                where="y",
            )


TASKS: dict[str, type[Task]] = {
    Classification.name: Classification,
    DenseClassification.name: DenseClassification,
    Regression.name: Regression,
}


def task_from(task: Task | str) -> Task:
    """The task that a text such as ``segmentation`` or ``segmentation:ignore_index=0`` stands for; tasks pass through.

    >>> task_from("segmentation:fraction=0.9").fraction
    0.9

    Raises:
        UsageError: unknown name or option, a value that is no number.
    """
    if not isinstance(task, str):
        return task
    spec = MethodSpec.parse(task)
    if spec.name not in TASKS:
        raise UsageError(f"unknown task {spec.name!r}", fix=near(spec.name, TASKS))
    kind = TASKS[spec.name]
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    for key, value in spec.options.items():
        if key == "name":  # the form without a key
            raise unreadable(value, task)
        if key not in known:
            raise UsageError(f"unknown option {key!r}", where=f"task {task}", fix=near(key, known))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError("not a number", expected="a number", got=repr(value), where=f"task {task}, {key}")
    return kind(**spec.options)


def task_text(task: Task) -> str:
    """The text form of a task, with the options that differ from their defaults; a task of one's own has its name.

    >>> task_text(task_from("segmentation:ignore_index=0"))
    'segmentation:ignore_index=0'
    """
    if type(task) is not TASKS.get(task.name):
        return task.name
    values = ((item.name, getattr(task, item.name), item.default) for item in fields(task))  # type: ignore[arg-type]
    return str(MethodSpec(task.name, {name: value for name, value, default in values if value != default}))


def _check_labels(y: Tensor, classes: int, shape: tuple[int, ...], ignore: int | None) -> None:
    if y.is_floating_point() or y.is_complex() or tuple(y.shape[1:]) != shape:
        raise UsageError(
            "labels have the wrong form",
            expected=f"integer labels of shape (N{''.join(f', {s}' for s in shape)})",
            got=f"{y.dtype} of shape {tuple(y.shape)}",
            where="y",
            fix="Convert class indices with y.long(); one-hot labels with y.argmax(1).",
        )
    counted = y if ignore is None else y[y != ignore]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise UsageError(
            "labels are out of range",
            expected=f"0 .. {classes - 1}, for the {classes} outputs of the network",
            got=f"{int(counted.min())} .. {int(counted.max())}",
            where="y",
            fix="Check the class map of the data set; labels that start at 1 need y - 1.",
        )


def _dims(outputs: Tensor) -> str:
    return ", ".join(str(size) for size in outputs.shape[1:])
