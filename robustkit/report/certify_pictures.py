"""The gallery of a certification: samples beside a noisy copy, and maps of dense outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from robustkit.report import images
from robustkit.report.dense import colour, mask
from robustkit.report.files import RunFiles

PICTURE_BYTES = 2_500_000
SMALL = 64
"""Pictures up to this size are drawn pixel by pixel."""
NOTHING = "#ffffff"
"""Of pixels without a certificate: no class has it, nor any radius."""
RAMP = "cividis"
"""Of radii: rises evenly in lightness, for any colour vision."""
Array = NDArray[Any]
Row = dict[str, Any]


def gallery(run: RunFiles) -> Row:
    """What the page shows of single samples: cards, and the keys of their colours.

    Raises:
        UsageError: the pictures are missing or damaged.
    """
    r = run.results
    if not r["gallery"]:
        return {"cards": [], "legend": [], "pictures": True}
    names = ("original", "noisy", "label", "prediction", "radius") if r["dense"] else ("original", "noisy", "witness")
    stored = run.certified_images(names)
    if not images.is_picture(stored["original"][0]):
        return {"cards": [], "legend": [], "pictures": False}
    top = float(stored["radius"].max(initial=0)) if r["dense"] else 0.0
    return {"cards": _cards(r, stored, top), "pictures": True, "top": top, "legend": _legend(r), "nothing": NOTHING,
            "ramp": _ramp()}  # fmt: skip


def _cards(r: Row, stored: Mapping[str, Array], top: float) -> list[Row]:
    """An entry each, as many as fit into the page."""
    cards, size = list[Row](), 0
    for k, entry in enumerate(r["gallery"]):
        one = {name: tensor[k] for name, tensor in stored.items()}
        drawn = _answers(r, one, top) if r["dense"] else _attacked(r, entry, one)
        pictures = [*_inputs(r, one), *drawn]
        size += sum(len(uri) for _, uri in pictures)
        if cards and size > PICTURE_BYTES:
            break
        cards.append({**entry, "pictures": pictures, "small": max(one["original"].shape[1:]) <= SMALL})
    return cards


def _inputs(r: Row, one: Mapping[str, Array]) -> list[tuple[str, str]]:
    """The sample and a noisy copy; noise beyond black and white is cut in the picture, not in the computation."""
    low, high = r["model"]["bounds"]
    return [
        ("original", images.picture(one["original"], low, high)),
        ("a noisy copy", images.picture(one["noisy"], low, high)),
    ]


def _attacked(r: Row, entry: Row, one: Mapping[str, Array]) -> list[tuple[str, str]]:
    """The closest input with another class, where an attack found one."""
    if entry["distance"] is None:
        return []
    return [("another class", images.picture(one["witness"], *r["model"]["bounds"]))]


def _answers(r: Row, one: Mapping[str, Array], top: float) -> list[tuple[str, str]]:
    outputs = r["model"]["outputs"]
    classes = outputs[0] if isinstance(outputs, list) else outputs
    label = np.where((one["label"] >= 0) & (one["label"] < classes), one["label"], -1)
    return [
        ("label", mask(label)),
        ("certified class", mask(one["prediction"], NOTHING)),
        ("certified radius", radii(one["radius"], top)),
    ]


def radii(radius: Array, top: float) -> str:
    """Radii (H, W) from 0 to ``top`` as a picture; those that are 0 in a colour of their own."""
    shares = np.clip(np.nan_to_num(radius) / (top or 1.0), 0, 1)
    pixels = matplotlib.colormaps[RAMP](shares, bytes=True)[..., :3]
    nothing = [int(NOTHING[i : i + 2], 16) for i in (1, 3, 5)]
    shown = np.where((radius > 0)[..., None], pixels, np.array(nothing, np.uint8))
    return images.data_uri(images.nearest(shown))


def _legend(r: Row) -> list[tuple[str, str]]:
    """Name and colour of each class of dense outputs."""
    return [(c["name"], colour(c["class"])) for c in r["per_class"]] if r["dense"] else []


def _ramp() -> Markup:
    """The colours of radii as a gradient of the style sheet."""
    stops = matplotlib.colormaps[RAMP](np.linspace(0, 1, 16), bytes=True)[:, :3]
    return Markup("linear-gradient(90deg," + ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in stops.tolist()) + ")")
