"""``report.html``: one self-contained page that asks nothing of any server."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustkit.report import images, plots, text
from robustkit.report.files import RunFiles
from robustkit.report.pages import pages

ROBUST, BROKEN, WRONG = (21, 128, 116), (217, 92, 43), (148, 156, 168)
"""Colours of samples: robust, broken, wrong without any attack."""
MATRIX_CLASSES = 20
PAIRS = 15


def render(run: RunFiles) -> str:
    """The whole page."""
    r = run.results
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            r=r,
            run=run.run,
            config=run.config_text,
            stamps=text.stamps(r),
            css=_css(),
            levels=text.grey_levels(r),
            curve=_curve(r),
            strips=_strips(run),
            per_class=_per_class(r),
            confusion=_confusion(r),
            gallery=_gallery(run),
            states=text.STATES,
            pages=pages(d["id"] for d in r["diagnostics"]),
        )
    )


def fragment(results: Mapping[str, Any]) -> str:
    """The first block of the page, for notebooks."""
    return _environment().get_template("fragment.html.j2").render(r=results, stamps=text.stamps(results), css=_css())


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("robustkit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=text.percent, between=text.between, number=text.number, duration=text.duration, memory=text.memory
    )
    return environment


@lru_cache(maxsize=1)
def _css() -> Markup:
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), "report.css")[0])  # ours, not a user's


def _curve(r: Mapping[str, Any]) -> Markup | None:
    if not r["curve"]:
        return None
    svg = plots.curve(
        r["curve"]["points"], eps=r["threat"]["eps"], chance=r["curve"]["chance"], norm=r["threat"]["norm"]
    )
    return Markup(svg)  # made of numbers alone


def _strips(run: RunFiles) -> list[dict[str, str]]:
    """A row of colours for each attack: samples wrong when clean, then by how many attacks break them."""
    right = {row["id"]: bool(row["correct"]) for row in run.clean_rows()}
    broken = [run.broken_by(k) for k in range(len(run.results["attacks"]))]
    order = sorted(right, key=lambda i: (not right[i], sum(i in b for b in broken), [i in b for b in broken], i))
    rows = [("without attack", set()), *((a["label"], b) for a, b in zip(run.results["attacks"], broken, strict=True))]
    return (
        [{"label": label, "image": images.strip(_colours(order, right, lost))} for label, lost in rows] if order else []
    )


def _colours(order: list[int], right: dict[int, bool], lost: set[int]) -> Any:
    return np.array([WRONG if not right[i] else BROKEN if i in lost else ROBUST for i in order], dtype=np.uint8)


def _per_class(r: Mapping[str, Any], most: int = 40) -> dict[str, Any]:
    """Classes from the weakest on."""
    rows = sorted(r["per_class"], key=lambda c: (c["robust_accuracy"], c["class"]))
    return {"rows": rows[:most], "left": max(0, len(rows) - most)}


def _confusion(r: Mapping[str, Any]) -> dict[str, Any]:
    """A matrix for few classes, the most frequent pairs for many."""
    pairs = r["confusion"]
    names = {c["class"]: c["name"] for c in r["per_class"]}
    known = r["model"]["class_names"] or []
    classes = sorted({*(p["from"] for p in pairs), *(p["to"] for p in pairs)})
    label = {c: names.get(c) or (known[c] if c < len(known) else str(c)) for c in classes}
    if not pairs or r["model"]["outputs"] > MATRIX_CLASSES:
        return {"pairs": [{**p, "from": label[p["from"]], "to": label[p["to"]]} for p in pairs[:PAIRS]], "matrix": None}
    counts = {(p["from"], p["to"]): p["count"] for p in pairs}
    largest = max(counts.values())
    rows = [
        {
            "name": label[a],
            "cells": [
                {"count": counts.get((a, b), 0), "shade": round(counts.get((a, b), 0) / largest, 3)} for b in classes
            ],
        }
        for a in classes
    ]
    return {"matrix": {"columns": [label[c] for c in classes], "rows": rows}, "pairs": []}


def _gallery(run: RunFiles) -> list[dict[str, Any]]:
    """Pictures of each entry; what is no picture is left out."""
    stored = run.images()
    low, high = run.results["model"]["bounds"]
    cards = []
    for entry in run.results["gallery"]:
        original, adversarial = stored.get(entry["id"], (None, None))
        if original is None or adversarial is None or not images.is_picture(original):
            continue
        difference, factor = images.perturbation(original, adversarial)
        cards.append(
            {
                **entry,
                "original": images.picture(original, low, high),
                "changed": images.picture(adversarial, low, high),
                "difference": difference,
                "factor": factor,
                "small": max(original.shape[1:]) <= 64,
            }
        )
    return cards
