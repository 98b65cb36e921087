"""FAB against a slow version written from the paper, closed forms, and its own cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.attacks.fab import FAB
from robustkit.attacks.linearised import Rivals, nearest_plane, plane_distance
from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L1, L2, THREATS, Linf
from robustkit.kernels.balls import norm as lp
from robustkit.kernels.hyperplane import step_to_hyperplane
from robustkit.testing import Bowl, HalfSpace

P = {"linf": np.inf, "l2": 2.0, "l1": 1.0}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": np.inf}


class Net(nn.Module):
    def __init__(self, classes: int = 4, inputs: int = 30) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, inputs, generator=g, dtype=torch.double) / 3)
        self.b = nn.Parameter(torch.randn(classes, 20, generator=g, dtype=torch.double))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a.T) @ self.b.T


def problem(n: int = 8, classes: int = 4):
    x = torch.rand(n, 30, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    model = wrap(Net(classes))
    return model, x, model(x).argmax(1)


# -- the paper, one sample and one step at a time --------------------------------------------------------------------


def slow_projection(x: np.ndarray, w: np.ndarray, b: float, norm: str) -> np.ndarray:
    """The nearest point of the hyperplane inside [0, 1], by sorting; the closest corner where there is none."""
    missing = b - w @ x
    side = np.sign(w) * np.sign(missing)
    gain, room = np.abs(w), np.where(side > 0, 1 - x, np.where(side < 0, x, 0.0))
    need = min(abs(missing), gain @ room)
    step = np.zeros_like(x)
    if norm == "l1":
        for i in np.argsort(-gain):
            step[i] = min(room[i], max(0.0, need - gain @ step) / gain[i])
        return x + side * step
    rate = np.ones_like(x) if norm == "linf" else gain
    before = 0.0
    for stop in np.sort(room / rate):
        if gain @ np.minimum(stop * rate, room) >= need:
            free = room / rate >= stop
            t = before + (need - gain @ np.minimum(before * rate, room)) / (gain * rate)[free].sum()
            return x + side * np.minimum(t * rate, room)
        before = stop
    return x + side * room


def logits_and_gaps(model, x: np.ndarray, y: int, classes: list[int]):
    point = torch.tensor(x)[None].requires_grad_()
    logits = model.module(point)[0]
    gaps = [logits[k] - logits[y] for k in classes]
    grads = [torch.autograd.grad(gap, point, retain_graph=True)[0][0].numpy() for gap in gaps]
    return logits.detach().numpy(), [gap.item() for gap in gaps], grads


def slow_fab(model, x0: np.ndarray, y: int, norm: str, steps: int, classes: list[int]):
    """Algorithm 1, with a forward a step: a step goes either to the boundary or back; the last and the best point."""
    p, x, best, nearest, pulled = P[norm], x0.copy(), x0, np.inf, False

    def judge(logits):
        return logits.argmax() != y, np.linalg.norm(x - x0, ord=p)

    for _ in range(steps):
        logits, gaps, grads = logits_and_gaps(model, x, y, classes)
        adversarial, distance = judge(logits)
        if adversarial and distance < nearest:
            best, nearest = x.copy(), distance
        if adversarial and not pulled:
            x, pulled = 0.1 * x0 + 0.9 * x, True
            continue
        pulled = False
        s = int(np.argmin([abs(f) / np.linalg.norm(w, ord=DUAL[norm]) for f, w in zip(gaps, grads, strict=True)]))
        w, b = grads[s], grads[s] @ x - gaps[s]
        own, clean = slow_projection(x, w, b, norm) - x, slow_projection(x0, w, b, norm) - x0
        length, other = np.linalg.norm(own, ord=p), np.linalg.norm(clean, ord=p)
        alpha = min(length / (length + other), 0.1)
        x = np.clip((1 - alpha) * (x + 1.05 * own) + alpha * (x0 + 1.05 * clean), 0, 1)
    adversarial, distance = judge(model.module(torch.tensor(x)[None])[0].detach().numpy())
    return x, (x if adversarial and distance < nearest else best)


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_equals_the_paper_step_by_step(norm, steps):
    model, x, y = problem()
    found = FAB(norm=norm, steps=steps, final=0)(model, x, y)
    for i in range(len(x)):
        others = [k for k in range(4) if k != int(y[i])]
        last, best = slow_fab(model, x[i].numpy(), int(y[i]), norm, steps, others)
        np.testing.assert_allclose(found.last[i].numpy(), last, atol=1e-6)
        np.testing.assert_allclose(found.adversarial[i].numpy(), best, atol=1e-6)
    assert steps == 1 or found.success.any()


@pytest.mark.parametrize("norm", P)
def test_towards_a_class_equals_the_paper_with_that_class_alone(norm):
    model, x, y = problem()
    found = FAB(norm=norm, steps=12, targets=2, final=0)(model, x, y)
    ranked = model(x).argsort(1, descending=True)
    for i in range(len(x)):
        runs = [slow_fab(model, x[i].numpy(), int(y[i]), norm, 12, [int(ranked[i, r])]) for r in (1, 2)]
        np.testing.assert_allclose(found.last[i].numpy(), runs[1][0], atol=1e-6)
        clean = x[i].numpy()
        best = min(np.linalg.norm(b - clean, ord=P[norm]) or np.inf for _, b in runs)
        assert float(found.minimum[i]) == pytest.approx(best, abs=1e-6)


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("options", [{}, {"targets": 9}, {"steps": 20}, {"restarts": 3, "steps": 20}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distance_to_a_half_space(norm, options, dtype):
    net = HalfSpace((2, 6, 6), seed=2).to(dtype)
    x = 0.5 + 0.3 * torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(4)).to(dtype)
    model = wrap(net, bounds=(-50.0, 50.0))
    with model.frozen():
        y = model(x).argmax(1)
    found = FAB(norm=norm, **options)(model, x, y)
    torch.testing.assert_close(found.minimum, net.distance(x, norm), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", P)
def test_the_distance_to_a_half_space_where_the_bounds_are_in_the_way(norm):
    net = HalfSpace((40,), seed=2).double()
    x = torch.rand(8, 40, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    x = torch.where(x < 0.7, x.round(), x)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    weight = net.weight.detach().expand(8, -1)
    step = step_to_hyperplane(x, weight, -((x - 0.5) * weight).sum(1), 0.0, 1.0, norm)
    exact = lp(step, P[norm])
    assert (exact > net.distance(x, norm) * 1.02).any()
    found = FAB(norm=norm)(model, x, y)
    assert (found.minimum >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(found.minimum, exact, rtol=2e-3, atol=0)


def test_the_distance_to_a_bowl():
    net = Bowl(0.7)
    x = 0.4 + 0.2 * torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    found = FAB(norm="l2")(model := wrap(net), x, model(x).argmax(1))
    torch.testing.assert_close(found.minimum, 0.7 - (x - 0.5).norm(dim=1), rtol=5e-3, atol=0)


def test_the_last_search_only_helps():
    model, x, y = problem()
    for norm in P:
        without, done = (FAB(norm=norm, steps=30, final=final)(model, x, y) for final in (0, 4))
        assert (done.minimum <= without.minimum).all()
        assert (done.minimum < 0.9999 * without.minimum).any()
        assert torch.equal(done.backwards, without.backwards)


# -- cost ------------------------------------------------------------------------------------------------------------


class Wall(nn.Module):
    """Four classes that differ, but never enough."""

    def forward(self, x):
        z = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([5 + z, z * 2, 1 - z, z * 3], 1)


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        ({"steps": 30}, 31 + 4, 30 * 3),
        ({"steps": 30, "final": 0}, 31, 30 * 3),
        ({"steps": 30, "targets": 1, "stop_inside": True}, 1 + 31, 30),
        ({"steps": 100, "targets": 9, "stop_inside": True}, 1 + 3 * 101, 3 * 100),
        ({"steps": 10, "targets": 2, "restarts": 3}, 1 + 6 * 11 + 4, 6 * 10),
    ],
)
def test_cost_of_a_robust_sample(options, forwards, backwards):
    model, x = wrap(Wall()), torch.rand(5, 6)
    found = FAB(threat=Linf(0.1), **options)(model, x, torch.zeros(5, dtype=torch.long))
    assert not found.success.any()
    assert found.forwards.tolist() == [forwards] * 5 and found.backwards.tolist() == [backwards] * 5


def test_cost_of_autoattacks_setting_with_ten_classes():
    """Nine targets, a hundred steps: the lower bound is a forward and a backward a step."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 10))
    net[1].bias.data[0] = 100
    x, y = torch.rand(3, 6), torch.zeros(3, dtype=torch.long)
    model = wrap(net)
    ranking = model(x).argsort(1, descending=True)
    found = FAB(threat=Linf(0.1), targets=9, stop_inside=True)(model, x, y, ranking=ranking)
    assert found.forwards.tolist() == [9 * 100 + 9] * 3  # and the last iterate of each run
    assert found.backwards.tolist() == [9 * 100] * 3


