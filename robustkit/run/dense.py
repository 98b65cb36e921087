"""Dense tasks: the metrics of every image, and what they come to over the images and in the worst case.

Rows hold counts and means of one image, so that figures of many images are exact and merge in any order. In
segmentation the worst case of an image is the attack after which most of its labelled pixels are wrong (as in
https://arxiv.org/abs/2306.14217); its mIoU counts the same points. For values every metric has its own worst attack.
The clean image is one of the points: an attack may also do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.task import DenseClassification, Graded, Regression, Task

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A figure of a set of rows.

    Attributes:
        key, name, unit: in the results; in reports; ``share``, ``dB`` or empty.
        higher: whether larger is better.
        of: the figure of some rows, None where they have none.
    """

    key: str
    name: str
    unit: str
    higher: bool
    of: Callable[[Sequence[Row]], float | None]


def is_dense(task: Task) -> bool:
    """Whether every image counts to a degree."""
    return isinstance(task, Graded)


# -- rows ------------------------------------------------------------------------------------------------------------


def describe(task: Task, outputs: Tensor, y: Tensor) -> list[Row]:
    """The metrics of each image: counts of pixels for labels, mean errors for values; nothing for other tasks."""
    if isinstance(task, DenseClassification):
        return [_counts(z, label, task.ignore_index) for z, label in zip(outputs, y, strict=True)]
    if isinstance(task, Regression):
        columns = {"epe": end_point_error(outputs, y).tolist(), "mse": task.loss(outputs, y).tolist()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{} for _ in range(len(y))]


def _counts(logits: Tensor, y: Tensor, ignore: int) -> Row:
    """Pixels labelled, right, and by class those in both, in the label and in the prediction, of (C, H, W)."""
    valid = y != ignore
    said, label, classes = logits.argmax(0)[valid], y[valid], logits.shape[0]
    table = torch.stack([torch.bincount(part, minlength=classes) for part in (label[said == label], label, said)], 1)
    present = table.any(1).nonzero()[:, 0].tolist()
    return {
        "pixels": int(valid.sum()),
        "right": int(table[:, 0].sum()),
        "classes": [[c, *table[c].tolist()] for c in present],
    }


def harm_of(row: Row) -> float:
    """:meth:`robustkit.core.task.Graded.harm`, from what a row recorded."""
    return float(row["mse"]) if "mse" in row else 1 - row["right"] / row["pixels"] if row["pixels"] else 0.0


def end_point_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean over the pixels of the Euclidean length of the error across channels, (N,), from (N, C, *P) or (N, H, W).

    For flow (2 channels) the end-point error; with one channel the mean absolute error.

    >>> end_point_error(torch.tensor([[[[3.0]], [[4.0]]]]), torch.zeros(1, 2, 1, 1))
    tensor([5.])
    """
    error = outputs - y
    length = torch.linalg.vector_norm(error, dim=1) if error.ndim > 3 else error.abs()
    return length.flatten(1).mean(1)


# -- figures of many images --------------------------------------------------------------------------------------------


def pixel_accuracy(rows: Sequence[Row]) -> float | None:
    """Share of all labelled pixels that are right."""
    pixels = sum(row["pixels"] for row in rows)
    return sum(row["right"] for row in rows) / pixels if pixels else None


def class_iou(rows: Iterable[Row]) -> dict[int, float]:
    """Intersection over union of each class that is labelled or predicted anywhere, over the pixels of all images.

    >>> class_iou([{"classes": [[0, 2, 3, 2], [1, 1, 1, 2]]}])
    {0: 0.6666666666666666, 1: 0.5}
    """
    counts: dict[int, list[int]] = {}
    for row in rows:
        for c, *found in row["classes"]:
            counts[c] = [a + b for a, b in zip(counts.get(c, (0, 0, 0)), found, strict=True)]
    return {c: both / (label + said - both) for c, (both, label, said) in sorted(counts.items())}


def mean_iou(rows: Sequence[Row]) -> float | None:
    """Mean of :func:`class_iou` over the classes that occur."""
    values = class_iou(rows).values()
    return fmean(values) if values else None


def psnr(mse: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for a perfect answer.

    >>> psnr(0.01, 1.0)
    20.0
    """
    return math.inf if mse == 0 else 10 * math.log10(peak * peak / mse)


