"""Confidence rules against slow versions, exact probabilities of error, and more digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from robustkit.certify.confidence import above, anytime_lower, anytime_upper, below, holm, lower, upper, wealth

COUNTS = [(0, 1), (1, 1), (0, 50), (1, 50), (25, 50), (49, 50), (50, 50), (9_931, 10_000), (500_000, 1_000_000)]
EXTREMES = [
    (k, n) for n in (0, 1, 2, 32, 100_000, 1_000_000, 10_000_000) for k in {0, 1, n // 2, n - 1, n} if 0 <= k <= n
]
K, N = (np.array(column) for column in zip(*EXTREMES, strict=True))
few = settings(deadline=None, max_examples=60, derandomize=True)


def draws(most=3000):
    """(k, n) with 0 <= k <= n."""
    return st.integers(0, most).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


LEVELS = st.floats(-12, -0.1).map(lambda power: 10**power)


# -- Clopper and Pearson ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
@pytest.mark.parametrize("k, n", COUNTS)
def test_clopper_pearson_is_that_of_scipy(k, n, alpha):
    low = stats.binomtest(k, n).proportion_ci(1 - 2 * alpha, method="exact")
    assert float(lower(k, n, alpha)) == pytest.approx(low.low, rel=1e-8, abs=1e-12)
    assert float(upper(k, n, alpha)) == pytest.approx(low.high, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("k, n", COUNTS[1:])
def test_clopper_pearson_is_a_quantile_of_beta(k, n):
    """The formula of statsmodels: the alpha quantile of Beta(k, n - k + 1), and its mirror."""
    assert float(lower(k, n, 0.01)) == pytest.approx(stats.beta.ppf(0.01, k, n - k + 1) if k else 0, rel=1e-8)
    assert float(upper(k, n, 0.01)) == pytest.approx(stats.beta.isf(0.01, k + 1, n - k) if k < n else 1, rel=1e-8)


def test_clopper_pearson_of_unanimous_draws():
    n = np.array([1, 10, 1000, 100_000])
    np.testing.assert_allclose(lower(n, n, 0.001), 0.001 ** (1 / n), rtol=1e-12)
    np.testing.assert_allclose(upper(0, n, 0.001), -np.expm1(np.log(0.001) / n), rtol=1e-8)


@pytest.mark.parametrize("n, alpha", [(1, 0.05), (7, 0.05), (50, 0.001), (400, 0.01)])
def test_the_exact_probability_of_a_wrong_bound_is_at_most_alpha(n, alpha):
    """Summed over all counts; where the truth lies just below a bound it is alpha, and no less."""
    k = np.arange(n + 1)
    bounds = lower(k, n, alpha)
    below_a_bound = bounds[1:] * (1 - 1e-11)
    for truth in (*below_a_bound[:: max(1, n // 20)], *np.linspace(0.001, 0.999, 23)):
        pmf = stats.binom.pmf(k, n, truth)
        assert pmf[bounds > truth].sum() <= alpha * (1 + 1e-7)
        assert pmf[upper(k, n, alpha) < truth].sum() <= alpha * (1 + 1e-7)
    sharp = [stats.binom.pmf(k, n, truth)[bounds > truth].sum() for truth in below_a_bound]
    np.testing.assert_allclose(sharp, alpha, rtol=1e-6)


def test_clopper_pearson_has_its_digits_at_a_million_draws():
    """The tail at the bound, with 30 digits, is alpha or a little less."""
    with mpmath.workdps(30):
        for k, n, alpha in ((3, 1_000_000, 1e-12), (999_990, 1_000_000, 1e-12), (7_500, 10_000, 1e-3), (1, 1, 1e-12)):
            tail = chance(k, n, float(lower(k, n, alpha))) / alpha
            assert 1 - 1e-6 < tail <= 1


def chance(k, n, p):
    """P(X >= k) of n draws with 30 digits, by the shorter sum."""
    p = mpmath.mpf(p)
    ways = mpmath.binomial(n, k) * p**k * (1 - p) ** (n - k)
    odds, total, i = p / (1 - p), mpmath.mpf(0), k
    if k > n // 2:
        while i <= n and ways > total * mpmath.mpf(10) ** -30:
            total, ways, i = total + ways, ways * (n - i) / (i + 1) * odds, i + 1
        return total
    while i > 0:
        ways, i = ways * i / (n - i + 1) / odds, i - 1
        total += ways
    return 1 - total


@few
@given(draws(), LEVELS)
def test_bounds_lie_on_either_side_of_the_share(pair, alpha):
    k, n = pair
    share = k / n if n else 0.5
    low, high = float(lower(k, n, alpha / 2)), float(upper(k, n, alpha / 2))
    assert 0 <= low <= share <= high <= 1
    assert (low == 0) == (k == 0) and (high == 1) == (k == n)
    assert lower(k, n, alpha / 4) <= low, "less is shown with less error"


# -- the betting martingale -------------------------------------------------------------------------------------------


def bets(answers, p):
    """The gambler's logarithm of wealth, bet by bet: his probability of a hit is (k + 1/2) / (n + 1)."""
    made, k = 0.0, 0
    for n, hit in enumerate(answers):
        predicted = (k + 0.5) / (n + 1)
        made += math.log(predicted / p) if hit else math.log((1 - predicted) / (1 - p))
        k += hit
    return made


