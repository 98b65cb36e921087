"""D16: do the labels belong to these outputs?"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.task import Classification
from robustkit.run.interval import clopper_pearson, paired_p
from robustkit.run.probe import row

SURE = 0.01
"""p below which a paired difference is taken to be real."""


def label_range(model: Model, outputs: Tensor, y: Tensor) -> Diagnostic | None:
    """Labels that no output can have, with the offset that fits; None where all is well."""
    if not isinstance(model.task, Classification):
        return _other_task(model, outputs, y)
    if y.is_floating_point() or y.ndim != 1:
        return row(
            "D16",
            "FAIL",
            f"labels are {y.dtype} of shape (N{''.join(f', {s}' for s in y.shape[1:])})",
            threshold="integers of shape (N,)",
            remedy="Give class indices: y.long(), or y.argmax(1) for one-hot labels.",
        )
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return row(
            "D16",
            "FAIL",
            f"outputs have shape {tuple(outputs.shape)}, not that of logits",
            threshold="(N, C), C >= 2",
            remedy='Wrap dense models with task="segmentation"; a single logit z as torch.stack([-z, z], 1).',
        )
    classes, low, high = outputs.shape[1], int(y.min()), int(y.max())
    if low >= 0 and high < classes:
        return None
    return row(
        "D16",
        "FAIL",
        f"labels run from {low} to {high}, the network has {classes} outputs (0 to {classes - 1})",
        value=high,
        threshold=f"0 to {classes - 1}",
        remedy=_fitting(outputs.argmax(1), y, range(-low, classes - high)),
    )


def _other_task(model: Model, outputs: Tensor, y: Tensor) -> Diagnostic | None:
    try:
        model.task.check(outputs, y)
    except UsageError as error:
        return row("D16", "FAIL", f"{error.what}: {error.got}", threshold=error.expected, remedy=error.fix)
    return None


def _fitting(predicted: Tensor, y: Tensor, offsets: range) -> str:
    """What to write: the offset, of those that bring all labels into range, that agrees best with the predictions."""
    if not len(offsets):
        return "No offset fits: the data have more classes than the network, or another class map."
    agreement = {k: float((predicted == y + k).double().mean()) for k in offsets}
    best = max(agreement, key=lambda k: (agreement[k], -abs(k)))
    return f"Labels fit with {_shift(best)}: use that (clean accuracy {agreement[best]:.1%})."


def mislabelled(model: Model, outputs: Tensor, y: Tensor) -> tuple[Diagnostic, float] | None:
    """Labels offset by one, or classes in another order, with the clean accuracy once that is mended."""
    if not isinstance(model.task, Classification):
        return None
    predicted, right, chance = outputs.argmax(1), outputs.argmax(1) == y, 1 / outputs.shape[1]
    renamed = None
    for k in (1, -1):
        shifted = predicted == y + k
        gained, lost = int((shifted & ~right).sum()), int((right & ~shifted).sum())
        if gained <= lost or paired_p(lost, gained) >= SURE:
            continue
        share, renamed = float(shifted.double().mean()), _renamed(predicted, y, outputs.shape[1])
        if renamed is None or share > renamed - 0.1:
            message = f"labels are offset: {_seen(right)}, with {_shift(k)} it is {share:.1%}"
            return _failed(right, chance, message, f"Use {_shift(k)}, or a class map with the right classes."), share
    if not _no_better(right, chance):
        return None
    renamed = renamed or _renamed(predicted, y, outputs.shape[1])
    if renamed is None:
        return None
    message = f"classes are in another order: {_seen(right)}, under the best renaming {renamed:.1%}"
    return _failed(right, chance, message, "Use the class map that the network was trained with."), renamed


def audit_labels(model: Model, outputs: Tensor, y: Tensor) -> Diagnostic:
    """Whether clean accuracy is one that guessing would reach."""
    if not isinstance(model.task, Classification):
        return row("D16", "NOT RUN", "labels fit the outputs; their order is looked at for classification only")
    right, chance = outputs.argmax(1) == y, 1 / outputs.shape[1]
    if _no_better(right, chance):
        message = f"{_seen(right)}: no better than guessing ({chance:.1%})"
        remedy = "Check weights, preprocessing and the class map: robustness of a guess means nothing."
        return _failed(right, chance, message, remedy)
    accuracy = float(right.double().mean())
    return row("D16", "PASS", _seen(right), value=accuracy, threshold=f"above chance ({chance:.1%})")


def _failed(right: Tensor, chance: float, message: str, remedy: str) -> Diagnostic:
    accuracy, threshold = float(right.double().mean()), f"above chance ({chance:.1%})"
    return row("D16", "FAIL", message, value=accuracy, threshold=threshold, remedy=remedy)


def _no_better(right: Tensor, chance: float) -> bool:
    """The interval of clean accuracy reaches down to chance, and not up to the middle between that and 1."""
    low, high = clopper_pearson(int(right.sum()), len(right))
    return low <= chance and high < (1 + chance) / 2


def _seen(right: Tensor) -> str:
    low, high = clopper_pearson(int(right.sum()), len(right))
    accuracy = float(right.double().mean())
    return f"clean accuracy is {accuracy:.1%} on {len(right)} samples (95 % interval {low:.1%} to {high:.1%})"


def _shift(k: int) -> str:
    return f"y {'+' if k > 0 else '-'} {abs(k)}"


def _renamed(predicted: Tensor, y: Tensor, classes: int) -> float | None:
    """Accuracy under the best renaming of classes, fitted on one half and counted on the other; None at chance."""
    half = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    half[y.argsort(stable=True)[::2]] = True  # every class in both
    rights = sum(_renamed_right(predicted[a], y[a], predicted[b], y[b]) for a, b in ((half, ~half), (~half, half)))
    low, _ = clopper_pearson(rights, len(y))
    chance = max(1 / classes, int(y.unique(return_counts=True)[1].max()) / len(y))  # what naming one class reaches
    return rights / len(y) if low > min(2 * chance, (1 + chance) / 2) else None


def _renamed_right(predicted: Tensor, y: Tensor, new_predicted: Tensor, new_y: Tensor) -> int:
    """Right samples of the second half under the renaming that fits the first; only classes that occur take part."""
    outputs, rows = np.unique(predicted.cpu().numpy(), return_inverse=True)
    labels, columns = np.unique(y.cpu().numpy(), return_inverse=True)
    counts = np.zeros((len(outputs), len(labels)))
    np.add.at(counts, (rows, columns), 1)
    pairs = zip(*linear_sum_assignment(-counts), strict=True)
    renaming = {int(outputs[i]): int(labels[j]) for i, j in pairs}
    return sum(renaming.get(p) == t for p, t in zip(new_predicted.tolist(), new_y.tolist(), strict=True))
