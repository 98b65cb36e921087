"""Randomized smoothing against closed forms, slow loops and scipy."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import nn

import robustkit as rk
from robustkit.core.certifier import certifier_from
from robustkit.core.errors import UsageError
from tests.certify import slow

W, B = torch.tensor([0.6, -1.2, 0.4, 1.5]), 0.3
X = torch.tensor([0.9, 0.2, 0.5, 0.4])
DISTANCE = float((X @ W - B) / W.norm())
"""Of X from where the class of the linear classifier changes: the truth, 0.376."""
MANY, ALPHA = 300, 0.05
ALLOWED = MANY * ALPHA + 3 * math.sqrt(MANY * ALPHA * (1 - ALPHA))
"""Errors in MANY certificates, with three standard errors."""


def linear():
    return rk.wrap(slow.Linear(W, B))


def again(x=X, times=MANY):
    """One input many times: each has draws of its own."""
    return x.expand(times, *x.shape)


@cache
def low(k, n, alpha):
    """Clopper-Pearson by scipy."""
    return stats.binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, "exact").low


@cache
def high(k, n, alpha):
    return stats.binomtest(k, n, alternative="less").proportion_ci(1 - alpha, "exact").high


# -- radii -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.25, 0.5])
def test_radii_are_those_of_scipy_and_hardly_ever_above_the_truth(sigma):
    found = rk.Smoothing(sigma=sigma, n=400, n0=20, alpha=ALPHA)(linear(), again())
    hits = found.extras["hits"][:, 0]
    slowly = [sigma * stats.norm.ppf(low(k, 400, ALPHA)) for k in hits.tolist()]
    np.testing.assert_allclose(found.radius, np.maximum(slowly, 0), rtol=1e-9)
    assert 0 < int((found.radius > DISTANCE).sum()) < ALLOWED
    p = stats.norm.cdf(DISTANCE / sigma)
    least = stats.binom.ppf(0.01, 400, p)
    width = DISTANCE - sigma * stats.norm.ppf(low(int(least), 400, ALPHA))
    assert float((found.radius < DISTANCE - width).double().mean()) <= 0.03, "within the confidence width"
    assert found.alpha == ALPHA and found.norm == "l2" and found.n.unique().tolist() == [400]
    assert abs(float(hits.double().mean()) / 400 - p) < 4 * math.sqrt(p * (1 - p) / 400 / MANY)


def test_two_sided_radii_are_those_of_scipy_and_hardly_ever_above_the_truth():
    """Class 0 for t > 0, class 5 for t <= -0.4, others between: from 0.2 on, 5 is as likely as 0 at distance 0.4.

    The bound is tight here: ``sigma / 2 * (Phi^-1(p_0) - Phi^-1(p_5))`` is 0.4.
    """
    sigma, n, x = 0.5, 600, torch.tensor([0.2])
    model = rk.wrap(slow.Bands(0.4, 4))
    options = {"sigma": sigma, "n": n, "n0": 50, "alpha": ALPHA}
    found = rk.Smoothing(**options, bound="two-sided")(model, again(x))
    slowly = []
    for counts in found.extras["counts"][:, 0].tolist():
        a = low(counts[0], n, ALPHA / 2)
        b = max(high(k, n, ALPHA / 2 / 5) for k in counts[1:6])
        gap = stats.norm.ppf(a) - stats.norm.ppf(b)
        slowly.append(max(0, sigma * stats.norm.ppf(a), sigma / 2 * gap))
    np.testing.assert_allclose(found.radius, slowly, rtol=1e-9)
    assert (found.extras["choice"] == 0).all() and int((found.radius > 0.4).sum()) < ALLOWED
    one_sided = rk.Smoothing(**options)(model, again(x, 50))
    assert float(found.radius.mean()) > 2 * float(one_sided.radius.mean()) and float(found.radius.mean()) > 0.3


def test_two_sided_spends_alpha_once():
    """At p = 1/2 for each of two classes any certificate is wrong."""
    for bound in ("one-sided", "two-sided"):
        certifier = rk.Smoothing(n=100, n0=10, alpha=ALPHA, bound=bound)
        found = certifier(rk.wrap(slow.Linear(torch.ones(1))), torch.zeros(1000, 1))
        wrong = float((~found.abstained).double().mean())
        assert wrong <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 1000)


def test_noise_is_added_before_the_normaliser():
    """std = 0.1 would make noise of the normalised input ten times too small."""
    net = slow.Linear(W, B)
    model = rk.wrap(net, mean=[0.4], std=[0.1])
    x = X.view(1, 1, 2, 2)
    margin = float((X - 0.4) / 0.1 @ W - B)
    truth = margin / float(W.norm() / 0.1)
    found = rk.Smoothing(sigma=0.3, n=20_000)(model, x)
    p = float(found.extras["hits"]) / 20_000
    assert abs(p - stats.norm.cdf(truth / 0.3)) < 4 * math.sqrt(p * (1 - p) / 20_000)
    assert 0 < float(found.radius) <= truth


def test_the_radius_in_the_maximum_norm_is_that_of_the_norm_bound():
    found = rk.Smoothing(n=2000)(linear(), X[None])
    torch.testing.assert_close(found.radius_linf, found.radius / 2)
    assert found.dimension == 4


# -- draws -------------------------------------------------------------------------------------------------------------


def test_selection_and_certificate_have_draws_of_their_own():
    net = slow.Watched(slow.Linear(W, B))
    certifier = rk.Smoothing(n=200, n0=96)
    found = certifier(rk.wrap(net), X[None], batch=32)
    seen = torch.cat(net.seen)
    before = len(seen) - 296
    selection, certificate = seen[before : before + 96], seen[before + 96 :]
    torch.testing.assert_close(selection, slow.copies(X, 0, "selection", 96, 0.25))
    torch.testing.assert_close(certificate, slow.copies(X, 0, "certify", 200, 0.25))
    assert len(torch.cat([selection, certificate]).unique(dim=0)) == 296
    assert int(found.extras["hits"]) == int((net.net(certificate).argmax(1) == 0).sum())
    assert int(found.extras["counts"].sum()) == int(found.n) == 200
    assert found.cost.forwards == len(seen) - 1 and found.cost.backwards == 0


def test_certificates_do_not_lean_on_the_choice():
    """p = 1/2: were the selection counted again, twice as many certificates would be wrong."""
    found = rk.Smoothing(n=100, n0=100, alpha=ALPHA)(rk.wrap(slow.Linear(torch.ones(1))), torch.zeros(2000, 1))
    exact = stats.binom.sf(58, 100, 0.5)  # 59 of 100 are certified
    assert abs(float(found.certified.double().mean()) - exact) < 4 * math.sqrt(exact / 2000)
    assert found.certified.sum() > 0 and abs(float(found.extras["choice"].double().mean()) - 0.5) < 0.05


def test_a_certificate_depends_on_its_own_id_and_seed_alone():
    whole = rk.Smoothing(n=300)(linear(), again(times=6), seed=3)
    part = rk.Smoothing(n=300)(linear(), again(times=2), ids=torch.tensor([4, 1]), seed=3, batch=50)
    assert torch.equal(part.radius, whole.radius[[4, 1]])
    assert torch.equal(part.extras["counts"], whole.extras["counts"][[4, 1]])
    other = rk.Smoothing(n=300)(linear(), again(times=6), seed=4)
    assert not torch.equal(other.extras["hits"], whole.extras["hits"])


def test_predict_is_that_of_scipy():
    """The paper's PREDICT: a two-sided test of the two most frequent answers."""
    x = torch.stack([X, X - 0.28 * W / W.norm(), X - DISTANCE * W / W.norm(), X - 2 * DISTANCE * W / W.norm()])
    certifier = rk.Smoothing(n=200, alpha=0.001)
    found = certifier.predict(linear(), x, ids=torch.tensor([7, 8, 9, 10]))
    expected = []
    for row in slow.counts(slow.Linear(W, B), x, "predict", 200, 0.25, ids=[7, 8, 9, 10])[:, :2]:
        p = stats.binomtest(int(row.max()), int(row.sum()), 0.5).pvalue
        expected.append(int(row.argmax()) if p <= 0.001 else -1)
    assert found.tolist() == expected and set(expected) == {0, 1, -1}


