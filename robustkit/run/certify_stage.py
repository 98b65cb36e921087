"""One chunk of samples through a certifier: computed whole, written whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from robustkit.core.certificate import Certificate
from robustkit.core.task import DenseClassification
from robustkit.run.certify_plan import CertifyPlan
from robustkit.run.directory import RunDirectory
from robustkit.run.session import timed

ROWS = "samples-certify"

Row = dict[str, Any]


def certify_stage(
    plan: CertifyPlan, run: RunDirectory, chunk: range, tell: Callable[[int], None] | None = None
) -> list[Row]:
    """Certify a chunk; the rows that were computed now."""
    file = map_file(chunk) if plan.dense else None
    if run.chunk_done(ROWS, chunk, file):
        return []
    with timed(run, "certify", start=chunk.start, n=len(chunk)):
        x, y = plan.inputs(chunk)
        plan.model.task.check(torch.empty((1, *plan.outputs), device="meta"), y)
        ids = torch.tensor(list(chunk))
        found = plan.certifier(plan.model, x, ids=ids, seed=plan.config.seed, batch=plan.batch, progress=tell)
        with plan.model.frozen(plan.config.seed), torch.no_grad(), plan.model.metered() as cost:
            clean = torch.cat([plan.model(part).argmax(1) for part in x.split(plan.batch or len(x))])
        rows = (_dense_rows if plan.dense else _rows)(plan, chunk, found, clean.cpu(), y.cpu())
        rows[0] |= {"cost": asdict(found.cost + cost), "arithmetic": found.arithmetic, "notes": list(found.notes)}
        if file is not None:
            run.write_tensors(file, _maps(found, y))
        run.append_rows(ROWS, rows)
    return rows


def map_file(chunk: range) -> str:
    """Where the certificates of the pixels of a chunk lie."""
    return f"certificates/{chunk.start:05d}.safetensors"


def _rows(plan: CertifyPlan, chunk: range, found: Certificate, clean: Tensor, y: Tensor) -> list[Row]:
    columns: dict[str, list[Any]] = {
        "id": list(chunk),
        "label": y.tolist(),
        "clean": clean.tolist(),
        "prediction": found.prediction.tolist(),
        "choice": found.extras.get("choice", found.prediction).tolist(),
        "radius": found.radius.tolist(),
        "certified": found.certified.tolist(),
        "reason": list(found.reasons),
        "n": found.n.tolist(),
        **{name: found.extras[name].tolist() for name in ("hits", "undefined") if name in found.extras},
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _dense_rows(plan: CertifyPlan, chunk: range, found: Certificate, clean: Tensor, y: Tensor) -> list[Row]:
    """Counts of labelled pixels of each image."""
    assert isinstance(plan.model.task, DenseClassification)
    labelled = y != plan.model.task.ignore_index
    counted = {
        "labelled": labelled,
        "clean_right": labelled & (clean == y),
        "chosen_right": labelled & (found.extras["choice"] == y),
        "right": labelled & found.certified & (found.prediction == y),
        "shown": labelled & found.certified,
        "abstained": labelled & found.abstained,
    }
    columns: dict[str, list[Any]] = {
        "id": list(chunk),
        **{name: pixels.flatten(1).sum(1).tolist() for name, pixels in counted.items()},
        "certified": [not reason for reason in found.reasons],
        "reason": list(found.reasons),
        "n": found.n.tolist(),
        "undefined": found.extras["undefined"].tolist(),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _maps(found: Certificate, y: Tensor) -> dict[str, Tensor]:
    return {
        "prediction": found.prediction.to(torch.int16),
        "radius": found.radius.float().nextafter(torch.zeros(())),  # a float32 that is not larger
        "certified": found.certified,
        "label": y.to(torch.int16),
    }