def test_with_stop_inside_samples_leave_and_without_they_stay():
    model, x, y = problem(12)
    eps = float(FAB(norm="l2", steps=20)(model, x, y).minimum.median()) * 1.02
    full, quick = (FAB(threat=L2(eps), steps=20, stop_inside=stop)(model, x, y) for stop in (False, True))
    assert full.forwards.tolist() == [20 + 1 + 4 + 1] * 12  # and one that confirms the answer
    assert quick.cost.backwards < 0.75 * full.cost.backwards
    assert torch.equal(quick.success, full.success) and quick.success.any() and not quick.success.all()


# -- what it promises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", P)
def test_beyond_the_radius_is_no_success_but_the_distance_is_known(norm):
    model, x, y = problem()
    free = FAB(norm=norm, steps=20)(model, x, y)
    found = FAB(threat=THREATS[norm](float(free.minimum.min()) * 0.9), steps=20)(model, x, y)
    assert not found.success.any() and torch.equal(found.adversarial, x)
    assert (found.distance == 0).all()
    torch.testing.assert_close(found.minimum, free.minimum)


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("targets", [0, 9])
def test_few_classes(norm, classes, targets):
    model, x, y = problem(classes=classes)
    assert FAB(norm=norm, steps=30, targets=targets)(model, x, y).success.all()


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("targets", [0, 9])
def test_a_target_of_the_user_is_the_only_one(norm, targets):
    model, x, y = problem()
    target = (y + 1) % 4
    found = FAB(norm=norm, steps=40, targets=targets)(model, x, y, target=target)
    assert found.success.sum() >= 7
    assert torch.equal(model(found.adversarial).argmax(1) == target, found.success)
    assert (found.backwards == 40).all()
    assert (found.minimum >= FAB(norm=norm, steps=40)(model, x, y).minimum * 0.999).all()


