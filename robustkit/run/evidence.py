"""What the diagnostics after the attacks look at: a probe of the samples, and the adversarial inputs on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustkit.core.task import Regression
from robustkit.run import dense
from robustkit.run.diagnostics import Evidence
from robustkit.run.directory import RunDirectory
from robustkit.run.plan import Plan
from robustkit.run.stages import CLEAN, samples_file, tensors_file
from robustkit.run.verification import Batch

PROBE_VALUES = 64 * 3 * 32 * 32
"""Input values of the probe: 64 small images, or a few photos."""


def gather(plan: Plan, run: RunDirectory) -> Evidence:
    """The evidence of a run whose chunks are all done."""
    clean = {row["id"]: row for row in run.rows(CLEAN)}
    rows = {label: {row["id"]: row for row in run.rows(samples_file(plan, k))} for k, label in enumerate(plan.labels)}
    right = [i for i, row in clean.items() if row["correct"]]
    ids = _spaced(right, _probe_size(plan))
    x, y = plan.inputs(ids) if ids else plan.inputs([0])
    x, y = x[: len(ids)], y[: len(ids)]
    index = torch.tensor(ids, dtype=torch.long)
    least = torch.tensor([clean[i].get("least", -1) for i in ids], device=y.device, dtype=torch.long)
    success = {
        label: torch.tensor([found.get(i, {}).get("success", False) for i in ids], dtype=torch.bool)
        for label, found in rows.items()
    }
    classes = plan.model.output_shape(plan.inputs([0])[0])[0]
    return Evidence(
        model=plan.model,
        x=x,
        y=y,
        ids=index,
        target=plan.targets(index, y, least),
        attacks=plan.attacks,
        success=success,
        silent=sum(bool(row["silent"]) for found in rows.values() for row in found.values()),
        stored=lambda: stored(plan, run, clean),
        threat=plan.threat,
        seed=plan.config.seed,
        chance=0.0 if isinstance(plan.model.task, Regression) else 1 / classes,
        surrogate=plan.surrogate,
        queried=_queried(plan, list(rows.values())),
        total=plan.n,
    )


def _queried(plan: Plan, rows: list[dict[int, dict[str, Any]]]) -> int | None:
    """How many samples attacks by queries broke that no gradient attack did; None where one kind is missing."""
    broken: dict[str, set[int]] = {}
    for attack, found in zip(plan.attacks, rows, strict=True):
        broken.setdefault(attack.knowledge, set()).update(i for i, row in found.items() if row["success"])
    if len(broken) < 2:
        return None
    return len(broken["black-box"] - broken["white-box"])


def stored(plan: Plan, run: RunDirectory, clean: dict[int, dict[str, Any]]) -> Iterator[Batch]:
    """Every stored adversarial input beside its clean one, chunk by chunk."""
    said = [_said(plan, run, k) for k in range(len(plan.attacks))]
    for chunk in plan.chunks():
        for k in range(len(plan.attacks)):
            tensors = run.read_tensors(tensors_file(plan, k, chunk))
            ids = tensors["ids"].tolist()
            if ids:
                harm = torch.tensor([said[k][i] for i in ids], device=plan.model.device) if said[k] else None
                yield _pair(plan, ids, tensors["adversarial"], clean)._replace(harm=harm)


def _pair(plan: Plan, ids: list[int], adversarial: Tensor, clean: dict[int, dict[str, Any]]) -> Batch:
    x, y = plan.inputs(ids)
    least = torch.tensor([clean[i].get("least", -1) for i in ids], device=y.device, dtype=torch.long)
    target = plan.targets(torch.tensor(ids), y, least)
    return Batch(torch.tensor(ids), x, y, target, adversarial.to(x.device))


def _said(plan: Plan, run: RunDirectory, k: int) -> dict[int, float]:
    """The harm of each sample after attack ``k``, for dense tasks."""
    if not dense.is_dense(plan.model.task):
        return {}
    return {row["id"]: dense.harm_of(row) for row in run.rows(samples_file(plan, k))}


def _spaced(ids: list[int], size: int) -> list[int]:
    count = min(size, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def _probe_size(plan: Plan) -> int:
    values = max(1, plan.inputs([0])[0][0].numel())
    return max(4, min(64, PROBE_VALUES // values))
