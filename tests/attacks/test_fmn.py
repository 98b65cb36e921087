"""FMN against a slow version written from the paper and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.attacks.fmn import FMN, PROJECT
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L2, Linf
from robustkit.testing import Bowl, HalfSpace

ORDER = {"linf": (np.inf, 1), "l2": (2, 2), "l1": (1, np.inf)}
NORMS = list(ORDER)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, 12, generator=g, dtype=torch.double))
        self.b = nn.Parameter(torch.randn(4, 20, generator=g, dtype=torch.double))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a.T) @ self.b.T


def problem(n: int = 6, low: float = 0.0, high: float = 1.0):
    x = low + (high - low) * torch.rand(n, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    model = wrap(Net(), bounds=(low, high))
    return model, x, model(x).argmax(1)


def onto(norm: str, d: np.ndarray, eps: float, x: np.ndarray, low: float, high: float) -> np.ndarray:
    """The nearest d of ball and box: for l2 and l1 by bisection on the dual."""
    if norm == "linf":
        return np.clip(x + np.clip(d, -eps, eps), low, high) - x

    def pulled(t):
        less = d / (1 + t) if norm == "l2" else np.sign(d) * np.maximum(np.abs(d) - t, 0)
        return np.clip(x + less, low, high) - x

    left, right = 0.0, 1e6
    if np.linalg.norm(pulled(0), ORDER[norm][0]) <= eps:
        return pulled(0)
    for _ in range(150):
        middle = (left + right) / 2
        left, right = (middle, right) if np.linalg.norm(pulled(middle), ORDER[norm][0]) > eps else (left, middle)
    return pulled(right)


def slow_fmn(model, x, y, norm, *, target=None, steps, low=0.0, high=1.0, start=None, gamma0=0.05):
    """One sample, one step at a time; the smallest distance seen."""
    p, q = ORDER[norm]
    x0, best, radius = x.numpy(), np.inf, np.inf
    d = np.zeros_like(x0) if start is None else start.numpy() - x0
    most = np.linalg.norm(np.maximum(x0 - low, high - x0), p)
    for k in range(steps + 1):
        point = torch.tensor(x0 + d)[None].requires_grad_()
        logits = model.module(point)[0]
        label = y if target is None else target
        others = max(logits[j] for j in range(len(logits)) if j != label)
        margin = others - logits[label] if target is None else logits[label] - others
        g = torch.autograd.grad(margin, point)[0][0].numpy()
        decay = (1 + math.cos(math.pi * k / steps)) / 2
        alpha, gamma = (high - low) * (0.01 + 0.99 * decay), 1e-3 + (gamma0 - 1e-3) * decay
        length = np.linalg.norm(d, p)
        if margin > 0:
            best = min(best, length)
            radius = min(radius * (1 - gamma), best * (1 - 1e-6))
        elif np.isfinite(best):
            radius *= 1 + gamma
        else:
            radius = (length - float(margin.detach()) / np.linalg.norm(g, q)) * (1 + gamma)
        radius = min(radius, most)
        d = onto(norm, d + alpha * g / np.linalg.norm(g), radius, x0, low, high)
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_equals_the_paper_step_by_step(norm, targeted, low):
    model, x, y = problem(low=low)
    target = (y + 1) % 4 if targeted else None
    found = FMN(norm=norm, steps=30)(model, x, y, target=target)
    assert found.success.any()
    for i in range(len(x)):
        goal = None if target is None else int(target[i])
        slow = slow_fmn(model, x[i], int(y[i]), norm, target=goal, steps=30, low=low)
        assert float(found.minimum[i]) == pytest.approx(slow, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_distance_of_a_half_space(norm):
    net = HalfSpace((1, 6, 6), seed=2).double()
    x = 0.5 + 0.02 * torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    found = FMN(norm=norm)(model, x, y)
    exact = net.distance(x, norm)
    torch.testing.assert_close(found.minimum, exact, atol=0, rtol=1e-3)
    assert (found.minimum >= exact * (1 - 1e-9)).all()


def test_distance_of_a_bowl():
    x = 0.5 + 0.02 * torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    bowl = wrap(Bowl(0.3).double())
    found = FMN(norm="l2")(bowl, x, bowl(x).argmax(1))
    exact = ((x - 0.5).flatten(1).norm(dim=1) - bowl.net.radius.item()).abs()
    torch.testing.assert_close(found.minimum, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_ends_the_same_alone_and_in_a_batch(norm):
    model, x, y = problem(8)
    whole = FMN(norm=norm, steps=40)(model, x, y)
    for i in range(len(x)):
        alone = FMN(norm=norm, steps=40)(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(whole.adversarial[i], alone.adversarial[0], atol=1e-9, rtol=0)


def test_cost_is_exact():
    model, x, y = problem()
    found = FMN(norm="l2", steps=17)(model, x, y)
    assert found.backwards.tolist() == [17] * len(x)
    assert torch.equal(found.forwards, 17 + 1 + found.success.long())


@pytest.mark.parametrize("norm", NORMS)
def test_start_is_used(norm):
    model, x, y = problem()
    far = FMN(norm=norm, steps=60)(model, x, y)
    start = (x + 1.3 * (far.adversarial - x)).clamp(0, 1)
    found = FMN(norm=norm, steps=8)(model, x, y, start=start)
    assert found.success.all()
    for i in range(len(x)):
        slow = slow_fmn(model, x[i], int(y[i]), norm, steps=8, start=start[i])
        assert float(found.minimum[i]) == pytest.approx(slow, abs=1e-6)


def test_pixels_at_the_bounds_move():
    net = HalfSpace((64,), seed=1)
    x = (torch.rand(6, 64, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    for norm in NORMS:
        assert FMN(norm=norm, steps=40)(model, x, y).success.all(), norm


def test_the_l2_ball_has_an_inside():
    """A fault of others: what is projected ends on the sphere, or is not projected at all."""
    _, x, _ = problem(1)
    inside = x + 0.2 * (torch.ones_like(x) / 12**0.5) * (x < 0.8)
    assert torch.equal(PROJECT["l2"](inside, x, torch.ones(1), 0.0, 1.0), inside)
    outside = PROJECT["l2"](inside, x, torch.full((1,), 0.01), 0.0, 1.0)
    assert float((outside - x).norm()) == pytest.approx(0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_are_the_nearest_points(norm):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(20, 30, generator=g, dtype=torch.double).mul(1.5).sub(0.25).clamp(0, 1)  # a third at the bounds
    adv = x + torch.randn(20, 30, generator=g, dtype=torch.double)
    eps = torch.rand(20, generator=g, dtype=torch.double) * torch.linalg.vector_norm(adv - x, ORDER[norm][0], dim=1)
    found = PROJECT[norm](adv, x, eps, 0.0, 1.0)
    for i in range(20):
        exact = onto(norm, (adv - x)[i].numpy(), float(eps[i]), x[i].numpy(), 0.0, 1.0)
        np.testing.assert_allclose((found - x)[i].numpy(), exact, atol=1e-7)
    assert (torch.linalg.vector_norm(found - x, ORDER[norm][0], dim=1) <= eps * (1 + 1e-12)).all()


def test_stop_inside_saves_passes():
    model, x, y = problem(8)
    free = FMN(norm="l2")(model, x, y)
    eps = float(free.minimum.median())
    quick = FMN(threat=L2(eps), stop_inside=True)(model, x, y)
    assert torch.equal(quick.success, free.minimum <= eps)
    assert quick.cost.backwards < free.cost.backwards


def test_no_gradient_leaves_the_input_alone():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([1 + 0 * x.sum(1), 0 * x.sum(1)], 1)

    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    for norm in NORMS:
        found = FMN(norm=norm, steps=5)(wrap(Flat()), x, torch.zeros(3, dtype=torch.long))
        assert not found.success.any() and torch.equal(found.adversarial, x) and torch.equal(found.last, x)


def test_the_norm_is_that_of_the_threat():
    model, x, y = problem(1)
    with pytest.raises(UsageError, match="another norm"):
        FMN(norm="l2", threat=Linf(0.1))(model, x, y)
