"""What every registered defense promises, alone and composed. A new one is picked up from the registry."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.core.defense import DEFENSES, Defense, defense_from
from robustkit.core.errors import UsageError
from robustkit.core.lesson import Lesson, TrainState
from tests.dense import PixelNet
from tests.nets import SmallNet

N = 6
CLASSES = {name: DEFENSES.get(name).cls for name in DEFENSES.names()}
THREATS = {"linf": rk.Linf(0.1), "l2": rk.L2(0.5), "l1": rk.L1(2.0)}


def short(name: str) -> str:
    """The defense as text, with few steps of its attack; weight defenses around PGD-AT."""
    if "around" in CLASSES[name].__dataclass_fields__:
        return f"{name}+pgd-at:steps=2"
    many = any(option.name == "steps" and option.default > 2 for option in DEFENSES.get(name).options())
    return f"{name}:steps=2" if many else name


CASES = [short(name) for name in CLASSES]
CASES += ["mart:steps=2,statistics=clean", "trades:steps=2,statistics=split,attack_mode=train_frozen_stats"]
CASES += ["amp+erm", "amp+trades:steps=2", "awp+mart:steps=2,statistics=split"]
CASES += ["drs:recipe=consistency,views=2", "awp+drs:sigma_right=0.1,shared=true"]
COST = {
    "erm": (1, 1),
    "noise": (1, 1),
    "pgd-at:steps=2": (3, 3),
    "trades:steps=2": (1 + 2 + 2, 2 + 2),
    "mart:steps=2": (2 + 2, 2 + 2),
    "rat:steps=2": (2 + 2, 2 + 2),
    "fgsm-rs": (2, 2),
    "free": (1, 1),
    "drs": (2, 2),
    "drs:recipe=consistency,views=2": (2 * 2, 2 * 2),
    "awp+drs:sigma_right=0.1,shared=true": (2 * 2, 2 * 2),
    "concurrent": (1 + 2, 1 + 2),
    "awp+pgd-at:steps=2": (2 + 2, 2 + 2),
    "amp+erm": (2, 2),
    "amp+pgd-at:steps=2": (2 + 2, 2 + 2),
    "amp+trades:steps=2": (1 + 2 + 2 * 2, 2 + 2 * 2),
    "awp+mart:steps=2,statistics=split": (2 + 2 * 2, 2 + 2 * 2),
}
"""Forwards and backwards of the batch in one step."""
BESIDE = {"clean", "noisy", "augmented"}
"""Parts that no threat has to hold; more than one of a kind have numbers."""


class Fuse(torch.autograd.Function):
    """The identity, which burns through in a forward or a backward of one's choice."""

    @staticmethod
    def forward(ctx, x, burn):
        ctx.burn = burn
        burn("forward")
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.burn("backward")
        return grad, None


