"""APGD against a slow version written from the papers, one sample at a time, and what must hold besides."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustkit.attacks.apgd import APGD
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.objective import dlr, margin
from robustkit.core.threat import L1, L2, Linf
from robustkit.kernels.l1 import project_l1_box

SHAPE = (2, 5, 5)
EPS = {"linf": 0.02, "l2": 0.1, "l1": 0.5}
THREATS = {"linf": Linf, "l2": L2, "l1": L1}


def net(classes: int = 5, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    body = nn.Sequential(nn.Flatten(), nn.Linear(50, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    with torch.no_grad():
        for p in body.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
        body[-1].weight.mul_(scale)
    return body


def batch(n: int, classes: int = 5):
    model = wrap(net(classes))
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with model.frozen():
        y = model(x).argmax(1)
    return model, x, y


def sure(n: int):
    """The samples of many whose margin is largest: they stand at small radii, so that runs go to the end."""
    model, x, y = batch(500)
    with model.frozen():
        best = margin(model(x), y).argsort()[:n]
    return model, x[best], y[best]


# -- the slow version --------------------------------------------------------------------------------------------------


def project(point, x, eps, norm):
    if norm == "linf":
        return (x + (point - x).clamp(-eps, eps)).clamp(0, 1)
    if norm == "l2":
        delta = point - x
        return (x + delta * min(1.0, eps / float(delta.norm()))).clamp(0, 1) if float(delta.norm()) > 0 else point
    return project_l1_box(point[None], x[None], eps, 0.0, 1.0)[0]


def slow(loss, x, start, eps, norm, steps, rho=0.75):
    """Algorithm 1 for one sample; ``loss`` returns a value and a gradient. The last point, and every loss seen."""
    point, previous = start.clone(), start.clone()
    value, grad = loss(point)
    losses, best, best_grad, best_loss = [value], point, grad, value
    eta, interval, since, halved, checked = 2 * eps, max(int(0.22 * steps), 1), 0, True, value
    for k in range(steps):
        direction = grad.sign() if norm == "linf" else grad / grad.norm()
        z = project(point + eta * direction, x, eps, norm)
        new = z if k == 0 else project(point + 0.75 * (z - point) + 0.25 * (point - previous), x, eps, norm)
        previous, point = point, new
        if k == steps - 1:
            break
        value, grad = loss(point)
        losses.append(value)
        if value > best_loss:
            best, best_grad, best_loss = point, grad, value
        since += 1
        if since == interval:
            rises = sum(losses[-i] > losses[-i - 1] for i in range(1, interval + 1))
            reduce = rises <= rho * interval or (not halved and checked >= best_loss)
            if reduce:
                eta, point, grad = eta / 2, best, best_grad
            halved, checked, since = reduce, best_loss, 0
            interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return point, losses


def slow_l1(loss, x, start, eps, steps, begun):
    """The l1 variant for one sample: sparse steps whose number of coordinates follows the best point. Best and last."""
    d = x.numel()
    point, value_grad = start.clone(), loss(start)
    grad, best, best_grad, best_loss = value_grad[1], start, value_grad[1], value_grad[0]
    spread = float((start != x).sum()) if begun else float(d)
    share = spread / d / 1.5 if begun else 0.2
    eta, interval, since = eps, max(int(0.04 * steps), 1), 0
    for k in range(steps):
        count = min(max(d - math.floor((1 - share) * d), 1), d)
        least = grad.abs().flatten().sort(descending=True).values[count - 1]
        chosen = grad.sign() * (grad.abs() >= least)
        point = project(point + eta * chosen / chosen.abs().sum(), x, eps, "l1")
        if k == steps - 1:
            break
        value, grad = loss(point)
        if value > best_loss:
            best, best_grad, best_loss = point, grad, value
        since += 1
        if since == interval:
            now, since = float((best != x).sum()), 0
            sparser = now / spread < 0.95
            eta = eps if sparser else min(max(eta / 1.5, eps / 10), eps)
            share, spread = now / d / 1.5, now
            if sparser:
                point, grad = best, best_grad
    return best, point


def loss_of(model, y, kind="ce", target=None):
    def call(point):
        leaf = point[None].clone().requires_grad_()
        logits = model.module(leaf)
        if kind == "ce":
            value = F.cross_entropy(logits, y[None])
        else:
            z, order = logits[0], logits[0].sort(descending=True).values
            if target is None:
                other = torch.cat([z[:y], z[y + 1 :]]).max()
                value = -(z[y] - other) / (order[0] - order[2] + 1e-12)
            else:
                value = -(z[y] - z[target]) / (order[0] - (order[2] + order[3]) / 2 + 1e-12)
        (grad,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), grad[0]

    return call


# -- held against it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 7, 40, 100])
def test_ends_where_the_slow_version_ends(norm, kind, steps):
    model, x, y = sure(4)
    threat = THREATS[norm](EPS[norm])
    start = threat.project(x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), x, model.bounds)
    found = APGD(threat=threat, steps=steps, loss=kind)(model, x, y, start=start)
    assert not found.success.any()  # so that all four run to the end
    for i in range(4):
        point, losses = slow(loss_of(model, y[i], kind), x[i], start[i], EPS[norm], norm, steps)
        torch.testing.assert_close(found.last[i], point, atol=1e-9, rtol=0)
        final = loss_of(model, y[i], kind)(point)[0]
        assert math.isclose(float(found.loss[i]), max(*losses, final), rel_tol=1e-9)


@pytest.mark.parametrize("steps", [1, 30, 100])
def test_l1_without_larger_balls_ends_where_the_slow_version_ends(steps):
    model, x, y = sure(4)
    threat = L1(EPS["l1"])
    found = APGD(threat=threat, steps=steps, large_eps=False)(model, x, y, start=x)
    for i in range(4):
        _, point = slow_l1(loss_of(model, y[i]), x[i], x[i], EPS["l1"], steps, begun=False)
        torch.testing.assert_close(found.last[i], point, atol=1e-8, rtol=0)


def test_l1_with_larger_balls_ends_where_the_slow_version_ends():
    model, x, y = sure(4)
    found = APGD(threat=L1(EPS["l1"]), steps=50)(model, x, y, start=x + 0.01)
    for i in range(4):
        loss, point = loss_of(model, y[i]), x[i] + 0.01
        point = project(point, x[i], EPS["l1"], "l1")
        for factor, steps in ((3, 15), (2, 15), (1, 20)):
            start = project(point, x[i], factor * EPS["l1"], "l1")
            point, last = slow_l1(loss, x[i], start, factor * EPS["l1"], steps, begun=True)
        torch.testing.assert_close(found.last[i], last, atol=1e-8, rtol=0)


def test_l1_larger_balls_never_count_as_success():
    model, x, y = batch(6)
    found = APGD(threat=L1(1e-6), steps=20)(model, x, y)
    assert not found.success.any() and not found.silent.any()


def test_steered_runs_use_the_targeted_dlr_and_count_any_mistake():
    model, x, y = sure(4)
    start = (x + 0.01).clamp(0, 1)
    found = APGD(threat=Linf(EPS["linf"]), steps=20, loss="dlr", targets=1)(model, x, y, start=start)
    with model.frozen():
        second = model(x).topk(2, dim=1).indices[:, 1]
    for i in range(4):
        point, _ = slow(loss_of(model, y[i], "dlr", int(second[i])), x[i], start[i], EPS["linf"], "linf", 20)
        torch.testing.assert_close(found.last[i], point, atol=1e-9, rtol=0)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
@pytest.mark.parametrize("targets", [0, 9])
def test_few_classes_work_and_every_other_class_is_a_target(classes, loss, targets):
    model, x, y = batch(5, classes)
    attack = APGD(threat=Linf(1e-4), steps=5, loss=loss, targets=targets)
    found = attack(model, x, y)
    assert torch.isfinite(found.loss).all()
    runs = min(targets, classes - 1) or 1
    assert (found.backwards == 5 * runs).all()
    assert (found.forwards == 6 * runs + (targets > 0)).all()
    assert APGD(threat=Linf(0.8), steps=20, loss=loss, targets=targets)(model, x, y).success.all()


def test_targeted_mode_reaches_the_target_and_nothing_else_counts():
    model, x, y = batch(6)
    target = (y + 1) % 5
    for loss in ("ce", "dlr", "margin"):
        found = APGD(threat=Linf(0.6), loss=loss, targets=3)(model, x, y, target=target)
        with model.frozen():
            assert torch.equal(model(found.adversarial).argmax(1) == target, found.success)
        assert found.success.all()
        assert (found.forwards <= 102).all()  # one run: there is nothing to rank


def test_broken_samples_leave_inside_the_run():
    """attacks.md 5: where nearly all break at the first step, the price is a few passes, not a hundred."""
    model, x, y = batch(64)
    found = APGD(threat=Linf(0.9))(model, x, y)
    assert found.success.float().mean() > 0.9
    assert found.forwards.double().mean() <= 5 and found.backwards.double().mean() <= 3


def test_later_restarts_only_see_what_stands():
    model, x, y = batch(16)
    one = APGD(threat=Linf(0.05), steps=10)(model, x, y)
    three = APGD(threat=Linf(0.05), steps=10, restarts=3)(model, x, y)
    assert (one.success & ~three.success).sum() == 0
    assert torch.equal(three.forwards[one.success], one.forwards[one.success])


def test_known_ranking_saves_the_forward():
    model, x, y = batch(4)
    with model.frozen():
        ranking = model(x).argsort(1, descending=True)
    attack = APGD(threat=Linf(1e-4), steps=3, loss="dlr", targets=2)
    asked, known = attack(model, x, y), attack(model, x, y, ranking=ranking[:, :4])
    assert torch.equal(asked.last, known.last)
    assert torch.equal(asked.forwards - 1, known.forwards)


@pytest.mark.parametrize("ranking", [torch.zeros(2, 4).long(), torch.zeros(4, 4), torch.zeros(4).long()])
def test_rankings_that_do_not_fit_are_one_clear_message(ranking):
    model, x, y = batch(4)
    with pytest.raises(UsageError, match="likeliest first"):
        APGD(threat=Linf(0.1), targets=2)(model, x, y, ranking=ranking)


def test_dlr_of_few_classes_is_blind_to_shift_and_scale():
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    y = torch.tensor([0, 1])
    torch.testing.assert_close(dlr(logits, y), dlr(7 * logits + 3, y))


def test_zero_gradients_leave_the_point_where_it_is():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 0], 1)

    x = torch.full((2, 3), 0.5)
    for norm, threat in THREATS.items():
        found = APGD(threat=threat(0.1), steps=5, random_start=False)(wrap(Flat()), x, torch.zeros(2, dtype=torch.long))
        assert torch.equal(found.last, x), norm
