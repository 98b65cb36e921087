"""``results.json`` of a certification, from the rows on disk: equal files give equal results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from robustkit.certify.randomized import Randomized
from robustkit.core.certifier import CERTIFIERS
from robustkit.core.registry import options_of
from robustkit.run import certify_dense
from robustkit.run.certify_falsify import FALSIFIED, counterexample, judge
from robustkit.run.certify_plan import CertifyPlan
from robustkit.run.certify_stage import ROWS
from robustkit.run.directory import SCHEMA_VERSION, RunDirectory
from robustkit.run.facts import model_facts
from robustkit.run.interval import clopper_pearson

POINTS, FARTHER = 64, 24
"""Steps of the curve from 0 to the largest radius that can be shown, and on to the attack's farthest success."""
PROPERTY = (
    "stability: every input within this distance of a sample gets, from the smoothed classifier, the class that the "
    "sample gets"
)

Row = dict[str, Any]


def summarise(plan: CertifyPlan, run: RunDirectory, *, complete: bool) -> dict[str, Any]:
    """Everything but the times."""
    rows = run.rows(ROWS)
    attacked = {row["id"]: row for row in run.rows(FALSIFIED)}
    first = run.read_json("preflight.json") or {"rows": [], "cost": {}}
    costs = [row["cost"] for row in (*rows, *attacked.values()) if "cost" in row] + [first["cost"]]
    falsification = judge(plan, list(attacked.values())) if plan.attack is not None else None
    refused = [row for row in first["rows"] if row["status"] == "FAIL"]
    figures = certify_dense.figures(plan, run, rows) if plan.dense else _figures(plan, rows, attacked)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "certification",
        "complete": complete,
        "valid": not refused and not (falsification or {}).get("invalid", False),
        "forced": bool(plan.config.force and refused),
        "robustkit": (run.read_json("run.json") or {}).get("versions", {}).get("robustkit"),
        "model": model_facts(plan.model, plan.inputs([0])[0], plan.data.classes),
        "data": _data(plan, len(rows)),
        "n": len(rows),
        "seed": plan.config.seed,
        "method": _method(plan),
        "property": {"norm": plan.certifier.norm, "radius": plan.asked, "text": PROPERTY},
        "verifier": _verifier(plan),
        "arithmetic": next((row["arithmetic"] for row in rows if "arithmetic" in row), ""),
        **figures,
        "outcomes": _outcomes(plan, rows, attacked),
        "reasons": _reasons(rows),
        "linf": _linf(plan),
        "draws": _draws(plan, rows),
        "nan_answers": _undefined(plan, rows),
        "falsification": falsification,
        "diagnostics": first["rows"],
        "notes": _notes(plan, rows),
        "cost": {key: sum(cost.get(key, 0) for cost in costs) for key in ("forwards", "backwards")},
        "gallery": run.read_json("gallery.json") or [],
    }


def share(count: int, n: int) -> float | None:
    """A share, or None of nothing."""
    return count / n if n else None


def grid(plan: CertifyPlan) -> list[float]:
    """The radii of the curve."""
    if not isinstance(plan.certifier, Randomized):
        return [0.0]
    if plan.certifier.mode == "decide":
        return sorted({0.0, float(plan.asked or 0.0)})
    most = max(plan.certifier.limit(plan.outputs), 0.0)
    steps = np.linspace(0, most, POINTS + 1).tolist()
    asked = [plan.asked] if plan.asked is not None and plan.asked <= most else []
    return sorted({*steps, *asked})


def _farther(plan: CertifyPlan, attacked: dict[int, Row]) -> list[float]:
    """Radii beyond those of the curve, where only the attack has something to say."""
    start = grid(plan)[-1]
    end = max((row["distance"] for row in attacked.values() if row["found"]), default=start)
    return np.linspace(start, end, FARTHER + 1)[1:].tolist() if end > start else []


def right_at(row: Row, radius: float) -> bool:
    """Whether a sample counts at a radius: certified there, with its label."""
    return bool(row["prediction"] == row["label"] and row["radius"] >= radius)


def _figures(plan: CertifyPlan, rows: Sequence[Row], attacked: dict[int, Row]) -> dict[str, Any]:
    n, radius = len(rows), plan.asked or 0.0
    held = sum(row["prediction"] == row["label"] and row["certified"] for row in rows)
    clean = sum(row["clean"] == row["label"] for row in rows)
    return {
        "clean_accuracy": share(clean, n),
        "clean_interval": list(clopper_pearson(clean, n)),
        "smoothed_accuracy": share(sum(row["choice"] == row["label"] for row in rows), n),
        "certified_accuracy": share(held, n),
        "interval": list(clopper_pearson(held, n)),
        "radius": radius,
        "abstained": share(sum(row["prediction"] < 0 for row in rows), n),
        "average_certified_radius": _average(plan, rows),
        "curve": [_point(plan, rows, attacked, r) for r in (*grid(plan), *_farther(plan, attacked))] if rows else [],
        "per_class": _per_class(plan, rows),
        "dense": None,
    }


def _average(plan: CertifyPlan, rows: Sequence[Row]) -> float | None:
    if not rows or getattr(plan.certifier, "mode", "radius") == "decide":
        return None
    return float(fmean(row["radius"] if row["prediction"] == row["label"] else 0.0 for row in rows))


