"""Decisions: where they stop, what they count, and that neither the batch nor other samples matter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from torch import nn

import robustkit as rk
from robustkit.certify.confidence import anytime_lower, anytime_upper
from robustkit.certify.halves import SplitModel
from robustkit.certify.randomized import GIVEN_UP, UNDECIDED
from robustkit.certify.sampler import BLOCK
from robustkit.certify.sequential import decide
from robustkit.core.errors import UsageError

SIGMA, RADIUS, CAP = 0.5, 0.25, 1000
LEVEL = float(ndtr(RADIUS / SIGMA))
CHANCES = [0.999, 0.97, 0.9, 0.8, 0.72, LEVEL, 0.66, 0.6, 0.5, 0.82, 0.95, 0.75, 0.8, 0.84, 0.78, 0.85]
RIGHT = [0.75, 0.95, 0.5, 0.8, 0.3, LEVEL, 0.3, 0.55, 0.5, 0.9, 0.6, 0.97, 0.84, 0.75, 0.88, 0.78]
IDS = torch.arange(len(CHANCES)) + 100
SMOOTHING = rk.Smoothing(sigma=SIGMA, n=CAP, n0=40, mode="decide", radius=RADIUS, alpha=0.01, beta=0.05)
DUAL = rk.DualSmoothing(sigma=SIGMA, n=CAP, n0=40, mode="decide", radius=RADIUS, alpha=0.01, beta=0.05)


class Sign(nn.Module):
    """Class 1 where a pixel is above 0: with probability Phi(x / sigma) under noise."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at

    def forward(self, x):
        value = x.flatten(1)[:, self.at]
        return torch.stack([-value, value], 1)


def inputs(left=CHANCES, right=None):
    """Images (N, 1, 2, 2) at which the answers of the first two pixels have these probabilities."""
    x = torch.zeros(len(left), 1, 2, 2, dtype=torch.float64)
    x[:, 0, 0, 0] = torch.from_numpy(SIGMA * ndtri(np.array(left)))
    x[:, 0, 0, 1] = torch.from_numpy(SIGMA * ndtri(np.array(left if right is None else right)))
    return x


WHOLE = rk.wrap(Sign(), bounds=(-2, 2))
HALVES = rk.wrap(SplitModel(Sign(), Sign(1), fill="zero"), bounds=(-2, 2))
SUBJECTS = {"smoothing": (SMOOTHING, WHOLE, inputs()), "dual": (DUAL, HALVES, inputs(right=RIGHT))}
both = pytest.mark.parametrize("name", SUBJECTS)


def result(found):
    """All that a decision says, for comparison."""
    return [
        found.certified.tolist(),
        found.n.tolist(),
        found.extras["hits"].tolist(),
        found.reasons,
        found.radius.tolist(),
    ]


def slow(method, model, x, ids, chosen):
    """Sample by sample, look by look, from the counts of so many draws: (verdict, draws, hits)."""
    found, votes = [], method.parts
    for i, c in enumerate(chosen.tolist()):
        for draws in [*range(BLOCK, method.n, BLOCK), method.n]:
            sampler = method.sampler_for(model, x[i : i + 1], ids=ids[i : i + 1])
            hits = sampler.counts("decide", draws)[:, 0, c].numpy()
            low = anytime_lower(hits, draws, method.alpha / votes)
            high = anytime_upper(hits, draws, method.beta / votes)
            shown, hopeless = (math.sqrt(1 / votes) * SIGMA * ndtri(bound).sum() for bound in (low, high))
            if shown >= RADIUS or hopeless < RADIUS:
                break
        verdict = "" if shown >= RADIUS else GIVEN_UP if hopeless < RADIUS else UNDECIDED
        found.append((verdict, draws, hits.tolist()))
    return found


@both
def test_a_decision_is_that_of_a_slow_loop(name):
    """Alpha and beta split over the votes, every block of draws looked at, the last one cut at the cap."""
    method, model, x = SUBJECTS[name]
    found = method(model, x, ids=IDS)
    expected = slow(method, model, x, IDS, found.extras["choice"])
    assert [*found.reasons] == [verdict for verdict, _, _ in expected]
    assert found.n.tolist() == [draws * method.parts for _, draws, _ in expected]
    assert found.extras["hits"].tolist() == [hits for _, _, hits in expected]
    assert {"", GIVEN_UP, UNDECIDED} == {*found.reasons}, "all three verdicts occur"


@both
def test_the_batch_changes_nothing(name):
    method, model, x = SUBJECTS[name]
    expected = result(method(model, x, ids=IDS))
    for batch in (32, 64, 1000, 5000):
        assert result(method(model, x, ids=IDS, batch=batch)) == expected


@both
def test_neither_do_order_and_company(name):
    method, model, x = SUBJECTS[name]
    expected = result(method(model, x, ids=IDS, batch=96))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for some in (order, order[:5], order[:1]):
        found = result(method(model, x[some], ids=IDS[some], batch=96))
        rows = [[part[i] for i in some] for part in expected]
        assert found == [*rows[:3], tuple(rows[3]), rows[4]]


