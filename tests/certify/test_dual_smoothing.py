"""Dual smoothing: radii that hold exactly and no further, bounds of every class, and alpha that is spent once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import beta as beta_law
from scipy.stats import binom
from torch import nn

import robustkit as rk
from robustkit.certify.halves import SIDES, Half, SplitModel, half, keep
from robustkit.certify.two_votes import ENOUGH, _front, nearest_tie
from robustkit.core.certifier import certifier_from
from robustkit.core.errors import UsageError
from tests.certify import slow

SIGMAS = ((0.5, 0.5), (0.3, 0.9), (1.0, 0.25))
AHEAD = ((1.5, 0.2), (1.0, 0.0), (1.4, -0.8), (-0.3, 0.5), (3.0, 2.9))
"""Normal quantiles of the left and the right vote, both signs: they add up to more than 0."""


def dual(sigmas=(0.5, 0.5), **options):
    return rk.DualSmoothing(sigma=sigmas[0], sigma_right=sigmas[1], **options)


def closed_form(a, b, sigmas):
    return (a + b) / math.hypot(1 / sigmas[0], 1 / sigmas[1])


def confidence(k, n, alpha):
    """Clopper and Pearson's lower bound."""
    return beta_law.ppf(alpha, k, n - k + 1) if k else 0.0


# -- the radius, for probabilities that are known ---------------------------------------------------------------------


class Lines(nn.Module):
    """Class 0 where ``w . x > 0``; on a half filled with 0 that is a line in its own pixels."""

    def __init__(self, seed=0, size=12):
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    def forward(self, x):
        margin = x.flatten(1) @ self.w.to(x.dtype)
        return torch.stack([margin, -margin], 1)


def directions(net, x):
    """Unit vectors along the weights of each half, as images."""
    w = net.w.detach().view(x.shape[1:])
    parts = [torch.where(keep(x, side), w, 0) for side in SIDES]
    return [part / part.norm() for part in parts]


def exact_vote(net, x, sigmas):
    """P(class 0) of the left and of the right half, in closed form."""
    return [
        float(ndtr(float((half(x, side, "zero") * unit).sum()) / sigma))
        for side, unit, sigma in zip(SIDES, directions(net, x), sigmas, strict=True)
    ]


def placed(net, quantiles, sigmas):
    """An image (1, 1, 3, 4) whose halves answer class 0 with the probabilities of these quantiles."""
    x = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    units = directions(net, x)
    return sum(q * s * unit for q, s, unit in zip(quantiles, sigmas, units, strict=True))[None]


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("quantiles", AHEAD)
def test_the_worst_shift_flips_the_vote_just_beyond_the_radius(quantiles, sigmas):
    net = Lines()
    x = placed(net, quantiles, sigmas)
    p = exact_vote(net, x, sigmas)
    assert p == pytest.approx(ndtr(quantiles))
    radius = float(dual(sigmas).radius_of([np.array(one) for one in p]))
    assert radius == pytest.approx(closed_form(*quantiles, sigmas))
    weights = np.array([1 / s for s in sigmas]) / np.hypot(*(1 / s for s in sigmas))
    worst = -sum(float(weight) * unit for weight, unit in zip(weights, directions(net, x), strict=True))
    assert float(worst.norm()) == pytest.approx(1)
    assert sum(exact_vote(net, x + radius * (1 - 1e-3) * worst, sigmas)) > 1
    assert sum(exact_vote(net, x + radius * (1 + 1e-3) * worst, sigmas)) < 1


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("quantiles", AHEAD)
def test_no_shift_inside_the_radius_flips_the_vote(quantiles, sigmas):
    """Whatever part of it lies in which half."""
    radius = float(dual(sigmas).radius_of([np.array(p) for p in ndtr(quantiles)]))
    angle = np.linspace(0, np.pi / 2, 2001)
    u, v = 0.999 * radius * np.cos(angle) / sigmas[0], 0.999 * radius * np.sin(angle) / sigmas[1]
    assert (ndtr(quantiles[0] - u) + ndtr(quantiles[1] - v) > 1).all()


