"""PGD-AT, ERM and noise against slow loops, and what a lesson promises to every defense."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robustkit as rk
from robustkit.core.defense import Defense, defense_from, split_defenses
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.lesson import Engine, Lesson, TrainState, smoothed_cross_entropy
from robustkit.core.objective import LabelObjective
from robustkit.defenses.adversarial import PGDAT
from robustkit.defenses.erm import ERM, Noise
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


def lesson_of(net: nn.Module, state: TrainState | None = None, **more) -> Lesson:
    x, y = batch()
    return Lesson(rk.wrap(net), x, y, default_ids(len(x)), state or TrainState(), "test", rk.Linf(EPS), **more)


# -- the trainings themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", [None, 0.03])
def test_pgd_at_is_the_slow_loop(norm, size):
    threat = {"linf": rk.Linf(EPS), "l2": rk.L2(0.3)}[norm]
    (x, y), steps = batch(), 3
    if norm == "l2":
        x = 0.5 + 0.1 * (x - 0.5)  # far from the bounds, where the slow projection is exact
    net = conv_net().train()
    slow = copy.deepcopy(net).eval()
    start = threat.start(x, rk.wrap(slow).bounds, Draws(7, torch.arange(len(x)), "train", 3))
    alpha = 2.5 * threat.eps / steps if size is None else size
    path = slow_ascent(lambda z, i: F.cross_entropy(slow(z), y[i : i + 1]), x, start, threat.eps, alpha, steps, norm)
    loss = F.cross_entropy(slow.train()(path[-1]), y, label_smoothing=0.1)
    defense = PGDAT(steps=steps, step_size=size, label_smoothing=0.1, threat=threat)
    found = defense.step(rk.wrap(net), x, y, TrainState(seed=7, step=3))
    torch.testing.assert_close(found.loss, loss.detach(), atol=1e-11, rtol=0)
    assert_close(grads(net), gradients_of(loss, slow), atol=1e-10)
    assert_close(dict(net.named_buffers()), dict(slow.named_buffers()))


def test_pgd_at_in_no_ball_or_a_tiny_one_is_ordinary_training():
    for make in (mlp, conv_net):
        plain = trained(ERM(), make)
        for mode in ("eval", "train_frozen_stats"):
            nothing = PGDAT(steps=2, attack_mode=mode, threat=rk.Linf(0.0))
            assert_close(trained(nothing, make), plain, atol=0)
        assert_close(trained(PGDAT(steps=2, threat=rk.Linf(1e-10)), make), plain, atol=1e-7)


def test_strength_scales_the_ball_and_the_step():
    """Half the strength is half the radius, and half of a step that was given."""
    for options, half in (({}, {}), ({"step_size": 0.04}, {"step_size": 0.02})):
        net, other = mlp().train(), mlp().train()
        weak = PGDAT(steps=2, threat=rk.Linf(EPS), **options).step(rk.wrap(net), *batch(), TrainState(strength=0.5))
        small = PGDAT(steps=2, threat=rk.Linf(EPS / 2), **half).step(rk.wrap(other), *batch())
        assert torch.equal(weak.loss, small.loss)
        assert_close(grads(net), grads(other), atol=0)


def test_erm_is_the_cross_entropy():
    for smoothing in (0.0, 0.3):
        (x, y), net = batch(), conv_net().train()
        slow = copy.deepcopy(net)
        loss = F.cross_entropy(slow(x), y, label_smoothing=smoothing)
        found = ERM(label_smoothing=smoothing).step(rk.wrap(net), x, y)
        torch.testing.assert_close(found.loss, loss.detach())
        assert_close(grads(net), gradients_of(loss, slow))
        torch.testing.assert_close(found.accuracy["clean"], (slow(x).argmax(1) == y).double().mean())


def test_noise_is_gaussian_of_its_deviation_and_leaves_the_bounds():
    x, y = batch(200)
    lesson = Lesson(rk.wrap(mlp().train()), x, y, default_ids(200), TrainState(seed=1), "noise")
    moved = Noise(sigma=0.5).craft(lesson)["noisy"] - x
    assert abs(float(moved.std()) - 0.5) < 0.01 and abs(float(moved.mean())) < 0.01
    assert float((x + moved).max()) > 1.5
    torch.testing.assert_close(moved, 0.5 * Draws(1, torch.arange(200), "train", 0).normal(x))
    assert_close(trained(Noise(sigma=1e-12), conv_net), trained(ERM(), conv_net), atol=1e-9)


def test_smoothing_of_every_sample_by_its_own_share():
    logits, y = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64), batch()[1]
    shares = torch.linspace(0, 0.9, 6, dtype=torch.float64)
    slow = [
        F.cross_entropy(logits[i : i + 1], y[i : i + 1], label_smoothing=float(share)) for i, share in enumerate(shares)
    ]
    torch.testing.assert_close(smoothed_cross_entropy(logits, y, shares), torch.stack(slow))


# -- the attack inside a training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "seen"), [("eval", 1), ("train", 1 + 2), ("train_frozen_stats", 1)])
def test_attack_modes_use_and_learn_the_statistics_that_they_say(mode, seen):
    (x, y), net = batch(), conv_net().train()
    slow = copy.deepcopy(net).train(mode != "eval")
    start = rk.Linf(EPS).start(x, rk.wrap(slow).bounds, Draws(0, torch.arange(6), "train", 0))
    adversarial = start
    for _ in range(2):  # statistics of a batch tie its samples together: no sample by sample here
        leaf = adversarial.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(slow(leaf), y, reduction="sum"), leaf)
        adversarial = torch.min(torch.max(adversarial + 1.25 * EPS * grad.sign(), x - EPS), x + EPS).clamp(0, 1)
    lesson = lesson_of(net)
    defense = PGDAT(steps=2, attack_mode=mode, threat=rk.Linf(EPS))
    torch.testing.assert_close(defense.attack(lesson)[-1], adversarial, atol=1e-12, rtol=0)
    expected = dict(slow.named_buffers()) if mode == "train" else dict(conv_net().named_buffers())
    assert_close(dict(net.named_buffers()), expected)
    model = rk.wrap(conv_net().train())
    defense.step(model, x, y)
    assert int(model.net.bn.num_batches_tracked) == seen


def test_attack_leaves_gradients_of_parameters_alone_and_asks_for_none():
    net = conv_net().train()
    for p in net.parameters():
        p.grad = torch.full_like(p, 3.0)
    asked = []
    net.conv.register_forward_pre_hook(lambda layer, inputs: asked.append(layer.weight.requires_grad))
    PGDAT(steps=2, threat=rk.Linf(EPS)).attack(lesson_of(net))
    assert asked == [False, False] and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in net.parameters())


def test_modes_are_those_of_the_moment_and_come_back_after_an_error():
    net = conv_net().train()
    net.bn.eval()
    net.head.weight.requires_grad_(False)
    lesson = lesson_of(net)
    for mode in ("eval", "train", "train_frozen_stats"):
        with pytest.raises(ZeroDivisionError), lesson.attacking(mode):
            assert net.conv.training == (mode != "eval") and not net.bn.training
            assert not any(p.requires_grad for p in net.parameters())
            raise ZeroDivisionError
        assert net.training and net.conv.training and not net.bn.training and "forward" not in vars(net.bn)
        assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False, True]


def test_path_holds_every_point():
    defense = PGDAT(steps=4, threat=rk.Linf(EPS))
    lesson = lesson_of(mlp().train())
    path = defense.attack(lesson)
    assert len(path) == 5 and torch.equal(path[0], defense.start(lesson))
    losses = [float(LabelObjective(lesson.model.task, lesson.y)(lesson.model(z)).detach().sum()) for z in path]
    assert losses == sorted(losses), "on a network this smooth every step climbs"


def test_draws_depend_on_seed_step_and_sample_alone():
    x, y = batch()
    defense, order = PGDAT(steps=1, threat=rk.Linf(EPS)), torch.tensor([3, 1, 5, 0, 2, 4])

    def start(rows, ids, **state):
        return defense.start(Lesson(rk.wrap(mlp()), x[rows], y[rows], ids, TrainState(**state), "", defense.threat))

    ids = torch.tensor([8, 2, 77, 5, 0, 31])
    whole = start(slice(None), ids, seed=1, step=4)
    assert torch.equal(start(order, ids[order], seed=1, step=4), whole[order])
    assert torch.equal(start(slice(2, 3), ids[2:3], seed=1, step=4), whole[2:3])
    for other in ({"seed": 2, "step": 4}, {"seed": 1, "step": 5}):
        assert not torch.isclose(start(slice(None), ids, **other), whole).flatten(1).all(1).any()


# -- the training forward ------------------------------------------------------------------------------------------


def two_parts() -> dict[str, torch.Tensor]:
    return {"clean": batch()[0], "adversarial": batch(seed=9)[0].square()}


def test_shared_statistics_are_those_of_one_joint_batch():
    net = conv_net().train()
    slow, parts = copy.deepcopy(net), two_parts()
    found = lesson_of(net).forward(parts)
    expected = slow(torch.cat(list(parts.values()))).split(6)
    assert list(found) == list(parts)
    for mine, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert_close(dict(net.named_buffers()), dict(slow.named_buffers()))


def test_clean_statistics_are_those_of_separate_forwards_and_learn_from_the_first():
    net = conv_net().train()
    slow, blind, parts = copy.deepcopy(net), copy.deepcopy(net), two_parts()
    found = lesson_of(net, statistics="clean").forward(parts)
    clean, adversarial = slow(parts["clean"]), blind(parts["adversarial"])
    torch.testing.assert_close(found["clean"], clean)
    torch.testing.assert_close(found["adversarial"], adversarial)
    assert_close(dict(net.named_buffers()), dict(slow.named_buffers()))
    loss, other = ((out.square().sum() + out.sum()) for out in (torch.cat(list(found.values())), clean))
    mine = gradients_of(loss, net)
    theirs = gradients_of(other, slow)
    theirs_too = gradients_of(adversarial.square().sum() + adversarial.sum(), blind)
    assert_close(mine, {name: theirs[name] + theirs_too[name] for name in mine}, atol=1e-9)


@pytest.mark.parametrize("statistics", ["shared", "clean"])
def test_unlearnt_forwards_see_the_same_and_remember_nothing(statistics):
    net, parts = conv_net().train(), two_parts()
    lesson, before = lesson_of(net, statistics=statistics), copy.deepcopy(dict(net.named_buffers()))
    with lesson.unlearnt():
        blind = lesson.forward(parts)
    assert_close(dict(net.named_buffers()), before, atol=0)
    seeing = lesson.forward(parts)
    assert all(torch.allclose(blind[name], seeing[name], atol=1e-12) for name in parts)
    assert int(net.bn.num_batches_tracked) == 1


def test_layers_in_eval_mode_are_left_alone():
    for statistics in ("shared", "clean"):
        net, parts = conv_net().train(), two_parts()
        net.bn.eval()
        before = copy.deepcopy(dict(net.named_buffers()))
        found = lesson_of(net, statistics=statistics).forward(parts)
        for name, part in parts.items():
            torch.testing.assert_close(found[name], net(part))
        assert_close(dict(net.named_buffers()), before, atol=0)


def test_accuracy_is_counted_by_part_and_leaves_out_what_has_other_rows():
    net = mlp().train()
    lesson = lesson_of(net)
    x, y = batch()
    lesson.forward({"clean": x, "few": x[:2]})
    assert set(lesson.accuracy) == {"clean"}
    torch.testing.assert_close(lesson.accuracy["clean"], (net(x).argmax(1) == y).double().mean())


def test_wrapper_and_backward_are_the_engines_and_attacks_go_past_them():
    """What several processes need: one call of the wrapper and one of backward a step, whatever the attack does."""

    class Counting(Engine):
        def __init__(self) -> None:
            self.rows: list[int] = []
            self.losses: list[float] = []

        def wrapper(self, model):
            return lambda x: (self.rows.append(len(x)), model.module(x))[1]

        def backward(self, loss):
            self.losses.append(float(loss.detach()))
            super().backward(loss)

    for text, rows in (("pgd-at:steps=3", 6), ("trades:steps=3", 12), ("mart:steps=3", 12)):
        engine, net, plain = Counting(), conv_net().train(), conv_net().train()
        defense = defense_from(text).with_threat(rk.Linf(EPS))
        found = defense.step(rk.wrap(net), *batch(), TrainState(engine=engine))
        assert engine.rows == [rows] and engine.losses == [float(found.loss)]
        defense.step(rk.wrap(plain), *batch())
        assert_close(grads(net), grads(plain), atol=0)


def test_dropout_is_seeded_by_the_step_and_the_callers_generator_goes_on():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(50, CLASSES)).double().train()
    model, found = rk.wrap(net), []
    for state in (TrainState(seed=1), TrainState(seed=1), TrainState(seed=1, step=1), TrainState(seed=2)):
        torch.rand(3)
        rng = torch.get_rng_state()
        found.append(float(ERM().step(model, *batch(), state)))
        assert torch.equal(rng, torch.get_rng_state())
    assert found[0] == found[1] and len(set(found)) == 3


def test_bfloat16_is_for_the_training_forward_alone():
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 16), nn.Tanh(), nn.Linear(16, CLASSES)).train()
    kinds = []
    net[1].register_forward_hook(lambda layer, inputs, output: kinds.append(output.dtype))
    x, y = batch()
    found = PGDAT(steps=2, threat=rk.Linf(EPS)).step(rk.wrap(net), x.float(), y, TrainState(precision="bfloat16"))
    assert kinds[-3:] == [torch.float32, torch.float32, torch.bfloat16] and found.loss.dtype == torch.float32


# -- the text form ---------------------------------------------------------------------------------------------------


def test_text_forms():
    assert split_defenses("awp:gamma=1e-2+trades:beta=6") == ["awp:gamma=1e-2", "trades:beta=6"]
    assert split_defenses("noise:sigma=1e+3") == ["noise:sigma=1e+3"]
    assert isinstance(defense_from("erm"), Defense)
    with pytest.raises(UsageError, match="erm is a loss and wraps no other"):
        defense_from("erm+pgd-at")
    with pytest.raises(UsageError, match="unknown defense 'tradez'"):
        defense_from("tradez")
    with pytest.raises(UsageError, match="pgd-at cannot take this steps"):
        defense_from("pgd-at:steps=0")


def test_l1_and_l2_train_too_and_a_threat_is_needed():
    for threat in (rk.L2(0.5), rk.L1(2.0)):
        assert PGDAT(steps=2, threat=threat).step(rk.wrap(conv_net().train()), *batch()).loss.isfinite()
    with pytest.raises(UsageError, match="pgd-at"):
        PGDAT().step(rk.wrap(mlp().train()), *batch())


def test_passes_that_are_averaged_are_counted_each():
    """One F and one B of the attack, one of each of training, thrice."""
    (x, y), model = batch(), rk.wrap(conv_net().train(), eot=3)
    found = PGDAT(steps=1, threat=rk.Linf(EPS)).step(model, x, y)
    assert (found.cost.forwards, found.cost.backwards) == (6 * len(x), 6 * len(x))
