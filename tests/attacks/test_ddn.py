"""DDN against a slow version written from the paper and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustkit.attacks.ddn import DDN
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L2, Linf
from robustkit.testing import Bowl, HalfSpace


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


def slow_ddn(model, x, y, *, target=None, steps, low=0.0, high=1.0, levels=None, init=None, gamma=0.05):
    """One sample, one step at a time; the smallest distance seen."""
    x0, best, radius = x.numpy(), np.inf, init or high - low
    d, most = np.zeros_like(x0), np.linalg.norm(np.maximum(x0 - low, high - x0))
    for k in range(steps + 1):
        point = torch.tensor(x0 + d)[None].requires_grad_()
        logits = model.module(point)
        loss = F.cross_entropy(logits, torch.tensor([y if target is None else target]))
        g = torch.autograd.grad(loss if target is None else -loss, point)[0][0].numpy()
        said = int(logits.argmax())
        if said != y if target is None else said == target:
            best, radius = min(best, np.linalg.norm(d)), radius * (1 - gamma)
        else:
            radius = radius * (1 + gamma)
        radius = min(radius, most)
        alpha = (high - low) * (0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2)
        d = d + alpha * g / np.linalg.norm(g)
        adv = np.clip(x0 + radius * d / np.linalg.norm(d), low, high)
        if levels:
            adv = low + np.round((adv - low) * (levels - 1) / (high - low)) * (high - low) / (levels - 1)
        d = adv - x0
    return best


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("options", [{}, {"low": -1.0}, {"levels": 32}, {"init_norm": 0.2, "gamma": 0.02}])
def test_equals_the_paper_step_by_step(options, targeted):
    low = options.get("low", 0.0)
    model, x, y = problem(low=low)
    target = (y + 1) % 4 if targeted else None
    own = {key: value for key, value in options.items() if key != "low"}
    found = DDN(steps=30, **own)(model, x, y, target=target)
    assert found.success.any()
    own["init"] = own.pop("init_norm", None)
    for i in range(len(x)):
        goal = None if target is None else int(target[i])
        slow = slow_ddn(model, x[i], int(y[i]), target=goal, steps=30, low=low, **own)
        assert float(found.minimum[i]) == pytest.approx(slow, abs=1e-6)


def test_distance_of_a_half_space_and_of_a_bowl():
    """The distance moves in steps of gamma: with a small one it is met to 1e-3."""
    net = HalfSpace((1, 6, 6), seed=2).double()
    x = 0.5 + 0.02 * torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    exact = net.distance(x, "l2")
    found = DDN(steps=900, gamma=0.005, init_norm=0.05)(model, x, y)
    torch.testing.assert_close(found.minimum, exact, atol=1e-3, rtol=0)
    coarse = DDN(init_norm=0.1)(model, x, y)
    assert ((coarse.minimum >= exact * (1 - 1e-9)) & (coarse.minimum <= exact * 1.06)).all()
    bowl = wrap(Bowl(0.3).double())
    around = ((x - 0.5).flatten(1).norm(dim=1) - bowl.net.radius.item()).abs()
    found = DDN()(bowl, x, bowl(x).argmax(1))
    torch.testing.assert_close(found.minimum, around, atol=1e-3, rtol=0.06)


def test_levels_survive_storage_in_8_bits():
    model, x, y = problem(8)
    x = (x * 255).round() / 255
    found = DDN(levels=256)(model, x, y)
    assert found.success.any()
    stored = (found.adversarial * 255).round().to(torch.uint8)
    torch.testing.assert_close(stored.double() / 255, found.adversarial, atol=1e-12, rtol=0)
    assert torch.equal(model(stored.double() / 255).argmax(1) != y, found.success)


def test_a_sample_ends_the_same_alone_and_in_a_batch():
    model, x, y = problem(8)
    whole = DDN(steps=40)(model, x, y)
    for i in range(len(x)):
        alone = DDN(steps=40)(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(whole.adversarial[i], alone.adversarial[0], atol=1e-9, rtol=0)


def test_cost_is_exact_and_stopping_inside_saves():
    model, x, y = problem(8)
    found = DDN(steps=17)(model, x, y)
    assert found.backwards.tolist() == [17] * len(x)
    assert torch.equal(found.forwards, 17 + 1 + found.success.long())
    free = DDN()(model, x, y)
    eps = float(free.minimum.median())
    quick = DDN(threat=L2(eps), stop_inside=True)(model, x, y)
    assert torch.equal(quick.success, free.minimum <= eps)
    assert quick.cost.backwards < free.cost.backwards


def test_failure_returns_the_clean_input_and_pixels_at_the_bounds_move():
    model, x, y = problem()
    lost = DDN(steps=1, init_norm=1e-6)(model, x, y)
    assert not lost.success.any() and torch.equal(lost.adversarial, x) and lost.minimum.isinf().all()
    binary = x.round()
    assert DDN()(model, binary, model(binary).argmax(1)).success.all()


def test_other_norms_are_refused():
    model, x, y = problem(1)
    with pytest.raises(UsageError, match="does not work in this norm"):
        DDN(threat=Linf(0.1))(model, x, y)
