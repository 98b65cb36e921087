"""Noise of whole steps: its law against high precision, exactly on the grid, and the certificates that follow."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import robustkit as rk
from robustkit.certify import grid
from robustkit.certify.grid import BITS, STEPS, GridNoise, law_of
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from tests.certify import slow

CPU = torch.device("cpu")
SIGMAS = [0.002, 0.12, 0.25, 1.0]
WHOLE = torch.arange(256).double() / 255


def draws(n=1, seed=0):
    return Draws(seed, torch.arange(n), "test")


def noisy(x, sigma=0.25, blocks=1, size=32, strict=True, ids=None):
    pairs = torch.arange(len(x) * blocks)
    keys = draws(len(x)) if ids is None else Draws(0, torch.tensor(ids), "test")
    noise = GridNoise(x, (sigma,), strict=strict)
    return noise.noisy(x, pairs // blocks, pairs % blocks, keys, sigma, size).view(len(x), blocks * size, *x.shape[1:])


def steps(sigma, n, seed=0):
    """n draws of noise, in steps."""
    whole = draws(seed=seed).whole_of(torch.zeros(1).long(), torch.zeros(1).long(), (n,), CPU)
    return law_of(sigma, CPU).steps(whole)[0]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_thresholds_are_the_nearest_whole_numbers(sigma):
    """Against mpmath's normal distribution function at twice the digits, and against scipy where floats are enough."""
    law = law_of(sigma, CPU)
    assert len(law.thresholds) == 2 * law.reach and (law.thresholds.diff() >= 0).all()
    cuts = range(-law.reach, law.reach)
    with mpmath.workdps(120):
        for j in [*cuts[:: max(1, law.reach // 25)], -2, -1, 0, 1, cuts[-1]]:
            exact = mpmath.ncdf((j + mpmath.mpf(1) / 2) / (STEPS * mpmath.mpf(sigma))) * 2**BITS
            assert abs(int(law.thresholds[j + law.reach]) - exact) <= 0.5
    floats = stats.norm.cdf((np.array(cuts) + 0.5) / (STEPS * sigma))
    np.testing.assert_allclose(law.thresholds.double().numpy() / 2**BITS, floats, rtol=0, atol=1e-15)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_slack_bounds_the_total_variation(sigma):
    """Summed in 100 digits over all steps, the clipped ends included; and not much more than it must be."""
    law = law_of(sigma, CPU)
    drawn = [0, *law.thresholds.tolist(), 1 << BITS]
    with mpmath.workdps(100):
        scale = 1 / (STEPS * mpmath.mpf(sigma))
        exact = [mpmath.ncdf((j + mpmath.mpf(1) / 2) * scale) for j in range(-law.reach, law.reach)]
        cdf = [mpmath.mpf(0), *exact, mpmath.mpf(1)]
        apart = [
            abs((cdf[i + 1] - cdf[i]) - mpmath.mpf(drawn[i + 1] - drawn[i]) / 2**BITS) for i in range(len(drawn) - 1)
        ]
        distance = mpmath.fsum(apart) / 2
    assert distance <= law.slack < 1e-13
    assert GridNoise(torch.zeros(2, 3, 5), (sigma, 0.12)).slack == 15 * max(law.slack, law_of(0.12, CPU).slack)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_first_bits_decide_only_where_they_can(sigma):
    """Every threshold, its neighbours and the ends of the guide's cells give what a search of all bits gives."""
    law = law_of(sigma, CPU)
    edges = torch.arange(1, 1 << 16) << (BITS - 16)
    at = torch.cat([law.thresholds, law.thresholds - 1, law.thresholds + 1, edges, edges - 1])
    at = at[(at >= 0) & (at < 1 << BITS)]
    slowly = torch.searchsorted(law.thresholds, at, right=True) - law.reach
    assert torch.equal(law.steps(at).long(), slowly)
    ends = torch.tensor([0, (1 << BITS) - 1])
    assert torch.equal(law.steps(ends).long(), torch.searchsorted(law.thresholds, ends, right=True) - law.reach)
    assert (law.guide < 0).double().mean() < 0.06


@given(st.fractions(Fraction(1, 500), Fraction(1, 2)), st.lists(st.integers(0, 2**60 - 1), min_size=1, max_size=20))
@settings(max_examples=10, deadline=None)
def test_a_draw_is_the_rounded_quantile(sigma, whole):
    """u / 2^60 lies between the distribution function one half step below and one half step above the noise."""
    law = law_of(float(sigma), CPU)
    found = law.steps(torch.tensor(whole)).tolist()
    with mpmath.workdps(50):
        for u, j in zip(whole, found, strict=True):
            below, above = (
                mpmath.ncdf((j + side) / (STEPS * mpmath.mpf(float(sigma)))) * 2**BITS for side in (-0.5, 0.5)
            )
            assert j == -law.reach or below <= u + 0.5
            assert j == law.reach or u <= above + 0.5


def test_frequencies_are_those_of_the_discretised_gaussian():
    sigma, n = 0.02, 200_000
    found = steps(sigma, n).numpy()
    inner = np.arange(-12, 13)
    edges = np.concatenate([[-np.inf], inner[:-1] + 0.5, [np.inf]])
    expected = n * np.diff(stats.norm.cdf(edges / (STEPS * sigma)))
    counted = np.bincount(np.clip(found, -12, 12) + 12, minlength=25)
    assert stats.chisquare(counted, expected).pvalue > 0.001


@pytest.mark.parametrize("sigma", [0.12, 0.5])
def test_moments(sigma):
    """Rounding adds 1/12 of a squared step to the variance (Sheppard)."""
    found, n = steps(sigma, 300_000).double(), 300_000
    variance = (STEPS * sigma) ** 2 + 1 / 12
    assert abs(found.mean()) < 4 * math.sqrt(variance / n)
    assert abs(found.var() / variance - 1) < 4 * math.sqrt(2 / n)
    assert abs((found**4).mean() / (3 * variance**2) - 1) < 0.03
    fine = steps(0.001, 100_000).double()
    p = float(2 * stats.norm.sf(0.5 / (STEPS * 0.001)))
    assert abs((fine != 0).double().mean() - p) < 4 * math.sqrt(p * (1 - p) / 100_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_noisy_inputs_lie_on_the_grid_and_are_clipped(dtype, monkeypatch):
    x = WHOLE.to(dtype).view(1, 1, 16, 16)
    found = noisy(x, 0.5, blocks=4)
    assert found.dtype == dtype and found.shape == (1, 128, 1, 16, 16)
    level = (found.double() * 255).round()
    if dtype in (torch.float32, torch.float64):
        assert torch.equal((level / 255).to(dtype), found)
    assert level.min() >= -3 * 255 and level.max() <= 4 * 255
    monkeypatch.setattr(grid, "WIDEST", 2)
    wild = noisy(x[..., :2, :], 40.0, blocks=4)
    assert wild.min() == -2 and wild.max() == 3
    assert law_of(0.25, CPU).width == 1 and law_of(0.5, CPU).width == 3 and law_of(1e-3, CPU).width == 1


def test_all_levels_of_every_type_are_seen_as_such():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        GridNoise(WHOLE.to(dtype)[None], (0.25,))
    made = (torch.arange(256, dtype=torch.uint8).float() * (1 / 255))[None]
    GridNoise(made, (0.25,))
    GridNoise(made.double(), (0.25,))


def test_noise_is_that_of_its_key():
    x = WHOLE[torch.randint(0, 256, (4, 1, 3, 3), generator=torch.Generator().manual_seed(0))]
    whole = noisy(x, blocks=3)
    assert torch.equal(noisy(x[[2, 1]], blocks=3, ids=[2, 1]), whole[[2, 1]])
    assert torch.equal(noisy(x, blocks=2), whole[:, :64])
    moved = (x * 254 / 255 * 255).floor() / 255
    same = (noisy(moved, blocks=3) - whole).mul(255).round()
    assert torch.equal(same, ((moved - x)[:, None] * 255).round().expand_as(same)), "noise does not depend on x"


def test_inputs_off_the_grid_are_refused_or_rounded_after_the_noise():
    x = WHOLE[torch.randint(0, 256, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0))]
    off = x + 0.3 / 255
    with pytest.raises(UsageError, match=r"multiples of 1/255.*got 100 % of the values.*round\(\)"):
        noisy(off)
    found = noisy(off, strict=False, blocks=4)
    assert torch.equal((found * 255).round() / 255, found)
    # the same draws as on the grid, moved by 0.3 steps before they are rounded: one step up in 0.3 of the cases
    up = (found - noisy(x, blocks=4)).mul(255).round()
    assert set(up.unique().tolist()) == {0.0, 1.0} and abs(up.mean() - 0.3) < 0.03
    torch.testing.assert_close(noisy(x + 1e-6, strict=False), noisy(x), atol=0, rtol=0)


def test_a_photo_that_was_resized_is_refused_before_the_network_is_asked_twice():
    net = slow.Watched(slow.Linear(torch.ones(4)))
    with pytest.raises(UsageError, match="multiples of 1/255"):
        rk.Smoothing(grid=True)(rk.wrap(net), torch.full((2, 4), 0.1234))
    assert sum(len(x) for x in net.seen) == 1


@pytest.mark.parametrize("bounds", [(0, 255), (-1, 1)])
def test_other_bounds_are_refused(bounds):
    model = rk.wrap(slow.Linear(torch.ones(4)), bounds=bounds)
    with pytest.raises(UsageError, match=r"bounds \(0, 1\)"):
        rk.Smoothing(grid=True)(model, torch.zeros(2, 4))


def test_certificates_are_about_the_rounded_function():
    """Class 0 for t > 0.5 + 1/510: p is that of the discretised Gaussian, and the slack is taken off."""
    n, sigma = 2000, 0.02
    model = rk.wrap(slow.Linear(torch.tensor([1.0]), 0.5 + 0.5 / 255))
    x = torch.tensor([[131 / 255]])
    found = rk.Smoothing(sigma=sigma, n=n, grid=True)(model, x.expand(40, 1))
    p = float(stats.norm.cdf((131 - 128 + 0.5) / 255 / sigma))  # 128 / 255 and above
    hits = found.extras["hits"].sum().item()
    assert abs(hits / (40 * n) - p) < 4 * math.sqrt(p * (1 - p) / (40 * n))
    low = stats.binomtest(int(found.extras["hits"][0]), n, alternative="greater").proportion_ci(0.999).low
    slack = law_of(sigma, CPU).slack
    assert float(found.radius[0]) == pytest.approx(sigma * stats.norm.ppf(low - slack), rel=1e-9)
    assert float(found.radius[0]) < sigma * stats.norm.ppf(low)
    assert "clipped to [-1, 2]" in found.arithmetic and f"{slack:.1e}" in found.arithmetic


def test_the_slack_is_taken_off_in_every_mode(monkeypatch):
    """With a slack of 0.2 nothing near p = 0.6 is certified, by any rule."""
    monkeypatch.setattr(GridNoise, "slack", property(lambda self: 0.2))
    model = rk.wrap(slow.Linear(torch.tensor([1.0]), 100.5 / 255))
    x = torch.tensor([[105 / 255]])
    for options in ({}, {"bound": "two-sided"}, {"mode": "decide", "radius": 0.0}):
        found = rk.Smoothing(sigma=0.07, n=4000, grid=True, **options)(model, x)
        assert found.prediction.tolist() == [-1], options
        plain = rk.Smoothing(sigma=0.07, n=4000, **options)(model, x)
        assert plain.prediction.tolist() == [0], options


class Spy(nn.Module):
    """Knows ``x`` by the bits that floating-point noise leaves of it: class 0 where ``(a - x) + x`` is a, in floats."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, a):
        kept = ((a - self.x) + self.x == a).all(1).to(a.dtype)
        return torch.stack([kept, 1 - kept], 1)


def test_floats_betray_x_and_the_grid_does_not():
    """The paper's point. In floats a radius of 1.2 is certified, and at distance 0.25 the class is another one."""
    x = torch.full((1, 4096), 100 / 255)
    model, beside = rk.wrap(Spy(x)), x + 1 / 255
    distance, sigma = 64 / 255, 0.5
    floats = [rk.Smoothing(n=1000, sigma=sigma)(model, one) for one in (x, beside)]
    assert distance < 0.3 < 1.2 < float(floats[0].radius[0])
    assert [found.prediction.tolist() for found in floats] == [[0], [1]], "the certificate is wrong"
    exact = [rk.Smoothing(n=1000, sigma=sigma, grid=True)(model, one).extras["counts"][0, 0, 0] for one in (x, beside)]
    low, high = sorted((float(count) + 1) / 1002 for count in exact)
    error = 4 / math.sqrt(1000)
    assert high <= stats.norm.cdf(stats.norm.ppf(low) + distance / sigma) + error
