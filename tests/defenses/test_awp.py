"""AWP against a slow loop with a proxy network, written from the paper and the authors' description of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import robustkit as rk
from robustkit.core.defense import Defense, LossDefense, defense_from
from robustkit.core.errors import UsageError
from robustkit.core.keyed import default_ids
from robustkit.core.lesson import Lesson, TrainState
from robustkit.core.model import Model
from robustkit.core.weights import moving
from robustkit.defenses.adversarial import PGDAT
from robustkit.defenses.amp import AMP
from robustkit.defenses.awp import AWP, ascend, tensors_of_weights
from robustkit.defenses.erm import ERM, Noise
from robustkit.defenses.free import Free
from robustkit.defenses.trades import TRADES
from tests.defenses.lessons import assert_close, batch, conv_net, mlp, trained

INNER = {
    "erm": ERM(label_smoothing=0.1),
    "pgd-at": PGDAT(steps=2, threat=rk.Linf(0.1)),
    "trades": TRADES(steps=2, threat=rk.L2(0.5)),
    "clean": TRADES(steps=2, statistics="clean", threat=rk.Linf(0.1)),
}


def lesson_of(model: Model, inner: LossDefense, state: TrainState) -> Lesson:
    x, y = batch(seed=state.step)
    return Lesson(model, x, y, default_ids(len(x)), state, "slow", inner.threat, inner.bn)


def total(inner: LossDefense, lesson: Lesson, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(inner.loss(lesson, lesson.forward(parts), parts).values())


def slow(inner: LossDefense, gamma: float, steps: int) -> dict[str, torch.Tensor]:
    """The proxy finds the perturbation; the optimiser steps at perturbed weights, and they are moved back after it."""
    net, state = conv_net().train(), TrainState(seed=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(steps):
        lesson = lesson_of(rk.wrap(net), inner, state)
        parts = inner.craft(lesson)
        proxy = copy.deepcopy(net)
        total(inner, lesson_of(rk.wrap(proxy), inner, state), parts).backward()
        moves = {}
        for name, w in proxy.named_parameters():
            if "weight" in name and w.ndim > 1:
                moves[name] = gamma * w.grad / (w.grad.square().sum().sqrt() + 1e-20) * w.detach().square().sum().sqrt()
        weights = dict(net.named_parameters())
        with torch.no_grad():
            for name, move in moves.items():
                weights[name] += move
        optimizer.zero_grad()
        total(inner, lesson, parts).backward()
        optimizer.step()
        with torch.no_grad():
            for name, move in moves.items():
                weights[name] -= move
        state.step += 1
    return net.state_dict()


def fast(defense: Defense, steps: int, make: Callable[[], nn.Module] = conv_net) -> dict[str, torch.Tensor]:
    net, state = make().train(), TrainState(seed=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for step in range(steps):
        defense.step(rk.wrap(net), *batch(seed=step), state)
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_training_is_the_slow_one_with_a_proxy(inner):
    """Weights and running statistics, which learn at the perturbed weights alone."""
    found = fast(AWP(gamma=0.05, around=inner), 3)
    assert_close(found, slow(inner, 0.05, 3), atol=1e-12)
    assert int(found["bn.num_batches_tracked"]) == 3
    assert not torch.allclose(found["conv.weight"], fast(inner, 3)["conv.weight"], atol=1e-4)


class Witness(ERM):
    """What the weights are whenever the loss is computed, and where the inputs are made."""

    def craft(self, lesson):
        self.seen.append(("craft", copied(lesson.model.net)))
        return super().craft(lesson)

    def loss(self, lesson, outputs, parts):
        self.seen.append(("loss", copied(lesson.model.net)))
        if len(self.seen) == self.fails:
            raise RuntimeError("the loss fails")
        return super().loss(lesson, outputs, parts)


def witness(fails: int = 0) -> Witness:
    found = Witness()
    object.__setattr__(found, "seen", [])
    object.__setattr__(found, "fails", fails)
    return found


def around(defense: Defense, inner: LossDefense) -> Defense:
    """The very object inside: a copy would lose what a test has written into it."""
    object.__setattr__(defense, "around", inner)
    return defense


def copied(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_each_tensor_of_weights_moves_by_a_share_of_its_norm_and_nothing_else_does():
    inner, net = witness(), conv_net().train()
    around(AWP(gamma=0.03), inner).step(rk.wrap(net), *batch())
    (a, made), (b, first), (c, second) = inner.seen
    assert (a, b, c) == ("craft", "loss", "loss")
    now = copied(net)
    for name, w in now.items():
        assert torch.equal(made[name], w) and torch.equal(first[name], w)
        share = float((second[name] - w).norm() / w.norm())
        assert share == pytest.approx(0.03 if name in ("conv.weight", "head.weight") else 0, rel=1e-9)


def test_a_tensor_without_gradient_stays_and_none_becomes_no_number():
    a, b, c = (nn.Parameter(torch.full((2, 2), 3.0)) for _ in range(3))
    a.grad, b.grad = torch.zeros(2, 2), torch.full((2, 2), 1e-3)
    ascend([a, b, c], 0.5)
    assert torch.equal(a, torch.full((2, 2), 3.0)) and torch.equal(c, a)
    torch.testing.assert_close(b, torch.full((2, 2), 4.5))


def test_names_and_dimensions_choose_what_moves():
    net = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2), "cell": nn.LSTMCell(2, 2)})
    net["conv"].weight.requires_grad_(False)
    assert [p.shape for p in tensors_of_weights(net)] == [(8, 2), (8, 2)]


@pytest.mark.parametrize("make", [conv_net, mlp])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_gamma_0_is_the_defense_inside(make, inner):
    assert_close(trained(AWP(gamma=0, around=inner), make), trained(inner, make), atol=0)


def test_warm_up_is_the_defense_inside_and_costs_no_more():
    inner, x, y = INNER["trades"], *batch()
    defense = AWP(gamma=0.05, warmup="1/4", around=inner)
    model = rk.wrap(conv_net().train())
    costs, state = [], TrainState(total=8)
    for _ in range(4):
        cost = defense.step(model, x, y, state).cost
        costs.append((cost.forwards / len(x), cost.backwards / len(x)))
    plain = inner.step(model, x, y).cost
    assert costs[:2] == [(plain.forwards / len(x), plain.backwards / len(x))] * 2
    assert costs[2:] == [(costs[0][0] + 2, costs[0][1] + 2)] * 2


def test_a_warm_up_needs_the_length_of_the_training():
    with pytest.raises(UsageError, match="length is not known"):
        AWP(warmup=0.5, around=ERM()).step(rk.wrap(mlp().train()), *batch())


def test_dropout_is_the_same_in_both_passes():
    masks = []

    class Keep(nn.Module):
        def forward(self, x):
            if self.training:  # and not when the wrapped network is looked at
                masks.append(torch.rand(3))
            return x

    net = nn.Sequential(Keep(), mlp()).train()
    defense, state = AWP(around=ERM()), TrainState(seed=1)
    before = torch.get_rng_state()
    for _ in range(2):
        defense.step(rk.wrap(net), *batch(), state)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3]) and not torch.equal(masks[1], masks[2])
    assert torch.equal(torch.get_rng_state(), before)


# -- weights come back -------------------------------------------------------------------------------------------------


def bits(tensors: Iterator[torch.Tensor]) -> list[bytes]:
    return [t.detach().numpy().tobytes() for t in tensors]


def test_moved_weights_come_back_bit_for_bit():
    """Minus zero, subnormal numbers and what is no number, too; in the memory where they were."""
    odd = torch.tensor([-0.0, 0.0, 1e-45, 1e-40, float("nan"), float("-inf"), 3.0])
    net = nn.ParameterList([odd.clone(), odd.flip(0).double()])
    before, places = bits(net.parameters()), [p.data_ptr() for p in net.parameters()]
    with pytest.raises(KeyboardInterrupt), moving(list(net.parameters())) as homes, torch.no_grad():
        assert bits(homes) == before
        for p in net.parameters():
            p.add_(1).mul_(0.1)
        raise KeyboardInterrupt
    assert bits(net.parameters()) == before and [p.data_ptr() for p in net.parameters()] == places


@pytest.mark.parametrize("make", [AWP, lambda: AMP(inner_steps=2), lambda: AMP(norm_scope="global", freeze_bn=False)])
@pytest.mark.parametrize("fails", [0, 2, 3, 4])
def test_weights_come_back_also_when_the_loss_fails(make, fails):
    net, inner = conv_net().train(), witness(fails)
    defense, model, before = around(make(), inner), rk.wrap(net), bits(net.parameters())
    versions = dict(net.named_parameters())
    try:
        defense.step(model, *batch())
    except RuntimeError as error:
        assert "the loss fails" in str(error) and len(inner.seen) == fails
    assert bits(net.parameters()) == before
    assert all(dict(net.named_parameters())[name] is p for name, p in versions.items())
    assert all(m.training for m in net.modules()) and all(m.track_running_stats for m in [net.bn])


@pytest.mark.parametrize("defense", [AWP(gamma=0.5, around=ERM()), AMP(eps=5.0)])
def test_a_callers_autocast_sees_the_moved_weights(defense):
    """Autocast remembers weights in its own precision; what it remembers must be those of the pass."""
    net, inner = mlp().float().train(), witness()
    (x, y), outputs = batch(), []
    net.register_forward_hook(lambda module, args, out: outputs.append(out.detach().float()))
    with torch.autocast("cpu", torch.bfloat16):
        around(replace(defense), inner).step(rk.wrap(net), x.float(), y)
        net(x.float())
    *_, one, two, three = outputs  # the first of all finds out the shape of the outputs
    assert not torch.allclose(one, two, atol=0.05) and torch.equal(one, three)


class Alive(TorchDispatchMode):
    """The most bytes of tensors, made inside, that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.refs: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(made):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in old:
                self.refs[StorageWeakRef(t.untyped_storage())] = t.untyped_storage().nbytes()
        self.refs = {ref: size for ref, size in self.refs.items() if not ref.expired()}
        self.most = max(self.most, sum(self.refs.values()))
        return made


