"""Rows of the reports' tables, as text: unescaped, each renderer escapes for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustkit.report.text import between, measure, number, percent

Rows = list[list[str]]
ATTACK_COLUMNS = ("attack", "robust accuracy", "95 % interval", "broken", "new", "only it", "median distance",
                  "forwards", "backwards")
CLASS_COLUMNS = ("class", "samples", "clean accuracy", "robust accuracy")
CONFUSION_COLUMNS = ("clean prediction", "adversarial prediction", "samples")
IOU_COLUMNS = ("class", "pixels", "IoU clean", "IoU attacked")
COST_COLUMNS = ("stage", "forwards", "backwards")
STAGES = ("preflight", "clean", "attacks", "diagnostics", "curve")


def page(diagnostic: str) -> str:
    """The documentation of a diagnostic.

    >>> page("D8")
    'docs/diagnostics/d08.md'
    """
    return f"docs/diagnostics/d{int(diagnostic[1:]):02d}.md"


def attacks(results: Mapping[str, Any]) -> Rows:
    """A row per attack, in the order in which they ran."""
    return [
        [a["label"], percent(a["robust_accuracy"]), between(a["interval"]),
         *(number(a[key]) for key in ("broken", "gain", "alone")), number(median_of(a)),
         *(number(a[key]) for key in ("forwards", "backwards"))]
        for a in results["attacks"]
    ]


def median_of(attack: Mapping[str, Any]) -> float | None:
    """Median distance: over all that were attacked for a minimum-norm attack, else over those broken in the threat."""
    minimum = attack["minimum"]
    distance: float | None = minimum["median"] if minimum else attack["median_distance"]
    return distance


def classes(results: Mapping[str, Any], most: int) -> Rows:
    """The weakest classes first."""
    worst = sorted(results["per_class"], key=lambda c: (c["robust_accuracy"], c["clean_accuracy"], c["class"]))
    return [[c["name"], number(c["n"]), percent(c["clean_accuracy"]), percent(c["robust_accuracy"])]
            for c in worst[:most]]


def dense(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Metrics of a dense task: their names, then without attack, after each attack, and in the worst case."""
    found = results["dense"]["metrics"]
    labels = [attack["label"] for attack in results["attacks"]]
    rows = [["without attack", *(measure(m, m["clean"]) for m in found)]]
    rows += [[label, *(measure(m, m["attacks"][k]) for m in found)] for k, label in enumerate(labels)]
    return ["", *(m["name"] for m in found)], [*rows, ["worst case", *(measure(m, m["robust"]) for m in found)]]


def class_iou(results: Mapping[str, Any]) -> Rows:
    """Every class of a segmentation, before and after."""
    share = {"unit": "share"}
    return [
        [c["name"], number(c["pixels"]), measure(share, c["clean_iou"]), measure(share, c["robust_iou"])]
        for c in results["dense"]["per_class"]
    ]


def confusion(results: Mapping[str, Any], most: int) -> Rows:
    """The most frequent ways from a clean prediction to an adversarial one."""
    names = class_names(results)
    return [[names.get(p["from"], str(p["from"])), names.get(p["to"], str(p["to"])), number(p["count"])]
            for p in results["confusion"][:most]]


def class_names(results: Mapping[str, Any]) -> dict[int, str]:
    """Names of the classes that have one."""
    known = dict(enumerate(results["model"]["class_names"] or []))
    return known | {c["class"]: c["name"] for c in results["per_class"]}


def curve(results: Mapping[str, Any]) -> Rows:
    """Robust accuracy by eps; no rows where no curve was asked for."""
    found = results["curve"] or {"points": []}
    return [[number(p["eps"]), percent(p["robust_accuracy"]), between(p["interval"])] for p in found["points"]]


def cost(results: Mapping[str, Any]) -> Rows:
    """Samples through the network, by stage and in all."""
    parts = [(stage, results["cost"][stage]) for stage in STAGES] + [("all", results["cost"])]
    return [[name, number(part["forwards"]), number(part["backwards"])] for name, part in parts]


def found(diagnostic: Mapping[str, Any]) -> str:
    """What a diagnostic saw, and what to do about it.

    >>> found({"message": "still moving", "remedy": "More steps.", "status": "WARN"})
    'still moving. More steps.'
    """
    message = diagnostic["message"].rstrip(".")
    return f"{message}. {diagnostic['remedy']}" if diagnostic["remedy"] else message
