"""DeepFool against a slow version written from the paper, closed forms, and its own cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.attacks.deepfool import DeepFool
from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L1, L2, THREATS, Linf
from robustkit.kernels.balls import norm as lp
from robustkit.kernels.hyperplane import step_to_hyperplane
from robustkit.testing import Bowl, HalfSpace

P = {"linf": np.inf, "l2": 2.0}
DUAL = {"linf": 1.0, "l2": 2.0}


class Net(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, 30, generator=g, dtype=torch.double) / 3)
        self.b = nn.Parameter(torch.randn(classes, 20, generator=g, dtype=torch.double))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a.T) @ self.b.T


def problem(n: int = 10, classes: int = 6, bounds=(0.0, 1.0)):
    x = torch.rand(n, 30, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    model = wrap(Net(classes), bounds=bounds)
    return model, x, model(x).argmax(1)


def slow_deepfool(model, x0: np.ndarray, y: int, norm: str, steps: int, candidates: int):
    """Algorithm 2 for one sample, without bounds; the last point and the steps taken."""
    total, x = np.zeros_like(x0), x0
    for step in range(steps):
        point = torch.tensor(x)[None].requires_grad_()
        logits = model.module(point)[0]
        ranked = logits.argsort(descending=True).tolist()
        if ranked[0] != y:
            return x, step
        nearest, way = np.inf, None
        for k in [k for k in ranked if k != y][: candidates - 1]:
            gap = logits[k] - logits[y]
            w = torch.autograd.grad(gap, point, retain_graph=True)[0][0].numpy()
            f = abs(gap.item())
            if f / np.linalg.norm(w, ord=DUAL[norm]) < nearest:
                nearest = f / np.linalg.norm(w, ord=DUAL[norm])
                way = f / (w @ w) * w if norm == "l2" else f / np.abs(w).sum() * np.sign(w)
        total = total + way
        x = x0 + 1.02 * total
    return x, steps


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize(("steps", "candidates"), [(1, 10), (2, 3), (50, 2), (50, 4), (50, 10)])
def test_equals_the_paper_where_no_bound_is_in_the_way(norm, steps, candidates):
    model, x, y = problem(bounds=(-50.0, 50.0))
    found = DeepFool(norm=norm, steps=steps, candidates=candidates)(model, x, y)
    for i in range(len(x)):
        slow, taken = slow_deepfool(model, x[i].numpy(), int(y[i]), norm, steps, candidates)
        if bool(found.success[i]):
            np.testing.assert_allclose(found.adversarial[i].numpy(), slow, atol=1e-9)
            assert int(found.first_success_step[i]) == taken
        else:
            np.testing.assert_allclose(found.last[i].numpy(), slow, atol=1e-6)
    assert found.success.all() or steps < 50


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distance_to_a_half_space(norm, dtype):
    net = HalfSpace((2, 6, 6), seed=2).to(dtype)
    x = 0.5 + 0.3 * torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(4)).to(dtype)
    model = wrap(net, bounds=(-50.0, 50.0))
    with model.frozen():
        y = model(x).argmax(1)
    for overshoot in (0.02, 0.001):
        found = DeepFool(norm=norm, overshoot=overshoot)(model, x, y)
        torch.testing.assert_close(found.minimum, (1 + overshoot) * net.distance(x, norm), rtol=1e-3, atol=0)
        assert found.backwards.tolist() == [2] * 6 or found.backwards.tolist() == [1] * 6


@pytest.mark.parametrize("norm", P)
def test_the_distance_to_a_half_space_where_the_bounds_are_in_the_way(norm):
    """One step inside the bounds is enough: clipping the paper's step would need many, or fail."""
    net = HalfSpace((40,), seed=2).double()
    x = torch.rand(8, 40, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    x = torch.where(x < 0.7, x.round(), x)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    weight = net.weight.detach().expand(8, -1)
    exact = lp(step_to_hyperplane(x, weight, -((x - 0.5) * weight).sum(1), 0.0, 1.0, norm), P[norm])
    assert (exact > net.distance(x, norm) * 1.02).any()
    found = DeepFool(norm=norm)(model, x, y)
    assert found.success.all() and (found.minimum >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(found.minimum, exact, rtol=0.03, atol=0)


def test_on_a_bowl_the_steps_are_those_of_newton():
    """From inside at r one step is enough and goes too far; from outside a few end within the overshoot."""
    net = Bowl(0.7).double()
    model = wrap(net, bounds=(-9.0, 9.0))
    away = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    away = away / away.norm(dim=1, keepdim=True)
    found = DeepFool(norm="l2")(model, x := 0.5 + 0.4 * away, model(x).argmax(1))
    torch.testing.assert_close(found.minimum, torch.full((6,), 1.02 * (0.49 - 0.16) / 0.8).double())
    found = DeepFool(norm="l2")(model, x := 0.5 + 1.4 * away, model(x).argmax(1))
    assert found.success.all() and (found.first_success_step > 1).all()
    assert (found.minimum >= 0.7).all() and (found.minimum <= 0.7 * 1.02).all()


class Wall(nn.Module):
    """Twelve classes that differ, but never enough."""

    def forward(self, x):
        z = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([50 + z, z * torch.arange(11).to(z)], 1)


@pytest.mark.parametrize(("candidates", "backwards"), [(10, 9), (2, 1), (12, 11), (50, 11)])
def test_cost_is_a_forward_a_step_and_a_backward_for_each_candidate(candidates, backwards):
    model, x = wrap(Wall()), torch.rand(5, 6)
    found = DeepFool(threat=L2(0.1), steps=7, candidates=candidates)(model, x, torch.zeros(5, dtype=torch.long))
    assert not found.success.any() and torch.equal(found.adversarial, x)
    assert found.forwards.tolist() == [7 + 1] * 5  # and the last point
    assert found.backwards.tolist() == [7 * backwards] * 5


def test_samples_leave_when_their_answer_changes():
    model, x, y = problem(40)
    found = DeepFool(norm="l2")(model, x, y)
    assert found.success.all()
    assert found.cost.backwards < 40 * 5 * (int(found.first_success_step.max()) + 1)
    assert (found.forwards <= 51).all() and found.forwards.min() < found.forwards.max()


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("stop_inside", [False, True])
def test_a_sample_alone_ends_where_it_ends_in_a_batch(norm, stop_inside):
    model, x, y = problem(12)
    attack = DeepFool(norm=norm, stop_inside=stop_inside)
    whole = attack(model, x, y)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]).adversarial for i in range(12)])
    torch.testing.assert_close(whole.adversarial, alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", P)
def test_beyond_the_radius_is_no_success_but_the_distance_is_known(norm):
    model, x, y = problem()
    free = DeepFool(norm=norm)(model, x, y)
    found = DeepFool(threat=THREATS[norm](float(free.minimum.min()) * 0.9))(model, x, y)
    assert not found.success.any() and torch.equal(found.adversarial, x)
    assert torch.equal(found.minimum, free.minimum)


@pytest.mark.parametrize("norm", P)
def test_targeted_goes_to_the_target_alone(norm):
    model, x, y = problem()
    target = (y + 1) % 6
    found = DeepFool(norm=norm)(model, x, y, target=target)
    assert found.success.sum() >= 8
    assert torch.equal(model(found.adversarial).argmax(1) == target, found.success)
    assert torch.equal(found.backwards, found.forwards - 1)  # one a step, and a forward that confirms the answer
    nearer = DeepFool(norm=norm)(model, x, y)
    assert (found.minimum > nearer.minimum * 1.01).any()


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(norm, classes):
    model, x, y = problem(classes=classes)
    assert DeepFool(norm=norm)(model, x, y).success.all()


def test_no_overshoot_stops_short_and_more_goes_farther():
    net = HalfSpace((20,), seed=2).double()
    model = wrap(net, bounds=(-9.0, 9.0))
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    with model.frozen():
        y = model(x).argmax(1)
    one, two = (DeepFool(norm="l2", overshoot=o)(model, x, y).minimum for o in (0.02, 0.5))
    torch.testing.assert_close(two / one, torch.full((6,), 1.5 / 1.02).double())


@pytest.mark.parametrize("norm", P)
def test_rows_without_a_gradient_stay(norm):
    class Flat(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            live = (z[:, :1] > 0.5).to(z)  # half of the samples have a gradient
            return torch.cat([live * (z.mean(1, keepdim=True) - 0.6) + 1 - live, 0 * z[:, :2]], 1)

    x = torch.rand(10, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.6
    x[::2, 0] = 0.1
    found = DeepFool(norm=norm)(wrap(Flat()), x, torch.zeros(10, dtype=torch.long))
    assert found.last.isfinite().all() and torch.equal(found.adversarial[::2], x[::2])
    assert found.success.tolist() == [False, True] * 5


@pytest.mark.parametrize("options", [{"steps": 0}, {"candidates": 1}, {"overshoot": -1}, {"norm": "l0"}, {"stepz": 3}])
def test_bad_options_are_named(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        ATTACKS.get("deepfool").build(options)


def test_l1_is_refused():
    model, x, y = problem()
    for attack in (DeepFool(norm="l1"), DeepFool(threat=L1(1.0))):
        with pytest.raises(UsageError, match="norm"):
            attack(model, x, y)
    with pytest.raises(UsageError, match="another norm"):
        DeepFool(norm="l2", threat=Linf(0.1))(model, x, y)