@pytest.mark.parametrize("quantiles", AHEAD)
def test_the_formula_of_the_authors_code_is_no_certificate(quantiles):
    """sqrt(r_left^2 + r_right^2), clipped at 0: the worst shift of less than that flips the vote."""
    net, sigmas = Lines(), (1.0, 1.0)
    x = placed(net, quantiles, sigmas)
    theirs = math.hypot(*(max(q, 0) for q in quantiles))
    worst = -sum(directions(net, x)) / 2**0.5
    flips = sum(exact_vote(net, x + 0.99 * theirs * worst, sigmas)) < 1
    assert flips == (abs(quantiles[0] - quantiles[1]) > 0.5)  # nearly equal halves: the formulas nearly agree
    assert theirs > closed_form(*quantiles, sigmas)


def test_a_half_that_speaks_against_the_class_counts_against_it():
    assert float(dual().radius_of([ndtr(1.0), ndtr(-0.4)])) == pytest.approx(0.5 * 0.6 / 2**0.5)
    assert float(dual().radius_of([ndtr(1.0), ndtr(-1.5)])) < 0


def test_bounds_of_nothing_and_of_everything_are_no_radius():
    bounds = np.array([0.0, 1.0, 0.0, 1.0, 0.5]), np.array([0.0, 0.0, 1.0, 1.0, 0.0])
    assert dual().radius_of(bounds).tolist() == [-math.inf, -math.inf, -math.inf, math.inf, -math.inf]


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("radius", [0.0, 0.2, 1.3])
def test_the_level_is_the_probability_that_certifies_the_radius(sigmas, radius):
    method = dual(sigmas)
    p = np.array(method.level(radius))
    assert float(method.radius_of([p, p])) == pytest.approx(radius, abs=1e-12)


# -- bounds on every class --------------------------------------------------------------------------------------------


def brute(lower, upper, sigmas, angles=1001):
    """The shortest shift to a tie with any class: along every direction, for every class, by bisection."""
    (a, b), angle = ndtri(lower), np.linspace(0, np.pi / 2, angles)
    shortest = math.inf
    for left, right in zip(*ndtri(upper), strict=True):
        low, high = np.zeros(angles), np.full(angles, 40.0)
        for _ in range(45):
            middle = (low + high) / 2
            u, v = middle * np.cos(angle) / sigmas[0], middle * np.sin(angle) / sigmas[1]
            tie = ndtr(a - u) + ndtr(b - v) <= ndtr(left + u) + ndtr(right + v)
            low, high = np.where(tie, low, middle), np.where(tie, middle, high)
        shortest = min(shortest, float(high.min()))
    return shortest


def bounds(seed, classes, size=6):
    """Bounds of samples on whose class both votes may differ: (N,) and (N, C - 1) for each vote."""
    rng = np.random.default_rng(seed)
    base = rng.dirichlet(np.full(classes, 0.7), size)
    base = np.sort(base, 1)[:, ::-1]
    votes = [0.6 * base + 0.4 * rng.dirichlet(np.full(classes, 0.7), size) for _ in SIDES]
    lower = [np.maximum(vote[:, 0] - 0.01, 0.001) for vote in votes]
    upper = [np.minimum(vote[:, 1:] + 0.01, 1 - low[:, None]) for vote, low in zip(votes, lower, strict=True)]
    return lower, upper


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_two_sided_radii_are_those_of_brute_force(classes, sigmas):
    lower, upper = bounds(classes, classes)
    found = nearest_tie(lower, upper, sigmas)
    for i, radius in enumerate(found):
        now = [low[i] for low in lower], [up[i] for up in upper]
        if ndtr(ndtri(now[0])).sum() <= np.sum(now[1], 0).max():
            assert radius == -math.inf
        else:
            truth = brute(*now, sigmas)
            assert truth * (1 - 2 * ENOUGH) - 1e-6 <= radius <= truth * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from(SIGMAS), st.floats(0, 1), st.floats(0, 1))
