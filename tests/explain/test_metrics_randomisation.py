"""Randomisation: execution order, one seed a layer, a private copy, and the original not among the stages."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.explain.gradient import Gradient
from robustkit.explain.metrics import randomise
from robustkit.explain.metrics.randomisation import _networks, cascade, reset
from robustkit.explain.smoothgrad import SmoothGrad


class Shuffled(nn.Module):
    """Registered from the outputs down, run from the inputs up; one layer is never called, one parameter is bare."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.scale = nn.Parameter(torch.rand(6, generator=generator) + 0.5)
        self.head = nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.idle = nn.Linear(2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(1, 4, 3)
        for p in self.parameters():
            p.data = torch.rand(p.shape, generator=generator) - 0.5

    def forward(self, x):
        x = self.norm(self.conv(x * self.scale)).tanh().flatten(2).movedim(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def problem(n: int = 3):
    model = wrap(Shuffled().eval())
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(4))
    return model, x


ORDER = ["head", "attention.out_proj", "attention", "norm", "conv", "idle", ""]


def test_layers_run_in_execution_order():
    model, x = problem()
    assert cascade(model, x) == ORDER  # `idle` never runs and has the place of the network around it
    assert [name for name, _ in model.net.named_children()] == ["head", "attention", "idle", "norm", "conv"]


def changed(model, net) -> set[str]:
    return {
        name.rpartition(".")[0]
        for name, p in net.named_parameters()
        if not torch.equal(p, model.net.get_parameter(name))
    }


def test_a_reset_layer_stays_reset_and_every_layer_has_a_seed_of_its_own():
    model, x = problem()
    layers = cascade(model, x)
    stages = []
    for twin in _networks(model, layers, tuple(range(1, 8)), "cascading", 0):
        stages.append({k: v.clone() for k, v in twin.net.state_dict().items()})
        assert changed(model, twin.net) == set(layers[: len(stages)])
    alone = list(_networks(model, layers, (3, 7), "independent", 0))
    assert [changed(model, twin.net) for twin in alone] == [{"attention"}, {""}]
    weight = "attention.in_proj_weight"
    assert torch.equal(alone[0].net.state_dict()[weight], stages[-1][weight])  # no other layer moved its draws
    other = next(iter(_networks(model, layers, (7,), "cascading", 1)))
    assert not torch.equal(other.net.state_dict()[weight], stages[-1][weight])
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net = next(iter(_networks(wrap(twins), ["1", "0"], (2,), "cascading", 0))).net
    assert not torch.equal(net[0].weight, net[1].weight)


def test_a_reset_draws_what_the_module_itself_would_and_forgets_running_statistics():
    norm = nn.BatchNorm2d(3)
    norm(torch.rand(4, 3, 5, 5))
    reset(norm)
    assert not norm.running_mean.any() and norm.weight.eq(1).all()
    linear = nn.Linear(50, 40)
    linear.weight.data *= 100
    reset(linear)
    assert 0 < float(linear.weight.detach().abs().max()) <= 50**-0.5


def test_a_reset_leaves_the_children_alone():
    layer = nn.Module()
    layer.own, layer.child = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)
    layer.reset_parameters = lambda: [p.data.fill_(7) for p in layer.parameters()]
    weight = layer.child.weight.clone()
    reset(layer)
    assert layer.own.eq(7).all() and torch.equal(layer.child.weight, weight)


def test_parameters_without_an_initialiser_are_drawn_with_their_own_size():
    bare = nn.Module()
    bare.p = nn.Parameter(torch.full((4000,), 3.0))
    bare.zero = nn.Parameter(torch.zeros(5))
    reset(bare)
    assert float(bare.p.detach().square().mean().sqrt()) == pytest.approx(3, rel=0.05)
    assert float(bare.p.detach().mean()) == pytest.approx(0, abs=0.2) and not bare.zero.any()
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(6, 6))  # its own initialiser writes to a weight that is computed
    before = old.weight_v.clone()
    reset(old)
    assert not torch.equal(before, old.weight_v)


def test_the_network_and_all_generators_stay_as_they_were():
    model, x = problem()
    model.net.train()
    model.net.norm.eval()
    explainer = Gradient()
    attribution = explainer(model, x)
    state, modes = model.state_sha256(), [m.training for m in model.net.modules()]
    generators = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    randomise(model, x, {"g": explainer}, {"g": attribution}, stages=3)
    assert model.state_sha256() == state and [m.training for m in model.net.modules()] == modes
    assert generators == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    assert not any(m._forward_pre_hooks for m in model.net.modules())