def _point(plan: CertifyPlan, rows: Sequence[Row], attacked: dict[int, Row], radius: float) -> Row:
    held = sum(right_at(row, radius) for row in rows)
    return {
        "radius": radius,
        "certified_accuracy": held / len(rows),
        "interval": list(clopper_pearson(held, len(rows))),
        "certified": sum(row["prediction"] >= 0 and row["radius"] >= radius for row in rows) / len(rows),
        "empirical": _empirical(rows, attacked, radius) if plan.attack is not None else None,
    }


def _empirical(rows: Sequence[Row], attacked: dict[int, Row], radius: float) -> float | None:
    """Share of samples whose class is their label and was not refuted within the radius."""
    if len(attacked) < len(rows):
        return None
    standing = sum(row["choice"] == row["label"] and not _broken(attacked[row["id"]], radius) for row in rows)
    return float(standing / len(rows))


def _broken(row: Row, radius: float) -> bool:
    return bool(row["found"] and row["distance"] <= radius)


def _outcomes(plan: CertifyPlan, rows: Sequence[Row], attacked: dict[int, Row]) -> dict[str, int]:
    found = Counter(outcome(plan, row, attacked.get(row["id"])) for row in rows)
    return {name: found[name] for name in ("certified", "falsified", "unknown")}


def outcome(plan: CertifyPlan, row: Row, attack: Row | None) -> str:
    """What is known of the property at a sample."""
    if attack is not None and counterexample(attack, plan.asked):
        return "falsified"
    return "certified" if row["certified"] else "unknown"


def _reasons(rows: Sequence[Row]) -> list[Row]:
    found = Counter(_general(row["reason"]) for row in rows if row["reason"])
    return [{"text": text, "count": count} for text, count in found.most_common()]


def _general(reason: str) -> str:
    """A reason without the figures of one sample."""
    for start, text in (("certified only", "certified, but not up to the radius asked for"),):
        if reason.startswith(start):
            return text
    return "some pixels are not certified" if "pixels" in reason else reason


def _data(plan: CertifyPlan, n: int) -> Row:
    size = {"size": len(plan.data), "n": n, "limit": plan.config.limit}
    return {"name": plan.data.name, "sha256": plan.data.fingerprint(), **size}


def _method(plan: CertifyPlan) -> Row:
    entry = CERTIFIERS.entry_of(plan.certifier)
    return {
        "label": plan.certifier.text,
        "name": entry.name,
        "version": entry.version,
        "summary": entry.summary,
        "options": options_of(plan.certifier),
        "source": entry.paper,
    }


def _verifier(plan: CertifyPlan) -> Row:
    method = plan.certifier
    found: Row = {
        "kind": "probabilistic" if method.probabilistic else "deterministic",
        "complete": False,
        "access": "closed box",
        "alpha": getattr(method, "alpha", None),
        "beta": None,
        "mode": getattr(method, "mode", "radius"),
        "max_radius": None,
        "text": "",
    }
    if not isinstance(method, Randomized):
        return found
    said = f"each certificate is wrong with probability at most {method.alpha:g} over its own random draws"
    if method.mode == "decide":
        said += f"; a radius that holds is given up with probability at most {method.beta:g}"
    limit = max(method.limit(plan.outputs), 0.0)
    return found | {"beta": method.beta if method.mode == "decide" else None, "max_radius": limit, "text": said}


def _linf(plan: CertifyPlan) -> Row:
    size = plan.inputs([0])[0][0].numel()
    return {"dimension": size, "factor": size**-0.5 if plan.certifier.norm == "l2" else 1.0}


def _draws(plan: CertifyPlan, rows: Sequence[Row]) -> Row | None:
    if not isinstance(plan.certifier, Randomized) or not rows:
        return None
    counts = [row["n"] for row in rows]
    return {
        "selection": plan.certifier.n0,
        "votes": plan.certifier.parts,
        "median": float(median(counts)),
        "max": max(counts),
        "total": sum(counts),
        "cap": plan.certifier.n * plan.certifier.parts,
    }


def _undefined(plan: CertifyPlan, rows: Sequence[Row]) -> Row:
    bad = sum(row.get("undefined", 0) for row in rows)
    places = int(np.prod(plan.outputs[1:]))
    method = plan.certifier
    drawn = sum(row["n"] + method.n0 * method.parts for row in rows) if isinstance(method, Randomized) else 0
    return {"count": bad, "share": bad / (drawn * places) if drawn else 0.0}


def _per_class(plan: CertifyPlan, rows: Sequence[Row]) -> list[Row]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    return [_of_class(plan, label, found[label]) for label in sorted(found)]


def _of_class(plan: CertifyPlan, label: int, rows: Sequence[Row]) -> Row:
    n = len(rows)
    return {
        "class": label,
        "name": plan.class_name(label),
        "n": n,
        "clean_accuracy": sum(row["clean"] == label for row in rows) / n,
        "certified_accuracy": sum(row["prediction"] == label and row["certified"] for row in rows) / n,
        "abstained": sum(row["prediction"] < 0 for row in rows) / n,
        "median_radius": float(median(row["radius"] if row["prediction"] == label else 0.0 for row in rows)),
    }


def _notes(plan: CertifyPlan, rows: Sequence[Row]) -> list[str]:
    own = (note for row in rows for note in row.get("notes", ()) if "NaN" not in note)
    return list(dict.fromkeys([*plan.certifier.remarks(plan.outputs), *own]))