def most_bytes(defense: Defense, net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    model, state = rk.wrap(net.train()), TrainState()
    defense.step(model, x, y, state)
    for p in net.parameters():
        p.grad = None
    with Alive() as alive:
        defense.step(model, x, y, state)
    return alive.most


@pytest.mark.parametrize("defense", [AWP(around=ERM()), AMP(), AMP(inner_steps=3, norm_scope="global", clip=1.0)])
def test_memory_is_one_copy_of_the_perturbed_tensors(defense):
    wide = [nn.Sequential(nn.Linear(128, 128), nn.ReLU()) for _ in range(6)]
    net = nn.Sequential(*wide, nn.Linear(128, 4))
    x, y = torch.rand(2, 128), torch.tensor([0, 3])
    moved = sum(p.nbytes for p in net.parameters() if p.ndim > 1 or isinstance(defense, AMP))
    one = max(p.nbytes for p in net.parameters())
    plain = most_bytes(ERM(), net, x, y)
    extra = most_bytes(defense, net, x, y) - plain
    assert moved - one < extra < moved + one, f"{extra / moved} copies"


# -- what is wrapped ---------------------------------------------------------------------------------------------------


def test_the_text_names_what_is_inside():
    assert AWP().text == "awp+pgd-at"
    defense = AWP(gamma="1/50", around=TRADES(beta=3))
    assert defense.text == "awp:gamma=0.02+trades:beta=3.0"
    assert defense_from(defense.text) == defense
    assert defense_from("awp") == AWP(around=PGDAT())


def test_the_threat_is_that_of_the_whole():
    one, two = rk.Linf(0.1), rk.L2(0.5)
    assert AWP(around=PGDAT(threat=one)).threat == one
    both = AWP(threat=two, around=PGDAT(threat=one))
    assert both.threat == two == both.around.threat
    assert both.with_threat(one).around.threat == one == both.with_threat(one).threat
    none = both.with_threat(None)
    assert none.threat is None and none.around.threat is None
    with pytest.raises(UsageError, match="needs a threat"):
        none.step(rk.wrap(mlp().train()), *batch())


@pytest.mark.parametrize("outer", [AWP, AMP])
def test_it_says_of_itself_what_the_loss_inside_does(outer):
    clean, both = outer(around=Noise()), outer(around=TRADES(statistics="clean"))
    assert (clean.adversarial, clean.logits, clean.parts, clean.bn, clean.replays) == (False, False, 1, "shared", 1)
    assert (both.adversarial, both.logits, both.parts, both.bn, both.norms) == (True, True, 2, "clean", TRADES.norms)
    with pytest.raises(UsageError, match="every input"):
        both.with_threat(rk.Linf(1.0)).step(rk.wrap(mlp().train()), *batch())
    net = rk.wrap(mlp())
    assert clean.prepare(net) is net


def test_layers_split_for_the_loss_inside():
    """The pass that moves the weights goes through the split layers, too, and none of them learns from it."""
    inner = TRADES(steps=1, statistics="split", threat=rk.Linf(0.1))
    defense = AWP(gamma=0.05, around=inner)
    found, expected = (rk.wrap(conv_net().train()) for _ in range(2))
    found, expected = defense.prepare(found), inner.prepare(expected)
    found.net.train()
    expected.net.train()
    defense.step(found, *batch(), TrainState(seed=5))
    lesson = lesson_of(expected, inner, TrainState(seed=5))
    lesson.x, lesson.y = batch()
    parts = inner.craft(lesson)
    proxy = copy.deepcopy(expected.net)
    total(inner, replace(lesson, model=expected.around(proxy)), parts).backward()
    with torch.no_grad():
        for w, p in zip(expected.net.parameters(), proxy.parameters(), strict=True):
            if w.ndim > 1:
                w += 0.05 * w.norm() / p.grad.norm() * p.grad
    total(inner, lesson, parts).backward()
    grads = [{n: p.grad for n, p in m.net.named_parameters()} for m in (found, expected)]
    assert_close(*grads)
    assert_close(dict(found.net.named_buffers()), dict(expected.net.named_buffers()), atol=1e-12)


@pytest.mark.parametrize("inner", [Free(), AMP(), AWP()])
@pytest.mark.parametrize("outer", [AWP, AMP])
def test_what_is_no_loss_is_not_wrapped(outer, inner):
    with pytest.raises(ValidationError, match="LossDefense"):
        outer(around=inner)
    with pytest.raises(UsageError, match="wraps a loss"):
        defense_from(f"{outer().text.partition('+')[0]}+{inner.text}")


@pytest.mark.parametrize("options", [{"gamma": -0.1}, {"warmup": 1}, {"warmup": -0.1}, {"gamma": "inf"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        AWP(**options)


def test_a_network_without_weights_is_refused():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.Parameter(torch.ones(50, 4, dtype=torch.float64))

        def forward(self, x):
            return x.flatten(1) @ self.factors

    with pytest.raises(UsageError, match=r"no weights to perturb.*factors"):
        AWP(around=ERM()).step(rk.wrap(Scale().train()), *batch())
    AWP(gamma=0, around=ERM()).step(rk.wrap(Scale().train()), *batch())


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    rows: list[int] = []
    hook = net.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    yield rows
    hook.remove()


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_cost_is_that_of_the_defense_inside_and_a_pass_of_its_parts(inner):
    net = conv_net().train()
    model, (x, y) = rk.wrap(net), batch()
    plain = inner.step(model, x, y).cost
    with counted(net) as rows:
        cost = AWP(around=inner).step(model, x, y).cost
    assert cost.forwards == sum(rows) == plain.forwards + inner.parts * len(x)
    assert cost.backwards == plain.backwards + inner.parts * len(x)
