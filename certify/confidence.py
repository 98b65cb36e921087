"""Bounds on the probability of an answer from counts, for a fixed number of draws and for any number of them.

All functions take and give arrays (any shape, broadcast) in float64, and are on the safe side of rounding. The betting
martingale is that of Krichevsky and Trofimov; a certificate of it is valid at every number of draws at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln, xlog1py, xlogy

Array = NDArray[Any]
ROUNDING = 4e-15
"""Slack in the logarithm of wealth, for each draw: more than its rounding."""
SERIES = 40
"""From here on the series of Stirling has all digits, and gammaln no longer."""
SMALLEST = -700.0
"""Logarithm of the least bound above 0: exp of less has no digits."""
STEPS = 8
"""Newton's steps to an anytime bound; a bound is sound after any number of them."""


def lower(k: Any, n: Any, alpha: Any) -> Array:
    """One-sided Clopper-Pearson: ``p >= lower`` but for a share alpha of experiments; 0 for k = 0.

    >>> round(float(lower(1000, 1000, 0.001)), 6)  # alpha ** (1 / n)
    0.993116
    """
    k, n, alpha = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float), np.asarray(alpha, float))
    found = betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, alpha)
    return np.asarray(np.where(k > 0, np.maximum(found * (1 - 1e-13), 0), 0.0))


def upper(k: Any, n: Any, alpha: Any) -> Array:
    """One-sided Clopper-Pearson: ``p <= upper`` but for a share alpha of experiments; 1 for k = n."""
    return np.asarray(np.minimum(np.nextafter(1 - lower(np.asarray(n) - np.asarray(k), n, alpha), 2), 1.0))


def wealth(k: Any, n: Any, p: Any) -> Array:
    """Logarithm of what a gambler has made of 1 by betting against ``p``, after k of n draws went his way.

    ``ln B(k + 1/2, n - k + 1/2) - ln B(1/2, 1/2) - k ln p - (n - k) ln(1 - p)``. Where p is the truth this exceeds
    ``ln(1 / alpha)`` at any time with probability at most alpha (Ville).
    """
    k, n, p = np.asarray(k, float), np.asarray(n, float), np.asarray(p, float)
    return np.asarray(_peak(k, n) - xlogy(k, p) - xlog1py(n - k, -p))


def above(k: Any, n: Any, p: Any, alpha: float) -> Array:
    """Whether the probability is shown to be above ``p``, at any number of draws, with error at most alpha.

    One-sided: for a true probability below p the wealth against it is larger still while ``k / n > p``.
    """
    k, n = np.asarray(k, float), np.asarray(n, float)
    return np.asarray((k > n * p) & (wealth(k, n, p) >= -np.log(alpha) + _slack(n, alpha)))


def below(k: Any, n: Any, p: Any, alpha: float) -> Array:
    """Whether the probability is shown to be below ``p``, at any number of draws, with error at most alpha."""
    return above(np.asarray(n) - np.asarray(k), n, 1 - np.asarray(p), alpha)


def anytime_lower(k: Any, n: Any, alpha: float) -> Array:
    """The largest p that the probability is shown to be above: a bound that holds at every number of draws at once.

    Newton's method in ``u = ln p`` on the wealth minus ``ln(1 / alpha)``, which is convex in u and falls up to the
    share k / n: from a start below the root each step ends below it, so that any number of steps gives a sound bound.
    Every element takes the same steps, whatever stands beside it.

    >>> float(anytime_lower(1000, 1000, 0.001).round(6)), float(lower(1000, 1000, 0.001).round(6))
    (0.989125, 0.993116)
    """
    k, n = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    some = k > 0
    n, k = np.where(some, n, 1.0), np.where(some, k, 1.0)
    # twice the slack: what is found is shown by `above`, too
    goal = _peak(k, n) + np.log(alpha) - 2 * _slack(n, alpha)
    u = _start(k, n, xlogy(k, k / n) + xlogy(n - k, (n - k) / n) - goal)
    for _ in range(STEPS):
        p = np.exp(u)
        excess = goal - k * u - xlog1py(n - k, -p)
        u = u + np.maximum(excess, 0) * (1 - p) / (k - n * p)
    return np.asarray(np.where(some & (u > SMALLEST), np.exp(u), 0.0))


def anytime_upper(k: Any, n: Any, alpha: float) -> Array:
    """The smallest p that the probability is shown to be below; see :func:`anytime_lower`."""
    return np.asarray(1 - anytime_lower(np.asarray(n) - np.asarray(k), n, alpha))


def _slack(n: Array, alpha: float) -> Array:
    return np.asarray(ROUNDING * (n + 1 - np.log(alpha)))


def _start(k: Array, n: Array, wanted: Array) -> Array:
    """Logarithm of a p below the root of ``n KL(k / n || p) = wanted``, from three lower bounds on the divergence.

    With q = k / n and p < q: KL is at least ``2 (q - p)^2``, ``(q - p)^2 / (2 q)`` and ``q ln(q / p) - q``.
    """
    q, each = k / n, wanted / n
    least = np.log(q) - 1 - wanted / k
    p = np.maximum(q - np.sqrt(each / 2), q - np.sqrt(2 * q * each))
    return np.where(p > 0, np.maximum(least, np.log(np.where(p > 0, p, 1.0))), least)


def _peak(k: Array, n: Array) -> Array:
    """``ln B(k + 1/2, n - k + 1/2) - ln B(1/2, 1/2)``.

    As the likelihood at k / n and a small rest, since gammaln of a million has no digits left for the difference.
    """
    some = np.maximum(n, 1)
    likelihood = xlogy(k, k / some) + xlogy(n - k, (n - k) / some)
    return np.asarray(likelihood + _rest_half(k) + _rest_half(n - k) - _rest_one(n) - np.log(np.pi))


def _rest_half(k: Array) -> Array:
    """``ln Gamma(k + 1/2) - k ln k + k``."""
    few, many = np.minimum(k, SERIES), np.maximum(k, SERIES)
    r = 1 / many**2
    series = np.log(2 * np.pi) / 2 - (1 / 24 - (7 / 2880 - (31 / 40320 - 127 / 215040 * r) * r) * r) / many
    return np.asarray(np.where(k < SERIES, gammaln(few + 0.5) - xlogy(few, few) + few, series))


def _rest_one(n: Array) -> Array:
    """``ln Gamma(n + 1) - n ln n + n``."""
    few, many = np.minimum(n, SERIES), np.maximum(n, SERIES)
    r = 1 / many**2
    series = np.log(2 * np.pi * many) / 2 + (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 * r) * r) * r) / many
    return np.asarray(np.where(n < SERIES, gammaln(few + 1) - xlogy(few, few) + few, series))


def holm(p_values: Array, alpha: float) -> NDArray[np.bool_]:
    """Which hypotheses Holm's step-down rejects along the last axis: any false rejection has probability <= alpha.

    >>> holm(np.array([0.01, 0.04, 0.03]), 0.05).tolist()
    [True, False, False]
    """
    order = np.argsort(p_values, -1)
    count = p_values.shape[-1]
    small = np.take_along_axis(p_values, order, -1) <= alpha / (count - np.arange(count))
    rejected = np.zeros(p_values.shape, bool)
    np.put_along_axis(rejected, order, np.logical_and.accumulate(small, -1), -1)
    return rejected
