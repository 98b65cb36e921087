"""Two runs on the same samples: is one more robust, or is it chance?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from robustkit.core.errors import UsageError
from robustkit.report.files import RunFiles

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Comparison:
    """Robust verdicts of two runs, sample by sample.

    Attributes:
        n: samples in both.
        both, only_a, only_b, neither: how many are robust in which run.
        difference: robust accuracy of B minus that of A, in [-1, 1].
        interval: its 95 % interval for paired shares (Newcombe 1998, method 10).
        p: two-sided, of McNemar's exact test.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p: float


def paired(run_a: str | Path, run_b: str | Path) -> Comparison:
    """Compare two runs on the samples they share; of an incomplete run, those that went through every attack.

    Raises:
        UsageError: no run there, or a damaged one; other data, another threat, or no sample in common.
        Incomplete: a run has no results yet.
    """
    a, b = RunFiles.open(run_a), RunFiles.open(run_b)
    changes = list(_differences(a.checked().results, b.checked().results))
    if changes:
        raise UsageError(
            f"these runs cannot be compared: {'; '.join(changes)}",
            where=f"{a.path}, {b.path}",
            fix="Compare runs on the same data under the same threat.",
        )
    robust_a, robust_b = robust(a), robust(b)
    shared = sorted(robust_a.keys() & robust_b.keys())
    if not shared:
        raise UsageError(
            "the runs share no sample",
            where=f"{a.path}, {b.path}",
            fix="Finish both, with a --limit of the same size or none.",
        )
    return count([(robust_a[i], robust_b[i]) for i in shared])


def robust(run: RunFiles) -> dict[int, bool]:
    """For each sample that went through every attack: right when clean, and broken by none."""
    attacks = [
        {row["id"]: bool(row["success"]) for row in run.attack_rows(k)} for k in range(len(run.results["attacks"]))
    ]
    found = {}
    for row in run.clean_rows():
        i, correct = row["id"], bool(row["correct"])
        if not correct or all(i in broken for broken in attacks):
            found[i] = correct and not any(broken[i] for broken in attacks)
    return found


def count(pairs: Sequence[tuple[bool, bool]]) -> Comparison:
    """The comparison of paired verdicts (A, B), at least one.

    >>> c = count([(True, True), (True, False), (False, True), (False, True), (False, False)])
    >>> (c.only_a, c.only_b, round(c.difference, 2), c.p)
    (1, 2, 0.2, 1.0)
    """
    both, only_a, only_b, neither = (
        sum(pair == kind for pair in pairs) for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    n = len(pairs)
    return Comparison(
        n,
        both,
        only_a,
        only_b,
        neither,
        (only_b - only_a) / n,
        newcombe(both, only_a, only_b, neither),
        mcnemar(only_a, only_b),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test: a sign test on the samples on which the runs disagree.

    >>> mcnemar(0, 0), round(mcnemar(1, 9), 3)
    (1.0, 0.021)
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue)


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of the paired difference (B minus A), by Newcombe's square-and-add method with Wilson's limits.

    Unlike Wald's it has a width where the runs agree on all samples, and stays inside [-1, 1].
    Source: Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10.
    """
    n = both + only_a + only_b + neither
    robust_a, robust_b = both + only_a, both + only_b
    below_a, above_a = _wilson_arms(robust_a, n)
    below_b, above_b = _wilson_arms(robust_b, n)
    phi = _correlation(both, only_a, only_b, neither)
    low = math.sqrt(max(below_b**2 - 2 * phi * below_b * above_a + above_a**2, 0.0))
    high = math.sqrt(max(above_b**2 - 2 * phi * above_b * below_a + below_a**2, 0.0))
    difference = (only_b - only_a) / n
    return difference - low, difference + high


def _wilson_arms(k: int, n: int) -> tuple[float, float]:
    """How far Wilson's interval of k out of n reaches below and above k / n."""
    p = k / n
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return p - (centre - half) / (1 + Z**2 / n), (centre + half) / (1 + Z**2 / n) - p


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Phi of the table, with Newcombe's continuity correction where it is positive; 0 where a margin is empty."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross, n = both * neither - only_a * only_b, both + only_a + only_b + neither
    if margins == 0:
        return 0.0
    return (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """What keeps two results from being compared, in words."""
    if a["data"]["sha256"] != b["data"]["sha256"]:
        yield "other data: " + " and ".join(f"{r['data']['name']} (sha256 {r['data']['sha256'][:12]})" for r in (a, b))
    threats = [(r["threat"]["norm"], float(r["threat"]["eps"]), r["threat"]["targeted"]) for r in (a, b)]
    same = threats[0][::2] == threats[1][::2] and math.isclose(threats[0][1], threats[1][1], rel_tol=1e-6)
    if not same:
        yield "another threat: " + " and ".join(
            r["threat"]["text"] + (f", targeted {r['threat']['targeted']}" if r["threat"]["targeted"] else "")
            for r in (a, b)
        )
