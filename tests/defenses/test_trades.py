"""TRADES against a slow loop written from the paper, and against the trainings that it becomes at its limits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import robustkit as rk
from robustkit.core.defense import defense_from
from robustkit.core.divergence import Divergence, kl
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.lesson import Lesson, TrainState
from robustkit.core.task import Classification
from robustkit.defenses.erm import ERM
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
    weights_of,
)

EPS = 0.1


def divergence(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """The sum of the definition, class by class."""
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    return sum(p[..., k] * (p[..., k] / q[..., k]).log() for k in range(p.shape[-1]))


def lesson_of(defense: TRADES, net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **more: object) -> Lesson:
    model, ids = rk.wrap(net.train()), default_ids(len(x))
    return Lesson(model, x, y, ids, TrainState(seed=2), "trades", defense.threat, defense.bn, **more)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_step_is_the_slow_one_of_the_paper(norm):
    """Attack on KL(p(x) || p(x')) at running statistics; CE + beta KL of one joint batch in train mode."""
    threat = {"linf": rk.Linf(EPS), "l2": rk.L2(5.0)}[norm]  # in l2 from 0.5, far from where bounds cut the ball
    (x, y), steps = batch(), 3
    if norm == "l2":
        threat, x = rk.L2(0.3), 0.5 + 0.1 * (x - 0.5)
    net = conv_net().train()
    slow = copy.deepcopy(net).eval()
    answers = slow(x).detach()
    draws = Draws(7, torch.arange(len(x)), "train", 3)
    path = slow_ascent(
        lambda z, i: divergence(answers[i], slow(z)[0]),
        x,
        threat.start(x, rk.wrap(slow).bounds, draws),
        threat.eps,
        2.5 * threat.eps / steps,
        steps,
        norm,
    )
    slow.train()
    clean, adversarial = slow(torch.cat([x, path[-1]])).chunk(2)
    loss = F.cross_entropy(clean, y) + 2.0 * divergence(clean, adversarial).mean()
    found = TRADES(beta=2, steps=steps, threat=threat).step(rk.wrap(net), x, y, TrainState(seed=7, step=3))
    torch.testing.assert_close(found.loss, loss.detach(), atol=1e-11, rtol=0)
    assert_close(grads(net), gradients_of(loss, slow), atol=1e-10)
    assert_close(dict(net.named_buffers()), dict(slow.named_buffers()))
    torch.testing.assert_close(found.accuracy["adversarial"], (adversarial.argmax(1) == y).double().mean())


def test_divergence_is_its_definition_with_gradients_in_both_answers():
    p, q = torch.randn(2, 5, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    torch.testing.assert_close(kl(p, q), divergence(p, q))
    assert not torch.allclose(kl(p, q), kl(q, p), atol=1e-3)
    torch.testing.assert_close(kl(p, p), torch.zeros(5, dtype=torch.float64))
    assert torch.autograd.gradcheck(kl, (p.requires_grad_(), q.requires_grad_()))


def test_divergence_of_sure_answers_neither_overflows_nor_dies():
    """In float32, where probabilities are exactly 0 and 1: log p of the wrong class is its distance in logits."""
    p = torch.tensor([[300.0, 0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.0, 300.0, 0.0]], requires_grad=True)
    value = kl(p, q)
    torch.testing.assert_close(value.detach(), torch.tensor([300.0]))
    for grad, expected in zip(torch.autograd.grad(value.sum(), (p, q)), (0.0, 1.0), strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad.abs().amax(), torch.tensor(expected))


def test_attack_sees_no_label_and_takes_parts_of_a_batch():
    x, y = batch()
    defense = TRADES(steps=3, threat=rk.Linf(EPS))
    one, other = (defense.attack(lesson_of(defense, conv_net(), x, label)) for label in (y, (y + 1) % CLASSES))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    model = rk.wrap(conv_net().train(), chunk=4)
    state = TrainState(seed=2)
    lesson = Lesson(model, x, y, default_ids(6), state, "trades", defense.threat)
    torch.testing.assert_close(defense.attack(lesson)[-1], one[-1], atol=1e-12, rtol=0)


def test_objective_knows_what_the_attack_has_reached():
    outputs, y = torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 1])
    found = Divergence(Classification(), y, answers=torch.zeros(3, 3, dtype=torch.float64))
    assert found.reached(outputs).tolist() == [False, False, True] and not found.graded
    part = found.at(0.5).take(slice(1, 3))
    torch.testing.assert_close(part(outputs[1:]), found(outputs)[1:])


def test_one_clean_forward_for_the_attack_and_one_joint_one_for_the_loss():
    """1 F + K (F + B) + 2 (F + B), and no more: by what went through the network."""
    (x, y), rows, back = batch(), [], []
    net = conv_net().train()
    model = rk.wrap(net)
    model.output_shape(x)  # found out once for a network
    net.conv.register_forward_hook(lambda layer, inputs, output: rows.append((len(output), layer.training)))
    net.head.register_full_backward_hook(lambda layer, gi, go: back.append(len(go[0])))
    found = TRADES(steps=4, threat=rk.Linf(EPS)).step(model, x, y)
    assert rows == [(6, False)] * 5 + [(12, True)]
    assert back == [6] * 4 + [12]
    assert (found.cost.forwards, found.cost.backwards) == (7 * 6, 6 * 6)


def test_without_the_divergence_it_is_ordinary_training():
    trades = TRADES(beta=0, steps=2, threat=rk.Linf(EPS))
    assert_close(trained(trades, mlp), trained(ERM(), mlp))
    clean = TRADES(beta=0, steps=2, statistics="clean", threat=rk.Linf(EPS))
    assert_close(trained(clean, conv_net), trained(ERM(), conv_net))
    shared = trained(trades, conv_net)
    assert not torch.allclose(shared["bn.running_mean"], trained(ERM(), conv_net)["bn.running_mean"], atol=1e-6)


def test_inside_no_ball_at_all_it_is_ordinary_training():
    """KL(p || p) = 0 is a minimum: neither a value nor a gradient is left, whatever beta."""
    trades = TRADES(beta=50, steps=2, threat=rk.Linf(0.0))
    assert_close(weights_of(trained(trades, mlp)), trained(ERM(), mlp))
    assert_close(weights_of(trained(trades, conv_net)), weights_of(trained(ERM(), conv_net)))


def test_detached_divergence_teaches_the_adversarial_answer_alone():
    x, y = batch()
    draws = torch.Generator().manual_seed(0)
    clean, adversarial = torch.randn(2, 6, CLASSES, generator=draws, dtype=torch.float64).requires_grad_().unbind(0)
    found = {}
    for detach in (False, True):
        defense = TRADES(detach_clean=detach, threat=rk.Linf(EPS))
        terms = defense.loss(lesson_of(defense, mlp(), x, y), {"clean": clean, "adversarial": adversarial}, {})
        found[detach] = torch.autograd.grad(terms["kl"], (clean, adversarial), allow_unused=True, retain_graph=True)
    assert found[True][0] is None and found[False][0].abs().amax() > 0.01
    q_less_p = (adversarial.softmax(1) - clean.softmax(1)) * 6 / len(x)
    torch.testing.assert_close(found[True][1], q_less_p.detach())
    torch.testing.assert_close(found[False][1], q_less_p.detach())


def test_where_the_attack_begins():
    x, y = batch(40)
    near = TRADES(random_start="normal", threat=rk.Linf(EPS))
    far = TRADES(threat=rk.Linf(EPS))
    with torch.no_grad():
        inner = (x > 0.01) & (x < 0.99)
        moves = (near.start(lesson_of(near, mlp(), x, y)) - x)[inner]
        assert 0.0009 < float(moves.std()) < 0.0011 and abs(float(moves.mean())) < 1e-4
        away = (far.start(lesson_of(far, mlp(), x, y)) - x)[(x > EPS) & (x < 1 - EPS)]
        assert abs(float(away.std()) - EPS / 3**0.5) < 0.003 and float(away.abs().max()) <= EPS
    tiny = TRADES(random_start="normal", threat=rk.Linf(1e-5))
    assert float((tiny.start(lesson_of(tiny, mlp(), x, y)) - x).abs().max()) <= 1e-5 + 1e-12
    wide = rk.wrap(mlp().train(), bounds=(0, 255))
    lesson = Lesson(wide, 255 * x, y, default_ids(40), TrainState(seed=2), "trades", rk.Linf(25.5))
    torch.testing.assert_close((near.start(lesson) - 255 * x)[inner], 255 * moves)


def test_l2_attack_survives_inputs_that_change_nothing():
    """An exactly zero gradient is no NaN: a network that sees one half of its samples only."""
    x, y = batch()
    net = mlp()
    with torch.no_grad():
        net[1].weight.zero_()
    defense = TRADES(steps=2, threat=rk.L2(0.5))
    found = defense.step(rk.wrap(net.train()), x, y)
    assert found.loss.isfinite() and float(found.terms["kl"]) == 0
    assert all(grad.isfinite().all() for grad in grads(net).values())


def test_smoothing_is_that_of_the_clean_labels():
    (x, y), net = batch(), mlp().train()
    found = TRADES(label_smoothing=0.2, steps=1, threat=rk.Linf(EPS)).step(rk.wrap(net), x, y)
    torch.testing.assert_close(found.terms["clean"], F.cross_entropy(net(x), y, label_smoothing=0.2).detach())


def test_needs_classes_and_a_weight_that_is_not_negative():
    x, _ = batch()
    with pytest.raises(UsageError, match="trades"):
        TRADES(threat=rk.Linf(EPS)).check(rk.wrap(mlp(), task="regression"), x)
    with pytest.raises(UsageError, match="trades cannot take this beta"):
        defense_from("trades:beta=-1")
    assert defense_from("trades:beta=1").text == "trades:beta=1.0"
