"""MART against its formulas, written class by class, with the exact logarithms and with those of the authors' code."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import robustkit as rk
from robustkit.core.defense import defense_from
from robustkit.core.divergence import kl
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.lesson import Lesson, TrainState
from robustkit.defenses.mart import MART, doubtful_kl, guarded_kl, guarded_rival, rival
from robustkit.defenses.trades import TRADES
from tests.defenses.lessons import (
    CLASSES,
    assert_close,
    batch,
    conv_net,
    gradients_of,
    grads,
    mlp,
    slow_ascent,
    trained,
)

EPS = 0.1


def terms_of(clean, adversarial, y, guard=None):
    """(BCE's margin term, weighted divergence), (N,) each, in loops over samples and classes."""
    above, floor, weight = (1.0, 0.0, 1.0) if guard is None else (guard, 1e-12, 1.0000001)
    margins, divergences = [], []
    for p, q, label in zip(clean.softmax(1), adversarial.softmax(1), y.tolist(), strict=True):
        worst = max((q[k] for k in range(len(q)) if k != label), key=torch.Tensor.item)
        margins.append(-torch.log(above - worst + floor))
        apart = sum(p[k] * (torch.log(p[k]) - torch.log(q[k] + floor)) for k in range(len(p)))
        divergences.append(apart * (weight - p[label]))
    return torch.stack(margins), torch.stack(divergences)


def answers(n: int = 12, scale: float = 2.0):
    draws = torch.Generator().manual_seed(0)
    clean, adversarial = scale * torch.randn(2, n, CLASSES, generator=draws, dtype=torch.float64)
    return clean, adversarial, torch.randint(0, CLASSES, (n,), generator=draws)


@pytest.mark.parametrize("guard", [None, 1.0001])
def test_step_is_the_slow_one_of_the_paper(guard):
    (x, y), steps, threat = batch(), 3, rk.Linf(EPS)
    net = conv_net().train()
    slow = copy.deepcopy(net).eval()
    start = threat.start(x, rk.wrap(slow).bounds, Draws(7, torch.arange(len(x)), "train", 3))
    path = slow_ascent(lambda z, i: F.cross_entropy(slow(z), y[i : i + 1]), x, start, EPS, 0.04, steps)
    slow.train()
    clean, adversarial = slow(torch.cat([x, path[-1]])).chunk(2)
    margins, divergences = terms_of(clean, adversarial, y, guard)
    loss = F.cross_entropy(adversarial, y) + margins.mean() + 3.0 * divergences.mean()
    defense = MART(lam=3, guard=guard, steps=steps, step_size=0.04, threat=threat)
    found = defense.step(rk.wrap(net), x, y, TrainState(seed=7, step=3))
    torch.testing.assert_close(found.loss, loss.detach(), atol=1e-11, rtol=0)
    torch.testing.assert_close(found.terms["margin"], margins.mean().detach())
    assert_close(grads(net), gradients_of(loss, slow), atol=1e-10)
    assert (found.cost.forwards, found.cost.backwards) == ((steps + 2) * 6, (steps + 2) * 6)


@pytest.mark.parametrize("guard", [None, 1.0001, 1.01])
def test_terms_are_their_formulas_with_gradients(guard):
    clean, adversarial, y = answers()
    clean.requires_grad_()
    adversarial.requires_grad_()
    if guard is None:
        found = rival(adversarial, y), doubtful_kl(clean, adversarial, y)
    else:
        found = guarded_rival(adversarial, y, guard), guarded_kl(clean, adversarial, y)
    expected = terms_of(clean, adversarial, y, guard)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)
        ours = torch.autograd.grad(mine.sum(), (clean, adversarial), retain_graph=True, allow_unused=True)
        slow = torch.autograd.grad(theirs.sum(), (clean, adversarial), retain_graph=True, allow_unused=True)
        for a, b in zip(ours, slow, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margin_of_surely_wrong_answers_is_exact_and_still_teaches(dtype):
    """Where p of a wrong class is 1 - 2 exp(-g), the term is g - log 2; a guard ends at 9.2 nats."""
    for gap in (5.0, 30.0, 300.0):
        logits = torch.tensor([[0.0, gap, 0.0]], dtype=dtype, requires_grad=True)
        y = torch.tensor([0])
        exact = rival(logits, y)
        (grad,) = torch.autograd.grad(exact.sum(), logits)
        assert exact.item() == pytest.approx(math.log1p(math.exp(gap) / 2), rel=1e-6)
        assert float(grad[0, 1]) == pytest.approx(1.0, abs=2 * math.exp(-gap) + 1e-6)
        if gap > 20:
            guarded = guarded_rival(logits, y, 1.0001)
            (dead,) = torch.autograd.grad(guarded.sum(), logits)
            assert guarded.item() == pytest.approx(-math.log(1e-4), abs=2e-2) and float(dead.abs().max()) < 1e-4


def test_margin_of_surely_right_answers_keeps_its_digits():
    """-log(1 - p) = p where p is tiny, in float32, too: nothing is taken from 1."""
    logits = torch.tensor([[40.0, 0.0, -1.0]])
    assert float(rival(logits, torch.tensor([0]))) == pytest.approx(math.exp(-40.0), rel=1e-5)


def test_two_classes_and_ties():
    """With two classes the margin is the cross-entropy itself; of two equal rivals one is meant."""
    clean, _, _ = answers()
    y = torch.arange(12) % 2
    torch.testing.assert_close(rival(clean[:, :2], y), F.cross_entropy(clean[:, :2], y, reduction="none"))
    tied = torch.zeros(1, 4, dtype=torch.float64)
    assert float(rival(tied, torch.tensor([2]))) == pytest.approx(-math.log(0.75))


def test_terms_of_underflowing_answers_are_finite():
    clean = torch.tensor([[300.0, 0.0, 0.0], [0.0, 300.0, 0.0]], requires_grad=True)
    adversarial = torch.tensor([[0.0, 300.0, 0.0], [0.0, 300.0, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    for apart in (doubtful_kl(clean, adversarial, y), guarded_kl(clean, adversarial, y)):
        both = torch.autograd.grad(apart.sum(), (clean, adversarial))
        assert apart.isfinite().all() and all(grad.isfinite().all() for grad in both)


def test_without_the_divergence_it_is_the_boosted_cross_entropy():
    (x, y), net = batch(), mlp().train()
    slow = copy.deepcopy(net)
    defense = MART(lam=0, steps=2, threat=rk.Linf(EPS))
    lesson = Lesson(rk.wrap(slow.train()), x, y, torch.arange(6), TrainState(), "mart", defense.threat)
    found = defense.step(rk.wrap(net), x, y)
    logits = slow(defense.craft(lesson)["adversarial"])
    loss = F.cross_entropy(logits, y) + terms_of(logits, logits, y)[0].mean()
    torch.testing.assert_close(found.loss, loss.detach())
    assert_close(grads(net), gradients_of(loss, slow))


def test_weight_lets_sure_answers_go_and_bounds_trades():
    """KL (1 - p_y) <= KL, and nearly 0 where the network is sure of the label."""
    clean, adversarial, y = answers()
    weighted, plain = doubtful_kl(clean, adversarial, y), kl(clean, adversarial)
    assert (weighted <= plain + 1e-12).all() and (weighted >= -1e-12).all()
    sure = clean + 30 * F.one_hot(y, CLASSES)
    assert (doubtful_kl(sure, adversarial, y) < 1e-9).all()


def test_clean_statistics_learn_as_those_of_trades():
    """Running statistics of clean inputs alone: one step of either defense leaves the same buffers."""
    options = {"steps": 1, "statistics": "clean", "threat": rk.Linf(EPS)}
    one, other = (trained(d, conv_net, steps=1) for d in (MART(**options), TRADES(**options)))
    assert torch.equal(one["bn.running_mean"], other["bn.running_mean"])
    assert int(one["bn.num_batches_tracked"]) == 1


def test_options():
    x, _ = batch()
    with pytest.raises(UsageError, match="mart cannot take this guard"):
        defense_from("mart:guard=0.5")
    with pytest.raises(UsageError, match="mart"):
        MART(threat=rk.Linf(EPS)).check(rk.wrap(mlp(), task="regression"), x)
    assert defense_from("mart:guard=1.0001,lam=6").text == "mart:lam=6.0,guard=1.0001"