def test_no_shift_inside_the_two_sided_radius_lets_a_class_draw_level(seed, classes, sigmas, turn, share):
    lower, upper = bounds(seed, classes, 1)
    radius = float(nearest_tie(lower, upper, sigmas)[0])
    if radius > 0:
        u = share * radius * math.cos(turn * math.pi / 2) / sigmas[0]
        v = share * radius * math.sin(turn * math.pi / 2) / sigmas[1]
        ours = ndtr(ndtri(lower[0]) - u) + ndtr(ndtri(lower[1]) - v)
        theirs = ndtr(ndtri(upper[0]) + u) + ndtr(ndtri(upper[1]) + v)
        assert (ours > theirs).all()


def test_with_two_classes_the_two_sided_radius_is_the_closed_form():
    p = np.linspace(0.3, 0.999, 30), np.linspace(0.95, 0.5, 30)
    closed = closed_form(ndtri(p[0]), ndtri(p[1]), (0.3, 0.9))
    found = nearest_tie(p, [1 - one[:, None] for one in p], (0.3, 0.9))
    ahead = closed > 0
    assert (found[~ahead] == -math.inf).all()
    assert (found[ahead] <= closed[ahead] * (1 + 1e-9)).all() and (found[ahead] >= closed[ahead] * (1 - ENOUGH)).all()


def test_what_the_class_has_no_other_class_has():
    """Upper bounds that say nothing leave the closed form."""
    found = nearest_tie([np.array([0.9]), np.array([0.7])], [np.ones((1, 9)), np.ones((1, 9))], (0.5, 0.5))
    assert found == pytest.approx(closed_form(ndtri(0.9), ndtri(0.7), (0.5, 0.5)), rel=ENOUGH)


def test_the_order_of_classes_and_samples_changes_nothing():
    lower, upper = bounds(1, 7, 9)
    found = nearest_tie(lower, upper, (0.3, 0.9))
    classes, samples = np.random.default_rng(0).permutation(6), np.random.default_rng(1).permutation(9)
    again = nearest_tie([low[samples] for low in lower], [up[samples][:, classes] for up in upper], (0.3, 0.9))
    assert again.tolist() == found[samples].tolist()
    swapped = nearest_tie(lower[::-1], upper[::-1], (0.9, 0.3))
    np.testing.assert_allclose(swapped[np.isfinite(found)], found[np.isfinite(found)], rtol=2 * ENOUGH)


def test_dense_outputs_are_those_of_each_pixel():
    lower, upper = bounds(2, 4, 12)
    dense = [low.reshape(2, 2, 3) for low in lower], [np.moveaxis(up.reshape(2, 2, 3, 3), 3, 1) for up in upper]
    found = nearest_tie(*dense, (0.5, 0.5))
    assert found.shape == (2, 2, 3) and found.reshape(-1).tolist() == nearest_tie(lower, upper, (0.5, 0.5)).tolist()


def test_of_a_thousand_classes_the_undominated_ones_decide():
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 60, (2, 20, 999)) / 200
    sample, rival = _front(left, right)
    for i in range(5):
        better = (left[i] >= left[i][:, None]) & (right[i] >= right[i][:, None])
        strictly = better & ((left[i] > left[i][:, None]) | (right[i] > right[i][:, None]))
        slow_front = {(left[i, c], right[i, c]) for c in range(999) if not strictly[c].any()}
        mine = [(left[i, c], right[i, c]) for c in rival[sample == i]]
        assert set(mine) == slow_front and len(mine) == len(slow_front)  # equal classes stand for each other
    lower = [np.full(20, 0.55), np.full(20, 0.5)]
    alone = [nearest_tie(lower, [left[:, [c]], right[:, [c]]], (0.5, 0.5)) for c in range(0, 999, 37)]
    together = nearest_tie(lower, [left[:, ::37], right[:, ::37]], (0.5, 0.5))
    np.testing.assert_allclose(together, np.min(alone, 0), rtol=0, atol=0)