def test_predict_takes_dense_outputs():
    counts = slow.counts(slow.Pixels(), DENSE, "predict", 200, 0.15)[:, :3]
    top = counts.topk(2, 1).values
    p = stats.binom.sf(top[:, 0] - 1, top.sum(1), 0.5) * 2
    expected = torch.where(torch.from_numpy(p <= 0.001), counts.argmax(1), -1)
    found = rk.Smoothing(sigma=0.15, n=200).predict(rk.wrap(slow.Pixels()), DENSE)
    assert torch.equal(found, expected) and set(found.unique().tolist()) == {-1, 0, 1, 2}


def test_predictions_are_wrong_with_probability_alpha_at_most():
    """Two classes at p = 1/2 are both wrong to commit to."""
    certifier = rk.Smoothing(n=100, alpha=ALPHA)
    found = certifier.predict(rk.wrap(slow.Linear(torch.ones(1))), torch.zeros(800, 1))
    assert float((found != -1).double().mean()) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 800)


# -- the certified function --------------------------------------------------------------------------------------------


def test_noise_leaves_the_bounds_unless_clipping_is_asked_for():
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for clip in (False, True):
        net = slow.Watched(slow.Linear(W, B))
        found = rk.Smoothing(n=100, clip=clip)(rk.wrap(net), x)
        seen = torch.cat(net.seen)
        assert (float(seen.min()) >= 0 and float(seen.max()) <= 1) == clip
        assert ("clipped to the bounds as part of the certified function" in found.arithmetic) == clip
        assert ("not clipped" in found.arithmetic) != clip
        assert "floating point" in found.arithmetic and "float32" in found.arithmetic