def test_the_seed_does():
    assert result(SMOOTHING(WHOLE, inputs(), seed=1)) != result(SMOOTHING(WHOLE, inputs()))


@both
def test_what_is_said_of_each_verdict(name):
    method, model, x = SUBJECTS[name]
    found = method(model, x, ids=IDS)
    for verdict, reason, radius, prediction, n in zip(
        found.certified.tolist(), found.reasons, found.radius, found.prediction, found.n, strict=True
    ):
        assert verdict == (reason == "") == (float(radius) == RADIUS) == (int(prediction) != -1)
        assert int(n) == CAP * method.parts or reason in ("", GIVEN_UP)
    assert found.asked == RADIUS and found.outcome[0] == "certified"


def test_fewer_draws_where_the_answer_is_clear():
    """Far from the level a block or a few decide; the level itself runs to the cap."""
    found = SMOOTHING(WHOLE, inputs([0.9999, LEVEL, 0.2]))
    assert found.n[0] <= 2 * BLOCK and found.n[1] == CAP
    assert found.extras["choice"][2] == 0 and found.n[2] < 10 * BLOCK, "the other class, at 0.8"


@pytest.mark.parametrize("cap", [1, 31, 32, 33, 64])
def test_the_cap_is_never_passed(cap):
    method = replace(SMOOTHING, n=cap, n0=1, alpha=1e-30, beta=1e-30)
    found = method(WHOLE, inputs(), ids=IDS)
    assert found.n.tolist() == [cap] * len(CHANCES) and {*found.reasons} == {UNDECIDED}
    assert (found.extras["hits"] <= cap).all()


def test_draws_that_are_passed_are_those_that_are_counted():
    """One block in a batch: nothing is drawn in advance. Otherwise less than a batch for each look."""
    x = inputs()
    lean, wide = (SMOOTHING.sampler_for(WHOLE, x, ids=IDS, batch=batch) for batch in (BLOCK, 8 * BLOCK))
    for sampler in (lean, wide):
        made = decide(sampler, "decide", torch.ones(len(x), dtype=torch.long), CAP, at_least(0.9), at_most(0.5))
        assert sampler.passed >= made.draws.sum()
    assert lean.passed == made.draws.sum()
    assert wide.passed <= made.draws.sum() + 8 * BLOCK * len(x)


def at_least(share):
    return lambda hits, draws: (hits[0] >= share * draws) & (draws >= 100)


def at_most(share):
    return lambda hits, draws: (hits[0] <= share * draws) & (draws >= 100)


def test_a_look_is_final_and_certifying_comes_first():
    """Looks at each block in its order, though many are drawn at once; nothing after the first that decides counts."""
    x = inputs([0.9, 0.9])
    sampler = SMOOTHING.sampler_for(WHOLE, x, batch=16 * BLOCK)

    def at_96(hits, draws):
        return draws == 3 * BLOCK

    made = decide(sampler, "decide", torch.ones(2, dtype=torch.long), CAP, at_96, at_96)
    assert made.draws.tolist() == [96, 96] and made.shown.all() and not made.given_up.any()
    again = SMOOTHING.sampler_for(WHOLE, x).counts("decide", 96)[:, :, 1]
    assert made.hits.tolist() == again.tolist()


def test_draws_that_choose_the_class_are_no_evidence():
    """The counts of a decision are those of its own key, whatever the selection saw."""
    few, many = (replace(SMOOTHING, n0=n0)(WHOLE, inputs(), ids=IDS) for n0 in (40, 200))
    same = few.extras["choice"] == many.extras["choice"]
    assert same.sum() > 8 and (few.extras["hits"] == many.extras["hits"])[same].all()
    assert few.n[same].tolist() == many.n[same].tolist()


def test_nan_is_an_answer_for_no_class():
    """A block of NaN neither stops nor shows; more than one in a hundred ends the run."""

    class Holed(Sign):
        def forward(self, x):
            out = super().forward(x)
            return torch.where((x.flatten(1)[:, 3:] > self.from_), torch.nan, out)

    net = Holed()
    net.from_ = SIGMA * ndtri(0.995)
    found = SMOOTHING(rk.wrap(net, bounds=(-2, 2)), inputs(), ids=IDS)
    plain = SMOOTHING(WHOLE, inputs(), ids=IDS)
    assert found.certified[0] and int(found.extras["undefined"].sum()) > 0
    assert (found.extras["hits"][:, 0] / found.n <= plain.extras["hits"][:, 0] / plain.n + 0.1).all()
    net.from_ = 0.0
    with pytest.raises(UsageError, match="NaN"):
        SMOOTHING(rk.wrap(net, bounds=(-2, 2)), inputs(), ids=IDS)
