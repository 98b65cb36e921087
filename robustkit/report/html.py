"""``report.html``: one self-contained page that asks nothing of any server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from robustkit.report import dense, images, plots, text
from robustkit.report.files import RunFiles
from robustkit.report.pages import pages
from robustkit.report.tables import class_names
from robustkit.report.templates import command_lines, environment, style

MATRIX_CLASSES = 20
PAIRS = 15
PICTURE_BYTES = 3_500_000
"""All pictures of the gallery together; the page stays below 5 MB."""


def render(run: RunFiles) -> str:
    """The whole page."""
    r = run.results
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            r=r,
            run=run.run,
            command=command_lines(run.run.get("command") or []),
            config=run.config_text,
            seed=_seed(run.config_text),
            stamps=text.stamps(r),
            css=style(),
            levels=_levels(r),
            curve=_curve(r),
            minimum=_minimum(r),
            strips=_strips(run),
            per_class=_per_class(r),
            confusion=_confusion(r),
            gallery=_gallery(run),
            dense=dense.context(run),
            states=text.STATES,
            pages=pages(d["id"] for d in r["diagnostics"]),
        )
    )


def fragment(results: Mapping[str, Any]) -> str:
    """The first block of the page, for notebooks."""
    return environment().get_template("fragment.html.j2").render(r=results, stamps=text.stamps(results), css=style())


def _curve(r: Mapping[str, Any]) -> Markup | None:
    if not r["curve"]:
        return None
    svg = plots.curve(
        r["curve"]["points"], eps=r["threat"]["eps"], chance=r["curve"]["chance"], norm=r["threat"]["norm"]
    )
    return Markup(svg)  # made of numbers alone


def _minimum(r: Mapping[str, Any]) -> Markup | None:
    """The curves of the minimum-norm attacks, each from one run."""
    found = {a["label"]: a["minimum"]["points"] for a in r["attacks"] if a["minimum"]}
    return Markup(plots.curves(found, eps=r["threat"]["eps"], norm=r["threat"]["norm"])) if found else None


def _seed(config: str) -> str | None:
    """The seed as the configuration states it; read without YAML, for the folder may come from anyone."""
    found = re.search(r"^seed:\s*(-?\d+)\s*$", config, flags=re.M)
    return found[1] if found else None


def _levels(r: Mapping[str, Any]) -> str:
    """The radius for people who think in 8-bit images."""
    low, high = r["model"]["bounds"]
    return text.grey_levels(r) or f"{255 * r['threat']['eps'] / (high - low):.4g} in units of 0 to 255"


def _strips(run: RunFiles) -> list[dict[str, Any]]:
    """A row for each attack: robust samples, then by how many attacks break them, those wrong when clean last."""
    right = {row["id"]: bool(row["correct"]) for row in run.clean_rows()}
    broken = [run.broken_by(k) for k in range(len(run.results["attacks"]))]
    order = sorted(right, key=lambda i: (not right[i], sum(i in b for b in broken), [i in b for b in broken], i))
    labels = ["without attack", *(attack["label"] for attack in run.results["attacks"])]
    rows = zip(labels, [set[int](), *broken], strict=True) if order else ()
    return [{"label": label, "svg": Markup(plots.strip(_codes(order, right, lost)))} for label, lost in rows]


def _codes(order: list[int], right: dict[int, bool], lost: set[int]) -> NDArray[np.int64]:
    """Places in :data:`plots.STATES`."""
    return np.array([2 if not right[i] else int(i in lost) for i in order], dtype=np.int64)


def _per_class(r: Mapping[str, Any], most: int = 40) -> dict[str, Any]:
    """Classes from the weakest on."""
    rows = sorted(r["per_class"], key=lambda c: (c["robust_accuracy"], c["class"]))
    return {"rows": rows[:most], "left": max(0, len(rows) - most)}


def _confusion(r: Mapping[str, Any]) -> dict[str, Any]:
    """A matrix for few classes, the most frequent pairs for many."""
    pairs, names = r["confusion"], class_names(r)
    classes = sorted({p[key] for p in pairs for key in ("from", "to")})
    label = {c: names.get(c, str(c)) for c in classes}
    if not pairs or r["model"]["outputs"] > MATRIX_CLASSES:
        return {"pairs": [{**p, "from": label[p["from"]], "to": label[p["to"]]} for p in pairs[:PAIRS]], "matrix": None}
    counts = {(p["from"], p["to"]): p["count"] for p in pairs}
    rows = [{"name": label[a], "cells": _cells([counts.get((a, b), 0) for b in classes], counts)} for a in classes]
    columns = [label[c] for c in classes]
    return {"matrix": {"columns": columns, "rows": rows, "tall": max(map(len, columns)) > 3}, "pairs": []}


def _cells(row: list[int], counts: Mapping[Any, int]) -> list[dict[str, float]]:
    largest = max(counts.values())
    return [{"count": count, "shade": round(0.1 + 0.6 * count / largest, 3)} for count in row]


def _gallery(run: RunFiles) -> list[dict[str, Any]]:
    """Pictures of each entry, as many as fit into the page; what is no picture is left out."""
    stored, cards, size = run.images(), list[dict[str, Any]](), 0
    low, high = run.results["model"]["bounds"]
    for entry in run.results["gallery"]:
        original, adversarial = stored[entry["id"]]
        if not images.is_picture(original) or original.shape != adversarial.shape:
            continue
        difference, factor = images.perturbation(original, adversarial)
        pictures = {
            "original": images.picture(original, low, high),
            "difference": difference,
            "changed": images.picture(adversarial, low, high),
        }
        size += sum(map(len, pictures.values()))
        if size > PICTURE_BYTES:
            break
        longest = max(original.shape[1:])
        cards.append({**entry, **pictures, "factor": factor, "small": longest <= 64, "shrunk": longest > images.LARGE})
    return cards
