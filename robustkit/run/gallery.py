"""A few samples worth looking at: original, adversarial, and what the network says of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.core.task import Classification
from robustkit.run.dense import is_dense
from robustkit.run.dense_gallery import dense_gallery
from robustkit.run.directory import RunDirectory
from robustkit.run.plan import Plan
from robustkit.run.stages import samples_file, tensors_file

SIZE = 8


def gallery(plan: Plan, run: RunDirectory) -> None:
    """Write ``gallery.json`` and ``gallery.safetensors``: broken samples of as many classes as there are."""
    if is_dense(plan.model.task):
        dense_gallery(plan, run)
    chosen = broken_samples(plan, run, SIZE) if isinstance(plan.model.task, Classification) else []
    tensors: dict[str, Tensor] = {}
    entries = []
    for i, k in chosen:
        chunk = next(c for c in plan.chunks() if i in c)
        stored = run.read_tensors(tensors_file(plan, k, chunk))
        adversarial = stored["adversarial"][stored["ids"].tolist().index(i)].to(plan.model.device)
        (x,), y = plan.inputs([i])
        label = int(y[0])
        tensors[f"original/{i}"], tensors[f"adversarial/{i}"] = x.float(), adversarial.float()
        entries.append(
            {
                "id": i,
                "label": label,
                "label_name": class_name(plan, label),
                "attack": plan.labels[k],
                **_distances(adversarial - x),
                **_tops(plan, x, adversarial),
            }
        )
    run.write_tensors("gallery.safetensors", tensors)
    run.write_json("gallery.json", entries)


def broken_samples(plan: Plan, run: RunDirectory, count: int) -> list[tuple[int, int]]:
    """(id, attack) of some broken samples: the first of each class, then the next ones."""
    broken: dict[int, tuple[int, int]] = {}
    rank: dict[int, int] = {}
    for k in range(len(plan.attacks)):
        for row in run.rows(samples_file(plan, k)):
            if row["success"]:
                broken.setdefault(row["id"], (k, row.get("label", 0)))
    order = []
    for i in sorted(broken):
        label = broken[i][1]
        rank[label] = rank.get(label, -1) + 1
        order.append((rank[label], i))
    return [(i, broken[i][0]) for _, i in sorted(order)[:count]]


def _distances(delta: Tensor) -> dict[str, float]:
    flat = delta.flatten().double()
    return {"linf": float(flat.abs().max()), "l2": float(flat.norm()), "l0": int((flat != 0).sum())}


def _tops(plan: Plan, x: Tensor, adversarial: Tensor) -> dict[str, list[dict[str, Any]]]:
    with plan.model.frozen(plan.config.seed), torch.no_grad():
        p = plan.model(torch.stack([x, adversarial])).double().softmax(1)
    top = p.topk(min(3, p.shape[1]), dim=1)
    return {
        key: [
            {"class": c, "name": class_name(plan, c), "p": v}
            for c, v in zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
        ]
        for row, key in enumerate(("clean_top", "adversarial_top"))
    }


def class_name(plan: Plan, label: int) -> str:
    """The name of an output, or its number."""
    names = plan.model.class_names or plan.data.classes
    return names[label] if names and 0 <= label < len(names) else str(label)
