"""D16: do the labels belong to these outputs?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import Model
from robustkit.core.task import Classification
from robustkit.run.interval import clopper_pearson, paired_p

SURE = 0.01
"""p below which a paired difference is taken to be real."""


def _row(status: Any, message: str, *, value: float | None = None, threshold: str = "", remedy: str = "") -> Diagnostic:
    return Diagnostic(
        id="D16",
        title="labels fit",
        status=status,
        value=value,
        threshold=threshold,
        message=message,
        remedy=remedy,
        invalidates=True,
    )


def label_range(model: Model, outputs: Tensor, y: Tensor) -> Diagnostic | None:
    """Labels that no output can have, with the offset that fits; None where all is well."""
    if not isinstance(model.task, Classification):
        return None
    if y.is_floating_point() or y.ndim != 1:
        return _row(
            "FAIL",
            f"labels are {y.dtype} of shape (N{''.join(f', {s}' for s in y.shape[1:])})",
            threshold="integers of shape (N,)",
            remedy="Give class indices: y.long(), or y.argmax(1) for one-hot labels.",
        )
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return _row(
            "FAIL",
            f"outputs have shape {tuple(outputs.shape)}, not that of logits",
            threshold="(N, C), C >= 2",
            remedy='Wrap dense models with task="segmentation"; a single logit z as torch.stack([-z, z], 1).',
        )
    classes, low, high = outputs.shape[1], int(y.min()), int(y.max())
    if low >= 0 and high < classes:
        return None
    offset = _best_offset(outputs.argmax(1), y, range(-high, classes - low) if high - low < classes else range(0))
    fix = (
        f"Labels fit with {_shift(offset)}: use that." if offset is not None else "Check the class map of the data set."
    )
    return _row(
        "FAIL",
        f"labels run from {low} to {high}, the network has {classes} outputs (0 to {classes - 1})",
        value=high,
        threshold=f"0 to {classes - 1}",
        remedy=fix,
    )


def _best_offset(predicted: Tensor, y: Tensor, offsets: range) -> int | None:
    """The offset under which labels are in range and agree best with the predictions."""
    if not len(offsets):
        return None
    agreement = {k: float((predicted == y + k).double().mean()) for k in offsets if abs(k) <= 1} or {offsets[0]: 0.0}
    return max(agreement, key=lambda k: agreement[k])


def audit_labels(model: Model, outputs: Tensor, y: Tensor) -> Diagnostic:
    """Offset by one, shuffled classes, or an accuracy that guessing would reach."""
    if not isinstance(model.task, Classification):
        return _row("NOT RUN", "only for classification")
    predicted, n, classes = outputs.argmax(1), len(y), outputs.shape[1]
    right = predicted == y
    accuracy, chance = float(right.double().mean()), 1 / classes
    low, high = clopper_pearson(int(right.sum()), n)
    seen = f"clean accuracy is {accuracy:.1%} on {n} samples (95 % interval {low:.1%} to {high:.1%})"
    for k in (1, -1):
        shifted = predicted == y + k
        gained, lost = int((shifted & ~right).sum()), int((right & ~shifted).sum())
        share, renamed = float(shifted.double().mean()), _renamed(predicted, y, classes)
        explains = renamed is None or share > renamed - 0.1
        if gained > lost and paired_p(lost, gained) < SURE and explains:
            return _row(
                "FAIL",
                f"labels are offset: {seen}, with {_shift(k)} it is {share:.1%}",
                value=accuracy,
                threshold="above any offset",
                remedy=f"Use {_shift(k)}, or a class map without (or with) a background class.",
            )
    if low <= chance and high < (1 + chance) / 2:
        renamed = _renamed(predicted, y, classes)
        if renamed is not None:
            return _row(
                "FAIL",
                f"classes are in another order: {seen}, under the best renaming {renamed:.1%}",
                value=accuracy,
                threshold=f"above chance ({chance:.1%})",
                remedy="Use the class map that the network was trained with.",
            )
        return _row(
            "FAIL",
            f"{seen}: no better than guessing ({chance:.1%})",
            value=accuracy,
            threshold=f"above chance ({chance:.1%})",
            remedy="Check weights, preprocessing and the class map: robustness of a guess means nothing.",
        )
    return _row("PASS", seen, value=accuracy, threshold=f"above chance ({chance:.1%})")


def _shift(k: int) -> str:
    return f"y {'+' if k > 0 else '-'} {abs(k)}"


def _renamed(predicted: Tensor, y: Tensor, classes: int) -> float | None:
    """Accuracy under the best renaming of classes, fitted on half of the probe, counted on the rest; None at chance."""
    half = torch.arange(len(y), device=y.device) % 2 == 0
    rights, total = 0, 0
    for fit, test in ((half, ~half), (~half, half)):
        counts = np.zeros((classes, classes))
        np.add.at(counts, (predicted[fit].cpu().numpy(), y[fit].cpu().numpy()), 1)
        outputs, labels = linear_sum_assignment(-counts)
        renaming = dict(zip(outputs.tolist(), labels.tolist(), strict=True))
        rights += sum(renaming[p] == t for p, t in zip(predicted[test].tolist(), y[test].tolist(), strict=True))
        total += int(test.sum())
    low, _ = clopper_pearson(rights, total)
    return rights / total if low > 2 / classes else None
