"""Plots as inline SVG by matplotlib, coloured by the page's own style sheet, so that they fit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = {"#010101": "currentColor", "#020202": "var(--robust)", "#030303": "var(--muted)", "#040404": "var(--broken)"}
"""Colours that matplotlib is given, and what stands in the page instead."""
INK, ROBUST, MUTED, BROKEN = COLOURS
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustkit",
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "font.family": "sans-serif",
}


def curve(points: Sequence[Mapping[str, Any]], *, eps: float, chance: float | None, norm: str) -> str:
    """Robust accuracy against eps with its interval; a mark at the eps of the run and a line at chance."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.4))
        axes = figure.add_subplot()
        x = [p["eps"] for p in points]
        axes.fill_between(
            x,
            [100 * p["interval"][0] for p in points],
            [100 * p["interval"][1] for p in points],
            color=ROBUST,
            alpha=0.14,
            lw=0,
        )
        axes.plot(x, [100 * p["robust_accuracy"] for p in points], color=ROBUST, lw=2, marker="o", ms=4.5)
        axes.axvline(eps, color=BROKEN, lw=1.2, ls=(0, (4, 3)))
        axes.text(
            eps,
            103,
            f"  eps of this run: {eps:.4g}  ",
            color=BROKEN,
            fontsize=9.5,
            ha="left" if eps < 0.6 * max(x) else "right",
        )
        if chance is not None:
            axes.axhline(100 * chance, color=MUTED, lw=1, ls=(0, (1, 2)))
            axes.text(0, 100 * chance + 1.5, "chance", color=MUTED, fontsize=9.5)
        _frame(axes, f"eps ({norm})", "robust accuracy, %")
        return _svg(figure, "Robust accuracy against eps")


def _frame(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, ylim=(-2, 110), yticks=range(0, 101, 20))
    axes.margins(x=0.02)
    axes.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def _svg(figure: Figure, title: str) -> str:
    """The figure without its prologue, ids made stable, colours left to the page."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title}"', text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for sentinel, colour in COLOURS.items():
        text = text.replace(sentinel, colour)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