def test_networks_without_gradients_and_functions_are_certified():
    def outside(x):
        return torch.from_numpy(np.stack([x.numpy() @ W.numpy() - B, np.zeros(len(x), np.float32)], 1))

    found = rk.Smoothing(n=500)(rk.wrap(outside), again(times=3))
    inside = rk.Smoothing(n=500)(linear(), again(times=3))
    assert torch.equal(found.extras["hits"], inside.extras["hits"])


class Holes(nn.Module):
    """The linear classifier, with NaN where the first value is above ``at``."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.net, self.at = slow.Linear(W, B), at

    def forward(self, x):
        return torch.where(x[:, :1] > self.at, torch.nan, self.net(x))


def test_nan_answers_count_for_no_class_and_are_reported():
    model, n = rk.wrap(Holes(0.9 + 0.25 * 2.6)), 4000
    found = rk.Smoothing(n=n)(model, X[None])
    nothing = int(found.extras["counts"][0, 0, -1])
    assert 5 < nothing < 40
    exact = slow.counts(Holes(0.9 + 0.25 * 2.6), X[None], "certify", n, 0.25)
    assert torch.equal(found.extras["counts"][:, 0].long(), exact)
    assert float(found.radius) == pytest.approx(0.25 * stats.norm.ppf(low(int(exact[0, 0]), n, 0.001)), rel=1e-9)
    bad = int(found.extras["undefined"])
    assert bad >= nothing and f"{bad} answers were NaN" in found.notes[0]


@pytest.mark.parametrize("mode", ["radius", "decide"])
def test_many_nan_answers_stop(mode):
    with pytest.raises(UsageError, match=r"answers NaN to noisy inputs: expected .*1 %.*clip=true"):
        rk.Smoothing(n=4000, mode=mode, radius=0.2)(rk.wrap(Holes(1.2)), X[None])


class Noisy(nn.Module):
    """Random by itself: dropout that stays on, or numpy's random numbers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.draws = how, np.random.default_rng(0)

    def forward(self, x):
        if self.how == "dropout":
            x = nn.functional.dropout(x, 0.5, training=True)
        else:
            x = x + 0.1 * torch.from_numpy(self.draws.normal(size=x.shape)).to(x.dtype)
        return slow.Linear(W, B)(x)