@few
@given(st.lists(st.booleans(), max_size=200), st.floats(0.01, 0.99))
def test_wealth_is_the_product_of_all_bets(answers, p):
    assert float(wealth(sum(answers), len(answers), p)) == pytest.approx(bets(answers, p), abs=1e-9)


@pytest.mark.parametrize("n, p", [(1, 0.3), (40, 0.5), (333, 0.97)])
def test_wealth_is_worth_one_on_average(n, p):
    """A fair game: the mean over all counts is 1, exactly."""
    k = np.arange(n + 1)
    assert np.exp(stats.binom.logpmf(k, n, p) + wealth(k, n, p)).sum() == pytest.approx(1, rel=1e-9)


def test_wealth_keeps_its_digits():
    """Against 40 digits, up to ten million draws; the slack of the tests covers what is lost."""
    rng = np.random.default_rng(0)
    n = (10 ** rng.uniform(0, 7, 150)).astype(int)
    p = rng.uniform(1e-4, 1 - 1e-4, 150)
    k = np.minimum(n, rng.binomial(n, p) + (3 * np.sqrt(n * p * (1 - p))).astype(int))
    with mpmath.workdps(40):
        for one, found in zip(zip(k.tolist(), n.tolist(), p.tolist(), strict=True), wealth(k, n, p), strict=True):
            assert abs(float(exact_wealth(*one)) - found) < 1e-15 * (one[1] + 20 + abs(found))


def exact_wealth(k, n, p):
    """By loggamma, in the digits of mpmath."""
    half, p = mpmath.mpf(1) / 2, mpmath.mpf(p)
    ways = mpmath.loggamma(k + half) + mpmath.loggamma(n - k + half) - mpmath.loggamma(n + 1) - mpmath.log(mpmath.pi)
    return ways - k * mpmath.log(p) - (n - k) * mpmath.log1p(-p)


def ever(stop, truth, p, alpha, most=250):
    """The exact probability that ``stop`` speaks at any of the first ``most`` draws."""
    n = np.arange(most + 1)
    ends = stop(np.minimum(n, n[:, None]), n[:, None], p, alpha)
    alive, stopped = np.array([1.0]), 0.0
    for row in range(1, most + 1):
        alive = np.append(alive * (1 - truth), 0) + np.append(0, alive * truth)
        now = ends[row, : row + 1]
        stopped += alive[now].sum()
        alive[now] = 0
    return stopped


@pytest.mark.parametrize("p", [0.05, 0.5, 0.69, 0.98])
def test_the_exact_probability_that_a_bet_ever_errs_is_at_most_alpha(p):
    """Looked at after each draw (Ville); worst where the truth is the level itself."""
    for alpha in (0.05, 0.3):
        worst = ever(above, p, p, alpha)
        assert ever(above, 0.95 * p, p, alpha) <= worst <= alpha
        mirrored = ever(below, p, p, alpha)
        assert ever(below, 1 - 0.95 * (1 - p), p, alpha) <= mirrored <= alpha
        assert max(worst, mirrored) > alpha / 10, "a rule that never speaks is no rule"


def halving(k, n, alpha):
    """The anytime bound, slowly."""
    low, high = np.zeros(k.shape), k / n
    for _ in range(100):
        middle = (low + high) / 2
        shown = above(k, n, middle, alpha)
        low, high = np.where(shown, middle, low), np.where(shown, high, middle)
    return low


@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-3, 1e-12])
def test_anytime_bounds_are_what_the_bets_show(alpha):
    some = K > 0
    low = anytime_lower(K, N, alpha)
    assert above(K[some], N[some], low[some], alpha).all()
    np.testing.assert_allclose(low[some], halving(K[some], N[some], alpha), rtol=1e-6)
    shares = np.divide(K, N, out=np.ones(K.shape), where=N > 0)
    nearer = low + (shares - low) * 1e-6
    assert not above(K[some], N[some], nearer[some], alpha).any()