def test_no_bounds_are_no_radius_and_never_nan():
    lower = [np.array([0.0, 1.0, 1 - 1e-16, 0.5]), np.array([0.0, 1.0, 1 - 1e-16, 0.0])]
    upper = [np.array([[1.0], [0.0], [1e-300], [0.5]]), np.array([[1.0], [0.0], [1e-16], [1.0]])]
    found = nearest_tie(lower, upper, (0.5, 0.5))
    assert not np.isnan(found).any()
    assert found[0] == found[3] == -math.inf and found[1] > found[2] > 1


# -- alpha ------------------------------------------------------------------------------------------------------------


class Always(nn.Module):
    def forward(self, x):
        return torch.stack([x.flatten(1)[:, 0] * 0 + 1, x.flatten(1)[:, 0] * 0, x.flatten(1)[:, 0] * 0], 1)


@pytest.mark.parametrize("bound, share", [("one-sided", 2), ("two-sided", 4)])
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_alpha_is_split_over_the_halves(bound, share, sigmas):
    """Where all draws agree the bound is (alpha / share)^(1 / n)."""
    method = dual(sigmas, n=500, n0=32, alpha=0.01, bound=bound)
    found = method(rk.wrap(Always()), torch.rand(2, 1, 4, 4))
    a = ndtri((0.01 / share) ** (1 / 500))
    assert found.radius.tolist() == pytest.approx([closed_form(a, a, sigmas)] * 2, rel=1e-9)
    assert method.limit() == pytest.approx(closed_form(a, a, sigmas), rel=1e-9)
    assert found.n.tolist() == [1000, 1000] and found.cost.forwards >= 2 * 2 * 532


def test_a_decision_spends_half_of_alpha_on_each_half():
    """The first look at which the bets against the level of each half, all won, have made 2 / alpha."""
    method = dual(n=4000, n0=32, alpha=0.01, mode="decide", radius=0.6)
    found = method(rk.wrap(Always()), torch.rand(2, 1, 4, 4))
    p = ndtr(0.6 * 2**0.5 / 0.5 / 2)
    log_bet, draws = 0.0, 0
    while log_bet < math.log(2 / 0.01) or draws % 32:
        log_bet += math.log((draws + 0.5) / (draws + 1) / p)  # the next draw wins again
        draws += 1
    assert found.certified.all() and found.n.tolist() == [2 * draws] * 2


# -- the whole method -------------------------------------------------------------------------------------------------


def slow_hits(net, x, side, sigma, n, choice, fill, ids):
    found = []
    for one, key in zip(x, ids, strict=True):
        noisy = slow.copies(one, key, "certify", n, sigma, method="dual-smoothing")
        found.append(int((net(half(noisy, side, fill)).argmax(1) == choice).sum()))
    return found