def test_more_runs_find_no_farther_points():
    model, x, y = problem(20)
    again = FAB(norm="l2", steps=5, restarts=4)(model, x, y)
    once = FAB(norm="l2", steps=5)(model, x, y)
    assert (again.minimum <= once.minimum).all() and (again.minimum < once.minimum).any()
    one = FAB(norm="l2", steps=20, targets=1)(model, x, y)
    nine = FAB(norm="l2", steps=20, targets=9)(model, x, y)
    assert (nine.minimum <= one.minimum * (1 + 1e-9)).all() and (nine.minimum < one.minimum * 0.99).any()


@pytest.mark.parametrize("norm", P)
def test_restarts_are_keyed_by_sample(norm):
    model, x, y = problem()
    ids = torch.tensor([5, 3, 8, 1, 9, 2, 7, 4])
    attack = FAB(norm=norm, steps=10, restarts=3, targets=2)
    whole = attack(model, x, y, ids=ids, seed=3)
    alone = [attack(model, x[i : i + 1], y[i : i + 1], ids=ids[i : i + 1], seed=3) for i in range(8)]
    for field in ("adversarial", "last"):
        one = torch.cat([getattr(r, field) for r in alone])
        torch.testing.assert_close(getattr(whole, field), one, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", P)
def test_random_starts_lie_at_half_the_distance_or_half_of_eps(norm, monkeypatch):
    model, x, y = problem()
    seen = []
    kind, original = THREATS[norm], FAB._random_start

    def watched(self, search, restart, rank):
        start = original(self, search, restart, rank)
        seen.append((kind(0.0).distance(start, search.x), search.kept[1]))
        return start

    monkeypatch.setattr(FAB, "_random_start", watched)
    FAB(norm=norm, steps=20, restarts=2)(model, x, y)
    assert (seen[0][1] < np.inf).all()
    assert (seen[0][0] <= seen[0][1] / 2 * (1 + 1e-9)).all() and (seen[0][0] > seen[0][1] / 4).any()
    seen.clear()
    FAB(threat=kind(1e-3), steps=20, restarts=2)(model, x, y)
    assert (seen[0][0] <= 0.5e-3 * (1 + 1e-9)).all() and (seen[0][0] > 0.25e-3).all()


def test_a_start_is_used():
    model, x, y = problem()
    strong = FAB(norm="linf", steps=20)(model, x, y)
    again = FAB(norm="linf", steps=1, final=0)(model, x, y, start=strong.adversarial)
    torch.testing.assert_close(again.minimum, strong.minimum)


@pytest.mark.parametrize("norm", P)
def test_rows_without_a_gradient_stay(norm):
    class Flat(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            live = (z[:, :1] > 0.5).to(z)  # half of the samples have a gradient
            return torch.cat([live * (z.mean(1, keepdim=True) - 0.6) + 1 - live, 0 * z[:, :2]], 1)

    x = torch.rand(10, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.6
    x[::2, 0] = 0.1
    model = wrap(Flat())
    y = torch.zeros(10, dtype=torch.long)
    found = FAB(norm=norm, steps=10)(model, x, y)
    assert found.last.isfinite().all()
    assert torch.equal(found.last[::2], x[::2]) and found.success[1::2].all()


def test_gradients_of_any_size():
    model, x, y = problem()
    tiny = wrap(lambda z: 1e-25 * model.module(z.double()).float())
    big = wrap(lambda z: model.module(z.double()).float())
    for norm in P:
        one, two = (FAB(norm=norm, steps=10)(m, x.float(), y) for m in (tiny, big))
        torch.testing.assert_close(one.minimum, two.minimum, rtol=1e-2, atol=0)


def test_the_nearest_plane():
    values = torch.tensor([[1.0, -2.0, 0.1], [5.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    grads = torch.tensor(
        [
            [[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]],
            [[1.0, 1.0], [1.0, 1.0], [0.5, 0.1]],
            [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        ]
    )
    value, grad = nearest_plane(values, grads, "l2")
    assert value[:2].tolist() == [-2, 1] and grad[:2].tolist() == [[3, 4], [1, 1]]
    assert (grad[2] == 0).all()
    torch.testing.assert_close(plane_distance(values, grads, "linf")[0], torch.tensor([1.0, 2 / 7, np.inf]))
    torch.testing.assert_close(plane_distance(values, grads, "l1")[0], torch.tensor([1.0, 0.5, np.inf]))
    torch.testing.assert_close(plane_distance(values * 1e-30, grads * 1e-30, "l2"), plane_distance(values, grads, "l2"))


def test_the_rivals_of_a_label():
    logits = torch.tensor([[1.0, 5.0, 2.0], [7.0, 8.0, 9.0]])
    rivals = Rivals(torch.tensor([1, 0]), 2)
    assert rivals(logits).tolist() == [[-3, -4], [2, 1]]
    assert rivals.take(torch.tensor([1]))(logits[1:]).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"restarts": 0},
        {"targets": -1},
        {"alpha_max": 2},
        {"eta": 0.5},
        {"beta": 1},
        {"norm": "l0"},
        {"final": -1},
        {"stepz": 3},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        ATTACKS.get("fab").build(options)


def test_tasks_without_class_logits_are_refused():
    model = wrap(nn.Conv2d(3, 4, 1), task="segmentation")
    with pytest.raises(UsageError, match="not made for this task"):
        FAB(threat=L1(1.0))(model, torch.rand(2, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.long))
