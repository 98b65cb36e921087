"""ConAdv against a slow simulation that keeps copies of whole networks, and its identities with other defenses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robustkit as rk
from robustkit.core import stale
from robustkit.core.aside import attack_aside
from robustkit.core.errors import UsageError
from robustkit.core.keyed import default_ids
from robustkit.core.lesson import Lesson, TrainState
from robustkit.core.splitnorm import branch, split
from tests.defenses.lessons import CLASSES, ConvNet, assert_close, batch, conv_net, grads, mlp

EPS, LR = 0.1, 0.2
THREAT = rk.Linf(EPS)


def concurrent(**options):
    return rk.Concurrent(threat=THREAT, **options)


def run(defense, make=conv_net, steps=5, state=None):
    """The network before each step and after the last, the gradients of each step, and the state."""
    model = defense.prepare(rk.wrap(make().train()))
    net, state = model.net, state or TrainState(seed=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    nets, found = [copy.deepcopy(net)], []
    for step in range(steps):
        defense.step(model, *batch(seed=step), state)
        found.append(grads(net))
        optimizer.step()
        nets.append(copy.deepcopy(net))
    return nets, found, state


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def slow_step(old, net, step, defense):
    """Gradients and the adversarial inputs of one step of AdvProp that attacks another copy of the network."""
    x, y = batch(seed=step)
    lesson = Lesson(rk.wrap(net), x, y, default_ids(len(x)), TrainState(seed=5, step=step), "slow", THREAT)
    start = defense.start(lesson).requires_grad_()
    with branch(old.train(), 1):
        (grad,) = torch.autograd.grad(F.cross_entropy(old(start), y), start)
    adv = (start.detach() + EPS * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    outputs = net.train()(torch.cat([x, adv]))
    loss = (F.cross_entropy(outputs, torch.cat([y, y]), label_smoothing=0.1, reduction="none")).mean()
    names = dict(net.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True)), adv


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_the_slow_simulation_that_keeps_whole_networks(tau):
    """Every step attacks the copy that was kept max(0, t - tau) steps in."""
    defense = concurrent(tau=tau)
    nets, found, _ = run(defense)
    for step in range(5):
        old, now = copy.deepcopy(nets[max(0, step - tau)]), copy.deepcopy(nets[step])
        expected, _ = slow_step(old, now, step, defense)
        assert_close(found[step], expected, atol=1e-12)
        for (name, buffer), trained in zip(now.named_buffers(), nets[step + 1].buffers(), strict=True):
            torch.testing.assert_close(trained, buffer, msg=name)


@pytest.mark.parametrize("tau", [1, 3])
def test_the_first_steps_are_those_of_disadv(tau):
    """Until there are older ones, the oldest parameters are the first; at the first step nothing is stale."""
    late, now = run(concurrent(tau=tau), steps=3), run(concurrent(tau=0), steps=3)
    assert_same(late[1][0], now[1][0])
    assert any(not torch.equal(late[1][2][name], now[1][2][name]) for name in now[1][2])


def test_without_staleness_it_is_advprop_to_the_bit():
    """The same parts, attack and loss as the plain loss defense, made at the present parameters; nothing is kept."""

    class AdvProp(rk.Concurrent):
        name = "advprop"

        def craft(self, lesson):
            return {"clean": lesson.x, "adversarial": self.attack(lesson)[-1]}

    nets, found, state = run(concurrent(tau=0))
    others, expected, _ = run(AdvProp(threat=THREAT, tau=0))
    for one, two in zip(found, expected, strict=True):
        assert_same(one, two)
    assert_same(nets[-1].state_dict(), others[-1].state_dict())
    assert not state.memory


def test_without_clean_inputs_and_staleness_it_is_fgsm_training():
    defense = concurrent(tau=0, clean_weight=0, clean_start=1, label_smoothing=0, attack_mode="eval")
    net = conv_net().train()
    model = defense.prepare(rk.wrap(net))
    twin, (x, y) = copy.deepcopy(net), batch()
    step = defense.step(model, x, y)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(twin.eval()(leaf), y), leaf)
    adv = (x + EPS * grad.sign()).clamp(0, 1)
    loss = F.cross_entropy(twin.train()(adv), y)
    loss.backward()
    assert_close(grads(net), grads(twin), atol=1e-13)
    assert list(step.terms) == ["adversarial"] and (step.cost.forwards, step.cost.backwards) == (12, 12)


def test_it_is_pgd_at_where_both_do_the_same():
    ours = concurrent(
        tau=0, clean_weight=0, clean_start=0, label_smoothing=0, attack_mode="eval", steps=3, step_size=0.05
    )
    theirs = rk.PGDAT(threat=THREAT, steps=3, step_size=0.05)
    for one, two in zip(run(ours)[1], run(theirs)[1], strict=True):
        assert_same(one, two)


def test_parts_are_weighed_by_their_shares():
    defense = concurrent(clean_weight=3, augmented=True)
    assert defense.shares == {"clean": 0.6, "adversarial": 0.2, "augmented": 0.2}
    assert (defense.parts, defense.place, concurrent(clean_weight=0, augmented=True).place) == (3, 1, 0)
    net = conv_net().train()
    model = concurrent(clean_weight=3).prepare(rk.wrap(net))
    step = concurrent(clean_weight=3, label_smoothing=0).step(model, *batch())
    x, y = batch()
    twin = conv_net().train()
    torch.testing.assert_close(step.terms["clean"], 0.75 * F.cross_entropy(twin(x), y))
    assert (step.cost.forwards, step.cost.backwards) == (18, 18)


def test_the_size_of_a_step():
    def size(**options):
        lesson = Lesson(rk.wrap(mlp()), *batch(), default_ids(6), TrainState(strength=0.5), "x", THREAT)
        return concurrent(**options).size(lesson)

    assert size() == size(steps=2) == EPS / 2
    assert size(steps=10) == pytest.approx(EPS / 8) and size(steps=3, step_size=0.1) == 0.05


def test_a_share_of_the_attacks_begins_at_the_input():
    x, y = torch.full((400, 2, 5, 5), 0.5, dtype=torch.float64), torch.zeros(400, dtype=torch.long)
    lesson = Lesson(rk.wrap(mlp()), x, y, default_ids(400), TrainState(), "x", THREAT)
    start = concurrent().start(lesson)
    clean = (start == x).flatten(1).all(1)
    assert 0.12 < float(clean.double().mean()) < 0.28
    moved = (start - x)[~clean].abs()
    assert moved.max() <= EPS and moved.min() > 0
    part = concurrent().start(Lesson(lesson.model, x[7:9], y[7:9], torch.tensor([7, 8]), TrainState(), "x", THREAT))
    assert torch.equal(part, start[7:9])


def test_random_targets_are_the_other_classes_alike():
    x, y = torch.zeros(900, 2, 5, 5, dtype=torch.float64), torch.arange(900) % CLASSES
    lesson = Lesson(rk.wrap(mlp()), x, y, default_ids(900), TrainState(), "x", THREAT)
    objective = concurrent(target="random").objective(lesson)
    assert not (objective.target == y).any()
    assert ((objective.target - y) % CLASSES).bincount().tolist()[1:] == pytest.approx([300] * 3, abs=60)
    outputs = torch.randn(900, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(objective(outputs), -F.cross_entropy(outputs, objective.target, reduction="none"))
    assert lesson.model.cost.forwards == 0


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_memory_holds_the_parameters_of_the_last_steps():
    nets, _, state = run(concurrent(tau=2), steps=4)
    expected = {
        f"concurrent/{age}/{name}": p.detach() for age in (1, 2) for name, p in nets[4 - age].named_parameters()
    }
    assert_same(state.memory, expected)


def test_a_training_goes_on_to_the_bit_from_its_memory():
    """Resumed from copies of weights, momentum and memory."""
    whole = run(concurrent(tau=2), steps=5)
    net = copy.deepcopy(run(concurrent(tau=2), steps=3)[0][-1])
    _, _, state = run(concurrent(tau=2), steps=3)
    fresh = TrainState(seed=5, step=3, memory={key: value.clone() for key, value in state.memory.items()})
    concurrent(tau=2).step(rk.wrap(net), *batch(seed=3), fresh)
    assert_same(grads(net), whole[1][3])


def test_the_state_of_another_network_is_refused():
    _, _, state = run(concurrent(), mlp, steps=1)
    defense = concurrent()
    with pytest.raises(UsageError, match="another network"):
        defense.step(defense.prepare(rk.wrap(conv_net().train())), *batch(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_parameters_come_back_to_the_last_bit(fails):
    net = conv_net()
    own = {name: p.data.clone() for name, p in net.named_parameters()}
    places = [p.data_ptr() for p in net.parameters()]
    values = {"conv.weight": torch.full_like(net.conv.weight, torch.nan)}
    try:
        with stale.swapped(net, values):
            assert net.conv.weight.isnan().all() and torch.equal(net.head.weight, own["head.weight"])
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert_same({name: p.data for name, p in net.named_parameters()}, own)
    assert [p.data_ptr() for p in net.parameters()] == places


def test_an_attack_that_fails_leaves_the_parameters_as_they_are():
    defense = concurrent()
    net = conv_net().train()
    model, state = defense.prepare(rk.wrap(net)), TrainState()
    defense.step(model, *batch(), state)
    torch.optim.SGD(net.parameters(), lr=1).step()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        defense.step(model, *batch(), state)
    assert_same(net.state_dict(), before)
    assert all(layer.training for layer in net.modules()) and all(p.requires_grad for p in net.parameters())


# -- batch normalisation -----------------------------------------------------------------------------------------------


def test_attacks_leave_all_running_statistics_alone():
    defense = concurrent(steps=3)
    net = conv_net().train()
    model = defense.prepare(rk.wrap(net))
    before = [buffer.clone() for buffer in net.buffers()]
    lesson = Lesson(model, *batch(), default_ids(6), TrainState(), "concurrent", THREAT, "split")
    defense.craft(lesson)
    assert all(torch.equal(one, two) for one, two in zip(net.buffers(), before, strict=True))


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm1d])
def test_networks_without_batchnorm2d_fall_back_to_shared_statistics(norm):
    def make():
        net = mlp()
        net.insert(2, norm(16).double())
        return net

    for one, two in zip(run(concurrent(), make)[1], run(concurrent(statistics="shared"), make)[1], strict=True):
        assert_same(one, two)


def test_an_augmented_part_has_layers_of_its_own():
    defense = concurrent(augmented=True)
    net = Images().train()
    model = defense.prepare(rk.wrap(net))
    x, y = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2
    first = defense.step(model, x, y)
    assert list(first.terms) == ["clean", "adversarial", "augmented"] and len(net[1].aux_bn) == 2
    lesson = Lesson(model, x, y, default_ids(4), TrainState(), "concurrent", THREAT, "split")
    whole, part = (
        defense.plain(lesson, "augmented"),
        Lesson(model, x[1:3], y[1:3], torch.arange(1, 3), TrainState(), "c"),
    )
    assert torch.equal(defense.plain(part, "augmented"), whole[1:3])
    assert not torch.equal(whole, x) and float(whole.min()) >= 0 and float(whole.max()) <= 1


class Images(nn.Sequential):
    """For images of 16x16."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))


