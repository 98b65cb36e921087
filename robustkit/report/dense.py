"""The part of the page that shows dense tasks: metrics, classes, and pictures of labels and answers.

Classes have fixed colours that are told apart with any colour vision: those of Okabe and Ito, 2008
(https://jfly.uni-koeln.de/color/), lighter and darker for classes beyond the eighth. Flow is drawn as a colour wheel:
hue is the direction, saturation the length.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.report import images
from robustkit.report.files import RunFiles
from robustkit.report.text import measure

OKABE_ITO = ("#3b3f46", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
VOID = "#d8dce2"
LEGEND = 24
"""Classes that the legend names; more are in the table."""
PICTURE_BYTES = 2_500_000
BROKEN = {
    True: "at least the task's share of its labelled pixels is wrong, one half unless it says otherwise",
    False: "one of its values is off by more than the tolerance of the task",
}
Array = NDArray[Any]


def context(run: RunFiles) -> dict[str, Any] | None:
    """What the page shows; None for other tasks."""
    found = run.results.get("dense")
    if not found:
        return None
    labels = [attack["label"] for attack in run.results["attacks"]]
    return {
        "broken": BROKEN[bool(found["per_class"])],
        "metrics": found["metrics"],
        "attacks": [
            {"label": label, "values": [measure(m, m["attacks"][k]) for m in found["metrics"]]}
            for k, label in enumerate(labels)
        ],
        "clean": [measure(m, m["clean"]) for m in found["metrics"]],
        "robust": [measure(m, m["robust"]) for m in found["metrics"]],
        "classes": [_class(c) for c in found["per_class"]],
        "legend": [_class(c) for c in found["per_class"][:LEGEND]],
        "void": VOID,
        "cards": _cards(run, found),
    }


def colour(c: int) -> str:
    """The colour of a class: eight hues, then the same lighter, then darker, and again.

    >>> colour(1), colour(-1)
    ('#e69f00', '#d8dce2')
    """
    if c < 0:
        return VOID
    base, turn = OKABE_ITO[c % len(OKABE_ITO)], c // len(OKABE_ITO) % 3
    if turn == 0:
        return base
    towards, share = (255, 0.5) if turn == 1 else (0, 0.4)
    mixed = [round(int(base[i : i + 2], 16) * (1 - share) + towards * share) for i in (1, 3, 5)]
    return "#" + "".join(f"{v:02x}" for v in mixed)


def _class(c: Mapping[str, Any]) -> dict[str, Any]:
    return {**c, "colour": colour(c["class"])}


def _cards(run: RunFiles, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pictures of each entry, as many as fit into the page."""
    cards, size = [], 0
    low, high = run.results["model"]["bounds"]
    for entry in found.get("gallery") or []:
        stored = run.dense_images(entry["id"])
        if not images.is_picture(stored["original"]):
            continue
        change, factor = images.perturbation(stored["original"], stored["adversarial"])
        pictures = {"image": images.picture(stored["original"], low, high), "change": change, **_answers(stored)}
        size += sum(map(len, pictures.values()))
        if size > PICTURE_BYTES:
            break
        figures = [
            (m["name"], measure(m, entry["clean"].get(m["key"])), measure(m, entry["robust"].get(m["key"])))
            for m in found["metrics"]
        ]
        small = max(stored["original"].shape[1:]) <= 64
        cards.append({**entry, "pictures": pictures, "factor": factor, "figures": figures, "small": small})
    return cards


def _answers(stored: Mapping[str, Array]) -> dict[str, str]:
    """Label and both answers as pictures; what is no picture (values of four channels, say) is left out."""
    label = stored["label"]
    if label.dtype.kind == "i":
        return {name: mask(stored[name]) for name in ("label", "before", "after")}
    draw = {1: _grey, 2: flow, 3: _grey}.get(len(label) if label.ndim == 3 else 1)
    return {} if draw is None else {name: draw(stored[name], label) for name in ("label", "before", "after")}


def mask(classes: Array, nothing: str = VOID) -> str:
    """Classes (H, W) in their colours; -1 is void, in a colour of its own."""
    count = max(int(classes.max(initial=0)), 0) + 1
    hues = [*map(colour, range(count)), nothing]
    table = np.array([[int(hue[i : i + 2], 16) for i in (1, 3, 5)] for hue in hues], dtype=np.uint8)
    return images.data_uri(images.nearest(table[classes]))


def _grey(values: Array, label: Array) -> str:
    """Values (H, W) or (C, H, W) of one or three channels, black and white at the ends of the label's range."""
    low, high = float(np.nanmin(label)), float(np.nanmax(label))
    return images.picture(values if values.ndim == 3 else values[None], low, high)


def flow(values: Array, label: Array) -> str:
    """Flow (2, H, W): hue is the direction, saturation the length, full at the label's longest."""
    longest = float(np.hypot(*label).max()) or 1.0
    angle, length = np.arctan2(values[1], values[0]) / (2 * np.pi) % 1, np.hypot(*values) / longest
    turn = np.vectorize(colorsys.hsv_to_rgb, otypes=[float] * 3)
    rgb = np.stack(turn(angle, length.clip(0, 1), 1.0))
    return images.picture(rgb.astype(np.float32), 0.0, 1.0)