def test_equals_a_slow_version_and_leaves_the_original_out():
    model, x = problem()
    explainers = {"gradient": Gradient(), "smoothgrad": SmoothGrad(samples=4)}
    ids, target = torch.tensor([5, 1, 9]), torch.tensor([0, 2, 1])
    maps = {label: e(model, x, target, ids=ids, seed=7) for label, e in explainers.items()}
    seen = []
    with model.metered() as cost:
        found = randomise(model, x, explainers, maps, ids=ids, seed=7, stages=3, progress=lambda *a: seen.append(a))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for label, explainer in explainers.items():
        result = found[label]
        assert (result.layers, result.depths, result.total) == (("head", "norm", "Shuffled"), (1, 4, 7), 7)
        assert result.spearman.shape == (3, 3) and bool((result.spearman < 0.999).all())
        for stage, twin in enumerate(_networks(model, ORDER, (1, 4, 7), "cascading", 7)):
            moved = explainer(twin, x, target, ids=ids, seed=7).values[:, 0]
            for i in range(3):
                original = maps[label].values[i, 0]
                slow = spearmanr(original.abs().flatten(), moved[i].abs().flatten()).statistic
                assert float(result.spearman[i, stage]) == pytest.approx(slow, abs=1e-6)
                slow = spearmanr(original.flatten(), moved[i].flatten()).statistic
                assert float(result.signed[i, stage]) == pytest.approx(slow, abs=1e-6)
    assert sum(r.cost.forwards for r in found.values()) == cost.forwards
    assert found["smoothgrad"].cost.backwards == 3 * 3 * 4


def test_hidden_in_place_writes_do_not_leave_an_old_fast_copy_behind():
    """`weight.data` writes past the version counter that tells the fast copy of a change."""

    class Quiet(nn.Linear):
        def reset_parameters(self):
            self.weight.data.uniform_(-1, 1)
            self.bias.data.zero_()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), Quiet(64, 8), nn.Tanh(), Quiet(8, 8), nn.Tanh(), Quiet(8, 3))
    model, x = wrap(net), torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    attribution = Gradient()(model, x)
    found = randomise(model, x, {"g": Gradient()}, {"g": attribution}, stages=None)["g"]
    assert found.layers == ("5", "3", "1") and bool((found.spearman < 0.99).all())
    assert len({tuple(column) for column in found.spearman.T.tolist()}) == 3


def test_a_stage_without_a_map_is_nan_and_noted():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.full((16,), 0.5))

        def forward(self, x):
            z = (x.flatten(1) @ self.w.clamp_min(0).sqrt())[:, None]  # the root has no gradient below 0
            return torch.cat([z, (z * self.w.min()).sqrt()], 1)  # NaN once a weight is negative

    model, x = wrap(Fragile()), torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    maps = {"g": Gradient()(model, x, 1)}
    found = randomise(model, x, {"g": Gradient()}, maps)["g"]
    assert found.spearman.isnan().all() and found.spearman.shape == (2, 1)
    assert "no map of the reset network" in found.notes[0] and "not finite" in found.notes[0]


def test_a_constant_map_has_no_rank_correlation_and_says_so():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    net[1].weight.data[1] = 0.5
    model, x = wrap(net), torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    maps = {"g": Gradient()(model, x, torch.tensor([1, 0]))}
    found = randomise(model, x, {"g": Gradient()}, maps)["g"]
    assert found.spearman.isnan().tolist() == [[True], [False]]
    assert found.notes == ("no rank correlation at 1 of 2 stages: a map is constant",)


def test_bad_input_says_what_is_wrong():
    model, x = problem()
    explainers = {"g": Gradient()}
    maps = {"g": Gradient()(model, x)}
    with pytest.raises(UsageError, match=r"nothing to randomise.*network with parameters"):
        bare = wrap(lambda batch: batch.flatten(1)[:, :3])
        randomise(bare, x, explainers, {"g": Gradient()(bare, x)})
    with pytest.raises(UsageError, match="other inputs"):
        randomise(model, x + 0.01, explainers, maps)
    with pytest.raises(UsageError, match="do not match"):
        randomise(model, x, explainers, {"h": maps["g"]})
    with pytest.raises(UsageError, match=r"unknown order 'cascade'.*cascading"):
        randomise(model, x, explainers, maps, order="cascade")
    with pytest.raises(UsageError, match="stages is a whole number"):
        randomise(model, x, explainers, maps, stages=0)
    model.net.stuck = (torch.ones(1, requires_grad=True) * 2,)
    with pytest.raises(UsageError, match="cannot be copied"):
        randomise(model, x, explainers, maps)
