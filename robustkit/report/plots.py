"""Plots as inline SVG, coloured by the page's own style sheet, so that they fit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

COLOURS = {"#010101": "currentColor", "#020202": "var(--robust)", "#030303": "var(--muted)", "#040404": "var(--broken)"}
"""Colours that matplotlib is given, and what stands in the page instead."""
INK, ROBUST, MUTED, BROKEN = COLOURS
STATES = ("robust", "broken", "wrong")
"""What a sample can be, by its code 0, 1, 2; the names of the style sheet's colours."""
COLUMNS = 600
LINES = ("-", "--", ":", "-.")
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of lines that have no meaning of their own, told apart with any colour vision and on light and dark."""
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
        figure = Figure(figsize=(10.8, 3.7))
        axes = figure.add_subplot()
        x = [p["eps"] for p in points]
        low, high = ([100 * p["interval"][side] for p in points] for side in (0, 1))
        axes.fill_between(x, low, high, color=ROBUST, alpha=0.16, lw=0)
        axes.plot(x, [100 * p["robust_accuracy"] for p in points], color=ROBUST, lw=1.8, marker="o", ms=4)
        frame(axes, f"eps, {norm}", "robust accuracy, %")
        _mark(axes, eps, left=eps < 0.6 * max(x))
        if chance is not None:
            axes.axhline(100 * chance, color=MUTED, lw=0.9, ls=(0, (1, 2)))
            axes.annotate("chance", (0.0, 100 * chance), (4, 4), color=MUTED, fontsize=9.5, textcoords="offset points")
        return inline(figure, "Robust accuracy against eps")


def curves(
    attacks: Mapping[str, Sequence[Mapping[str, Any]]], *, eps: float, norm: str, most: int = len(LINES)
) -> str:
    """Robust accuracy against eps, a step line for each minimum-norm attack, and a mark at the eps of the run."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 3.7))
        axes = figure.add_subplot()
        for (label, points), line in zip(list(attacks.items())[:most], LINES, strict=False):
            x = [p["eps"] for p in points]
            axes.step(x, [100 * p["robust_accuracy"] for p in points], where="post", color=ROBUST, lw=1.8, ls=line,
                      label=label)
        frame(axes, f"eps, {norm}", "robust accuracy, %")
        _mark(axes, eps, left=eps < 0.6 * axes.get_xlim()[1])
        axes.legend(frameon=False, loc="upper right", labelcolor=INK)
        return inline(figure, "Robust accuracy against eps, from minimum-norm attacks")


def cascade(lines: Mapping[str, Sequence[float | None]]) -> str:
    """Similarity of a map with the original against the number of layers drawn anew, a line for each method."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 3.7))
        axes = figure.add_subplot()
        for k, (label, values) in enumerate(lines.items()):
            y = [np.nan if value is None else value for value in values]
            style, hue = LINES[k // len(HUES) % len(LINES)], HUES[k % len(HUES)]
            axes.plot(range(1, len(y) + 1), y, ls=style, color=hue, lw=1.8, marker="o", ms=3.5, label=label)
        frame(axes, "layers drawn anew, from the outputs down", "rank correlation")
        lowest = min((value for values in lines.values() for value in values if value is not None), default=0.0)
        axes.set(ylim=(min(-0.5, lowest - 0.05), 1.05), yticks=(-0.5, 0, 0.5, 1))
        axes.axhline(0, color=MUTED, lw=0.9, ls=(0, (1, 2)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for entry in axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), labelcolor=INK).get_texts():
            entry.set_parse_math(False)
        return inline(figure, "Similarity under randomised weights")


def strip(states: NDArray[np.int64], columns: int = COLUMNS) -> str:
    """A row of samples (N,), each a code of :data:`STATES`, as at most ``columns`` columns, one path per state.

    Where several samples share a column, each state gets its share of the height: no colour is mixed.
    """
    columns = min(len(states), columns)
    edges = np.linspace(0, len(states), columns + 1).astype(int)
    shares = np.add.reduceat(np.eye(len(STATES))[states], edges[:-1]) / np.diff(edges)[:, None]
    starts = [0, *(np.flatnonzero((np.diff(shares, axis=0) != 0).any(1)) + 1).tolist()]
    tops = np.cumsum(shares, axis=1) - shares
    paths = []
    for k, name in enumerate(STATES):
        boxes = [
            f"M{a} {tops[a, k]:.4g}h{b - a}v{shares[a, k]:.4g}h{a - b}z"
            for a, b in zip(starts, [*starts[1:], columns], strict=True)
            if shares[a, k] > 0
        ]
        paths.append(f'<path fill="var(--{name})" d="{"".join(boxes)}"/>' if boxes else "")
    box = f'viewBox="0 0 {columns} 1" preserveAspectRatio="none" shape-rendering="crispEdges"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(paths)}</svg>'


def _mark(axes: Any, eps: float, *, left: bool) -> None:
    """The eps of the run, named on the side where there is room."""
    axes.axvline(eps, color=BROKEN, lw=1.1, ls=(0, (4, 3)))
    axes.annotate(
        f"eps of this run: {eps:.4g}",
        (eps, 104),
        (7 if left else -7, 0),
        textcoords="offset points",
        color=BROKEN,
        fontsize=9.5,
        ha="left" if left else "right",
    )


def frame(axes: Any, x: str, y: str) -> None:
    """Axes without a box; y from 0 to 100, with room above for names, unless it is set anew."""
    axes.set(xlabel=x, ylabel=y, ylim=(-2, 112), yticks=range(0, 101, 20))
    axes.margins(x=0.02)
    axes.grid(axis="y", color=MUTED, alpha=0.22, lw=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=3, pad=5)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def inline(figure: Figure, title: str) -> str:
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
