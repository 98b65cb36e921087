"""PGD and FGSM against slow versions written from the papers, closed forms, and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.pgd import PGD
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.registry import Registry
from robustkit.core.threat import L1, L2, Linf

THREATS = [Linf(0.1), L2(0.25), L1(0.6)]


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, 12, generator=g, dtype=torch.double))
        self.b = nn.Parameter(scale * torch.randn(4, 20, generator=g, dtype=torch.double))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a.T) @ self.b.T


def problem(n: int = 8):
    x = torch.rand(n, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    model = wrap(Net())
    return model, x, model(x).argmax(1)


def exact_projection(point: np.ndarray, x: np.ndarray, threat) -> np.ndarray:
    """The nearest point of ball and box by a general solver (l2, l1) or the closed form (linf)."""
    if threat.norm == "linf":
        return np.clip(np.clip(point, x - threat.eps, x + threat.eps), 0, 1)
    if threat.norm == "l2":  # the published step: onto the ball, then onto the box
        d = point - x
        return np.clip(x + d * min(1, threat.eps / max(np.linalg.norm(d), 1e-300)), 0, 1)
    boxed = np.clip(point, 0, 1)
    if np.abs(boxed - x).sum() <= threat.eps:
        return boxed
    low, high = 0.0, np.abs(point - x).max()
    for _ in range(200):  # bisection on the dual, one sample at a time
        lam = (low + high) / 2
        d = np.sign(point - x) * np.maximum(np.abs(point - x) - lam, 0)
        inside = np.abs(np.clip(x + d, 0, 1) - x).sum() <= threat.eps
        low, high = (low, lam) if inside else (lam, high)
    return np.clip(x + np.sign(point - x) * np.maximum(np.abs(point - x) - high, 0), 0, 1)


def steepest(g: np.ndarray, adv: np.ndarray, size: float, norm: str) -> np.ndarray:
    if norm == "linf":
        return size * np.sign(g)
    if norm == "l2":
        return size * g / np.linalg.norm(g)
    step, left = np.zeros_like(g), size
    for i in sorted(range(len(g)), key=lambda i: -abs(g[i])):
        move = min(left, 1 - adv[i] if g[i] > 0 else adv[i])
        step[i], left = np.sign(g[i]) * move, left - move
    return step


def slow_pgd(model, x, y, threat, steps, size):
    """One sample, one step at a time, straight from the paper; the first adversarial iterate, else None."""
    adv = x.numpy().copy()
    for _ in range(steps + 1):
        point = torch.tensor(adv)[None].requires_grad_()
        logits = model.module(point)
        if int(logits.argmax()) != int(y):
            return adv
        g = torch.autograd.grad(F.cross_entropy(logits, y[None]), point)[0][0].numpy()
        adv = exact_projection(adv + steepest(g, adv, size, threat.norm), x.numpy(), threat)
    return None


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_equals_the_paper_step_by_step(threat):
    model, x, y = problem()
    size = threat.eps / 4
    found = PGD(threat=threat, steps=7, step_size=size, random_start=False)(model, x, y)
    assert found.success.any() and not found.success.all()
    for i in range(len(x)):
        slow = slow_pgd(model, x[i], y[i], threat, 7, size)
        assert bool(found.success[i]) is (slow is not None)
        if slow is not None:
            np.testing.assert_allclose(found.adversarial[i].numpy(), slow, atol=1e-6)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_one_long_step_is_fgsm(threat):
    model, x, y = problem()
    one = PGD(threat=threat, steps=1, step_size=threat.eps, random_start=False)(model, x, y)
    other = FGSM(threat=threat)(model, x, y)
    assert torch.equal(one.adversarial, other.adversarial)
    assert torch.equal(one.success, other.success) and one.success.any()


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_a_step_maximises_the_linearised_loss(threat):
    """Against a general solver: no point of the threat set has a larger inner product with the gradient."""
    g = torch.Generator().manual_seed(5)
    x, grad = torch.rand(3, 6, generator=g, dtype=torch.double), torch.randn(3, 6, generator=g, dtype=torch.double)
    from robustkit.core.types import Bounds

    step = threat.step(x, x, grad, threat.eps, Bounds(-9, 9) if threat.norm == "l2" else Bounds())
    for i in range(3):
        best = best_linear(grad[i].numpy(), x[i].numpy(), threat)
        assert float(grad[i] @ (step[i] - x[i])) == pytest.approx(best, rel=1e-4)


def best_linear(g: np.ndarray, x: np.ndarray, threat) -> float:
    from scipy.optimize import linprog

    if threat.norm == "l2":
        ball = {"type": "ineq", "fun": lambda d: threat.eps**2 - d @ d}
        return -minimize(lambda d: -g @ d, 0.01 * g, constraints=[ball]).fun
    if threat.norm == "linf":
        bounds = [(max(-threat.eps, -v), min(threat.eps, 1 - v)) for v in x]
        return -linprog(-g, bounds=bounds).fun
    parts = np.concatenate([-g, g])  # d = p - q, p and q >= 0, sum <= eps
    bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
    return -linprog(parts, A_ub=np.ones((1, 2 * len(g))), b_ub=[threat.eps], bounds=bounds).fun


def test_cost_is_exact():
    model, x, y = problem()
    weak = Linf(1e-4)
    found = PGD(threat=weak, steps=9, restarts=3)(model, x, y)
    assert not found.success.any()
    assert found.forwards.tolist() == [3 * (9 + 1)] * 8 and found.backwards.tolist() == [3 * 9] * 8
    found = FGSM(threat=weak)(model, x, y)
    assert (found.cost.forwards, found.cost.backwards) == (2 * 8, 8)


def test_broken_samples_leave_the_computation():
    model, x, y = problem()
    found = PGD(threat=Linf(0.6), steps=100, step_size=0.3)(model, x, y)
    assert found.success.all()
    assert found.cost.backwards < 8 * 10
    assert (found.forwards == found.backwards + 1).all()


def test_more_restarts_and_steps_never_break_fewer():
    model, x, y = problem()
    base = PGD(threat=Linf(0.06), steps=5)(model, x, y).success
    assert (base <= PGD(threat=Linf(0.06), steps=5, restarts=4)(model, x, y).success).all()


def test_start_is_used_and_projected():
    model, x, y = problem()
    strong = PGD(threat=Linf(0.3))(model, x, y)
    assert strong.success.all()
    again = PGD(threat=Linf(0.3), steps=1, step_size=1e-9)(model, x, y, start=strong.adversarial)
    assert again.success.all() and (again.first_success_step == 0).all()
    far = PGD(threat=Linf(0.01), steps=1)(model, x, y, start=strong.adversarial)
    assert (far.distance <= 0.01 + 1e-12).all()


def test_random_starts_fill_the_ball_uniformly():
    """Share of the starts within half the radius: the volume's, not the radius's."""
    from robustkit.core.keyed import Draws
    from robustkit.core.types import Bounds

    n, d = 4000, 3
    x = torch.zeros(n, d, dtype=torch.double)
    for threat in (Linf(1.0), L2(1.0), L1(1.0)):
        start = threat.start(x, Bounds(-9, 9), Draws(0, torch.arange(n), "test"))
        inside = (threat.distance(start, x) <= 0.5).double().mean()
        assert abs(float(inside) - 0.5**d) < 4 * (0.125 * 0.875 / n) ** 0.5
        assert start.mean(0).abs().max() < 0.06


@pytest.mark.parametrize(("loss", "classes"), [("ce", 4), ("margin", 4), ("dlr", 4), ("dlr", 3), ("dlr", 2)])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_loss_and_few_classes(loss, classes, targeted):
    net = Net()
    net.b = nn.Parameter(net.b.detach()[:classes])
    model, x = wrap(net), problem()[1]
    y = model(x).argmax(1)
    target = (y + 1) % classes if targeted else None
    found = PGD(threat=Linf(0.5), loss=loss)(model, x, y, target=target)
    assert found.success.float().mean() >= 0.6


def test_saturated_logits_stop_cross_entropy_but_not_the_margin():
    model = wrap(Net(scale=1e4))
    x = problem()[1]
    y = model(x).argmax(1)
    assert (
        PGD(threat=Linf(0.3), loss="margin")(model, x, y).success.sum()
        > PGD(threat=Linf(0.3), random_start=False)(model, x, y).success.sum()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"step_size": 0},
        {"step_size": "x"},
        {"loss": "mse"},
        {"restarts": -1},
        {"stepz": 3},
        {"random_start": "maybe"},
    ],
)
def test_bad_options_are_named(options):
    from robustkit.core.attack import ATTACKS

    with pytest.raises(UsageError, match=next(iter(options))):
        ATTACKS.get("pgd").build(options)


def test_a_name_is_bound_once_and_found_by_its_neighbours():
    registry = Registry("robustkit.attacks")
    assert {"fgsm", "pgd"} <= set(registry.names())
    registry.register("mine", paper="https://example.org")(type("Mine", (), {}))
    with pytest.raises(ValueError, match="may not rebind"):
        registry.register("mine", paper="https://example.org")(type("Other", (), {}))
    with pytest.raises(UsageError, match="Did you mean pgd"):
        registry.get("pgdd")
