"""``results.json`` from the rows on disk. Equal files give equal results, whoever wrote them and in how many goes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from robustkit.core.attack import ATTACKS
from robustkit.core.registry import options_of
from robustkit.core.task import Classification
from robustkit.core.types import Cost
from robustkit.run import dense
from robustkit.run.curve import CURVE, curve_points, minimum_points, stops_inside
from robustkit.run.dense_gallery import ENTRIES, peak
from robustkit.run.directory import SCHEMA_VERSION, RunDirectory
from robustkit.run.facts import model_facts
from robustkit.run.gallery import class_name
from robustkit.run.gates import judge
from robustkit.run.interval import clopper_pearson
from robustkit.run.plan import Plan
from robustkit.run.stages import CLEAN, samples_file
from robustkit.run.standards import ASSESSED, KNOWLEDGE, NOT_ASSESSED
from robustkit.run.verification import TIE

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """All samples that went through every stage."""

    clean: dict[int, Row]
    attacks: list[dict[int, Row]]

    @classmethod
    def read(cls, plan: Plan, run: RunDirectory) -> Rows:
        clean = {row["id"]: row for row in run.rows(CLEAN)}
        attacks = [{row["id"]: row for row in run.rows(samples_file(plan, k))} for k in range(len(plan.attacks))]
        skipped = not dense.is_dense(plan.model.task)
        done = [
            i for i, row in clean.items() if (skipped and not row["correct"]) or cls._through(plan, attacks, i)
        ]
        return cls({i: clean[i] for i in done}, [{i: rows[i] for i in done if i in rows} for rows in attacks])

    @staticmethod
    def _through(plan: Plan, attacks: list[dict[int, Row]], i: int) -> bool:
        """Whether a sample has a row of every stage, but for those that an earlier stage of a suite spared it."""
        return all(
            i in rows or any(attacks[j].get(i, {}).get("success") for j in stage.after)
            for rows, stage in zip(attacks, plan.stages, strict=True)
        )

    @property
    def correct(self) -> list[int]:
        return [i for i, row in self.clean.items() if row["correct"]]

    def broken(self, k: int) -> set[int]:
        return {i for i, row in self.attacks[k].items() if row["success"]}

    @property
    def worst(self) -> dict[int, Row]:
        """For each broken sample, the row of the first attack that broke it."""
        found: dict[int, Row] = {}
        for rows in self.attacks:
            for i, row in rows.items():
                if row["success"]:
                    found.setdefault(i, row)
        return found


def robust_share(clean: dict[int, Row], broken: set[int], stop: int) -> float:
    """Share of the first ``stop`` samples that are right and not broken so far."""
    return sum(clean[i]["correct"] and i not in broken for i in range(stop)) / max(stop, 1)


def summarise(plan: Plan, run: RunDirectory, *, complete: bool) -> dict[str, Any]:
    """Everything but the times."""
    rows = Rows.read(plan, run)
    n, correct = len(rows.clean), rows.correct
    standing = len(correct) - len(rows.worst)
    first = run.read_json("preflight.json") or {"rows": [], "cost": {}}
    after = run.read_json("diagnostics.json") or {"rows": [], "cost": {}}
    diagnostics = [*first["rows"], *after["rows"]]
    invalid = [row for row in diagnostics if row["status"] == "FAIL" and row["invalidates"]]
    model = model_facts(plan.model, plan.inputs([0])[0], plan.data.classes)
    classes = model["outputs"]
    chance = 1 / classes if isinstance(plan.model.task, Classification) else None
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "complete": complete,
        "valid": not invalid,
        "forced": bool(plan.config.force and any(row in invalid for row in first["rows"])),
        "limit": plan.config.limit,
        "n": n,
        "n_total": len(plan.data),
        "clean_accuracy": len(correct) / n if n else None,
        "clean_interval": list(clopper_pearson(len(correct), n)),
        "robust_accuracy": standing / n if n else None,
        "interval": list(clopper_pearson(standing, n)),
        "confidence": 0.95,
        "chance": chance,
        "threat": {
            "norm": plan.threat.norm,
            "eps": plan.threat.eps,
            "text": plan.config.threat,
            "targeted": plan.config.targeted,
        },
        "model": model,
        "data": {"name": plan.data.name, "size": len(plan.data), "sha256": plan.data.fingerprint()},
        "attacks": [_attack(plan, rows, k) for k in range(len(plan.attacks))],
        "per_class": _per_class(plan, rows),
        "dense": _dense(plan, run, rows),
        "confusion": _confusion(rows),
        "calibration": _calibration(rows),
        "diagnostics": diagnostics,
        "curve": _curve(plan, run, len(correct), chance, complete),
        "gallery": run.read_json("gallery.json") or [],
        "ties": _ties(rows),
        "cost": _cost(plan, run, rows, first["cost"], after["cost"]),
        "assessed": _assessed(plan),
        "not_assessed": [dict(item) for item in NOT_ASSESSED],
    }
    results["gates"] = judge(plan.config.fail_under, results)
    return results


def _attack(plan: Plan, rows: Rows, k: int) -> dict[str, Any]:
    attack, stage = plan.attacks[k], plan.stages[k]
    entry, broken = ATTACKS.entry_of(attack), rows.broken(k)
    so_far = broken.union(*(rows.broken(j) for j in stage.after))
    before = set().union(*(rows.broken(j) for j in range(k)))
    others = set().union(*(rows.broken(j) for j in range(len(plan.attacks)) if j != k))
    standing, n = len(rows.correct) - len(so_far), len(rows.clean)
    distances = [rows.attacks[k][i]["distance"] for i in broken]
    return {
        "label": stage.label,
        "suite": stage.suite or None,
        "name": entry.name,
        "version": entry.version,
        "options": options_of(attack),
        "paper": entry.paper,
        "summary": entry.summary,
        "robust_accuracy": standing / n if n else None,
        "interval": list(clopper_pearson(standing, n)),
        "attacked": len(rows.attacks[k]),
        "broken": len(broken),
        "gain": len(broken - before),
        "alone": None if stage.suite else len(broken - others),
        "median_distance": median(distances) if distances else None,
        "minimum": None if stops_inside(attack) else minimum_points(rows.attacks[k], len(rows.correct), n),
        **_passes(plan, rows.attacks[k]),
        "knowledge": attack.knowledge,
        **KNOWLEDGE[attack.knowledge],
    }


def _passes(plan: Plan, rows: dict[int, Row]) -> dict[str, int]:
    return {key: plan.model.eot * sum(row[key] for row in rows.values()) for key in ("forwards", "backwards")}


def _per_class(plan: Plan, rows: Rows) -> list[dict[str, Any]]:
    if not all("label" in row for row in rows.clean.values()):
        return []
    counts: dict[int, list[int]] = {}
    worst = rows.worst
    for i, row in rows.clean.items():
        count = counts.setdefault(row["label"], [0, 0, 0])
        count[0] += 1
        count[1] += row["correct"]
        count[2] += row["correct"] and i not in worst
    return [
        {"class": c, "name": class_name(plan, c), "n": n, "clean_accuracy": right / n, "robust_accuracy": robust / n}
        for c, (n, right, robust) in sorted(counts.items())
    ]


def _dense(plan: Plan, run: RunDirectory, rows: Rows) -> dict[str, Any] | None:
    found = dense.summary(plan.model.task, rows.clean, rows.attacks, partial(class_name, plan), peak(plan))
    return found and {**found, "gallery": run.read_json(ENTRIES) or []}


def _confusion(rows: Rows) -> list[dict[str, int]]:
    pairs = Counter(
        (rows.clean[i]["prediction"], row["prediction"]) for i, row in rows.worst.items() if "prediction" in row
    )
    return [
        {"from": a, "to": b, "count": n} for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    ]


def _calibration(rows: Rows) -> dict[str, dict[str, float]] | None:
    """Confidence and expected calibration error (15 bins), on clean inputs and on the worst-case ones."""
    if not rows.clean or any(row.get("confidence") is None for row in (*rows.clean.values(), *rows.worst.values())):
        return None
    worst = rows.worst
    clean = [(row["confidence"], row["correct"]) for row in rows.clean.values()]
    attacked = [
        (worst[i]["confidence"], False) if i in worst else (row["confidence"], row["correct"])
        for i, row in rows.clean.items()
    ]
    return {"clean": _ece(clean), "adversarial": _ece(attacked)}


def _ece(pairs: list[tuple[float, bool]], bins: int = 15) -> dict[str, float]:
    error = 0.0
    for b in range(bins):
        inside = [(p, ok) for p, ok in pairs if min(int(p * bins), bins - 1) == b]
        error += abs(math.fsum(p for p, _ in inside) - sum(ok for _, ok in inside))
    return {"confidence": math.fsum(p for p, _ in pairs) / len(pairs), "ece": error / len(pairs)}


def _curve(plan: Plan, run: RunDirectory, correct: int, chance: float | None, complete: bool) -> dict[str, Any] | None:
    return curve_points(plan, run.rows(CURVE), correct, chance) if plan.config.curve and complete else None


def _ties(rows: Rows) -> list[int]:
    """Samples whose verdict hangs on a margin that rounding can turn."""
    return sorted(i for found in (rows.clean, rows.worst) for i, row in found.items() if is_tie(row))


def is_tie(row: Row) -> bool:
    """Whether the margin of a row is so small that rounding can turn the verdict; rows of dense tasks have none."""
    margin = row.get("margin")
    return margin is not None and abs(margin) < TIE


def _cost(plan: Plan, run: RunDirectory, rows: Rows, first: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
    parts = {
        "clean": Cost(len(rows.clean) * plan.model.eot, 0),
        "attacks": sum((Cost(**_passes(plan, part)) for part in rows.attacks), Cost()),
        "curve": Cost(**_passes(plan, {row["id"]: row for row in run.rows(CURVE)})),
        "preflight": Cost(**first),
        "diagnostics": Cost(**after),
    }
    whole = sum(parts.values(), Cost())
    return {
        "forwards": whole.forwards,
        "backwards": whole.backwards,
        **{name: {"forwards": c.forwards, "backwards": c.backwards} for name, c in parts.items()},
    }


def _assessed(plan: Plan) -> list[dict[str, Any]]:
    kinds = dict.fromkeys(attack.knowledge for attack in plan.attacks)
    return [{"what": ASSESSED[kind], **KNOWLEDGE[kind]} for kind in kinds]
