"""Two runs on the same samples: is one more robust, or is it chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from robustkit.core.errors import UsageError
from robustkit.report.files import RunFiles


@dataclass(frozen=True)
class Comparison:
    """Robust verdicts of two runs, sample by sample.

    Attributes:
        n: samples in both.
        both, only_a, only_b, neither: how many are robust in which run.
        difference: robust accuracy of b minus that of a.
        interval: its 95 % interval (Wald, paired).
        p: of McNemar's exact test.
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
    """Compare two runs on the samples they share.

    Raises:
        UsageError: other data, another threat, or no sample in common.
    """
    a, b = RunFiles.open(run_a), RunFiles.open(run_b)
    _same(a.results, b.results)
    robust_a, robust_b = _robust(a), _robust(b)
    shared = sorted(robust_a.keys() & robust_b.keys())
    if not shared:
        raise UsageError("the runs share no sample", where=f"{a.path}, {b.path}")
    pairs = [(robust_a[i], robust_b[i]) for i in shared]
    return count(pairs)


def count(pairs: list[tuple[bool, bool]]) -> Comparison:
    """The comparison of paired verdicts.

    >>> c = count([(True, True), (True, False), (False, True), (False, True), (False, False)])
    >>> (c.only_a, c.only_b, round(c.difference, 2), c.p)
    (1, 2, 0.2, 1.0)
    """
    n = len(pairs)
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    discordant = only_a + only_b
    difference = (only_b - only_a) / n
    error = math.sqrt(max(discordant - (only_b - only_a) ** 2 / n, 0.0)) / n
    p = 1.0 if discordant == 0 else float(binomtest(min(only_a, only_b), discordant, 0.5).pvalue)
    low, high = difference - 1.959964 * error, difference + 1.959964 * error
    return Comparison(n, pairs.count((True, True)), only_a, only_b, pairs.count((False, False)), difference, (low, high), p)


def _robust(run: RunFiles) -> dict[int, bool]:
    """Right when clean, and broken by no attack; samples that went through every attack."""
    attacks = range(len(run.results["attacks"]))
    broken = set().union(*(run.broken_by(k) for k in attacks))
    seen = [{row["id"] for row in run.attack_rows(k)} for k in attacks]
    rows = [row for row in run.clean_rows() if not row["correct"] or all(row["id"] in ids for ids in seen)]
    return {row["id"]: bool(row["correct"]) and row["id"] not in broken for row in rows}


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for what, key in (("data", "sha256"), ("threat", "text"), ("threat", "targeted")):
        if a[what][key] != b[what][key]:
            raise UsageError(f"the runs have another {what}", expected=f"{key} {a[what][key]}", got=str(b[what][key]),
                             fix="Compare runs on the same data under the same threat.")