def metrics_of(task: Task, peak: float | None) -> tuple[Metric, ...]:
    """The metrics of a dense task, the main one first; PSNR where the range of the values is known."""
    if isinstance(task, DenseClassification):
        return (
            Metric("miou", "mIoU", "share", True, mean_iou),
            Metric("pixel_accuracy", "pixel accuracy", "share", True, pixel_accuracy),
        )
    if not isinstance(task, Regression):
        return ()
    found = Metric("epe", "end-point error", "", False, lambda rows: _mean(row["epe"] for row in rows))
    if peak is None:
        return (found,)
    return (Metric("psnr", "PSNR", "dB", True, lambda rows: _mean(psnr(row["mse"], peak) for row in rows)), found)


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    finite = all(map(math.isfinite, numbers))
    return fmean(numbers) if numbers and finite else None


def peak_of(task: Task, inputs: Sequence[int], outputs: Sequence[int], width: float) -> float | None:
    """The range of the values: the task's own, or that of the inputs where the outputs are such images too."""
    if not isinstance(task, Regression):
        return None
    return task.peak if task.peak is not None else width if list(inputs) == list(outputs) else None


# -- the worst case ----------------------------------------------------------------------------------------------------


def summary(
    task: Task,
    clean: Mapping[int, Row],
    attacks: Sequence[Mapping[int, Row]],
    names: Callable[[int], str],
    peak: float | None,
) -> dict[str, Any] | None:
    """What ``results.json`` says of a dense task; None for others and before the first image."""
    metrics = metrics_of(task, peak)
    if not metrics or not clean:
        return None
    found: dict[str, Any] = {"metrics": [_figures(metric, clean, attacks) for metric in metrics]}
    found["per_class"] = _per_class(clean, attacks, names) if isinstance(task, DenseClassification) else []
    return found


def _figures(metric: Metric, clean: Mapping[int, Row], attacks: Sequence[Mapping[int, Row]]) -> dict[str, Any]:
    return {
        "key": metric.key,
        "name": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher,
        "clean": metric.of(list(clean.values())),
        "robust": metric.of(worst_rows(clean, attacks, metric)),
        "attacks": [metric.of(worst_rows(clean, [rows], metric)) for rows in attacks],
    }


def worst_rows(clean: Mapping[int, Row], attacks: Sequence[Mapping[int, Row]], metric: Metric) -> list[Row]:
    """The row of each image at its worst point."""
    sign = 1 if metric.higher else -1
    points = {i: [row, *(rows[i] for rows in attacks if i in rows)] for i, row in clean.items()}
    if metric.key in ("miou", "pixel_accuracy"):
        return [min(rows, key=lambda row: row["right"]) for rows in points.values()]
    return [min(rows, key=lambda row: _order(metric.of([row]), sign)) for rows in points.values()]


def _order(value: float | None, sign: int) -> float:
    """Worst first; a perfect answer, whose PSNR is no number, last."""
    return math.inf if value is None else sign * value


def _per_class(
    clean: Mapping[int, Row], attacks: Sequence[Mapping[int, Row]], names: Callable[[int], str]
) -> list[dict[str, Any]]:
    before = class_iou(clean.values())
    after = class_iou(worst_rows(clean, attacks, metrics_of(DenseClassification(), None)[0]))
    pixels: dict[int, int] = {}
    for row in clean.values():
        for c, _, label, _ in row["classes"]:
            pixels[c] = pixels.get(c, 0) + label
    return [
        {"class": c, "name": names(c), "pixels": pixels.get(c, 0), "clean_iou": before.get(c), "robust_iou": after[c]}
        for c in sorted(after)
    ]


# -- targets -----------------------------------------------------------------------------------------------------------


def targets(task: Task, kind: str, classes: int, y: Tensor, ids: Tensor, seed: int) -> Tensor:
    """What a targeted attack wants of each pixel, (N, H, W): the next class, or for a whole image one drawn at random.

    Raises:
        UsageError: a task without classes; ``least-likely``, which no image as a whole has.
    """
    if not isinstance(task, DenseClassification) or kind == "least-likely":
        raise UsageError(
            "such targets do not exist for this task",
            expected="next or random, for segmentation",
            got=f"{kind}, for {task.name}",
            where="--targeted",
            fix="In Python, give targets to the attack itself: attack(model, x, y, target=...).",
        )
    if kind == "next":
        wanted = (y + 1) % classes
    else:
        draws = Draws(seed, ids.cpu(), "target").uniform(torch.empty(len(y), 1))[:, 0]
        drawn = (draws * classes).long().clamp_max(classes - 1).to(y.device)
        wanted = drawn[:, None, None].expand_as(y)
    return torch.where(y == task.ignore_index, y, wanted)
