"""Images of a dense task with their labels and what the network says of them, before and after the worst attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.core.task import DenseClassification
from robustkit.run import dense
from robustkit.run.directory import RunDirectory
from robustkit.run.plan import Plan
from robustkit.run.stages import CLEAN, samples_file, tensors_file

SIZE = 6
ENTRIES, TENSORS = "dense_gallery.json", "dense_gallery.safetensors"


def dense_gallery(plan: Plan, run: RunDirectory) -> None:
    """Write the entries and the tensors of a few images, evenly spaced over the data: no choice flatters or accuses."""
    clean = {row["id"]: row for row in run.rows(CLEAN)}
    attacks = [{row["id"]: row for row in run.rows(samples_file(plan, k))} for k in range(len(plan.attacks))]
    ids = sorted(clean)
    count = min(SIZE, len(ids))
    tensors: dict[str, Tensor] = {}
    entries = []
    for i in [ids[j * len(ids) // count] for j in range(count)]:
        ran = [k for k, rows in enumerate(attacks) if i in rows]  # a stage of a suite may have left it out
        k = max(ran, key=lambda k: dense.harm_of(attacks[k][i]))
        pictures = _pictures(plan, run, i, k)
        tensors.update({f"{name}/{i}": value.cpu().contiguous() for name, value in pictures.items()})
        delta = (pictures["adversarial"] - pictures["original"]).flatten().double()
        entries.append(
            {
                "id": i,
                "attack": plan.labels[k],
                "linf": float(delta.abs().max()),
                "l2": float(delta.norm()),
                "clean": _figures(plan, clean[i]),
                "robust": _figures(plan, attacks[k][i]),
            }
        )
    run.write_tensors(TENSORS, tensors)
    run.write_json(ENTRIES, entries)


def _pictures(plan: Plan, run: RunDirectory, i: int, k: int) -> dict[str, Tensor]:
    """The image and its adversarial one (C, H, W), the labels, and the answers to both: classes (H, W) or values."""
    chunk = next(c for c in plan.chunks() if i in c)
    stored = run.read_tensors(tensors_file(plan, k, chunk))
    x, y = plan.inputs([i])
    adversarial = stored["adversarial"][stored["ids"].tolist().index(i)].to(x)
    with plan.model.frozen(plan.config.seed), torch.no_grad():
        outputs = plan.model(torch.stack([x[0], adversarial]))
    if isinstance(plan.model.task, DenseClassification):
        outputs = outputs.argmax(1).short()
        label = y[0].masked_fill(y[0] == plan.model.task.ignore_index, -1).short()
    else:
        outputs, label = outputs.float(), y[0].float()
    return {
        "original": x[0].float(),
        "adversarial": adversarial.float(),
        "label": label,
        "before": outputs[0],
        "after": outputs[1],
    }


def peak(plan: Plan) -> float | None:
    """The range of the values, for PSNR."""
    x, model = plan.inputs([0])[0], plan.model
    return dense.peak_of(model.task, x.shape[1:], model.output_shape(x), model.bounds.width)


def _figures(plan: Plan, row: dict[str, Any]) -> dict[str, float | None]:
    return {metric.key: metric.of([row]) for metric in dense.metrics_of(plan.model.task, peak(plan))}