@pytest.mark.parametrize("fill", ["paper", "mean", "zero"])
@pytest.mark.parametrize("sigma_right", [None, 0.7])
def test_certificates_are_those_of_a_loop(fill, sigma_right):
    """Counts of each half, the bounds of scipy, and the formula; odd sizes; a right half that speaks against."""
    x = torch.rand(3, 1, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    split = SplitModel(Lines(1, 15), Lines(2, 15), fill)
    found = rk.DualSmoothing(sigma=0.4, sigma_right=sigma_right, n=200, n0=40, alpha=0.02)(
        rk.wrap(split), x, ids=torch.tensor([4, 0, 9])
    )
    sigmas = (0.4, sigma_right or 0.4)
    for i, key in enumerate((4, 0, 9)):
        choice = int(found.extras["choice"][i])
        hits = [
            slow_hits(net, x[i : i + 1], side, sigma, 200, choice, fill, [key])[0]
            for net, side, sigma in zip((split.left, split.right), SIDES, sigmas, strict=True)
        ]
        assert found.extras["hits"][i].tolist() == hits
        radius = closed_form(*(ndtri(confidence(k, 200, 0.01)) for k in hits), sigmas)
        shown = radius > 0
        assert float(found.radius[i]) == pytest.approx(radius if shown else 0.0, rel=1e-9)
        assert int(found.prediction[i]) == (choice if shown else -1) and bool(found.certified[i]) == shown


def test_certificates_hold_and_are_close_to_the_truth():
    """Linear halves of known probabilities: no radius above the true distance, none below what n draws can blur."""
    net, sigmas, alpha, n = Lines(), (0.5, 0.5), 0.01, 600
    for quantiles in ((1.5, 0.2), (1.4, -0.8)):
        x = placed(net, quantiles, sigmas)
        assert (x.abs() < 4).all()
        model = rk.wrap(net, bounds=(-4, 4))
        found = dual(sigmas, n=n, n0=100, alpha=alpha, fill="zero")(model, x.repeat(60, 1, 1, 1))
        truth = closed_form(*quantiles, sigmas)
        least = closed_form(*(ndtri(confidence(binom.ppf(1e-5, n, ndtr(q)), n, alpha / 2)) for q in quantiles), sigmas)
        right = found.prediction == 0
        assert right.sum() >= 58  # the others chose, or kept, another class: within alpha
        assert (found.radius[right] <= truth).all() and (found.radius[right] >= least).all()


class Bands(nn.Module):
    """Three classes by one pixel t: 0 above the upper edge, 1 between the edges, 2 below."""

    def __init__(self, place, edges):
        super().__init__()
        self.place, self.edges = place, edges

    def forward(self, x):
        t = x.flatten(1)[:, self.place]
        low, high = self.edges
        return torch.stack([t > high, (t > low) & (t <= high), t <= low], 1).to(x.dtype)


def test_two_sided_certificates_hold_where_one_sided_ones_show_nothing():
    """Three classes, none above one half: the second bound shows a radius, and no shift inside it flips the vote."""
    sigma, edges, n = 0.5, ((-0.32, 0.06), (-0.4, 0.02)), 3000
    model = rk.wrap(SplitModel(Bands(0, edges[0]), Bands(1, edges[1]), "zero"))
    x = torch.zeros(4, 1, 2, 2)
    one = dual((sigma, sigma), n=n, alpha=0.01)(model, x)
    two = dual((sigma, sigma), n=n, alpha=0.01, bound="two-sided")(model, x)

    def ahead(radius):
        """Whether the class stays ahead under all shifts of one length, to any side of both pixels."""
        angle = np.linspace(0, 2 * np.pi, 1441)
        chances = np.zeros((3, len(angle)))
        for (low, high), shift in zip(edges, (radius * np.cos(angle), radius * np.sin(angle)), strict=True):
            below, to_high = ndtr((low - shift) / sigma), ndtr((high - shift) / sigma)
            chances += np.stack([1 - to_high, to_high - below, below])
        return chances.argmax(0) == choice

    assert (one.prediction == -1).all()
    choice = 0
    assert (two.prediction == choice).all() and (two.radius > 0).all()
    assert all(ahead(radius * share).all() for radius in two.radius.tolist() for share in (0.3, 0.7, 1.0))


def test_halves_are_taken_after_the_normaliser():
    x = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    votes = rk.DualSmoothing(fill="mean").votes(rk.wrap(Lines(), mean=(0.3,), std=(0.2,)))
    for vote, side in zip(votes, SIDES, strict=True):
        torch.testing.assert_close(vote.model(x), Lines()(half((x - 0.3) / 0.2, side, "mean")))


def test_a_split_model_brings_its_own_networks_and_fill():
    split = SplitModel(Lines(0), Lines(1), "mean")
    votes = rk.DualSmoothing(fill="zero").votes(rk.wrap(split))
    nets = [vote.model.net for vote in votes]
    assert all(isinstance(net, Half) and net.fill == "mean" for net in nets)
    assert [net.net for net in nets] == [split.left, split.right]


@pytest.mark.parametrize("shape", [(5,), (1, 1, 6)])
def test_inputs_without_halves_are_refused(shape):
    with pytest.raises(UsageError, match="at least 2x2 pixels"):
        rk.DualSmoothing(n=100)(rk.wrap(Always()), torch.rand(2, *shape))


@pytest.mark.parametrize("options", ["sigma_right=0", "sigma_right=-1", "fill=grey", "sigma_right=nan"])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError, match=options.partition("=")[0]):
        certifier_from(f"dual-smoothing:{options}")