@few
@given(draws(), LEVELS)
def test_anytime_bounds_and_bets_agree(pair, alpha):
    k, n = pair
    low, high = float(anytime_lower(k, n, alpha)), float(anytime_upper(k, n, alpha))
    assert 0 <= low <= (k / n if n else 0) <= high <= 1
    assert high == 1 - float(anytime_lower(n - k, n, alpha))
    assert (k == 0 and low == 0) or above(k, n, low, alpha)
    assert (k == n and high == 1) or below(k, n, high + 1e-15, alpha)
    assert low <= float(lower(k, n, alpha)) and high >= float(upper(k, n, alpha)), "any time costs something"


@pytest.mark.parametrize("n", [1, 100, 100_000])
def test_anytime_bounds_rise_with_the_hits(n):
    k = np.unique(np.linspace(0, n, 400).astype(int))
    assert (np.diff(anytime_lower(k, n, 0.001)) > 0).all()
    assert (np.diff(anytime_upper(k, n, 0.001)) > 0).all()


def test_anytime_bounds_do_not_depend_on_their_company():
    k, n = np.random.default_rng(0).integers(0, 1000, (2, 777))
    k, n = np.minimum(k, n), np.maximum(k, n)
    together = anytime_lower(k, n, 0.001)
    np.testing.assert_array_equal(together[::-1], anytime_lower(k[::-1].copy(), n[::-1].copy(), 0.001))
    np.testing.assert_array_equal(together[:50], [float(anytime_lower(k[i], n[i], 0.001)) for i in range(50)])


def test_what_any_time_costs_at_a_hundred_thousand_unanimous_draws():
    """The radii, in units of sigma, that are known for it: 3.65 against 3.81 of a fixed number of draws."""
    assert round(float(ndtri(anytime_lower(10**5, 10**5, 0.001))), 2) == 3.65
    assert round(float(ndtri(lower(10**5, 10**5, 0.001))), 2) == 3.81


@pytest.mark.parametrize("alpha", [0.999, 0.05, 1e-12, 1e-300])
def test_extremes_give_numbers_and_no_warnings(alpha):
    for bound in (lower, upper, anytime_lower, anytime_upper):
        found = bound(K, N, alpha)
        assert found.shape == K.shape and ((found >= 0) & (found <= 1)).all()
    for p in (0.0, 1e-300, 0.5, 1.0):
        assert not np.isnan(wealth(K, N, p)).any()
        assert not (above(K, N, p, alpha) & below(K, N, p, alpha)).any()
    assert not above(K, N, 1.0, alpha).any() and not below(K, N, 0.0, alpha).any()
    np.testing.assert_array_equal(above(K, N, 0.0, alpha), K > 0)


# -- Holm -------------------------------------------------------------------------------------------------------------


def step_down(p_values, alpha):
    """Holm's procedure as the paper tells it."""
    rejected = [False] * len(p_values)
    left = len(p_values)
    for i in sorted(range(len(p_values)), key=lambda at: p_values[at]):
        if p_values[i] > alpha / left:
            break
        rejected[i], left = True, left - 1
    return rejected


@few
@given(
    st.lists(
        st.sampled_from([0.0, 1e-4, 0.005, 0.01, 0.0125, 0.02, 0.025, 0.04, 0.05, 0.2, 1.0]), min_size=1, max_size=8
    )
)
def test_holm_is_the_step_down(p_values):
    found = holm(np.array(p_values), 0.05)
    assert found.tolist() == step_down(p_values, 0.05)
    assert found[np.array(p_values) <= 0.05 / len(p_values)].all(), "all that Bonferroni rejects"


def test_holm_takes_every_row_by_itself():
    p_values = np.random.default_rng(0).random((3, 4, 5)) ** 4
    slow = [[step_down(row.tolist(), 0.1) for row in block] for block in p_values]
    assert holm(p_values, 0.1).tolist() == slow


@pytest.mark.parametrize("true", [1, 4, 8])
def test_holm_rarely_rejects_any_true_hypothesis(true):
    """With the other hypotheses surely false, the worst case: alpha plus three standard errors at most, over 20,000."""
    runs, alpha = 20_000, 0.05
    p_values = np.random.default_rng(true).random((runs, 8))
    p_values[:, true:] = 0
    share = holm(p_values, alpha)[:, :true].any(1).mean()
    assert share == pytest.approx(1 - (1 - alpha / true) ** true, abs=3 * math.sqrt(alpha / runs))
    assert share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
