"""FGSM-RS and Free: one step of PGD-AT, and the shared gradient with its perturbation that is kept."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import nn

import robustkit as rk
from robustkit.core.defense import defense_from
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.lesson import TrainState
from robustkit.core.model import NoGradient
from robustkit.defenses.adversarial import PGDAT
from robustkit.defenses.fgsm_rs import FGSMRS
from robustkit.defenses.free import Free

THREATS = [rk.Linf(0.2), rk.L2(0.5), rk.L1(1.5)]
LR = 0.5


def network(dtype=torch.double):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 3)
        )
    return net.to(dtype).train()


def batch(n=4, seed=1, size=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, size, size, generator=generator, dtype=torch.double)
    return (2 * x - 0.5).clamp(0, 1), torch.randint(0, 3, (n,), generator=generator)


BATCHES = [batch(seed=0), batch(seed=1), batch(n=2, seed=2), batch(seed=3)]


def descend(net, grads=None):
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter -= LR * (parameter.grad if grads is None else grads[number])


def train(defense, batches=BATCHES, state=None, net=None):
    """The loop of a trainer: each batch as often as the defense wants, plain gradient descent."""
    net, state = net or network(), state or TrainState(seed=5)
    model = rk.wrap(net)
    for x, y in batches:
        for _ in range(defense.replays):
            defense.step(model, x, y, state)
            descend(net)
    return net, state


def assert_equal(ours, theirs):
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# -- FGSM-RS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_fgsm_rs_is_one_step_of_pgd_at(threat, mode):
    ours = train(FGSMRS(threat=threat, attack_mode=mode))[0]
    theirs = train(PGDAT(threat=threat, attack_mode=mode, steps=1, step_size=1.25 * threat.eps))[0]
    assert_equal(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(("options", "alpha"), [({}, 0.25), ({"step_size": 0.1}, 0.1)])
def test_fgsm_rs_written_out(options, alpha):
    """As published: d uniform, one signed step of alpha, clipped to the ball and the image."""
    net, (x, y) = network(), batch()
    start = (x + 0.2 * (2 * Draws(5, torch.arange(4), "train", 0).uniform(x) - 1)).clamp(0, 1).requires_grad_()
    net.eval()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(start), y), start)
    delta = (start.detach() - x + alpha * grad.sign()).clamp(-0.2, 0.2)
    net.train()
    loss = nn.functional.cross_entropy(net((x + delta).clamp(0, 1)), y)
    wanted = torch.autograd.grad(loss, list(net.parameters()))

    net = network()
    step = FGSMRS(threat=rk.Linf(0.2), **options).step(rk.wrap(net), x, y, TrainState(seed=5))
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-12, atol=0)
    for parameter, grad in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-13)


def test_fgsm_rs_follows_the_ramp():
    (x, y), nets = batch(), []
    for threat, strength in [(rk.Linf(0.2), 0.5), (rk.Linf(0.1), 1.0)]:
        nets.append(network())
        FGSMRS(threat=threat).step(rk.wrap(nets[-1]), x, y, TrainState(strength=strength))
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(("mode", "seen"), [("eval", 1), ("train", 2), ("train_frozen_stats", 1)])
def test_fgsm_rs_in_the_mode_of_its_authors_teaches_statistics_twice(mode, seen):
    net = network()
    FGSMRS(threat=rk.Linf(0.2), attack_mode=mode).step(rk.wrap(net), *batch())
    assert int(net[1].num_batches_tracked) == seen


def test_fgsm_rs_has_no_steps_to_choose():
    assert FGSMRS().steps == 1
    with pytest.raises(UsageError, match="no option 'steps'"):
        defense_from("fgsm-rs:steps=2")
    with pytest.raises(ValidationError):
        FGSMRS(steps=2)
    assert FGSMRS(step_size="10/255").with_threat(rk.Linf(0.1)).text == "fgsm-rs:step_size=0.0392156862745098"


def test_fgsm_rs_costs_two_passes():
    cost = FGSMRS(threat=rk.Linf(0.2)).step(rk.wrap(network()), *batch()).cost
    assert cost.forwards == cost.backwards == 2 * 4


# -- Free ------------------------------------------------------------------------------------------------------------


def slow_free(threat, replays, alpha=None, smoothing=0.0):
    """As published: one loss, its gradients for weights and perturbation, which lives on over batches."""
    net, delta = network(), torch.zeros_like(BATCHES[0][0])
    for x, y in BATCHES:
        for _ in range(replays):
            adv = threat.project(x + delta[: len(x)], x, rk.wrap(net).bounds).requires_grad_()
            loss = nn.functional.cross_entropy(net(adv), y, label_smoothing=smoothing)
            *grads, grad = torch.autograd.grad(loss, [*net.parameters(), adv])
            delta[: len(x)] = threat.step(adv.detach(), x, grad, alpha or threat.eps, rk.wrap(net).bounds) - x
            descend(net, grads)
    return net, delta


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize(("replays", "options"), [(1, {}), (3, {"step_size": 0.05, "label_smoothing": 0.1})])
def test_free_against_the_algorithm(threat, replays, options):
    """With one replay: FGSM with a perturbation that is kept."""
    net, state = train(Free(threat=threat, replays=replays, **options))
    slow, delta = slow_free(threat, replays, options.get("step_size"), options.get("label_smoothing", 0.0))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, slow.state_dict()[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state.memory["free/delta"], delta, rtol=1e-9, atol=1e-12)
    assert (threat.distance(delta, torch.zeros_like(delta)) <= threat.eps + 1e-12).all()


def test_the_first_replay_is_ordinary_training():
    """The perturbation begins at zero."""
    (x, y), net, plain = batch(), network(), network()
    Free(threat=rk.Linf(0.2)).step(rk.wrap(net), x, y)
    nn.functional.cross_entropy(plain(x), y).backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=0)


def test_free_passes_forward_and_backward_once():
    net, passes = network(), {"forward": 0, "backward": 0}
    net.register_forward_hook(lambda module, *_: passes.update(forward=passes["forward"] + module.training))
    net[0].register_full_backward_hook(lambda *_: passes.update(backward=passes["backward"] + 1))
    defense, state = Free(threat=rk.Linf(0.2)), TrainState()
    for number in range(1, 4):
        cost = defense.step(rk.wrap(net), *batch(), state).cost
        assert passes == {"forward": number, "backward": number} and (cost.forwards, cost.backwards) == (4, 4)
    assert defense.replays == 8 and int(net[1].num_batches_tracked) == 3


def test_what_free_trains_on_lies_in_ball_and_bounds_of_the_present_batch():
    net, seen = network(), []
    net.register_forward_pre_hook(lambda module, args: seen.extend([args[0].detach().clone()] * module.training))
    train(Free(threat=rk.Linf(0.2), replays=2), net=net)
    inputs = [x for x, _ in BATCHES for _ in range(2)]
    assert len(seen) == len(inputs)
    for adv, x in zip(seen, inputs, strict=True):
        assert float(adv.min()) >= 0 and float(adv.max()) <= 1 and float((adv - x).abs().max()) <= 0.2 + 1e-12
    assert float((seen[2] - inputs[2]).abs().max()) > 0.1  # the second batch begins where the first ended


def test_free_goes_on_from_a_checkpoint_bit_for_bit():
    defense = Free(threat=rk.L2(0.5), replays=2)
    whole, at_end = train(defense)
    net, state = train(defense, BATCHES[:2])
    kept = load(save(net.state_dict())), load(save(state.memory))
    again = network()
    again.load_state_dict(kept[0])
    resumed = TrainState(seed=5, step=state.step, memory=dict(kept[1]))
    again, end = train(defense, BATCHES[2:], resumed, again)
    assert_equal(whole.state_dict(), again.state_dict())
    assert_equal(at_end.memory, end.memory)


def test_a_small_batch_leaves_the_other_rows_and_a_large_one_adds_some():
    defense, state, model = Free(threat=rk.Linf(0.2)), TrainState(), rk.wrap(network())
    defense.step(model, *batch(3), state)
    first = state.memory["free/delta"]
    defense.step(model, *batch(2, seed=7), state)
    second = state.memory["free/delta"]
    assert len(second) == 3 and torch.equal(second[2], first[2]) and not torch.equal(second[:2], first[:2])
    defense.step(model, *batch(4, seed=8), state)
    assert len(state.memory["free/delta"]) == 4


def test_inputs_of_another_shape_begin_at_zero():
    class Pooled(nn.Sequential):
        """Takes images of any size."""

    net = Pooled(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().train()
    defense, state = Free(threat=rk.Linf(0.2)), TrainState()
    defense.step(rk.wrap(net), *batch(), state)
    x, y = batch(size=4)
    step = defense.step(rk.wrap(net), x, y, state)
    torch.testing.assert_close(step.loss, nn.functional.cross_entropy(net(x), y).detach(), rtol=1e-12, atol=0)
    assert state.memory["free/delta"].shape == x.shape


def test_free_in_bfloat16_keeps_its_perturbation_in_the_network_s_own_type():
    net, state = network(torch.float32), TrainState(precision="bfloat16")
    x, y = batch()
    Free(threat=rk.Linf(0.2)).step(rk.wrap(net), x.float(), y, state)
    delta = state.memory["free/delta"]
    assert delta.dtype == torch.float32 and float(delta.abs().max()) == pytest.approx(0.2)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_free_needs_a_gradient_with_respect_to_the_inputs():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    net = nn.Sequential(Cut(), nn.Flatten(), nn.Linear(18, 3)).double().train()
    with pytest.raises(NoGradient, match="no differentiable path"):
        Free(threat=rk.Linf(0.2)).step(rk.wrap(net), *batch())


@pytest.mark.parametrize("outer", ["awp", "amp"])
def test_free_is_no_loss_that_could_be_wrapped(outer):
    with pytest.raises(UsageError, match=f"{outer} wraps a loss, and free is none"):
        defense_from(f"{outer}+free")