class Fused(nn.Module):
    """A network that counts its passes and fails at the ``last`` one, if any."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.passes: list[str] = []
        self.last: int | None = None

    def burn(self, kind: str) -> None:
        self.passes.append(kind)
        if len(self.passes) == self.last:
            raise RuntimeError("burnt through")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(Fuse.apply(x, self.burn) if x.requires_grad else self._plain(x))

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        self.burn("forward")
        return x


def batch(dtype: torch.dtype = torch.float32, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, 6, 6, generator=draws, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 5, (n,), generator=draws)


def defense_of(text: str, norm: str = "linf") -> Defense:
    found = defense_from(text)
    return found.with_threat(THREATS[norm]) if found.adversarial else found


def model_for(defense: Defense, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> rk.Model:
    net = SmallNet(dtype).train()
    net.body[3].p = dropout
    return defense.prepare(rk.wrap(net))


def networks(model: rk.Model) -> list[nn.Module]:
    """The networks that share the work: mostly the one."""
    net = model.net
    return list(dict.fromkeys([net.left, net.right])) if isinstance(net, rk.SplitModel) else [net]


def gradients(model: rk.Model) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.net.parameters()]


def state_of(net: nn.Module) -> tuple:
    """All that a step has to leave as it was."""
    return (
        [(name, p.detach().clone()) for name, p in net.named_parameters()],
        [p.requires_grad for p in net.parameters()],
        [(name, m.training) for name, m in net.named_modules()],
        [sorted(vars(m)) for m in net.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()],
    )


def assert_same(before: tuple, after: tuple) -> None:
    for (name, one), (other_name, other) in zip(before[0], after[0], strict=True):
        assert name == other_name and torch.equal(one, other), name
    assert before[1:] == after[1:]


@pytest.fixture(params=CASES)
def text(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_fills_every_gradient_and_says_what_it_found(text, dtype):
    defense, state = defense_of(text), TrainState()
    model, (x, y) = model_for(defense, dtype), batch(dtype)
    for step in range(2):
        found = defense.step(model, x, y, state)
        assert state.step == step + 1
        for name, p in model.net.named_parameters():
            assert p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all(), name
        still = sum(float(p.grad.abs().max()) == 0 for p in model.net.parameters())
        assert still <= len(networks(model))
        assert found.loss.isfinite() and not found.loss.requires_grad and found.loss.dtype == dtype
        torch.testing.assert_close(found.loss, sum(found.terms.values()))
        assert all(term.ndim == 0 and not term.requires_grad for term in found.terms.values())
        assert found.accuracy and all(0 <= float(share) <= 1 for share in found.accuracy.values())


def test_step_moves_nothing_but_gradients_and_running_statistics(text):
    defense = defense_of(text)
    model, (x, y) = model_for(defense), batch()
    copies, rng, numbers = (x.clone(), y.clone()), torch.get_rng_state(), np.random.get_state()[1].copy()
    before = state_of(model.net)
    defense.step(model, x, y)
    assert_same(before, state_of(model.net))
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1]) and x.grad is None
    assert torch.equal(rng, torch.get_rng_state()) and (numbers == np.random.get_state()[1]).all()


def test_mixed_modes_and_fixed_parameters_stay_so(text):
    defense = defense_of(text)
    model, (x, y) = model_for(defense), batch()
    bodies = [net.body for net in networks(model)]
    for body in bodies:
        body[1].eval()
        body[0].weight.requires_grad_(False)
    before = state_of(model.net)
    buffers = [{name: tensor.clone() for name, tensor in body[1].state_dict().items()} for body in bodies]
    defense.step(model, x, y)
    assert_same(before, state_of(model.net))
    for body, kept in zip(bodies, buffers, strict=True):
        assert body[0].weight.grad is None and body[0].bias.grad is not None
        assert all(torch.equal(tensor, body[1].state_dict()[name]) for name, tensor in kept.items())


def test_everything_is_put_back_wherever_it_fails(text):
    """The network fails in every one of its forwards and backwards in turn."""
    defense = defense_of(text)
    x, y = batch()

    def fresh(last: int | None = None) -> rk.Model:
        model = defense.prepare(rk.wrap(Fused(SmallNet()).train()))
        model.output_shape(x)
        for net in networks(model):
            net.passes, net.last = seen, last
        seen.clear()
        return model

    seen: list[str] = []
    model = fresh()
    defense.step(model, x, y)
    passes = len(seen)
    assert passes >= 2 or not defense.adversarial
    for last in range(1, passes + 1):
        model, state, rng = fresh(last), TrainState(), torch.get_rng_state()
        before = state_of(model.net)
        with pytest.raises(RuntimeError, match="burnt through"):
            defense.step(model, x, y, state)
        assert_same(before, state_of(model.net))
        assert torch.equal(rng, torch.get_rng_state()) and state.step == 0


def test_old_gradients_are_dropped(text):
    defense = defense_of(text)
    model, other, (x, y) = model_for(defense), model_for(defense), batch()
    for p in other.net.parameters():
        p.grad = torch.ones_like(p)
    defense.step(model, x, y)
    defense.step(other, x, y)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(other), strict=True))


def test_cost_is_what_passed_through_the_network(text):
    defense, state, rows, back = defense_of(text), TrainState(), [], []
    model, (x, y) = model_for(defense), batch()
    defense.step(model, x, y, state)  # what is needed once is not counted
    for net in networks(model):
        net.body[0].register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
        net.body[5].register_full_backward_hook(lambda layer, grad_in, grad_out: back.append(len(grad_out[0])))
    before = dataclasses.replace(model.cost)
    found = defense.step(model, x, y, state)
    assert found.cost.forwards == sum(rows) == model.cost.forwards - before.forwards
    assert found.cost.backwards == sum(back) == model.cost.backwards - before.backwards
    assert rows[-1] == defense.parts * N
    if text in COST:
        assert (found.cost.forwards, found.cost.backwards) == tuple(N * times for times in COST[text])
    assert state.cost.forwards == 2 * found.cost.forwards and state.cost.backwards == 2 * found.cost.backwards


def test_same_seed_and_step_same_bits(text):
    defense, (x, y) = defense_of(text), batch()

    def run(seed: int, step: int) -> list[torch.Tensor]:
        model = model_for(defense)
        defense.step(model, x, y, TrainState(seed=seed, step=step))
        return gradients(model)

    first, again, other_seed, other_step = run(3, 4), run(3, 4), run(9, 4), run(3, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other_seed, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other_step, strict=True))


def test_draws_belong_to_samples_not_to_places(text):
    """The batch in another order, with the ids that go with it: the same loss and gradients, but for rounding."""
    defense, (x, y) = defense_of(text), batch(torch.float64)
    ids, order = torch.tensor([11, 3, 99, 42, 7, 0]), torch.tensor([4, 0, 5, 2, 1, 3])
    model, other = (model_for(defense, torch.float64, dropout=0.0) for _ in range(2))
    one = defense.step(model, x, y, TrainState(seed=1), ids=ids)
    two = defense.step(other, x[order], y[order], TrainState(seed=1), ids=ids[order])
    torch.testing.assert_close(one.loss, two.loss, atol=1e-10, rtol=0)
    for a, b in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_what_it_remembers_survives_a_checkpoint(text):
    """Steps in one go, and with weights and memory moved into new objects between them, end at the same bits."""
    x, y = batch()

    def train(defense: Defense, model: rk.Model, state: TrainState, steps: int) -> None:
        for _ in range(steps):
            defense.step(model, x, y, state)
            with torch.no_grad():
                for p in model.net.parameters():
                    p -= 0.1 * p.grad

    whole, state = defense_of(text), TrainState(seed=2)
    model = model_for(whole)
    train(whole, model, state, 4)
    first, half = defense_of(text), TrainState(seed=2)
    cut = model_for(first)
    train(first, cut, half, 2)
    kept = {name: tensor.clone() for name, tensor in half.memory.items()}
    owners = {piece.partition(":")[0] for piece in text.split("+")}
    assert all(name.partition("/")[0] in owners and not tensor.requires_grad for name, tensor in kept.items())
    second = defense_of(text)
    resumed = model_for(second)
    resumed.net.load_state_dict({k: v.clone() for k, v in cut.net.state_dict().items()})
    train(second, resumed, TrainState(seed=2, step=2, memory=kept), 2)
    assert all(torch.equal(v, resumed.net.state_dict()[k]) for k, v in model.net.state_dict().items())


@pytest.mark.parametrize("norm", THREATS)
def test_parts_lie_in_the_threat_and_the_bounds(text, norm, monkeypatch):
    defense, passed, seen = defense_of(text, norm), Lesson.passed, []

    def watched(lesson, parts, *more, **others):
        seen.append({name: part.detach().clone() for name, part in parts.items()})
        return passed(lesson, parts, *more, **others)

    monkeypatch.setattr(Lesson, "passed", watched)
    model, (x, y) = model_for(defense, torch.float64), batch(torch.float64)
    state = TrainState()
    for _ in range(3):
        defense.step(model, x, y, state)
    assert seen
    for parts in seen:
        assert len(parts) == defense.parts
        for name, part in parts.items():
            assert part.shape == x.shape
            kind = name.rstrip("0123456789")
            assert kind == "noisy" or ((part >= 0).all() and (part <= 1).all())
            if kind not in BESIDE:
                assert (THREATS[norm].distance(part, x) <= THREATS[norm].eps * (1 + 1e-9)).all()
                assert (part - x).flatten(1).abs().amax(1).gt(0).all() or len(seen) > 1
    assert not defense.adversarial or any(set(parts) - BESIDE for parts in seen)


def test_dense_tasks_or_a_message_that_names_the_task(text):
    defense = defense_of(text)
    draws = torch.Generator().manual_seed(4)
    x = torch.rand(3, 3, 8, 8, generator=draws, dtype=torch.float64)
    y = torch.randint(0, 5, (3, 8, 8), generator=draws)
    model = defense.prepare(rk.wrap(PixelNet().train(), task="segmentation"))
    if defense.logits:
        with pytest.raises(UsageError, match=r"class probabilities.*segmentation"):
            defense.step(model, x, y)
        return
    found = defense.step(model, x, y)
    assert found.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.net.parameters())


def test_half_precision_is_for_the_parameters_alone(text):
    defense, (x, y) = defense_of(text), batch()
    model, kinds = model_for(defense), set()
    networks(model)[0].body[0].register_forward_hook(lambda layer, inputs, output: kinds.add(output.dtype))
    found = defense.step(model, x, y, TrainState(precision="bfloat16"))
    assert torch.bfloat16 in kinds and found.loss.dtype == torch.float32 and found.loss.isfinite()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.net.parameters())


def test_memory_is_flat_over_steps():
    """All defenses in one test, for counting takes longer than training."""
    (x, y), runs = batch(), []
    for text in CASES:
        defense = defense_of(text)
        runs.append((defense, model_for(defense), TrainState()))

    def after(steps: int) -> int:
        for defense, model, state in runs:
            for _ in range(steps):
                defense.step(model, x, y, state)
        gc.collect()
        return sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())

    before = after(2)
    assert after(3) <= before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), "leave the bounds"),
        (lambda x, y: (x / 0, y), "NaN or infinity"),
        (lambda x, y: (x.double(), y), "do not match"),
        (lambda x, y: ((x * 255).byte(), y), "floating-point"),
        (lambda x, y: (x[:3], y), "no batch"),
        (lambda x, y: (x[:0], y[:0]), "no batch"),
        (lambda x, y: (x[0, 0, 0], y), "no batch"),
        (lambda x, y: (x[:, :2], y), "does not accept"),
        (lambda x, y: (x, y + 5), "out of range"),
        (lambda x, y: (x, y.float()), "wrong form"),
    ],
)
def test_bad_batch_is_one_clear_message(text, change, message):
    defense = defense_of(text)
    with pytest.raises(UsageError, match=message):
        defense.step(model_for(defense), *change(*batch()))


def test_bad_model_or_threat_is_one_clear_message(text):
    defense, (x, y) = defense_of(text), batch()
    with pytest.raises(UsageError, match=r"robustkit\.wrap"):
        defense.step(SmallNet(), x, y)
    asleep = model_for(defense)
    asleep.net.eval()
    with pytest.raises(UsageError, match="eval mode"):
        defense.step(asleep, x, y)
    with pytest.raises(UsageError, match="ids"):
        defense.step(model_for(defense), x, y, ids=torch.arange(3))
    if not defense.adversarial:
        return
    with pytest.raises(UsageError, match="needs a threat"):
        defense.with_threat(None).step(model_for(defense), x, y)
    with pytest.raises(UsageError, match="allows every input"):
        defense.with_threat(rk.Linf(8.0)).step(model_for(defense), x, y)


def test_batch_of_one_meets_batch_normalisation_with_a_message_or_with_another_part(text):
    defense, (x, y) = defense_of(text), batch(n=1)
    model = model_for(defense)
    if defense.parts > 1 and defense.bn == "shared":
        assert defense.step(model, x, y).loss.isfinite()
        return
    try:  # 36 pixels a channel: a layer that has them may well be content with one image
        defense.step(model, x, y)
    except UsageError as error:
        assert "more than one sample" in str(error)


def test_a_network_without_gradient_cannot_be_attacked(text):
    class Cut(SmallNet):
        def forward(self, x):
            return super().forward(x.detach())

    defense = defense_of(text)
    model = defense.prepare(rk.wrap(Cut().train()))
    if not defense.adversarial:
        assert defense.step(model, *batch()).loss.isfinite()
        return
    with pytest.raises(UsageError, match="no gradient"):
        defense.step(model, *batch())


def test_text_gives_the_defense_back(text):
    defense = defense_from(text)
    assert defense_from(defense.text) == defense and defense_from(defense) is defense
    assert defense.name == text.partition("+")[0].partition(":")[0]
    threat = rk.L2(0.3)
    moved = defense.with_threat(threat)
    assert moved.text == defense.text and moved.threat == threat
    with pytest.raises(dataclasses.FrozenInstanceError):
        defense.threat = threat


@pytest.mark.parametrize("name", CLASSES)
def test_entry_is_complete(name):
    entry = DEFENSES.get(name)
    assert entry.paper.startswith("https://") and entry.summary.endswith(".")
    assert all(option.help for option in entry.options())
    assert DEFENSES.catalogue()[name].summary == entry.summary
    with pytest.raises(UsageError, match="no option 'nothing'"):
        entry.build({"nothing": 1})
