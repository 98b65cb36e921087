"""Certify the counts behind a published log of dual smoothing again, soundly, and show what the difference costs.

    python examples/recertify_drs_log.py LOG --sigma 0.36    # the authors' log: idx label predict radius correct time
    python examples/recertify_drs_log.py                     # a made-up log of the same form

The authors' code takes sqrt(r_left^2 + r_right^2) of radii clipped at 0, with counts multiplied by 100 and alpha spent
on each half: no certificates. Their logs hold radii of three digits. Here each radius is turned back into the pairs of
counts that print it, and the best of them is certified again: once with the right formula alone, once with the counts
that were drawn and alpha split over the halves. The best pair may not be the true one, so both columns are upper bounds
of what the counts show.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import robustkit as rk
from robustkit.certify import confidence

Array = NDArray[Any]
DRAWS, SCALE, ALPHA = 1000, 100, 0.001
"""Draws of each half, what the counts were multiplied by, and the error that was stated."""
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
COLUMNS = ("as logged", "right formula, counts x100", "sound")
KNOWN = {
    "org_sigma_0.36": (
        (70.5, 58.8, 47.1, 35.9, 26.4, 18.1, 11.9, 0.607),
        (70.5, 58.8, 47.1, 35.9, 26.4, 17.9, 11.8, 0.606),
        (68.2, 56.0, 44.0, 31.9, 20.2, 0.0, 0.0, 0.471),
    )
}
"""Accuracies in % at RADII and the mean radius, worked out once before by a script of its own."""


@dataclass(frozen=True, eq=False)
class Log:
    """Rows of a log.

    Attributes:
        radius: (N,), as printed.
        right: (N,) bool, the prediction was the label.
    """

    radius: Array
    right: NDArray[np.bool_]


def read(path: Path) -> Log:
    """The rows of a log, by the names of its columns.

    Raises:
        SystemExit: no such file, or not such a log.
    """
    if not path.is_file():
        sys.exit(f"no log at {path}: give the file that the certification of dual smoothing wrote")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        label, predict, radius = (lines[0].index(name) for name in ("label", "predict", "radius"))
        rows = [(int(line[label]), int(line[predict]), float(line[radius])) for line in lines[1:]]
        labels, predictions, radii = (np.array(column) for column in zip(*rows, strict=True))
    except (ValueError, IndexError) as error:
        sys.exit(f"{path} is no such log: expected columns named label, predict and radius, and numbers ({error})")
    return Log(radii, labels == predictions)


def sides(sigma: float) -> tuple[Array, Array, Array]:
    """Of every count of one half: what the authors' code makes of it, and what the right formula needs of it.

    Counts whose radius was clipped at 0 cannot be told apart: the largest of them stands for all.
    """
    counts = np.arange(DRAWS + 1)
    scaled = confidence.lower(SCALE * counts, SCALE * DRAWS, ALPHA)
    first = int(np.flatnonzero(scaled < 0.5)[-1])
    return (
        np.maximum(rk.Smoothing(sigma=sigma).radius_of([scaled]), 0)[first:],
        scaled[first:],
        confidence.lower(counts, DRAWS, ALPHA / 2)[first:],
    )


def pairs(sigma: float) -> tuple[Array, Array, Array]:
    """Of every pair of counts, sorted by the first: the logged radius, and what it is worth by two sounder rules."""
    logged, scaled, drawn = sides(sigma)
    left, right = np.triu_indices(len(logged))
    dual = rk.DualSmoothing(sigma=sigma)
    radius = np.hypot(logged[left], logged[right])
    order = np.argsort(radius)
    fixed, sound = (dual.radius_of([p[left], p[right]])[order] for p in (scaled, drawn))
    return radius[order], fixed, sound


def printed(radius: Array) -> tuple[Array, Array]:
    """The least and the largest number that is printed as this one, with three digits."""
    with np.errstate(divide="ignore"):
        digit = np.where(radius > 0, 10.0 ** (np.floor(np.log10(radius)) - 2), 0.0)
    return radius - 0.5000001 * digit, radius + 0.5000001 * digit


def recertify(log: Log, sigma: float) -> tuple[Array, Array, Array]:
    """Radii by the two rules, the best that each printed radius allows; and whether a pair of counts prints it."""
    radius, fixed, sound = pairs(sigma)
    low, high = printed(log.radius)
    first, end = np.searchsorted(radius, low, "left"), np.searchsorted(radius, high, "right")
    known = end > first
    best = [
        np.array([rule[i:j].max() if i < j else 0.0 for i, j in zip(first, end, strict=True)])
        for rule in (fixed, sound)
    ]
    return best[0], best[1], known


def figures(radius: Array, right: NDArray[np.bool_]) -> list[float]:
    """Certified accuracy in % at RADII, and the mean radius; a radius of 0 is none."""
    held = right & (radius > 0)
    shares = [100 * float(np.mean(held & (radius >= at))) for at in RADII]
    return [*shares, float(np.mean(np.where(held, radius, 0)))]


def table(log: Log, sigma: float, name: str) -> str:
    """The three columns, beside those that are known of this log."""
    fixed, sound, known = recertify(log, sigma)
    columns = [figures(radius, log.right) for radius in (log.radius, fixed, sound)]
    before = KNOWN.get(name, ())
    lines = [f"{len(log.radius):,} rows, {100 * known.mean():.1f} % of the radii are those of {DRAWS:,} draws"]
    head = "".join(f"{text:>28}" for text in COLUMNS)
    lines.append(f"{'radius':>8}{head}" + ("   (in brackets: known before)" if before else ""))
    for place, at in enumerate([*(f"{radius:g}" for radius in RADII), "mean"]):
        cells = [_cell(column[place], place) for column in columns]
        if before:
            cells = [f"{cell} ({_cell(old[place], place)})" for cell, old in zip(cells, before, strict=True)]
        lines.append(f"{at:>8}" + "".join(f"{cell:>28}" for cell in cells))
    dual = rk.DualSmoothing(sigma=sigma, n=DRAWS, alpha=ALPHA)
    lines.append(f"{DRAWS:,} draws of each half show no radius above {dual.limit():.3f}.")
    return "\n".join(lines)


def _cell(value: float, place: int) -> str:
    return f"{value:.3f}" if place == len(RADII) else f"{value:.1f} %"


def made_up(sigma: float, rows: int = 500) -> Log:
    """A log as the authors' code prints it, of halves that agree more or less."""
    rng = np.random.default_rng(0)
    chance = np.clip(rng.beta(4, 1, (2, rows)), 0.3, 1)
    logged = np.maximum(_logged(rng.binomial(DRAWS, chance), sigma), 0)
    shown = [float(f"{radius:.3}") for radius in np.hypot(*logged)]
    return Log(np.array(shown), rng.random(rows) < chance.mean(0))


def _logged(counts: Array, sigma: float) -> Array:
    return rk.Smoothing(sigma=sigma).radius_of([confidence.lower(SCALE * counts, SCALE * DRAWS, ALPHA)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path, help="the log; made up where none is given")
    parser.add_argument("--sigma", type=float, default=0.36, help="noise of the log, in units of the input")
    given = parser.parse_args(arguments)
    if given.log is None:
        print("A made-up log:")
        print(table(made_up(given.sigma), given.sigma, ""))
    else:
        print(f"{given.log}:")
        print(table(read(given.log), given.sigma, given.log.name))


if __name__ == "__main__":
    main()
