"""The comparison of defenses: its statistics by other ways to the same numbers, its verdicts, its page, its restart."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("compare_defenses", "comparison.statistics", "comparison.page")


@pytest.fixture(scope="module")
def modules() -> Iterator[list[Any]]:
    """The script and its two helpers, imported as the script finds them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield [importlib.import_module(name) for name in NAMES]
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in [*NAMES, "comparison"]:
            sys.modules.pop(name, None)


@pytest.fixture
def statistics(modules):
    return modules[1]


@pytest.fixture
def page(modules):
    return modules[2]


def test_difference_is_the_paired_t_test_of_scipy(statistics):
    draws = np.random.default_rng(0)
    ours, theirs = draws.normal(0.66, 0.02, 9), draws.normal(0.65, 0.02, 9)
    found = statistics.difference(ours.tolist(), theirs.tolist())
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue) and found.seeds == 9
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_seed_has_no_interval_and_no_verdict(statistics):
    found = statistics.difference([0.9], [0.5])
    assert found.mean == pytest.approx(0.4) and np.isnan([found.low, found.high, found.p]).all()
    assert found.verdict == "not shown"


def test_two_seeds_that_agree_show_nothing(statistics):
    assert statistics.difference([0.5, 0.5], [0.25, 0.25]).verdict == "not shown"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_holm_is_the_closed_test_of_bonferroni(statistics, count):
    """Adjusted p of a hypothesis: the largest Bonferroni p of all the sets of hypotheses that it belongs to."""
    p = np.random.default_rng(count).uniform(0, 0.4, count).tolist()
    sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(count)]
    assert statistics.holm(p) == pytest.approx(closed)


def test_holm_leaves_out_what_is_no_test(statistics):
    one = statistics.difference([0.9], [0.5])
    many = statistics.difference([0.61, 0.62, 0.66], [0.6, 0.6, 0.6])
    found = statistics.adjusted([one, many])
    assert found[0].holm is None and found[1].holm == pytest.approx(many.p)


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.020, 0.001, 0.039, "beats"),
        (0.010, 0.001, 0.019, "beats"),
        (0.009, 0.001, 0.017, "not shown"),  # above 0, and too little to matter
        (0.020, -0.001, 0.041, "not shown"),
        (0.000, -0.020, 0.020, "not shown"),
        (-0.010, -0.031, 0.011, "not shown"),
        (0.004, -0.001, 0.009, "refuted"),
        (0.005, 0.001, 0.009, "refuted"),  # better, and surely by less than a point
        (-0.030, -0.040, -0.020, "refuted"),
    ],
)
def test_verdicts(statistics, mean, low, high, verdict):
    assert statistics.Difference(mean, low, high, 0.01, 5).verdict == verdict


def test_bootstrap_of_seeds_alone_has_their_spread(statistics):
    """Where all points of a seed agree, nothing but the seeds varies: sd of a mean of n draws is sd / sqrt(n)."""
    seeds = np.random.default_rng(0).normal(0, 1, 40)
    low, high = statistics.bootstrap(np.repeat(seeds[:, None], 6, 1))
    expected = 1.96 * seeds.std() / 40**0.5
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)
    assert low < seeds.mean() < high


def test_bootstrap_of_points_alone_has_their_spread(statistics):
    points = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 300)
    low, high = statistics.bootstrap(np.repeat(points[None], 5, 0))
    assert (high - low) / 2 == pytest.approx(1.96 * points.std() / 300**0.5, rel=0.1)


def line(method: str, seed: int, strong: float, **others: Any) -> dict[str, Any]:
    """A made-up line whose standing points agree with its robust accuracy."""
    stood = round(strong * 20)
    figures = {"clean": 0.95, "pgd20": strong + 0.05, "strong": strong, "standing": "1" * stood + "0" * (20 - stood)}
    return (
        {"data": "digits", "method": method, "seed": seed, "budget": 100.0, "points": 20, "seconds": 2.0}
        | figures
        | others
    )


def lines() -> list[dict[str, Any]]:
    found = [line("pgd-at", seed, 0.5, square=0.01, unbounded=0.0) for seed in range(3)]
    found += [line("trades", seed, strong, pgd20=0.7) for seed, strong in enumerate((0.45, 0.4, 0.45))]
    return found + [line("mart", seed, strong) for seed, strong in enumerate((0.7, 0.75, 0.7))]


def test_the_table_pairs_seeds_and_the_claims_get_their_verdicts(page):
    text = page.page(lines(), 0.15, "--seeds 3")
    assert "| `trades` | 95.0 ± 0.0 | 70.0 ± 0.0 | 43.3 ± 2.9 |" in text
    assert "TRADES is more robust than PGD-AT" in text and "refuted at 1 point" in text
    assert "| **beats**" in text and "AWP" not in text  # claims on methods that were not run are left out
    assert "Of 2 claims 1 hold, 0 are not shown, and 1 are refuted" in text
    assert "`trades`: PGD-20 places it above pgd-at, the strong attack does not." in text
    assert "Square breaks at most 1.0% of the points" in text
    found = page.compare(lines(), "mart", "pgd-at", "strong")
    assert found.mean == pytest.approx((0.2 + 0.25 + 0.2) / 3)
    assert found.bootstrap[0] <= found.mean <= found.bootstrap[1]


def test_the_page_keeps_its_prose_and_the_raw_figures_lie_beside_it(page, tmp_path):
    path = tmp_path / "comparison.md"
    path.write_text("# Head\n\n<!-- digits -->\n\nold\n\n<!-- end digits -->\n\ntail\n")
    page.write(path, "digits", r"new \1 text", lines())
    assert path.read_text() == "# Head\n\n<!-- digits -->\n\nnew \\1 text\n\n<!-- end digits -->\n\ntail\n"
    raw = json.loads((tmp_path / "comparison-digits.json").read_text())
    assert len(raw) == 9
    assert [f"{int(r['standing'], 16):b}"[1:] for r in raw] == [made["standing"] for made in lines()]
    with pytest.raises(SystemExit, match="no part for mnist"):
        page.write(path, "mnist", "text", lines())


def test_the_committed_page_has_the_marks(page):
    text = (EXAMPLES.parent / "docs" / "defenses" / "comparison.md").read_text()
    for name in ("digits", "mnist"):
        assert text.count(f"<!-- {name} -->\n") == text.count(f"\n<!-- end {name} -->") == 1


def test_the_budget_is_kept_and_paid_in_gradients(modules):
    script = modules[0]
    assert script.gradients(script.Cost(forwards=7, backwards=4)) == 5
    task = script.TASKS["digits"]
    for text in ("trades:steps=2", "free"):
        defense = script.defense_from(text).with_threat(script.rk.Linf(task.eps))
        model, state = script.train(task, defense, seed=0, budget=3000)
        step = (2 + 2 + 1 / 3) * 100 if text.startswith("trades") else 800
        assert 3000 <= script.gradients(state.cost) < 3000 + step
        assert not any(module.training for module in model.net.modules())


def test_lines_that_a_kill_cut_short_do_not_count(modules, tmp_path):
    script, path = modules[0], tmp_path / "digits.jsonl"
    path.write_text('{"seed": 1}\n{"seed": 2, "cle')
    assert script.stored(path) == [{"seed": 1}]
    job = {"data": "digits", "method": "erm", "seed": 1, "budget": 5.0, "points": 3}
    done = job | {"clean": 0.5}
    path.write_text(json.dumps(done) + "\n")
    assert script.all_runs([job], path, 1) == [done]  # nothing is left to run
