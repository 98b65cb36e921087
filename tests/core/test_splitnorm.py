"""Split batch normalisation against networks that pass every part alone; running statistics that must not learn."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import robustkit as rk
from robustkit.core.batchnorm import normalising
from robustkit.core.errors import UsageError
from robustkit.core.lesson import Lesson, TrainState
from robustkit.core.splitnorm import branch, branches, merge, split, split_layers

X = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(6) % 3


def conv_net(norm=nn.BatchNorm2d):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm(4), nn.Flatten(), nn.Linear(16, 3))
    net[1].running_mean.fill_(0.1)
    nn.init.uniform_(net[1].weight)
    return net.double()


def split_net(norm=nn.BatchNorm2d, parts=2):
    net = conv_net(norm)
    split(rk.wrap(net), parts)
    return net


def statistics(net):
    return {key: value.clone() for key, value in net.state_dict().items() if "running" in key or "tracked" in key}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_every_part_is_normalised_as_by_a_network_of_its_own(norm):
    net, twins = split_net(norm, 3), [conv_net(norm) for _ in range(3)]
    torch.testing.assert_close(net(X), torch.cat([twin(part) for twin, part in zip(twins, X.split(2), strict=True)]))
    layer = net[1]
    for own, twin in zip([layer, *layer.aux_bn], twins, strict=True):
        assert torch.equal(own.running_var, twin[1].running_var) and own.num_batches_tracked == 1
    assert torch.equal(net.eval()(X), twins[0].eval()(X))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_without_the_auxiliary_keys_a_checkpoint_is_that_of_the_plain_network(norm):
    plain, net = conv_net(norm), split_net(norm)
    kept = {key: value for key, value in net.state_dict().items() if ".aux_bn." not in key}
    assert_equal(kept, plain.state_dict())
    assert len(kept) < len(net.state_dict())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_merging_gives_the_plain_network_back(norm):
    plain, net = conv_net(norm), split_net(norm)
    weight = net[1].weight
    assert merge(net) is net and type(net[1]) is norm and net[1].weight is weight and branches(net) == 1
    assert_equal(net.state_dict(), plain.state_dict())
    assert torch.equal(net(X), plain(X)) and torch.equal(net.eval()(X), plain.eval()(X))


def test_the_main_branch_keeps_its_parameters_modes_and_gradients_switched_off():
    net = conv_net().half()
    layer = net[1].eval().requires_grad_(False)
    split(rk.wrap(net), 2)
    assert net[1].weight is layer.weight and net[1].running_mean is layer.running_mean
    for own in (net[1], net[1].aux_bn[0]):
        assert own.weight.dtype == own.running_var.dtype == torch.half
        assert not own.training and not own.weight.requires_grad
    assert net[0].training and net[0].weight.requires_grad


def test_a_layer_that_is_used_twice_stays_one_layer():
    norm = nn.BatchNorm2d(2)
    net = nn.Sequential(norm, nn.ReLU(), norm)
    split(rk.wrap(net), 2)
    assert net[0] is net[2] and len(split_layers(net)) == 1


def test_splitting_again_changes_nothing_and_otherwise_is_refused():
    net = split_net()
    layer = net[1]
    split(rk.wrap(net), 2)
    assert net[1] is layer
    with pytest.raises(UsageError, match="expected 3 branches, got 2 branches"):
        split(rk.wrap(net), 3)


def test_a_network_without_batch_normalisation_is_left_alone():
    net = nn.Sequential(nn.Linear(2, 3))
    before = list(net.modules())
    assert split(rk.wrap(net), 2).net is net and list(net.modules()) == before


@pytest.mark.parametrize(
    ("layer", "got"),
    [
        (nn.BatchNorm1d(3), "BatchNorm1d in '1'"),
        (nn.BatchNorm3d(3), "BatchNorm3d"),
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
        (nn.BatchNorm2d(3, track_running_stats=False), "without running statistics"),
    ],
)
def test_what_timm_cannot_convert_is_refused(layer, got):
    net = nn.Sequential(nn.BatchNorm2d(3), layer)
    with pytest.raises(UsageError, match=got):
        split(rk.wrap(net), 2)
    assert type(net[0]) is nn.BatchNorm2d


def test_one_part_and_a_single_layer_are_refused():
    with pytest.raises(UsageError, match="nothing to split"):
        split(rk.wrap(conv_net()), 1)
    with pytest.raises(UsageError, match="cannot be split"):
        split(rk.wrap(nn.BatchNorm2d(2)), 2)


# -- branches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_a_whole_batch_goes_through_one_branch(norm, place, training):
    net, plain = split_net(norm), conv_net(norm)
    own = net[1].aux_bn[0] if place else net[1]
    with torch.no_grad():
        for layer in (own, plain[1]):
            layer.weight.mul_(2)
            layer.running_var.fill_(3)
    with branch(net.train(training), place):
        found = net(X[:5])  # a number that cannot be halved
    assert torch.equal(found, plain.train(training)(X[:5]))
    assert torch.equal(own.running_mean, plain[1].running_mean)


def test_branches_are_left_also_after_an_error():
    net = split_net()
    with pytest.raises(RuntimeError), branch(net, 1):
        raise RuntimeError
    assert "forward" not in vars(net[1])


# -- running statistics that do not learn ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_plain_layers_do_not_learn_where_they_must_not(norm):
    net, twin = conv_net(norm), conv_net(norm)
    before = statistics(net)
    with normalising(net, [1], ()):
        found = net(X)
    assert_equal(statistics(net), before)
    assert torch.equal(found, twin(X)) and net[1].track_running_stats


def lesson_of(net, statistics):
    return Lesson(rk.wrap(net), X, Y, torch.arange(6), TrainState(), "test", statistics=statistics)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_split_layers_learn_nothing_inside_unlearnt_and_normalise_every_part_by_itself(norm):
    net = split_net(norm)
    expected = copy.deepcopy(net)(torch.cat([X, X.flip(2)]))
    before = statistics(net)
    lesson = lesson_of(net, "split")
    with lesson.unlearnt():
        found = lesson.forward({"clean": X, "adversarial": X.flip(2)})
    assert_equal(statistics(net), before)
    assert torch.equal(torch.cat(list(found.values())), expected)
    lesson.forward({"clean": X, "adversarial": X.flip(2)})
    assert all(torch.ne(value, before[key]).any() for key, value in statistics(net).items())


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen_stats"])
def test_attacks_see_the_layers_of_their_part(mode, place):
    net, twin = split_net(), split_net()
    own, other = (net[1].aux_bn[0], net[1]) if place else (net[1], net[1].aux_bn[0])
    with torch.no_grad():
        for changed in (own, (twin[1].aux_bn[0] if place else twin[1])):
            changed.running_mean.fill_(0.7)
    before, idle = statistics(net), other.running_var.clone()
    with branch(twin.train(mode != "eval"), place):
        expected = twin(X[:5])
    with lesson_of(net, "split").attacking(mode, place):
        assert torch.equal(net(X[:5]), expected)
    assert torch.equal(other.running_var, idle)
    if mode == "train":
        assert own.num_batches_tracked == 1
    else:
        assert_equal(statistics(net), before)
    assert all(layer.training for layer in net.modules())


@pytest.mark.parametrize(
    ("kind", "place"), [(rk.TRADES, 1), (rk.RAT, 0), (rk.Concurrent, 1)], ids=["trades", "rat", "concurrent"]
)
def test_defenses_attack_through_the_layers_of_the_part_that_is_attacked(kind, place):
    """Layers of weight zero leave nothing of the inputs: no gradient, and the attack stays at its start."""
    defense = kind(threat=rk.Linf(0.1), steps=1, statistics="split")
    assert defense.place == place
    for zero in (0, 1):
        net = conv_net()
        model = defense.prepare(rk.wrap(net))
        with torch.no_grad():
            [net[1], *net[1].aux_bn][zero].weight.zero_()
        lesson = Lesson(model, X, Y, torch.arange(6), TrainState(), "test", defense.threat, "split")
        start, end = defense.attack(lesson)
        assert torch.equal(start, end) == (zero == place)


def test_a_step_on_layers_that_are_not_split_as_the_defense_needs_is_refused():
    defense = rk.TRADES(threat=rk.Linf(0.1), steps=1, statistics="split")
    with pytest.raises(UsageError, match=r"prepare\(model\)"):
        defense.step(rk.wrap(conv_net()), X, Y)
    with pytest.raises(UsageError, match="merge"):
        rk.ERM().step(rk.wrap(split_net()), X, Y)
    defense.step(rk.wrap(split_net()), X, Y)
