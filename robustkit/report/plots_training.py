"""Curves of a training over its epochs, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustkit.report.plots import BROKEN, HUES, INK, MUTED, ROBUST, STYLE, frame, inline

Epochs = Sequence[Mapping[str, Any]]
Point = tuple[int, float]
MARKED = 40
"""Up to so many epochs have a dot of their own."""


def accuracy(
    epochs: Epochs,
    *,
    best: Mapping[str, Any] | None = None,
    overfitting: Mapping[str, Any] | None = None,
    width: float = 10.8,
) -> str | None:
    """Clean and robust accuracy on the held-out part, those of the batches behind them; None without any.

    Args:
        epochs: rows of ``results.json``.
        best: the weights that were kept, whose epoch is marked.
        overfitting: the collapse, if any, which is marked too.
        width: in inches, by which sizes of letters are measured.
    """
    lines = _lines(epochs)
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(width, 3.9, "accuracy, %")
        for _, colour, width, dashes, points in lines:
            _line(axes, points, color=colour, lw=width, ls=dashes)
        if best is not None:
            _best(axes, best)
        if overfitting is not None:
            _collapse(axes, overfitting)
        low, high = axes.get_ylim()
        _name_ends(axes, [(points[-1][1], name, colour) for name, colour, *_, points in lines], 0.052 * (high - low))
        return inline(figure, "Accuracy by epoch")


def loss(epochs: Epochs) -> str | None:
    """The loss of each epoch and the terms that it is the sum of; None where no epoch has one."""
    total = _points(epochs, lambda row: row["loss"])
    names = dict.fromkeys(name for row in epochs for name in row["terms"])
    terms = {name: _points(epochs, lambda row, name=name: row["terms"].get(name)) for name in names}
    terms = {name: points for name, points in terms.items() if points}
    if not total:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(6.9, 3.4, "loss on the batches")
        ends = [(total[-1][1], "loss" if len(terms) > 1 else next(iter(terms), "loss"), INK)]
        _line(axes, total, color=INK, lw=2.0)
        for k, (name, points) in enumerate(terms.items() if len(terms) > 1 else ()):
            _line(axes, points, color=HUES[k % len(HUES)], lw=1.5)
            ends.append((points[-1][1], name, HUES[k % len(HUES)]))
        values = [y for points in (total, *terms.values()) for _, y in points]
        _from_zero(axes, values)
        low, high = axes.get_ylim()
        _name_ends(axes, ends, 0.08 * (high - low))
        return inline(figure, "Loss by epoch")


def small(epochs: Epochs, key: str, name: str) -> str | None:
    """A figure that the recipe sets, such as ``lr``, at the end of each epoch; None where there is none."""
    points = _points(epochs, lambda row: row[key])
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.5, 1.45, name)
        _line(axes, points, color=MUTED, lw=1.5, dots=False)
        _from_zero(axes, [y for _, y in points])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        return inline(figure, f"{name} by epoch")


def _axes(width: float, height: float, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=0.1, right=0.86)
    axes = figure.add_subplot()
    frame(axes, "epoch", y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _points(epochs: Epochs, of: Any) -> list[Point]:
    """Epoch and value, of the epochs that have one."""
    found = [(row["epoch"], of(row)) for row in epochs]
    return [(epoch, float(value)) for epoch, value in found if value is not None]


def _lines(epochs: Epochs) -> list[tuple[str, str, float, Any, list[Point]]]:
    """Name, colour, width, dashes and points of each line that has any."""
    dashed = (0, (4, 2))
    known = {"adversarial": ("attacked batches", ROBUST), "clean": ("clean batches", MUTED)}
    others = sorted({part for row in epochs for part in row["accuracy"]} - known.keys())
    known |= {part: (f"{part} batches", HUES[k % len(HUES)]) for k, part in enumerate(others)}
    lines: list[tuple[str, str, float, Any, list[Point]]] = [
        ("robust", ROBUST, 2.2, "-", _held_out(epochs, "robust")),
        ("clean", INK, 1.8, "-", _held_out(epochs, "clean")),
    ]
    lines += [(name, colour, 1.0, dashed, _batches(epochs, part)) for part, (name, colour) in known.items()]
    return [line for line in lines if line[-1]]


def _held_out(epochs: Epochs, key: str) -> list[Point]:
    measured = [row for row in epochs if row["held_out"] is not None and row["held_out"][key] is not None]
    return _points(measured, lambda row: 100 * row["held_out"][key])


def _batches(epochs: Epochs, key: str) -> list[Point]:
    measured = [row for row in epochs if row["accuracy"].get(key) is not None]
    return _points(measured, lambda row: 100 * row["accuracy"][key])


def _line(axes: Any, points: Sequence[Point], *, dots: bool = True, **style: Any) -> None:
    """A line through the points; a dot where there is nothing to join, or few of them."""
    marked = len(points) == 1 or (dots and len(points) <= MARKED and style["lw"] > 1.2)
    x, y = zip(*points, strict=True)
    axes.plot(x, y, marker="o" if marked else None, ms=2 + style["lw"], **style)


def _from_zero(axes: Any, values: Sequence[float]) -> None:
    """The axis from 0, or what lies below, to somewhat more than the largest."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * ((high - low) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(low - (room if low < 0 else 0.02 * room), high + room)


