"""AMP against a slow loop written from algorithm 1, and against the trainings that it becomes at its limits."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

import robustkit as rk
from robustkit.core.defense import defense_from
from robustkit.core.keyed import default_ids
from robustkit.core.lesson import Lesson, TrainState
from robustkit.defenses.adversarial import PGDAT
from robustkit.defenses.amp import AMP
from robustkit.defenses.erm import ERM
from robustkit.defenses.trades import TRADES
from tests.defenses.lessons import assert_close, batch, conv_net, gradients_of, grads, mlp, trained, weights_of


def norm(tensors: list[torch.Tensor]) -> float:
    return sum(float(t.square().sum()) for t in tensors) ** 0.5


def shortened(move: dict[str, torch.Tensor], eps: float, scope: str) -> dict[str, torch.Tensor]:
    groups = [list(move)] if scope == "global" else [[name] for name in move]
    lengths = {name: norm([move[n] for n in group]) for group in groups for name in group}
    return {name: d if lengths[name] <= eps else d * (eps / lengths[name]) for name, d in move.items()}


def slow(net: nn.Module, x: torch.Tensor, y: torch.Tensor, defense: AMP) -> dict[str, torch.Tensor]:
    """Gradients after N steps of ascent, each on a network of its own; running statistics are left out."""
    home = {name: p.detach().clone() for name, p in net.named_parameters()}
    move = {name: torch.zeros_like(w) for name, w in home.items()}
    for inner in range(defense.inner_steps + 1):
        there = copy.deepcopy(net).train()
        with torch.no_grad():
            for name, p in there.named_parameters():
                p.copy_(home[name] + move[name])
        grad = gradients_of(F.cross_entropy(there(x), y), there)
        if inner == defense.inner_steps:
            return grad
        length = norm(list(grad.values()))
        if defense.clip is not None:  # as torch.nn.utils.clip_grad_norm_ does
            grad = {name: g * min(1.0, defense.clip / (length + 1e-6)) for name, g in grad.items()}
        move = shortened({n: move[n] + defense.zeta * grad[n] for n in move}, defense.eps, defense.norm_scope)
    raise AssertionError


@pytest.mark.parametrize("make", [conv_net, mlp])
@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("eps", "zeta", "clip"), [(0.5, 1.0, None), (0.05, 2.0, None), (0.3, 1.0, 0.2), (9.0, 0.1, None)]
)
def test_step_is_the_slow_one_of_the_paper(make, scope, steps, eps, zeta, clip):
    defense = AMP(eps=eps, zeta=zeta, clip=clip, inner_steps=steps, norm_scope=scope)
    net, (x, y) = make().train(), batch()
    expected = slow(net, x, y, defense)
    found = defense.step(rk.wrap(net), x, y)
    assert_close(grads(net), expected)
    plain = gradients_of(F.cross_entropy(net(x), y), net)
    assert any(float((plain[name] - expected[name]).abs().max()) > 1e-3 for name in plain)
    assert (found.cost.forwards, found.cost.backwards) == ((steps + 1) * len(x),) * 2


def test_training_is_the_optimiser_at_the_weights_as_they_are():
    """Weight decay and momentum see the weights before the perturbation: three steps by hand."""
    net, (x, y) = mlp().train(), batch()
    defense, velocity = AMP(eps=0.2), {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(3):
        there = mlp()
        with torch.no_grad():
            for name, p in there.named_parameters():
                p.copy_(weights[name])
        for name, grad in slow(there, x, y, defense).items():
            velocity[name] = 0.9 * velocity.get(name, 0) + grad + 0.01 * weights[name]
            weights[name] = weights[name] - 0.1 * velocity[name]
        defense.step(rk.wrap(net), x, y)
        optimizer.step()
    assert_close(dict(net.named_parameters()), weights)


@pytest.mark.parametrize("inner", [ERM(label_smoothing=0.1), PGDAT(steps=2, threat=rk.Linf(0.1))])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_eps_0_is_the_training_inside(inner, steps, scope):
    """The weights exactly; running statistics learn N + 1 times a step unless they are frozen."""
    plain = trained(inner, conv_net)
    frozen = trained(AMP(eps=0, inner_steps=steps, norm_scope=scope, around=inner), conv_net)
    assert_close(frozen, plain, atol=0)
    learnt = trained(AMP(eps=0, inner_steps=steps, norm_scope=scope, freeze_bn=False, around=ERM()), conv_net)
    tracked = "bn.num_batches_tracked"
    assert int(learnt[tracked]) == (steps + 1) * int(plain[tracked])
    if isinstance(inner, PGDAT):
        return
    learnt = trained(AMP(eps=0, inner_steps=steps, norm_scope=scope, freeze_bn=False, around=inner), conv_net)
    assert_close(weights_of(learnt), weights_of(plain), atol=0)
    assert not torch.equal(learnt["bn.running_mean"], plain["bn.running_mean"])


def test_eps_0_is_the_training_inside_with_dropout():
    """Every pass of a step draws the same masks."""

    def net() -> nn.Module:
        return nn.Sequential(mlp()[:3], nn.Dropout(0.5), mlp()[3:]).double()

    assert_close(trained(AMP(eps=0, inner_steps=2), net), trained(ERM(), net), atol=0)


@pytest.mark.parametrize("freeze", [True, False])
def test_running_statistics_learn_where_they_are_told_to(freeze):
    net, (x, y) = conv_net().train(), batch()
    slow = copy.deepcopy(net)
    AMP(eps=0.5, freeze_bn=freeze).step(rk.wrap(net), x, y)
    grad = gradients_of(F.cross_entropy(slow(x), y), slow)
    if not freeze:
        with torch.no_grad():
            for name, p in slow.named_parameters():
                p += shortened(grad, 0.5, "tensor")[name]
        slow(x)
    assert_close(dict(net.named_buffers()), dict(slow.named_buffers()), atol=1e-13)


class Witness(ERM):
    """Where the loss is computed: the weights, one after the other."""

    def loss(self, lesson, outputs, parts):
        self.seen.append({name: p.detach().clone() for name, p in lesson.model.net.named_parameters()})
        return super().loss(lesson, outputs, parts)


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_perturbations_lie_in_the_ball(scope):
    net, inner, defense = conv_net().train(), Witness(), AMP(eps=0.25, zeta=3.0, inner_steps=4, norm_scope=scope)
    object.__setattr__(inner, "seen", [])
    object.__setattr__(defense, "around", inner)
    defense.step(rk.wrap(net), *batch())
    home, *there = inner.seen
    assert len(there) == 4
    for weights in there:
        lengths = [norm([weights[name] - home[name]]) for name in home]
        size = sum(length**2 for length in lengths) ** 0.5 if scope == "global" else max(lengths)
        assert size <= 0.25 * (1 + 1e-12)
    assert size == pytest.approx(0.25)


@pytest.mark.parametrize("zeta", [1e-2, 1e6])
def test_global_and_one_step_it_is_sharpness_aware_minimisation_that_clips(zeta):
    """SAM moves to w + rho g / |g|; here it is w + zeta g inside the ball, and just that where the ball ends."""
    net, (x, y) = mlp().train(), batch()
    rho, there = 0.05, copy.deepcopy(net)
    grad = gradients_of(F.cross_entropy(there(x), y), there)
    length = norm(list(grad.values()))
    assert 1e-2 * length < rho < 1e6 * length
    with torch.no_grad():
        for name, p in there.named_parameters():
            p += (zeta if zeta < 1 else rho / length) * grad[name]
    AMP(eps=rho, zeta=zeta, norm_scope="global").step(rk.wrap(net), x, y)
    assert_close(grads(net), gradients_of(F.cross_entropy(there(x), y), there))


@pytest.mark.parametrize("statistics", ["shared", "clean"])
def test_around_trades_inputs_are_made_once_at_the_weights_as_they_are(statistics):
    inner = TRADES(steps=2, threat=rk.Linf(0.1), statistics=statistics)
    net, (x, y), state = conv_net().train(), batch(), TrainState(seed=3)
    model, there = rk.wrap(net), copy.deepcopy(net)
    lesson = Lesson(model, x, y, default_ids(len(x)), state, "slow", inner.threat, inner.bn)
    parts = {name: part.clone() for name, part in inner.craft(lesson).items()}

    def total(network: nn.Module) -> torch.Tensor:
        elsewhere = Lesson(rk.wrap(network), x, y, lesson.ids, state, "slow", inner.threat, inner.bn)
        return sum(inner.loss(elsewhere, elsewhere.forward(parts), parts).values())

    move = shortened(gradients_of(total(there), there), 0.5, "tensor")
    with torch.no_grad():
        for name, p in there.named_parameters():
            p += move[name]
    found = AMP(around=inner).step(model, x, y, state)
    value = total(there)
    torch.testing.assert_close(found.loss, value.detach(), atol=1e-12, rtol=0)
    assert_close(grads(net), gradients_of(value, there))
    assert found.terms.keys() == {"clean", "kl"}


def test_a_parameter_without_gradient_does_not_matter():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.idle = mlp(), nn.Linear(3, 3)
            self.net[1].bias.requires_grad_(False)

        def forward(self, x):
            return self.net(x)

    net, plain, (x, y) = Idle().train(), mlp().train(), batch()
    plain[1].bias.requires_grad_(False)
    AMP(inner_steps=2).step(rk.wrap(net), x, y)
    AMP(inner_steps=2).step(rk.wrap(plain), x, y)
    assert net.idle.weight.grad is None and net.net[1].bias.grad is None
    assert torch.equal(net.net[1].weight.grad, plain[1].weight.grad)


def test_a_loss_that_is_flat_everywhere_moves_nothing():
    """All gradients are zero, and eps, too: no division makes them no numbers."""
    net = mlp().train()
    with torch.no_grad():
        net[3].weight.zero_()
    net[3].bias.requires_grad_(False)
    net[3].weight.requires_grad_(False)
    for eps in (0, 0.5):
        AMP(eps=eps, clip=1.0, norm_scope="global").step(rk.wrap(net), *batch())
        assert all(float(p.grad.abs().max()) == 0 for p in net.parameters() if p.requires_grad)


def test_text():
    assert defense_from("amp") == AMP(around=ERM())
    text = "amp:eps=0.25,inner_steps=2,norm_scope=global,clip=50.0,freeze_bn=False+pgd-at:steps=7"
    made = AMP(eps="1/4", inner_steps=2, norm_scope="global", clip=50, freeze_bn=False, around=PGDAT(steps=7))
    assert defense_from(made.text) == made == defense_from(text)


@pytest.mark.parametrize(
    "options", [{"eps": -1}, {"zeta": 0}, {"inner_steps": 0}, {"norm_scope": "all"}, {"clip": 0}, {"eps": "nan"}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        AMP(**options)
