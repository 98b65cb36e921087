"""What paired runs say: intervals over seeds, Holm's adjustment, a bootstrap, and the words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MARGIN = 0.01
"""A difference of less than one point is of no interest."""
FEWEST = 3
"""Seeds without which there is no verdict."""


@dataclass(frozen=True)
class Difference:
    """A method minus a reference, over seeds that both were trained with.

    Attributes:
        mean, low, high: of the differences, with the 95 % t interval over seeds.
        p: two-sided, of the paired t test.
        holm: the same, adjusted for all the comparisons of the table; None until that is done.
        bootstrap: 95 % interval over seeds and test points, where the points are known.
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    holm: float | None = None
    bootstrap: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """``refuted``: the interval ends below a point; ``beats``: it lies above 0, and the mean is at least a point.

        Everything else is ``not shown``: the interval contains 0, the gain is too small to matter, or there are fewer
        than 3 seeds, two of which may agree by chance.
        """
        if self.seeds < FEWEST:
            return "not shown"
        if self.high < MARGIN:
            return "refuted"
        return "beats" if self.low > 0 and self.mean >= MARGIN else "not shown"


def difference(method: Sequence[float], reference: Sequence[float]) -> Difference:
    """Paired comparison of two lists with an entry for each seed.

    >>> d = difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.5])
    >>> round(d.mean, 4), round(d.low, 4), round(d.high, 4), d.verdict
    (0.1333, -0.0101, 0.2768, 'not shown')
    """
    gaps = np.asarray(method, float) - np.asarray(reference, float)
    mean, n = float(gaps.mean()), len(gaps)
    if n < 2:
        return Difference(mean, float("nan"), float("nan"), float("nan"), n)
    error = float(gaps.std(ddof=1)) / n**0.5
    if error == 0:  # all seeds agree: there is no spread to test against
        return Difference(mean, mean, mean, float(mean == 0), n)
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, mean - reach, mean + reach, p, n)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: valid however the tests depend on each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(np.asarray(p, float), kind="stable")
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in found]


def adjusted(found: Sequence[Difference]) -> list[Difference]:
    """The same differences with Holm's p; those without a p are no tests."""
    tested = [d for d in found if not np.isnan(d.p)]
    values = iter(holm([d.p for d in tested]))
    return [d if np.isnan(d.p) else replace(d, holm=next(values)) for d in found]


def bootstrap(gaps: NDArray[np.float64], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of (seeds, points) differences when both seeds and test points are drawn anew."""
    generator = np.random.default_rng(seed)
    seeds, points = gaps.shape
    means = [
        gaps[generator.integers(seeds, size=seeds)].mean(0)[generator.integers(points, size=points)].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