@pytest.mark.parametrize("how", ["dropout", "numpy"])
def test_a_network_that_is_random_by_itself_is_refused(how):
    with pytest.raises(UsageError, match=r"random by itself.*same answer.*dropout"):
        rk.Smoothing(n=200)(rk.wrap(Noisy(how)), X[None])


def test_a_network_that_is_said_to_be_random_is_refused():
    with pytest.raises(UsageError, match=r"random by itself.*eot=4"):
        rk.Smoothing(n=200)(rk.wrap(slow.Linear(W, B), eot=4), X[None])


@pytest.mark.parametrize("shape", [(1,), (2, 3), ()])
def test_outputs_that_are_no_classes_are_refused(shape):
    def net(x):
        return x.sum(1).view(-1, *[1] * len(shape)).expand(-1, *shape)

    with pytest.raises(UsageError, match=r"outputs|\(N, C\)|shape"):
        rk.Smoothing(n=200)(rk.wrap(net), X[None])


# -- a radius that is asked for ----------------------------------------------------------------------------------------


def test_a_radius_that_is_asked_for_is_certified_or_not():
    x = torch.stack([X, X - 0.3 * W / W.norm(), X - DISTANCE * W / W.norm()])
    found = rk.Smoothing(n=4000, radius=0.2)(linear(), x)
    assert found.certified.tolist() == [True, False, False] and found.asked == 0.2
    assert found.prediction.tolist() == [0, 0, -1] and found.outcome == ("certified", "unknown", "unknown")
    assert found.reasons[0] == "" and "only up to 0.0" in found.reasons[1] and "abstained" in found.reasons[2]
    assert found.radius[0] > 0.2 and 0 < found.radius[1] < 0.2 and found.radius[2] == 0


def test_decisions_about_a_linear_classifier():
    """Radii 0.376, 0.176 and 0; is it at least 0.25?"""
    x = torch.stack([X, X - 0.2 * W / W.norm(), X - DISTANCE * W / W.norm()])
    found = rk.Smoothing(sigma=0.25, mode="decide", radius=0.25, n=20_000)(linear(), x)
    assert found.certified.tolist() == [True, False, False] and found.radius.tolist() == [0.25, 0.0, 0.0]
    assert (found.n < 3000).all() and found.prediction.tolist() == [0, -1, -1]
    assert found.reasons[0] == "" and all("given up early" in reason for reason in found.reasons[1:])
    short = rk.Smoothing(sigma=0.25, mode="decide", radius=0.3, n=100)(linear(), X[None])
    assert "all draws are spent" in short.reasons[0] and short.n.tolist() == [100]


# -- dense outputs -----------------------------------------------------------------------------------------------------

DENSE = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(4))


def dense(**options):
    found = rk.Smoothing(sigma=0.15, n=300, n0=50, alpha=ALPHA, **options)(rk.wrap(slow.Pixels()), DENSE)
    counts = slow.counts(slow.Pixels(), DENSE, "certify", 300, 0.15)
    choice = slow.counts(slow.Pixels(), DENSE, "selection", 50, 0.15)[:, :3].argmax(1)
    hits = counts.gather(1, choice[:, None])[:, 0]
    assert torch.equal(found.extras["hits"][:, 0].long(), hits) and torch.equal(found.extras["choice"], choice)
    return found, choice, hits


