"""SmoothGrad, SmoothGrad-squared and VarGrad against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.core.keyed import Draws


class Cubic(nn.Module):
    """Outputs (sum of cubes, x'Ax/2): gradients 3x^2 and Ax."""

    def __init__(self, size: int) -> None:
        super().__init__()
        root = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.a = nn.Parameter(root + root.T)

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([flat.pow(3).sum(1), (flat @ self.a * flat).sum(1) / 2], 1)


SIZE = 12
X = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(2))


def model():
    return rk.wrap(Cubic(SIZE))


def noise(x, samples, seed=0):
    """The draws of every sample, one by one."""
    draws = Draws(seed, torch.arange(len(x)), "smoothgrad")
    return torch.stack([draws.again(k).normal(x) for k in range(samples)])


def slow(x, samples, level=0.15):
    """Gradients at the noisy images, straight from the paper, for the sum of cubes."""
    sigma = level * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    return torch.stack([3 * (x + sigma * z).square() for z in noise(x, samples)])


def test_mean_square_and_variance_come_from_one_pass():
    grads = slow(X, 11)
    found = rk.SmoothGrad(samples=11)(model(), X, 0, batch=4)
    torch.testing.assert_close(found.values, grads.mean(0))
    torch.testing.assert_close(found.extras["squared"], grads.square().mean(0))
    torch.testing.assert_close(found.extras["variance"], grads.var(0, correction=0))
    torch.testing.assert_close(found.standard_error, grads.std(0) / 11**0.5)
    assert (found.cost.forwards, found.cost.backwards) == (36, 33)


@pytest.mark.parametrize("statistic", ["mean", "squared", "variance"])
def test_the_statistic_chooses_the_map(statistic):
    found = rk.SmoothGrad(samples=5, statistic=statistic)(model(), X, 0)
    assert torch.equal(found.values, found.extras[statistic])
    assert (found.standard_error is None) == (statistic != "mean")


def test_the_standard_error_is_that_of_the_closed_form():
    """Gradient A(x + z): the mean is Ax and the variance of entry i is sigma^2 * sum_j A_ij^2."""
    net, x = model(), X[:1]
    a = net.net.a.detach()
    found = rk.SmoothGrad(samples=4000)(net, x, 1)
    sigma = 0.15 * float(x.max() - x.min())
    exact = (a @ x.flatten()).view(x.shape)
    error = sigma * a.square().sum(1).sqrt().view(x.shape) / 4000**0.5
    torch.testing.assert_close(found.standard_error, error, rtol=0.06, atol=0)
    assert ((found.values - exact).abs() < 5 * error).all()


def test_antithetic_pairs_are_exact_for_a_gradient_that_is_linear():
    net = model()
    found = rk.SmoothGrad(samples=4, antithetic=True)(net, X, 1, batch=3)
    torch.testing.assert_close(found.values.flatten(1), X.flatten(1) @ net.net.a.detach(), rtol=1e-5, atol=1e-5)
    assert float(found.standard_error.max()) < 1e-5
    assert found.extras["samples"].tolist() == [4] * 3


def test_an_odd_number_of_antithetic_copies_is_made_even():
    assert rk.SmoothGrad(samples=5, antithetic=True)(model(), X, 1).extras["samples"].tolist() == [6] * 3


def test_a_map_does_not_depend_on_the_batch():
    whole = rk.SmoothGrad(samples=7)(model(), X, 0, seed=3)
    part = rk.SmoothGrad(samples=7)(model(), X[1:], 0, ids=torch.tensor([1, 2]), seed=3, batch=2)
    torch.testing.assert_close(part.values, whole.values[1:])
    torch.testing.assert_close(part.standard_error, whole.standard_error[1:])


@pytest.mark.parametrize("antithetic", [False, True])
def test_auto_stops_every_image_at_the_tolerance(antithetic):
    auto = rk.SmoothGrad(samples="auto", tolerance=0.05, antithetic=antithetic, max_samples=5000)
    found = auto(model(), X, 0)
    error = found.standard_error.flatten(1).square().sum(1)
    signal = found.values.flatten(1).square().sum(1) - error
    assert ((error / signal).sqrt() <= 0.05).all() and not found.notes
    assert (found.extras["samples"] % 32 == 0).all() and found.cost.backwards == int(found.extras["samples"].sum())
    alone = auto(model(), X[2:], 0, ids=torch.tensor([2]))
    assert alone.extras["samples"].tolist() == found.extras["samples"][2:].tolist()


def test_auto_says_where_it_gave_up():
    found = rk.SmoothGrad(samples="auto", tolerance=0.001, max_samples=40)(model(), X, 0)
    assert found.extras["samples"].tolist() == [40] * 3
    assert "3 of 3" in found.notes[0] and "max_samples=40" in found.notes[0] and found.notes_of(1) == [found.notes[0]]


def test_without_noise_it_is_the_gradient():
    found = rk.SmoothGrad(samples=3, noise_level=0)(model(), X, 0)
    torch.testing.assert_close(found.values, rk.Gradient()(model(), X, 0).values)


def test_noise_leaves_the_bounds():
    """As in the paper: noisy images are not clipped."""
    seen = []
    net = model()
    net.net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    rk.SmoothGrad(samples=50)(net, torch.cat([torch.zeros(1, 3, 2, 1), torch.ones(1, 3, 2, 1)], 3), 0)
    assert min(float(x.min()) for x in seen) < 0 and max(float(x.max()) for x in seen) > 1
