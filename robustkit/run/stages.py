"""One chunk of samples through one stage: computed whole, written whole, or not at all."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from robustkit.core.nearest import MinimumNorm
from robustkit.core.objective import margin
from robustkit.core.task import Classification
from robustkit.run import dense
from robustkit.run.directory import RunDirectory
from robustkit.run.plan import Plan

CLEAN = "samples-clean"
RANKED = 10
"""Classes of the clean ranking that are kept: the label and nine targets."""


def samples_file(plan: Plan, k: int) -> str:
    """Rows of attack ``k``."""
    return f"samples-{plan.stage(k)}"


def tensors_file(plan: Plan, k: int, chunk: range) -> str:
    """Adversarial inputs of attack ``k`` for a chunk."""
    return f"adversarial/{plan.stage(k)}/{chunk.start:08d}.safetensors"


def clean_stage(plan: Plan, run: RunDirectory, chunk: range) -> list[dict[str, Any]]:
    """Predictions on the inputs as they are; returns the rows that were computed now."""
    if run.chunk_done(CLEAN, chunk):
        return []
    began = time.monotonic()
    x, y = plan.inputs(chunk)
    with plan.model.frozen(plan.config.seed), torch.no_grad():
        outputs = plan.model(x)
    plan.model.task.check(outputs, y)
    described = describe(plan, outputs, y)
    correct = (~plan.model.task.failed(outputs, y)).tolist()
    rows = [{"id": i, "correct": c, **d} for i, c, d in zip(chunk, correct, described, strict=True)]
    if isinstance(plan.model.task, Classification) and any(stage.suite for stage in plan.stages):
        for row, ranking in zip(rows, ranked(outputs).tolist(), strict=True):
            row["ranking"] = ranking
    run.append_rows(CLEAN, rows)
    run.log("chunk", stage="clean", start=chunk.start, n=len(chunk), seconds=time.monotonic() - began)
    return rows


def attack_stage(
    plan: Plan, run: RunDirectory, k: int, chunk: range, clean: dict[int, dict[str, Any]], broken: set[int]
) -> list[dict[str, Any]]:
    """Attack the samples of a chunk that are right when clean, all of a dense task; returns the new rows.

    Those that earlier stages of the same suite have ``broken`` are left out.
    """
    whole = dense.is_dense(plan.model.task)
    ids = [i for i in chunk if (clean[i]["correct"] or whole) and i not in broken]
    name, tensors = samples_file(plan, k), tensors_file(plan, k, chunk)
    if run.chunk_done(name, ids, tensors):
        return []
    began = time.monotonic()
    index = torch.tensor(ids, dtype=torch.long)
    x, y = plan.inputs(ids) if ids else (torch.empty(0), torch.empty(0, dtype=torch.long))
    adversarial, rows = attack_rows(plan, k, index, x, y, clean) if ids else (x, [])
    kept = [whole or bool(row["success"]) for row in rows]
    run.write_tensors(tensors, {"ids": index[kept], "adversarial": adversarial[kept]} if ids else {"ids": index})
    run.append_rows(name, rows)
    run.log("chunk", stage=plan.labels[k], start=chunk.start, n=len(ids), seconds=time.monotonic() - began)
    return rows


def attack_rows(
    plan: Plan, k: int, ids: Tensor, x: Tensor, y: Tensor, clean: dict[int, dict[str, Any]]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Adversarial inputs (N, *S) and a row for each sample."""
    least = torch.tensor([clean[int(i)].get("least", -1) for i in ids], device=y.device)
    target = plan.targets(ids, y, least)
    ranking = [clean[int(i)].get("ranking") for i in ids]
    found = plan.attacks[k](
        plan.model,
        x,
        y,
        target=target,
        ids=ids,
        seed=plan.config.seed,
        ranking=None if None in ranking else torch.tensor(ranking, device=y.device),
    )
    with plan.model.frozen(plan.config.seed), torch.no_grad():
        described = describe(plan, plan.model(found.adversarial), y)
    columns = {
        "success": found.success & torch.tensor([clean[int(i)]["correct"] for i in ids], device=y.device),
        "distance": found.distance,
        "loss": found.loss,
        "step": found.first_success_step,
        "forwards": found.forwards,
        "backwards": found.backwards,
        "silent": found.silent,
    }
    if target is not None and target.ndim == 1:
        columns["target"] = target
    if isinstance(plan.attacks[k], MinimumNorm):
        columns["minimum"] = torch.where(found.minimum.isfinite(), found.minimum, -1)
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = [
        {"id": int(i), **dict(zip(columns, row, strict=True)), **d}
        for i, row, d in zip(ids, values, described, strict=True)
    ]
    return found.adversarial, rows


def ranked(outputs: Tensor) -> Tensor:
    """The likeliest classes (N, K), for the stages of suites that choose their targets by it."""
    return outputs.argsort(dim=1, descending=True, stable=True)[:, :RANKED]


def describe(plan: Plan, outputs: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """What the network says about each sample: label, prediction, confidence, margin; metrics for dense tasks."""
    if not isinstance(plan.model.task, Classification):
        return dense.describe(plan.model.task, outputs, y)
    confidence, prediction = outputs.double().softmax(1).max(1)
    columns = {
        "label": y,
        "prediction": prediction,
        "confidence": confidence,
        "margin": -margin(outputs, y),
        "least": outputs.argmin(1),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
