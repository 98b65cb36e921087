"""The comparison of plain and dual smoothing: its counts by hand, its page, its restart."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("compare_defenses", "compare_smoothing", "comparison.certified", "comparison.page", "comparison.statistics")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """The script and its helpers, imported as the script finds them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in [*NAMES, "comparison"]:
            sys.modules.pop(name, None)


@pytest.fixture
def certified(modules):
    return modules["comparison.certified"]


def line(arm: str, seed: int = 0, **radii: list[float]) -> dict[str, Any]:
    names = {"n": "plain, n", "both": "plain, 2 n", "dual": "dual, n a half"}
    job = {"arm": arm, "sigma": 0.25, "seed": seed, "budget": 1000.0, "points": 4, "n": 100}
    found = {"clean": 0.75, "gradients": 1000, "seconds": 2.0, "seconds_certified": 1.0}
    limits = {names[key]: 0.5 for key in radii}
    return {**job, **found, "radii": {names[key]: value for key, value in radii.items()}, "limits": limits}


def lines(seed: int = 0) -> list[dict[str, Any]]:
    return [
        line("noise", seed, n=[0.4, 0.3, 0.0, -1.0], both=[0.5, 0.3, 0.1, -1.0], dual=[0.2, 0.0, 0.0, -1.0]),
        line("org", seed, dual=[0.6, 0.1, 0.1, 0.1]),
        line("consistency", seed, dual=[0.3, 0.3, 0.3, 0.3]),
    ]


def test_curve_counts_the_right_class_that_is_certified_so_far(certified):
    rows = dict(row.strip("| ").split(" | ", 1) for row in certified.curves(lines(), 0.25).splitlines()[2:])
    assert rows["`noise`, plain, n"] == "50.0 | 50.0 | 0.0 | 0.0 | 0.0 | 0.175 | 0.50"
    assert rows["`noise`, plain, 2 n"] == "75.0 | 50.0 | 25.0 | 0.0 | 0.0 | 0.225 | 0.50"
    assert rows["`drs:recipe=org`, dual, n a half"] == "100.0 | 25.0 | 25.0 | 0.0 | 0.0 | 0.225 | 0.50"


def test_differences_are_paired_and_have_mcnemars_p(certified):
    rows = dict(row.strip("| ").split(" | ", 1) for row in certified.gaps(lines(), 0.25).splitlines()[2:])
    cells = rows["`drs:recipe=consistency`, dual, n a half - plain, n"].split(" | ")
    assert cells[0].startswith("+50.0 [") and cells[0].endswith(f"p {binomtest(0, 2, 0.5).pvalue:.3f}")
    assert cells[1].startswith("+50.0 [") and cells[-1].startswith("+0.125 [")
    assert all(
        ", p" not in cell for cell in certified.gaps([*lines(), *lines(1)], 0.25).splitlines()[2].split(" | ")[1:]
    )


def test_bootstrap_is_that_of_the_other_comparison(modules):
    """Drawn one by one there, all at once here."""
    gap = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], (3, 60))
    ours, theirs = (modules[f"comparison.{name}"].bootstrap(gap) for name in ("certified", "statistics"))
    assert ours == pytest.approx(theirs, abs=0.03)
    assert modules["comparison.certified"].bootstrap(gap[:1, :1]) == (gap[0, 0], gap[0, 0])


def test_page_is_written_between_its_marks_with_the_raw_figures(certified, tmp_path):
    page = tmp_path / "comparison.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- end measured -->\nafter\n", encoding="utf-8")
    certified.write(page, certified.page(lines(), "--n 100"), lines())
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "### sigma = 0.25" in text
    assert json.loads((tmp_path / "comparison.json").read_text()) == lines()
    with pytest.raises(SystemExit, match="no part for the figures"):
        certified.write(tmp_path / "comparison.json", "", [])


def test_arms_spend_the_same_and_a_finished_one_is_not_run_again(modules, tmp_path):
    script = modules["compare_smoothing"]
    model, spent = script.trained("consistency", 0.25, 0, 400)  # a step of it: two halves, four views, 100 digits
    assert type(model.net).__name__ == "SplitModel" and spent == 200 + 800
    assert script.trained("noise", 0.25, 0, 400)[1] == 400
    jobs = [{key: line[key] for key in ("arm", "sigma", "seed", "budget", "points", "n")} for line in lines()]
    file = tmp_path / "mnist.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines()) + '{"arm": "cut', encoding="utf-8")
    assert script.all_runs(jobs, file, 1) == lines()


def test_the_page_says_what_was_measured(certified):
    """The figures of the docs are those of the raw file beside them."""
    page = EXAMPLES.parent / "docs" / "certify" / "comparison.md"
    raw = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    for sigma in certified.sigmas(raw):
        assert certified.curves(raw, sigma) in text and certified.gaps(raw, sigma) in text
    assert all(abs(line["gradients"] / line["budget"] - 1) < 0.02 for line in raw)
    assert all(np.max(line["radii"][key]) <= line["limits"][key] + 1e-3 for line in raw for key in line["radii"])
