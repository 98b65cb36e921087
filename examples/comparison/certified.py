"""The tables of a comparison of certifiers in Markdown, from its lines, and the page that they stand on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from comparison.page import markdown, p_text
from numpy.typing import NDArray

from robustkit.run.interval import paired_p

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Radii of the curve."""
ROWS = (
    ("noise", "plain, n"),
    ("noise", "plain, 2 n"),
    ("long", "plain, 10 n"),
    ("noise", "dual, n a half"),
    ("long", "dual, fill=mean, n a half"),
    ("org", "dual, n a half"),
    ("consistency", "dual, n a half"),
)
PLAIN = 3
"""How many of them are plain: what dual smoothing is held against, at equal draws a vote, in all, and at ten times."""
Line = dict[str, Any]
Row = tuple[str, str]
Radii = NDArray[np.float64]


def radii(lines: Iterable[Line], sigma: float, row: Row) -> Radii:
    """(seeds, points): certified radius, -1 where the class is wrong; of the seeds in order."""
    arm, method = row
    chosen = [line for line in lines if line["sigma"] == sigma and line["arm"] == arm]
    return np.array([line["radii"][method] for line in sorted(chosen, key=lambda line: line["seed"])])


def held(found: Radii, radius: float) -> NDArray[np.bool_]:
    """Where the right class is certified at a radius.

    >>> held(np.array([-1.0, 0.0, 0.2, 0.5]), 0.0).tolist()
    [False, False, True, True]
    """
    return (found > 0) & (found >= radius)


def per_digit(found: Radii, radius: float | None) -> NDArray[np.float64]:
    """What is averaged: 1 where a digit is certified at a radius; its radius itself, where none is given."""
    return np.maximum(found, 0) if radius is None else held(found, radius).astype(float)


def sigmas(lines: Iterable[Line]) -> list[float]:
    """The noise levels, each once."""
    return sorted({line["sigma"] for line in lines})


def present(lines: Iterable[Line], sigma: float, rows: Sequence[Row]) -> list[Row]:
    """The rows that were measured at a noise level."""
    arms = {line["arm"] for line in lines if line["sigma"] == sigma}
    return [row for row in rows if row[0] in arms]


def name(row: Row) -> str:
    """An arm and its certificate, for tables."""
    arm, method = row
    return f"`{'noise' if arm in ('noise', 'long') else f'drs:recipe={arm}'}`, {method}"


def curves(lines: Sequence[Line], sigma: float) -> str:
    """Certified accuracy at every radius, the mean certified radius, and the largest radius that the draws can show."""
    rows = []
    for row in present(lines, sigma, ROWS):
        found = radii(lines, sigma, row)
        shares = [f"{100 * held(found, radius).mean():.1f}" for radius in GRID]
        first = next(line for line in lines if line["sigma"] == sigma and line["arm"] == row[0])
        rows.append([name(row), *shares, f"{np.maximum(found, 0).mean():.3f}", f"{first['limits'][row[1]]:.2f}"])
    return markdown(["training, certificate", *(f"{radius:g}" for radius in GRID), "mean radius", "limit"], rows)


def gaps(lines: Sequence[Line], sigma: float) -> str:
    """Dual minus plain on the same digits: at every radius, and the mean radius; with intervals and McNemar's p."""
    rows = []
    for base in present(lines, sigma, ROWS[:PLAIN]):
        for row in present(lines, sigma, ROWS[PLAIN:]):
            ours, theirs = radii(lines, sigma, row), radii(lines, sigma, base)
            cells = [_gap(ours, theirs, radius) for radius in GRID]
            rows.append([f"{name(row)} - {base[1]}", *cells, _interval(ours, theirs, None, 1, 3)])
    return markdown(["difference", *(f"{radius:g}" for radius in GRID), "mean radius"], rows)


def _gap(ours: Radii, theirs: Radii, radius: float) -> str:
    """In points, with p where there is one seed: digits of several networks are no independent ones."""
    text = _interval(ours, theirs, radius, 100, 1)
    if len(ours) > 1:
        return text
    a, b = held(ours, radius), held(theirs, radius)
    p = p_text(paired_p(int((a & ~b).sum()), int((b & ~a).sum())))
    return f"{text}, p {p}"


def _interval(ours: Radii, theirs: Radii, radius: float | None, scale: float, digits: int) -> str:
    gap = per_digit(ours, radius) - per_digit(theirs, radius)
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (gap.mean(), *bootstrap(gap)))
    return f"{mean} [{low}, {high}]"


def bootstrap(gap: Radii, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of (seeds, points) differences when both are drawn anew; the same draws every time."""
    generator = np.random.default_rng(0)
    seeds, points = (generator.multinomial(size, [1 / size] * size, size=draws) for size in gap.shape)
    low, high = np.quantile(((seeds @ gap) * points).sum(1) / gap.size, [0.025, 0.975])
    return float(low), float(high)


def table(lines: Sequence[Line]) -> str:
    """Both tables for every noise level."""
    return "\n\n".join(
        f"sigma = {sigma:g}\n\n{curves(lines, sigma)}\n\n{gaps(lines, sigma)}" for sigma in sigmas(lines)
    )


def page(lines: Sequence[Line], arguments: str) -> str:
    """The part of the page that is measured."""
    first, seeds = lines[0], len({line["seed"] for line in lines})
    trained, certified = (np.mean([line[key] for line in lines]) for key in ("seconds", "seconds_certified"))
    conditions = (
        f"{first['points']:,} digits, {seeds} seed{'s' if seeds > 1 else ''}, n = {first['n']:,}, "
        f"{first['budget']:,.0f} example-gradients an arm: `python examples/compare_smoothing.py {arguments}`. An arm "
        f"took {trained:.0f} s to train and {certified:.0f} s to certify on the average, on a busy core."
    )
    parts = (
        f"### sigma = {sigma:g}\n\n{_clean(lines, sigma)}\n\n{curves(lines, sigma)}\n\n{gaps(lines, sigma)}"
        for sigma in sigmas(lines)
    )
    return "\n\n".join([conditions, *parts])


def _clean(lines: Sequence[Line], sigma: float) -> str:
    """Accuracy of the networks themselves."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line["sigma"] == sigma:
            found.setdefault(line["arm"], []).append(line["clean"])
    shares = ", ".join(f"`{arm}` {np.mean(values):.1%}" for arm, values in found.items() if arm != "long")
    return f"Without noise and without a certificate: {shares}."


def write(path: Path, text: str, lines: Sequence[Line]) -> None:
    """Put the text between the marks of the page, and the raw figures beside it.

    Raises:
        SystemExit: the page has no marks.
    """
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- measured -->\n).*(\n<!-- end measured -->)", re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{path} has no part for the figures: <!-- measured --> to <!-- end measured -->")
    path.write_text(pattern.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", old), encoding="utf-8")
    body = ",\n".join(json.dumps(line) for line in lines)
    path.with_suffix(".json").write_text(f"[\n{body}\n]\n", encoding="utf-8")
