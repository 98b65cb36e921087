"""The coverage benchmark with few runs: every rule keeps to its alpha, and a rule that does not is told."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from benchmarks import coverage

RUNS = 100
RULES = [rule.title for rule in coverage.rules()]


@pytest.mark.parametrize("title", RULES)
def test_no_rule_errs_more_often_than_alpha(monkeypatch, title):
    monkeypatch.setattr(coverage, "CAP", 256)
    rule = next(rule for rule in coverage.rules() if rule.title == title)
    errors = rule.errs(RUNS)
    assert errors.shape == (RUNS,) and errors.mean() <= coverage.allowed(RUNS)


@pytest.mark.parametrize("word", ["n0 = n", "either"])
def test_draws_of_the_selection_and_alpha_are_spent_once(word):
    """Enough runs to tell 5 % from 8 %, where counts also chose the class, or each half spent all of alpha."""
    high = coverage.just_below(coverage.HIGH, coverage.ALPHA)
    rule = next(rule.errs for rule in coverage.rules() if word in rule.title)
    errors = (coverage.dual_bounds(high, high) if word == "either" else rule)(1500)
    assert errors.mean() <= coverage.allowed(1500)


def test_thresholds_answer_as_often_as_they_say():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    noise = coverage.SIGMA * torch.randn(20_000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    answers = coverage.Thresholds(p, at=None)(noise.double())
    np.testing.assert_allclose(answers[:, :, 0].mean(0).T, p, atol=0.015)
    np.testing.assert_allclose(coverage.Thresholds(p[1], at=1)(noise.double()).mean(0), p[1], atol=0.015)


@pytest.mark.parametrize("share, code", [(0.05, 0), (0.2, 1)])
def test_a_rule_that_errs_too_often_ends_with_1(monkeypatch, share, code):
    rule = coverage.Rule("planted", lambda runs: np.arange(runs) < share * runs)
    monkeypatch.setattr(coverage, "rules", lambda: [rule])
    monkeypatch.setattr(sys, "argv", ["coverage", "--runs", "400"])
    before = torch.get_num_threads()
    assert coverage.main() == code
    torch.set_num_threads(before)
