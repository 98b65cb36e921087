"""Certified accuracy against the radius, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from robustkit.report.plots import BROKEN, INK, MUTED, ROBUST, STYLE, frame, inline

Points = Sequence[Mapping[str, Any]]
ROOM = 1.13
"""The axis goes so much beyond the largest radius."""
NARROW = 8.0
"""Inches: below it the key has one column."""


def curve(
    points: Points,
    *,
    abstained: float,
    asked: float | None,
    end: float,
    beyond: str,
    norm: str,
    attack: str | None,
    width: float = 10.8,
) -> str | None:
    """Certified accuracy as steps that are never above what was shown; None where there is nothing to draw.

    Args:
        points: of ``results.json``, ascending in radius.
        abstained: share without a certificate at any radius: a band from the top.
        asked: the radius asked for, which is marked.
        end: the largest radius that can be shown at all; what lies beyond is shaded.
        beyond: why nothing is known there.
        norm: of the radius, as it reads.
        attack: what the empirical curve is by.
        width: in inches, by which sizes of letters are measured.
    """
    most = max(end, asked or 0.0)
    if len(points) < 2 or most <= 0:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 4.1))
        figure.subplots_adjust(left=0.08, right=0.98)
        axes = figure.add_subplot()
        frame(axes, f"radius, {norm}", "share, %")
        right = max(ROOM * most, points[-1]["radius"])  # an attack goes on where nothing can be shown
        axes.set(xlim=(-0.012 * right, right), ylim=(-2, 109))
        reached = [p for p in points if p["radius"] <= most]
        _bands(axes, reached, abstained, most)
        _attacked(axes, points, attack)
        _lines(axes, reached)
        _beyond(axes, end, right, beyond)
        if asked is not None:
            _asked(axes, asked, left=asked < 0.6 * right)
        _key(axes, columns=1 if width < NARROW else 2)
        return inline(figure, "Certified accuracy against the radius")


def _bands(axes: Any, points: Points, abstained: float, right: float) -> None:
    """What has no certificate, from the top, and the interval of the certified accuracy."""
    if abstained > 0:
        name = "abstained: no radius was shown"
        axes.fill_between([0, right], 100 * (1 - abstained), 100, color=MUTED, alpha=0.26, lw=0, label=name)
    if all(p["interval"] is not None for p in points):
        low, high = ([100 * p["interval"][side] for p in points] for side in (0, 1))
        axes.fill_between(_radii(points), low, high, step="pre", color=ROBUST, alpha=0.17, lw=0)


def _attacked(axes: Any, points: Points, attack: str | None) -> None:
    """What an attack left: steps fall after a point."""
    held = _values(points, "empirical")
    if held and attack is not None:
        name = f"right, not broken by {_plain(attack)}"
        axes.step(_radii(points), held, where="post", color=BROKEN, lw=1.6, ls=(0, (5, 2)), label=name)


def _lines(axes: Any, points: Points) -> None:
    """Certified at a radius is certified below it: steps fall before a point."""
    x, right = _radii(points), _values(points, "certified_accuracy")
    any_class = _values(points, "certified")
    if any_class != right:
        axes.step(x, any_class, where="pre", color=MUTED, lw=1.2, ls=(0, (1, 1.5)), label="certified, right or wrong")
    axes.step(x, right, where="pre", color=ROBUST, lw=2.2, label="certified and right")


def _beyond(axes: Any, end: float, right: float, why: str) -> None:
    axes.axvspan(end, right, color=MUTED, alpha=0.12, lw=0)
    axes.axvline(end, color=MUTED, lw=1.0, ls=(0, (1, 2)))
    place = {"rotation": 90, "ha": "center", "va": "center", "color": MUTED, "fontsize": 9.5}
    axes.text(min((end + right) / 2, end + 0.06 * right), 47, why, **place)


def _asked(axes: Any, radius: float, *, left: bool) -> None:
    axes.axvline(radius, color=INK, lw=1.1, ls=(0, (4, 3)))
    side = {"xytext": (7 if left else -7, 0), "ha": "left" if left else "right"}
    axes.annotate(f"asked: {radius:.4g}", (radius, 103), textcoords="offset points", color=INK, fontsize=9.5, **side)


def _key(axes: Any, columns: int) -> None:
    """Above the plot, the most important first."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: (labels[k].startswith("abstained"), -k))
    legend = axes.legend(
        [handles[k] for k in order], [labels[k] for k in order], loc="lower left", bbox_to_anchor=(-0.01, 1.0),
        ncol=columns, frameon=False, labelcolor=INK, borderaxespad=0.2, handlelength=2.4,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_parse_math(False)


def _radii(points: Points) -> list[float]:
    return [p["radius"] for p in points]


def _values(points: Points, key: str) -> list[float]:
    """In percent; empty where one is unknown."""
    found = [p[key] for p in points]
    return [] if any(value is None for value in found) else [100 * value for value in found]


def _plain(name: str) -> str:
    """What every font has, and not too much of it.

    >>> _plain("pgd:steps=20")
    'pgd:steps=20'
    """
    return "".join(c for c in name if " " <= c <= "~")[:40]