def test_dense_certificates_share_alpha_among_pixels():
    found, choice, hits = dense()
    slowly = [0.15 * stats.norm.ppf(low(k, 300, ALPHA / 30)) for k in hits.flatten().tolist()]
    np.testing.assert_allclose(found.radius.flatten(), np.maximum(slowly, 0), rtol=1e-9)
    shown = (torch.tensor(slowly) > 0).view(2, 5, 6)
    assert torch.equal(found.prediction, torch.where(shown, choice, -1)) and torch.equal(found.abstained, ~shown)
    assert torch.equal(found.certified, shown) and 0 < int(shown.sum()) < 60
    share = 100 * (1 - shown.double().flatten(1).mean(1))
    assert found.reasons == tuple(f"{one:.1f} % of the pixels are not certified" for one in share)
    assert found.outcome == ("unknown", "unknown") and found.alpha == ALPHA


def slow_holm(values, alpha):
    """Step down: the smallest p-value against alpha / m, the next against alpha / (m - 1), until one is too large."""
    rejected = [False] * len(values)
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if values[i] > alpha / (len(values) - rank):
            break
        rejected[i] = True
    return rejected


@pytest.mark.parametrize("radius", [0.0, 0.05])
def test_holm_tests_one_radius_for_all_pixels(radius):
    found, choice, hits = dense(correction="holm", radius=radius)
    level = stats.norm.cdf(radius / 0.15)
    rows = [[stats.binomtest(int(k), 300, level, "greater").pvalue for k in row] for row in hits.flatten(1)]
    slowly = torch.tensor([slow_holm(row, ALPHA) for row in rows]).view(2, 5, 6)
    assert torch.equal(found.certified, slowly)
    assert torch.equal(found.radius, radius * slowly.double()), "no other radius is shown"
    assert torch.equal(found.prediction, torch.where(slowly, choice, -1))
    fewer = dense(radius=radius)[0].certified
    assert (fewer <= found.certified).all() and int(found.certified.sum()) > int(fewer.sum())


def test_what_dense_outputs_cannot_have():
    model = rk.wrap(slow.Pixels())
    with pytest.raises(UsageError, match=r"one class for each input.*Write mode=radius,radius=0.1"):
        rk.Smoothing(mode="decide", radius=0.1)(model, DENSE)
    with pytest.raises(UsageError, match=r"Holm.*Add radius="):
        rk.Smoothing(correction="holm")(model, DENSE)


# -- remarks and options -----------------------------------------------------------------------------------------------


def test_too_few_draws_are_remarked_on():
    """0.5 ** 9 > 0.001 > 0.5 ** 10."""
    assert "At least n = 10 " in rk.Smoothing(n=9, n0=5).remarks((10,))[0]
    assert rk.Smoothing(n=10, n0=5).remarks((10,)) == () and rk.Smoothing(n=10, n0=5).limit() > 0
    assert "At least n = 11 " in rk.Smoothing(n=10, n0=5, bound="two-sided").remarks((10,))[0]
    assert "At least n = 16 " in rk.Smoothing(n=15, n0=5).remarks((10, 8, 8))[0]
    found = rk.Smoothing(n=9, n0=5)(rk.wrap(slow.Linear(torch.zeros(4), -1.0)), X[None])
    assert found.prediction.tolist() == [-1]


@pytest.mark.parametrize(
    ("radius", "outputs", "mode"),
    [
        (0.5, (10,), "radius"),
        (0.9, (10,), "radius"),
        (0.5, (3, 16, 16), "radius"),
        (0.5, (10,), "decide"),
        (0.0, (10,), "decide"),
    ],
)
@pytest.mark.parametrize("kind", [rk.Smoothing, rk.DualSmoothing])
def test_a_radius_that_n_draws_cannot_show_is_remarked_on(kind, radius, outputs, mode):
    """The number that is named is the smallest that can."""
    options = {"radius": radius, "mode": mode, "n0": 5}
    remark = kind(n=12, **options).remarks(outputs)[0]
    least = int(remark.rsplit("At least n = ", 1)[1].split()[0].replace(",", ""))
    assert kind(n=least, **options).limit(outputs) >= radius
    assert kind(n=least, **options).remarks(outputs) == ()
    assert kind(n=least - 1, **options).remarks(outputs) != ()


