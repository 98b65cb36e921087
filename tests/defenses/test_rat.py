"""RAT: its identities, where its points lie, how they are drawn, and its loss written out sample by sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from torch import nn

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.lesson import Lesson, TrainState
from robustkit.defenses.adversarial import PGDAT
from robustkit.defenses.rat import RAT, box_points, dirichlet, hull_points

THREATS = [rk.Linf(0.2), rk.L2(0.5), rk.L1(1.5)]


def model(seed=0, batch_norm=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), norm, nn.Tanh(), nn.Linear(8, 3)).double()
    return rk.wrap(net.train())


def batch(n=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 2, 2, generator=generator, dtype=torch.double)
    return x, torch.randint(0, 3, (n,), generator=generator)


def lesson_of(m, x, y, threat, seed=0, strength=1.0):
    return Lesson(m, x, y, torch.arange(len(x)), TrainState(seed=seed, strength=strength), "rat", threat)


def trained(defense, steps=3):
    """Weights and buffers after a few steps of plain gradient descent."""
    m, state = model(), TrainState(seed=4)
    for number in range(steps):
        defense.step(m, *batch(seed=number), state)
        with torch.no_grad():
            for parameter in m.net.parameters():
                parameter -= 0.5 * parameter.grad
    return m.net.state_dict()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_without_points_and_smoothing_it_is_pgd_at(threat):
    options = {"threat": threat, "steps": 3, "label_smoothing": 0.05}
    ours, theirs = trained(RAT(samples=0, smoothing=0, **options)), trained(PGDAT(**options))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@settings(max_examples=25, deadline=None)
@given(
    region=st.sampled_from(["hull", "segment", "box"]),
    threat=st.sampled_from(THREATS),
    eps=st.floats(0, 1),
    concentration=st.sampled_from([1e-6, 0.1, 1.0, 1e6]),
    origin=st.sampled_from(["clean", "start"]),
    seed=st.integers(0, 10**6),
)
def test_points_lie_in_ball_and_bounds(region, threat, eps, concentration, origin, seed):
    threat = threat.at(eps)
    x, y = batch(seed=seed)
    x = (3 * x - 1).clamp(0, 1)  # many pixels at the bounds
    defense = RAT(region=region, concentration=concentration, origin=origin, samples=2, steps=2)
    parts = defense.craft(lesson_of(model(), x, y, threat, seed))
    assert list(parts) == ["adversarial", "region_1", "region_2"]
    for z in parts.values():
        assert z.shape == x.shape and float(z.min()) >= 0 and float(z.max()) <= 1
        assert (threat.distance(z, x) <= eps + 1e-12).all()


def test_the_box_around_a_path_is_larger_than_the_ball():
    """Why points are projected: only in linf is a box around points of a ball inside it."""
    path = [torch.zeros(50, 8), 0.5 * torch.eye(8)[0].expand(50, 8), 0.5 * torch.eye(8)[1].expand(50, 8)]
    points = box_points(path, Draws(0, torch.arange(50), "test"), 4)
    assert float(points.norm(dim=-1).max()) > 0.5
    assert points.shape == (50, 4, 8) and float(points.amin()) >= 0 and float(points[..., :2].amax()) <= 0.5
    assert (points[..., 2:] == 0).all()


@pytest.mark.parametrize("region", ["hull", "segment", "box"])
def test_points_follow_from_the_path(region):
    x, y = batch()
    lesson = lesson_of(model(), x, y, rk.Linf(0.2))
    defense = RAT(region=region, steps=3, samples=2)
    path = torch.stack([x, *defense.attack(lesson)[1:]])
    points = torch.stack(list(defense.points(lesson, list(path))))
    draws = lesson.draws.child("region")
    for s in range(2):
        for n in range(len(x)):
            if region == "hull":
                w = dirichlet(draws, 2, 4, 1.0)[n, s]
                wanted = sum(w[k] * path[k, n] for k in range(4))
            elif region == "segment":
                u = draws.uniform(x.new_empty(len(x), 2))[n, s]
                wanted = x[n] + u * (path[-1, n] - x[n])
            else:
                u = draws.uniform(x.new_empty(len(x), 2, 3, 2, 2))[n, s]
                low, high = path[:, n].amin(0), path[:, n].amax(0)
                wanted = low + u * (high - low)
            torch.testing.assert_close(points[s, n], wanted, rtol=0, atol=1e-15)


def test_a_small_concentration_picks_a_point_of_the_path_and_a_large_one_the_mean():
    path = list(torch.rand(4, 200, 6, generator=torch.Generator().manual_seed(0)))
    draws = Draws(0, torch.arange(200), "test")
    picked = hull_points(path, dirichlet(draws, 3, 4, 1e-6))
    same = (picked[None] == torch.stack(path)[:, :, None]).all(-1)  # (vertex, sample, point)
    assert (same.sum(0) == 1).all()
    assert (same.sum((1, 2)) > 100).all()  # of 600: each vertex is as likely as any other
    mean = hull_points(path, dirichlet(draws, 3, 4, 1e6))
    torch.testing.assert_close(mean, torch.stack(path).mean(0)[:, None].expand_as(mean), rtol=0, atol=5e-3)


@pytest.mark.parametrize("concentration", [0.05, 0.5, 1.0, 3.0, 50.0])
def test_weights_have_the_law_of_dirichlet(concentration):
    """Each weight is Beta(a, (K - 1) a); sums of weights Beta(2a, (K - 2) a), which knows of their dependence."""
    weights = dirichlet(Draws(0, torch.arange(2000), "test"), 1, 4, concentration)[:, 0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2000, dtype=torch.double))
    for found, parts in [(weights[:, 2], 1), (weights[:, :2].sum(-1), 2)]:
        law = beta(parts * concentration, (4 - parts) * concentration)
        assert kstest(found.clamp(0, 1).numpy(), law.cdf).pvalue > 0.01


def test_points_do_not_depend_on_the_batch():
    x, y = batch()
    defense = RAT(steps=2, samples=3, threat=rk.Linf(0.2))
    m = model(batch_norm=False)
    whole = defense.craft(lesson_of(m, x, y, rk.Linf(0.2)))
    order = torch.tensor([3, 0])
    part = defense.craft(Lesson(m, x[order], y[order], order, TrainState(), "rat", rk.Linf(0.2)))
    for name, z in part.items():
        torch.testing.assert_close(z, whole[name][order], rtol=0, atol=1e-12)


def slow_smoothed(logits, label, share):
    target = torch.full_like(logits, share / len(logits))
    target[label] += 1 - share
    return -(target * logits.log_softmax(0)).sum()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_loss_and_gradients_against_single_samples(threat):
    """The whole step without batch normalisation, point by point."""
    (x, y), m = batch(), model(batch_norm=False)
    defense = RAT(threat=threat, steps=3, samples=2, smoothing=0.2, label_smoothing=0.05, clean=True)
    step = defense.step(m, x, y, TrainState(seed=3))
    grads = [p.grad.clone() for p in m.net.parameters()]

    draws = Draws(3, torch.arange(5), "train", 0)
    adv, path = threat.start(x, m.bounds, draws), [x]
    for _ in range(3):
        leaf = adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(m.net(leaf), y, reduction="sum"), leaf)
        adv = threat.step(adv, x, grad, 2.5 * threat.eps / 3, m.bounds)
        path.append(adv)
    w = dirichlet(draws.child("region"), 2, 4, 1.0)
    losses = []
    for n in range(5):
        points = [x[n], adv[n], *(sum(w[n, s, k] * path[k][n] for k in range(4)) for s in range(2))]
        for z in points:
            share = 0.05 + 0.2 * float(torch.linalg.vector_norm((z - x[n]).flatten(), threat.p)) / threat.eps
            losses.append(slow_smoothed(m.net(z[None])[0], y[n], share))
    loss = torch.stack(losses).mean()
    wanted = torch.autograd.grad(loss, list(m.net.parameters()))
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-12, atol=0)
    assert list(step.terms) == list(step.accuracy) == ["clean", "adversarial", "region_1", "region_2"]
    for ours, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_labels_are_softer_further_out():
    x, y = batch()
    lesson = lesson_of(model(), x, y, rk.L2(0.5))
    defense = RAT(smoothing=0.3)
    direction = torch.ones_like(x) / 12**0.5
    for distance, share in [(0.0, 0.0), (0.25, 0.15), (0.5, 0.3), (0.5000001, 0.3)]:
        found = defense.smoothing_of(lesson, x + distance * direction)
        torch.testing.assert_close(found, torch.full((5,), share, dtype=torch.double))


def test_radius_zero_at_the_begin_of_a_ramp():
    (x, y), m = batch(), model(batch_norm=False)
    step = RAT(threat=rk.Linf(0.2), steps=2).step(m, x, y, TrainState(strength=0.0))
    torch.testing.assert_close(step.loss, nn.functional.cross_entropy(m.net(x), y).detach())


@pytest.mark.parametrize("options", [{}, {"samples": 3, "clean": True}, {"endpoint": False}])
def test_cost_is_the_attack_and_one_pass_a_point(options):
    x, y = batch()
    defense = RAT(threat=rk.Linf(0.2), steps=4, **options)
    cost = defense.step(model(), x, y).cost
    assert cost.forwards == cost.backwards == 5 * (4 + defense.parts)
    assert defense.parts == options.get("samples", 1) + options.get("clean", 0) + options.get("endpoint", 1)


def test_what_cannot_be_trained_is_refused():
    x, y = batch()
    with pytest.raises(UsageError, match="no perturbed input"):
        RAT(threat=rk.Linf(0.2), samples=0, endpoint=False, clean=True).step(model(), x, y)
    with pytest.raises(UsageError, match=r"label_smoothing \+ smoothing below 1"):
        RAT(threat=rk.Linf(0.2), smoothing=0.6, label_smoothing=0.4).step(model(), x, y)
