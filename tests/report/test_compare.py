"""Paired comparison: the test against a sum of binomials, the interval against its coverage, refusals."""

import json
from dataclasses import replace
from itertools import product
from math import comb, factorial

import pytest

from robustkit.core.errors import Incomplete, UsageError
from robustkit.report.compare import count, mcnemar, newcombe, paired, robust
from robustkit.report.files import RunFiles


def slow_p(b, c):
    """Both tails of Binomial(b + c, 1/2), of all outcomes at most as likely as the one seen, in whole numbers."""
    n = b + c
    return sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= comb(n, b)) / 2**n


@pytest.mark.parametrize(("b", "c"), [*product(range(7), repeat=2), (3, 40), (250, 300)])
def test_mcnemar_is_the_exact_sign_test(b, c):
    assert mcnemar(b, c) == pytest.approx(slow_p(b, c), rel=1e-9)


def tables(n):
    for a, b, c in product(range(n + 1), repeat=3):
        if a + b + c <= n:
            yield a, b, c, n - a - b - c


@pytest.mark.parametrize(
    "p", [(0.5, 0.1, 0.2, 0.2), (0.25, 0.25, 0.25, 0.25), (0.7, 0.02, 0.08, 0.2), (0.1, 0.3, 0.1, 0.5)]
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(p):
    n, covered = 16, 0.0
    for table in tables(n):
        low, high = newcombe(*table)
        if low <= p[2] - p[1] <= high:
            ways = factorial(n)
            for k in table:
                ways //= factorial(k)
            covered += ways * p[0] ** table[0] * p[1] ** table[1] * p[2] ** table[2] * p[3] ** table[3]
    assert 0.93 < covered < 0.999  # cautious where the runs hardly disagree


def test_the_interval_is_sound_on_every_small_table():
    for table in tables(9):
        low, high = newcombe(*table)
        assert -1 - 1e-12 <= low <= (table[2] - table[1]) / 9 <= high <= 1 + 1e-12 and high - low > 1e-3
        swapped = newcombe(table[0], table[2], table[1], table[3])
        assert swapped == pytest.approx((-high, -low))


def test_the_interval_is_walds_for_many_samples():
    a, b, c, d = 5000, 1000, 1500, 2500
    wald = 1.959964 * (b + c - (c - b) ** 2 / 10000) ** 0.5 / 10000
    assert newcombe(a, b, c, d) == pytest.approx((0.05 - wald, 0.05 + wald), abs=2e-4)


def test_two_runs_are_joined_by_sample(made):
    a, b = made("a", seed=0), made("b", seed=1)
    found = paired(a, b)
    verdicts = [robust(RunFiles.open(run)) for run in (a, b)]
    assert found.n == 60 == found.both + found.only_a + found.only_b + found.neither
    assert found == count([(verdicts[0][i], verdicts[1][i]) for i in range(60)])
    accuracies = [json.loads((run / "results.json").read_text())["robust_accuracy"] for run in (a, b)]
    assert found.difference == pytest.approx(accuracies[1] - accuracies[0])
    back = paired(b, a)
    assert (
        replace(back, only_a=back.only_b, only_b=back.only_a, difference=-back.difference, interval=found.interval)
        == found
    )


def test_a_run_equals_itself(run_folder):
    found = paired(run_folder, str(run_folder))
    assert found.only_a == found.only_b == 0 and found.difference == 0 and found.p == 1.0
    assert found.interval[0] < 0 < found.interval[1]


def test_runs_of_other_sizes_share_what_both_have(made):
    assert paired(made("a"), made("b", n=40)).n == 40


def test_samples_without_a_verdict_are_left_out(made):
    a, b = made("a"), made("b", complete=False, n=60)
    rows = (b / "samples-1-pgd-steps-40.jsonl").read_text().splitlines(keepends=True)
    (b / "samples-1-pgd-steps-40.jsonl").write_text("".join(rows[:20]) + rows[20][:15])  # torn
    wrong = sum(not row["correct"] for row in RunFiles.open(b).clean_rows())
    assert paired(a, b).n == 20 + wrong


THREAT = {"norm": "linf", "eps": 0.2, "text": "linf:0.2", "targeted": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data": {"name": "other", "size": 9, "sha256": "e" * 64}},
            ["demo:mnist", "bbbbbbbbbbbb", "other", "eeeeeeeeeeee"],
        ),
        ({"threat": {**THREAT, "eps": 0.1, "text": "linf:0.1"}}, ["linf:0.2 and linf:0.1"]),
        ({"threat": {**THREAT, "norm": "l2", "text": "l2:0.2"}}, ["linf:0.2 and l2:0.2"]),
        ({"threat": {**THREAT, "targeted": "random"}}, ["targeted random"]),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_difference(made, changes, words):
    with pytest.raises(UsageError) as found:
        paired(made("a"), made("b", **changes))
    assert all(word in str(found.value) for word in words)


def test_the_same_radius_may_be_written_otherwise(made):
    found = paired(made("a"), made("b", threat={**THREAT, "text": "linf:51/255", "eps": 51 / 255}))
    assert found.n == 60 and found.only_a == found.only_b == 0


def test_no_shared_sample_is_an_error(made):
    b = made("b")
    (b / "samples-clean.jsonl").write_text("")
    with pytest.raises(UsageError, match="share no sample"):
        paired(made("a"), b)


def test_a_missing_or_unfinished_run_is_named(made, tmp_path):
    a = made("a")
    with pytest.raises(UsageError, match="nowhere"):
        paired(a, tmp_path / "nowhere")
    (a / "results.json").unlink()
    with pytest.raises(Incomplete):
        paired(made("b"), a)