@pytest.mark.parametrize("method", ["smoothing", "dual-smoothing"])
def test_a_radius_out_of_all_reach_is_remarked_on(method):
    """Of 1 at sigma = 0.05, that is 20 noise levels: ``Phi`` of it is 1."""
    (remark,) = certifier_from(f"{method}:sigma=0.05,radius=1").remarks((10,))
    assert remark.endswith("nothing will be certified. No n that can be drawn is enough: raise sigma")


def test_the_limit_is_reached_where_all_draws_agree():
    for options in ({}, {"bound": "two-sided"}, {"radius": 0.3}):
        certifier = rk.Smoothing(n=500, **options)
        found = certifier(rk.wrap(slow.Linear(torch.zeros(4), -1.0)), X[None])
        one_sided = 0.25 * stats.norm.ppf((certifier.alpha / (2 if options.get("bound") else 1)) ** (1 / 500))
        assert float(found.radius) == pytest.approx(certifier.limit((2,)), rel=1e-9)
        assert float(found.radius) == pytest.approx(one_sided, rel=1e-9)


BAD = [
    ("sigma=0", "greater than 0"),
    ("sigma=-0.1", "greater than 0"),
    ("sigma=nan", "finite number"),
    ("sigma=inf", "finite number"),
    ("alpha=0", "greater than 0"),
    ("alpha=1", "less than 1"),
    ("alpha=nan", "than"),
    ("beta=0,mode=decide,radius=0.1", "greater than 0"),
    ("n=50", "n >= n0: 50 draws"),
    ("n=0", "greater than or equal to 1"),
    ("n=10.5", "integer"),
    ("n0=0", "greater than or equal to 1"),
    ("radius=-0.1", "greater than or equal to 0"),
    ("radius=nan", "finite number"),
    ("mode=decide", "a radius with mode=decide, such as"),
    ("mode=decide:radius=", "radius"),
    ("mode=decide:radius=0.1,radius=0.2", "one radius, not two"),
    ("mode=guess", "'radius' or 'decide'"),
    ("mode=decide,radius=0.1,bound=two-sided", "bound=one-sided with mode=decide"),
    ("correction=holm,bound=two-sided", "bound=one-sided with correction=holm"),
    ("grid=true,clip=true", "grid or clip, not both"),
    ("sgima=0.5", "sigma"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_a_bad_option_is_one_clear_message(options, words):
    with pytest.raises(UsageError) as caught:
        certifier_from(f"smoothing:{options}")
    message = str(caught.value)
    assert words in message and "smoothing" in message and "\n" not in message, message


def test_bad_options_in_python():
    for bad in ({"sigma": 0}, {"alpha": 1}, {"n": 10}, {"radius": -1}, {"mode": "decide"}):
        with pytest.raises(ValidationError):
            rk.Smoothing(**bad)


def test_a_decision_is_written_in_one_word_or_two():
    one = certifier_from("smoothing:mode=decide:radius=0.25")
    assert one == certifier_from("smoothing:mode=decide,radius=1/4") == rk.Smoothing(mode="decide", radius=0.25)
    assert rk.Smoothing(mode="decide:radius=0.25") == one and one.text == "smoothing:mode=decide,radius=0.25"
    assert certifier_from(one.text) == one
    assert rk.Smoothing(0.5, mode="decide:radius=0.25") == rk.Smoothing(0.5, mode="decide", radius=0.25)
    both = certifier_from("smoothing:sigma=0.5,mode=decide:radius=1/2,alpha=0.01,n=1000")
    assert (both.sigma, both.radius, both.alpha, both.n) == (0.5, 0.5, 0.01, 1000)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X, "batch|shape"),
        (torch.full((1, 4), torch.nan), "NaN|finite"),
        (torch.full((1, 4), 1.5), "bounds"),
        (torch.zeros(0, 4), "at least one sample"),
    ],
)
def test_bad_inputs_are_one_clear_message(x, words):
    with pytest.raises(UsageError, match=words):
        rk.Smoothing(n=200)(linear(), x)
    if words != "bounds":
        with pytest.raises(UsageError, match=words):
            rk.Smoothing(n=200).predict(linear(), x)
