"""Figures of certified dense outputs: every labelled pixel counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.task import DenseClassification
from robustkit.run import certify_summary as summary
from robustkit.run.certify_plan import CertifyPlan
from robustkit.run.certify_stage import map_file
from robustkit.run.directory import RunDirectory

Row = dict[str, Any]
Array = NDArray[Any]


def figures(plan: CertifyPlan, run: RunDirectory, rows: Sequence[Row]) -> dict[str, Any]:
    """Shares of labelled pixels. They are no independent draws, so shares have no interval."""
    total = {name: sum(row[name] for row in rows) for name in COUNTS}
    n = total["labelled"]
    pixels = _Pixels(plan, summary.grid(plan))
    for chunk in plan.chunks:
        if rows and chunk.start <= rows[-1]["id"]:
            pixels.add(run.read_tensors(map_file(chunk)))
    return {
        "clean_accuracy": summary.share(total["clean_right"], n),
        "clean_interval": None,
        "smoothed_accuracy": summary.share(total["chosen_right"], n),
        "certified_accuracy": summary.share(total["right"], n),
        "interval": None,
        "radius": plan.asked or 0.0,
        "abstained": summary.share(total["abstained"], n),
        "average_certified_radius": pixels.average(),
        "curve": pixels.curve(),
        "per_class": pixels.per_class(),
        "dense": {
            "fraction_certified": summary.share(total["right"], n),
            "pixels": math.prod(plan.outputs[1:]),
            "labelled": n,
            "correction": getattr(plan.certifier, "correction", "bonferroni"),
            "miou": pixels.miou(),
        },
    }


COUNTS = ("labelled", "clean_right", "chosen_right", "right", "shown", "abstained")


class _Pixels:
    """Sums over the pixels of all images, by class and by radius."""

    def __init__(self, plan: CertifyPlan, radii: Sequence[float]) -> None:
        assert isinstance(plan.model.task, DenseClassification)
        self.plan, self.radii, self.ignore = plan, list(radii), plan.model.task.ignore_index
        classes = plan.outputs[0]
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        """Label, and what was certified at the radius asked for; the last column is nothing."""
        self.nothing = np.zeros(classes, np.int64)
        """By label: pixels without a certificate at any radius."""
        self.right, self.shown = np.zeros(len(self.radii), np.int64), np.zeros(len(self.radii), np.int64)
        self.sum, self.count = 0.0, 0
        self.sizes = [(np.empty(0), np.empty(0, np.int64))] * classes
        """By label: the radii that there are, and how many pixels have each; n draws can show but n + 1 of them."""

    def add(self, maps: dict[str, Tensor]) -> None:
        known = maps["label"] != self.ignore
        label, prediction = maps["label"][known].long(), maps["prediction"][known].long()
        radius = maps["radius"][known].double()
        right, sure = prediction == label, maps["certified"][known]
        asked = self.plan.asked or 0.0  # radii are stored a little smaller: what is asked for is stored as a fact
        for k, size in enumerate(self.radii):
            big = (prediction >= 0) & ((radius >= size) | (sure & (size <= asked)))
            self.shown[k] += int(big.sum())
            self.right[k] += int((big & right).sum())
        self.sum += float((radius * right).sum())
        self.count += len(label)
        classes = self.plan.outputs[0]
        answer = torch.where(sure, prediction, classes)
        pairs = torch.bincount(label * (classes + 1) + answer, minlength=classes * (classes + 1))
        self.confusion += pairs.view(classes, classes + 1).numpy()
        self.nothing += torch.bincount(label[prediction < 0], minlength=classes).numpy()
        for c in range(classes):
            self.sizes[c] = _counted(self.sizes[c], (radius * right)[label == c].numpy())

    def average(self) -> float | None:
        return self.sum / self.count if self.count else None

    def curve(self) -> list[Row]:
        if not self.count:
            return []
        return [
            {
                "radius": radius,
                "certified_accuracy": int(self.right[k]) / self.count,
                "interval": None,
                "certified": int(self.shown[k]) / self.count,
                "empirical": None,
            }
            for k, radius in enumerate(self.radii)
        ]

    def miou(self) -> float | None:
        """Mean over classes of certified and right over the union; an abstention is in every union of its label."""
        right = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(1) + self.confusion[:, :-1].sum(0) - right
        there = union > 0
        return float((right[there] / union[there]).mean()) if there.any() else None

    def per_class(self) -> list[Row]:
        sizes = self.confusion.sum(1)
        return [
            {
                "class": c,
                "name": self.plan.class_name(c),
                "n": int(sizes[c]),
                "clean_accuracy": None,
                "certified_accuracy": int(self.confusion[c, c]) / int(sizes[c]),
                "abstained": int(self.nothing[c]) / int(sizes[c]),
                "median_radius": _median(*self.sizes[c]),
            }
            for c in range(len(sizes))
            if sizes[c]
        ]


def _counted(known: tuple[Array, Array], more: Array) -> tuple[Array, Array]:
    """Different values and how often each occurs, with some more values."""
    values, place = np.unique(np.concatenate([known[0], more]), return_inverse=True)
    weights = np.concatenate([known[1], np.ones(len(more), np.int64)])
    return values, np.bincount(place, weights, minlength=len(values)).astype(np.int64)


def _median(values: Array, counts: Array) -> float:
    """The lower median.

    >>> _median(np.array([0.0, 0.5]), np.array([2, 2])), _median(np.array([0.0, 0.5]), np.array([1, 2]))
    (0.0, 0.5)
    """
    return float(values[np.searchsorted(np.cumsum(counts), (counts.sum() - 1) // 2, side="right")])