def _best(axes: Any, best: Mapping[str, Any]) -> None:
    """The epoch whose weights were kept: a line, and a ring around what it was chosen by."""
    value = best["clean"] if best["robust"] is None else best["robust"]
    axes.axvline(best["epoch"], ymax=0.93, color=MUTED, lw=1.0, ls=(0, (1, 2)))
    if value is not None:
        axes.plot(best["epoch"], 100 * value, marker="o", ms=10, mfc="none", mec=ROBUST, mew=1.8)
    _say(axes, best["epoch"], 105, f"best: epoch {best['epoch']}", MUTED)


def _collapse(axes: Any, found: Mapping[str, Any]) -> None:
    """The epoch that lost most of the robustness."""
    axes.set_ylim(-2, 122)
    axes.axvline(found["epoch"], color=BROKEN, lw=1.2, ls=(0, (4, 3)))
    text = f"collapse in epoch {found['epoch']}: {100 * found['before']:.1f} to {100 * found['after']:.1f} % robust"
    _say(axes, found["epoch"], 115, text, BROKEN)


def _say(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """Words beside a line, on the side where there is room."""
    low, high = axes.get_xlim()
    left = x - low < 0.6 * (high - low)
    place = {"xytext": (7 if left else -7, 0), "textcoords": "offset points", "ha": "left" if left else "right"}
    axes.annotate(text, (x, y), color=colour, fontsize=9.5, **place)


def _name_ends(axes: Any, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Names at the right of the lines, in their colours, at least ``gap`` apart from one another."""
    low, high = axes.get_ylim()
    places = apart([y for y, *_ in ends], gap, low + gap / 2, high - gap / 2)
    for y, (_, name, colour) in zip(places, ends, strict=True):
        shown = "".join(c for c in name if " " <= c <= "~")[:24]  # what every font has
        axes.text(1.012, y, shown, transform=axes.get_yaxis_transform(), color=colour, fontsize=10, va="center",
                  parse_math=False)  # fmt: skip


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places, moved until each is at least ``gap`` from the next, in their order, between ``low`` and ``high``.

    >>> apart([5.0, 1.0, 5.5], 1, 0, 10)
    [5.0, 1.0, 6.0]
    >>> apart([9.5, 9.6], 1.0, 0.0, 10.0)
    [9.0, 10.0]
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    found = [0.0] * len(places)
    below = low - gap
    for k in order:
        below = found[k] = max(places[k], below + gap)
    above = high + gap
    for k in reversed(order):
        above = found[k] = min(found[k], above - gap)
    return found
