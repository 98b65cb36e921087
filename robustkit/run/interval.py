"""Exact confidence intervals and paired tests of shares, by scipy."""

from __future__ import annotations

from functools import lru_cache

from scipy.stats import binomtest


@lru_cache(maxsize=1024)
def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share; (0, 1) where nothing was counted.

    >>> low, high = clopper_pearson(0, 3)
    >>> (round(low, 3), round(high, 3))
    (0.0, 0.708)
    """
    if n == 0:
        return 0.0, 1.0
    found = binomtest(successes, n).proportion_ci(confidence, "exact")
    return float(found.low), float(found.high)


def paired_p(only_a: int, only_b: int) -> float:
    """Two-sided p of the exact McNemar (sign) test of two paired shares.

    Args:
        only_a, only_b: samples that are right in one way alone, and in the other alone.

    >>> paired_p(0, 10) < 0.01 < paired_p(4, 6)
    True
    """
    return 1.0 if only_a + only_b == 0 else float(binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue)
