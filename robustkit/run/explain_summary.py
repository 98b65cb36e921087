"""``results.json`` of an explanation, from the rows on disk: equal files give equal results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robustkit.core.explainer import EXPLAINERS
from robustkit.core.registry import options_of
from robustkit.explain.metrics.judge import overview
from robustkit.run.directory import SCHEMA_VERSION, RunDirectory
from robustkit.run.explain_plan import ExplainPlan, data_of, pair_of
from robustkit.run.explain_stages import IMAGES, JUDGED, output_name
from robustkit.run.facts import model_facts

Row = dict[str, Any]
OF_AN_IMAGE = (
    "variant",
    "name",
    "picture",
    "width",
    "height",
    "box",
    "label",
    "label_name",
    "target",
    "target_name",
    "value",
    "top",
)
OF_A_MAP = (
    "file",
    "heat",
    "overlay",
    "min",
    "max",
    "residual",
    "relative_residual",
    "relative_error",
    "fixed_point_residual",
    "notes",
    "similarity",
)


def summarise(plan: ExplainPlan, run: RunDirectory) -> dict[str, Any]:
    """Everything but the times."""
    images = run.rows(IMAGES)
    maps = [{row["id"]: row for row in run.rows(plan.rows_file(k))} for k in range(len(plan.methods))]
    judged = {row["id"]: row for row in run.rows(JUDGED)}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "explanation",
        "complete": True,
        "robustkit": (run.read_json("run.json") or {}).get("versions", {}).get("robustkit"),
        "model": model_facts(plan.model, plan.subjects.inputs([0]), plan.subjects.classes),
        "data": data_of(plan),
        "target": _target(plan),
        "output": output_name(plan),
        "seed": plan.config.seed,
        "methods": [_method(plan, k, list(maps[k].values())) for k in range(len(plan.methods))],
        "images": [_image(row, [rows[row["id"]] for rows in maps], judged.get(row["id"])) for row in images],
        "evaluation": _evaluation(plan, list(judged.values())) if judged else None,
        "pair": pair_of(plan),
    }


def _target(plan: ExplainPlan) -> str | int:
    """A word, or the class where it is the same for all."""
    if isinstance(plan.wanted, str):
        return plan.wanted
    classes = plan.wanted.unique().tolist()
    return int(classes[0]) if len(classes) == 1 else "given"


def _method(plan: ExplainPlan, k: int, rows: Sequence[Row]) -> dict[str, Any]:
    method = plan.methods[k]
    entry = EXPLAINERS.entry_of(method)
    costs = [row["cost"] for row in rows if "cost" in row]
    options = {name: value if not callable(value) else "function" for name, value in options_of(method).items()}
    return {
        "label": plan.labels[k],
        "name": entry.name,
        "version": entry.version,
        "summary": entry.summary,
        "options": options,
        "signed": next(row["signed"] for row in rows if "signed" in row),
        "pixels": method.pixels,
        "source": entry.paper,
        "cost": {key: sum(cost[key] for cost in costs) for key in ("forwards", "backwards")},
    }


def _image(row: Row, maps: Sequence[Row], judged: Row | None) -> dict[str, Any]:
    cells = [
        {"method": k, **{key: found[key] for key in OF_A_MAP}, "evaluation": judged and judged["maps"][k]}
        for k, found in enumerate(maps)
    ]
    controls = judged and [{"name": name, "evaluation": found} for name, found in judged["controls"].items()]
    return {"id": row["sample"], **{key: row[key] for key in OF_AN_IMAGE}, "maps": cells, "controls": controls}


def _evaluation(plan: ExplainPlan, judged: Sequence[Row]) -> dict[str, Any]:
    """Means over the images, how to read them, what could not be measured, and what it cost."""
    maps = {label: [row["maps"][k] for row in judged] for k, label in enumerate(plan.labels)}
    controls = {name: [row["controls"][name] for row in judged] for name in judged[0]["controls"]}
    costs = [row["cost"] for row in judged if row["cost"]]
    return {
        **overview(maps, controls),
        "notes": list(dict.fromkeys(note for row in judged for note in row["notes"])),
        "cost": {key: sum(cost[key] for cost in costs) for key in ("forwards", "backwards")},
    }
