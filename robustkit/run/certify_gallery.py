"""A few samples worth looking at: the smallest and largest radii, those left undecided, those that are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustkit.certify.randomized import Randomized
from robustkit.run.certify_falsify import FALSIFIED, witnesses
from robustkit.run.certify_plan import CertifyPlan
from robustkit.run.certify_stage import ROWS, map_file
from robustkit.run.certify_summary import outcome
from robustkit.run.directory import RunDirectory

EACH = 3
DENSE = 4
"""Samples of each sort, and images of dense outputs."""

Row = dict[str, Any]


def gallery(plan: CertifyPlan, run: RunDirectory) -> None:
    """Write ``gallery.json`` and ``gallery.safetensors``."""
    rows = run.rows(ROWS)
    chosen = rows[:DENSE] if plan.dense else sorted(_chosen(rows), key=lambda row: -row["radius"])
    ids = [row["id"] for row in chosen]
    x, _ = plan.inputs(ids)
    tensors = {"original": x.float(), "noisy": _noisy(plan, x, ids).float()}
    attacked = {row["id"]: row for row in run.rows(FALSIFIED)}
    if plan.dense:
        maps = [_maps(plan, run, i) for i in ids]
        tensors |= {name: torch.stack([one[name] for one in maps]) for name in ("label", "prediction", "radius")}
        entries = [_dense_entry(row) for row in chosen]
    else:
        found = witnesses(plan, run, ids)
        tensors["witness"] = torch.stack([found.get(i, one).cpu() for i, one in zip(ids, x.float(), strict=True)])
        entries = [_entry(plan, row, attacked.get(row["id"])) for row in chosen]
    run.write_tensors("gallery.safetensors", tensors)
    run.write_json("gallery.json", entries)


def _chosen(rows: Sequence[Row]) -> Iterable[Row]:
    """A few of each sort, none twice."""
    right = sorted((r for r in rows if r["prediction"] == r["label"]), key=lambda row: (row["radius"], row["id"]))
    sorts = (
        right[-EACH:],
        right[:EACH],
        [row for row in rows if row["prediction"] < 0][:EACH],
        [row for row in rows if row["prediction"] not in (-1, row["label"])][:EACH],
    )
    return {row["id"]: row for sort in sorts for row in sort}.values()


def _noisy(plan: CertifyPlan, x: Tensor, ids: Sequence[int]) -> Tensor:
    """One noisy copy of each, as the first vote sees them."""
    if not isinstance(plan.certifier, Randomized):
        return x
    with plan.model.frozen(plan.config.seed), torch.no_grad(), plan.model.metered(refund=True):
        sampler = plan.certifier.sampler_for(plan.model, x, ids=torch.tensor(ids), seed=plan.config.seed)
        rows = torch.arange(len(ids))
        draws, sigma = sampler.draws.child("gallery"), sampler.votes[0].sigma
        return sampler.noise.noisy(x, rows, torch.zeros_like(rows), draws, sigma, 1)[:, 0]


def _entry(plan: CertifyPlan, row: Row, attack: Row | None) -> Row:
    votes = plan.certifier.parts if isinstance(plan.certifier, Randomized) else 1
    return {
        "id": row["id"],
        "label": row["label"],
        "label_name": plan.class_name(row["label"]),
        "prediction": row["prediction"],
        "prediction_name": plan.class_name(row["prediction"]),
        "choice": row["choice"],
        "choice_name": plan.class_name(row["choice"]),
        "radius": row["radius"],
        "outcome": outcome(plan, row, attack),
        "reason": row["reason"],
        "distance": attack["distance"] if attack else None,
        "confidence": sum(row["hits"]) / max(row["n"], votes) if "hits" in row else None,
        "certified": None,
    }


def _dense_entry(row: Row) -> Row:
    share = row["shown"] / max(row["labelled"], 1)
    empty = dict.fromkeys(
        ("label", "label_name", "prediction", "prediction_name", "choice", "choice_name", "radius", "distance",
         "confidence")
    )  # fmt: skip
    sort = "certified" if row["certified"] else "unknown"
    return {"id": row["id"], **empty, "outcome": sort, "reason": row["reason"], "certified": share}


def _maps(plan: CertifyPlan, run: RunDirectory, sample: int) -> dict[str, Tensor]:
    chunk = next(c for c in plan.chunks if sample in c)
    return {name: maps[sample - chunk.start] for name, maps in run.read_tensors(map_file(chunk)).items()}