# -- elsewhere ---------------------------------------------------------------------------------------------------------


class Dropping(ConvNet):
    """With dropout, whose draws an attack uses up."""

    def forward(self, x):
        return self.head(F.dropout(self.bn(self.conv(x)).tanh().flatten(1), 0.3, self.training))


@pytest.mark.parametrize("make", [conv_net, Dropping])
@pytest.mark.parametrize("statistics", ["split", "clean", "shared"])
def test_an_attack_on_a_private_copy_finds_the_same_points(make, statistics):
    here, there = concurrent(statistics=statistics), concurrent(statistics=statistics, device="cpu")
    model = here.prepare(rk.wrap(make().train()))
    x, y = batch()
    state = TrainState(memory={f"concurrent/1/{name}": p * 1.1 for name, p in model.net.named_parameters()})
    found = []
    for defense in (here, there, there):
        copied = TrainState(memory=dict(state.memory))
        torch.manual_seed(0)
        found.append(defense.craft(Lesson(model, x, y, default_ids(6), copied, "x", THREAT, defense.bn))["adversarial"])
        assert_same(copied.memory, {f"concurrent/1/{name}": p.detach() for name, p in model.net.named_parameters()})
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("make", "statistics"), [(conv_net, "split"), (conv_net, "clean"), (conv_net, "shared"), (mlp, "split")]
)
def test_parts_that_are_learnt_one_by_one_give_the_same_training(make, statistics):
    here, there = (
        run(concurrent(statistics=statistics), make),
        run(concurrent(statistics=statistics, device="cpu"), make),
    )
    for one, two in zip(here[1], there[1], strict=True):
        assert_close(one, two, atol=1e-12)
    for (name, one), two in zip(here[0][-1].named_buffers(), there[0][-1].buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    assert here[2].cost == there[2].cost


def test_other_parts_are_learnt_from_before_the_attack_is_waited_for():
    order = []

    class Watched(rk.Concurrent):
        name = "watched"

        def begin(self, lesson):
            pending = super().begin(lesson)
            order.append("begun")
            return lambda: (order.append("waited for"), pending())[1]

    defense = Watched(threat=THREAT, device="cpu")
    model = defense.prepare(rk.wrap(conv_net().train()))
    model.net.bn.register_forward_hook(lambda layer, args, out: order.append(len(args[0])))
    lesson = Lesson(model, *batch(), default_ids(6), TrainState(), "x", THREAT, "split")
    terms = defense.learn(lesson)
    assert order == [6, "begun", 6, "waited for", 6]  # never one batch of both
    assert list(terms) == ["clean", "adversarial"] == list(lesson.accuracy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "no such device"),
        ({"device": "stream"}, "no such device"),
        ({"device": "nowhere"}, "no such device"),
        ({"device": "meta"}, "no such device"),
        ({"device": "cpu", "tau": 0}, "tau of 1"),
        ({"device": "cpu", "attack_mode": "eval"}, "train_frozen_stats"),
    ],
)
def test_devices_that_cannot_serve_are_refused(options, message):
    defense = concurrent(**options)
    model = rk.wrap(conv_net().train())
    split(model, 2)
    with pytest.raises(UsageError, match=message):
        defense.step(model, *batch())


def test_an_attack_here_and_now_leaves_nothing_behind():
    net = mlp()
    lesson = Lesson(rk.wrap(net), *batch(), default_ids(6), TrainState(), "x", THREAT)
    doubled = {name: 2 * p.detach() for name, p in net.named_parameters()}
    found = attack_aside(lambda there: there.model(there.x), lesson, doubled, "same")
    twin = mlp()
    twin.load_state_dict(doubled)
    assert torch.equal(found(), twin(lesson.x))
