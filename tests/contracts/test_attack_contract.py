"""What every registered budget attack on labels promises. A new attack is picked up from the registry.

Minimum-norm attacks and attacks for dense tasks alone have contracts of their own, beside this one.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.nearest import MinimumNorm
from robustkit.core.threat import L1, L2, Linf
from robustkit.testing import HalfSpace
from tests.nets import SmallNet

THREATS = {"linf": Linf(0.1), "l2": L2(0.5), "l1": L1(2.0)}
CLASSES = {name: ATTACKS.get(name).cls for name in ATTACKS.names()}
NAMES = [
    name
    for name, cls in CLASSES.items()
    if not issubclass(cls, MinimumNorm) and not cls.tasks and not getattr(cls, "foreign", False)
]
SHORT = {"square": {"queries": 60}}
"""Options that keep expensive attacks short."""
STAGES = {
    "standard": {"apgd-ce": "apgd:steps=20", "apgd-t": "apgd:steps=5,loss=dlr,targets=2", "square": "square:queries=9"},
    "plus": {"apgd-dlr": "apgd:steps=20,loss=dlr", "fab": "fab:steps=5,restarts=2"},
    "rand": {"apgd-ce": "apgd:steps=20"},
}
"""Suites with short stages."""
ON_IMAGES = {"square", "standard"}
"""These need inputs (N, C, H, W)."""


def images(n: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)


def problem(dtype: torch.dtype = torch.float32, n: int = 6):
    model = wrap(SmallNet(dtype))
    x = images(n, dtype)
    with model.frozen():
        y = model(x).argmax(1)
    return model, x, y


def attack(name: str, norm: str = "linf", **options):
    return ATTACKS.get(name).cls(threat=THREATS[norm], **{**SHORT.get(name, {}), **options})


@pytest.fixture(params=NAMES)
def name(request, monkeypatch) -> str:
    if request.param in STAGES:
        monkeypatch.setattr(CLASSES[request.param], "composition", lambda self, norm: STAGES[request.param])
    return request.param


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_result_lies_in_threat_and_bounds_and_success_is_true(name, norm, dtype):
    model, x, y = problem(dtype)
    found = attack(name, norm)(model, x, y)
    room = 1e-6 if dtype != torch.bfloat16 else {"linf": 0.02, "l2": 0.05, "l1": 0.2}[norm]  # 8 bits a pixel
    assert found.adversarial.dtype == dtype
    assert found.adversarial.shape == x.shape
    assert (found.adversarial >= 0).all() and (found.adversarial <= 1).all()
    assert (
        THREATS[norm].distance(found.adversarial.double(), x.double()) <= THREATS[norm].eps * (1 + room) + room / 10
    ).all()
    with model.frozen():
        assert torch.equal(model(found.adversarial).argmax(1) != y, found.success)
    assert torch.equal(found.distance, THREATS[norm].distance(found.adversarial, x))
    assert torch.equal(found.first_success_step >= 0, found.success)
    assert not found.silent.any()


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4), (1, 8, 8), (3, 6, 7)])
def test_any_input_shape_and_failures_return_the_clean_input(name, norm, shape):
    if name in ON_IMAGES and len(shape) != 3:
        with pytest.raises(UsageError, match="windows of images"):
            attack(name, norm)(wrap(HalfSpace(shape)), torch.full((2, *shape), 0.5), torch.tensor([0, 1]))
        return
    net = HalfSpace(shape, seed=2)
    x = 0.5 + 0.1 * torch.randn(5, *shape, generator=torch.Generator().manual_seed(4))
    x = x.clamp(0, 1)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    eps = net.distance(x, norm)
    lost = replace(attack(name, norm), threat=THREATS[norm].at(float(eps.min()) * 0.98))(model, x, y)
    assert not lost.success.any()
    assert torch.equal(lost.adversarial, x)
    assert (lost.distance == 0).all() and (lost.first_success_step == -1).all()
    assert (lost.adversarial - x).abs().sum() == 0


def test_half_space_is_broken_just_beyond_its_distance(name):
    """On a hyperplane every gradient step is the best one: the attack must win as soon as winning is possible.

    What goes by queries alone has no gradient to follow, and need only win where there is room to try.
    """
    by_queries = CLASSES[name].knowledge == "black-box"
    room, options = (3.0, {"queries": 1500}) if by_queries else (1.03, {})
    net = HalfSpace((1, 6, 6), seed=2)
    x = 0.5 + 0.02 * torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(4))
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    for norm, threat in THREATS.items():
        eps = net.distance(x, norm) * room + 1e-5
        assert replace(attack(name, norm, **options), threat=threat.at(eps))(model, x, y).success.all(), norm


def test_leaves_no_trace(name):
    model, x, y = problem()
    net = model.net
    net.train()
    net.body[3].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net.body[0].weight.requires_grad_(False)
    x.requires_grad_(True)
    rng = torch.get_rng_state()
    attack(name)(model, x, y)
    with pytest.raises(UsageError):
        attack(name)(model, x, y + 99)
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    assert x.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_same_call_same_bits_and_input_untouched(name):
    model, x, y = problem()
    copy = x.clone()
    one, two = (attack(name)(model, x, y, seed=5) for _ in range(2))
    assert torch.equal(one.adversarial, two.adversarial)
    assert torch.equal(x, copy)


def test_batch_invariance_row_by_row(name):
    """Keyed draws: on a float64 network, a sample alone and in a batch end at the same place."""
    model, x, y = problem(torch.float64)
    ids = torch.tensor([11, 3, 99, 42, 7, 0])
    for norm in THREATS:
        whole = attack(name, norm)(model, x, y, ids=ids, seed=1)
        alone = [
            attack(name, norm)(model, x[i : i + 1], y[i : i + 1], ids=ids[i : i + 1], seed=1) for i in range(len(x))
        ]
        assert torch.equal(whole.success, torch.cat([r.success for r in alone]))
        torch.testing.assert_close(whole.adversarial, torch.cat([r.adversarial for r in alone]), atol=1e-9, rtol=0)


def test_empty_batch_and_batch_of_one(name):
    model, x, y = problem()
    empty = attack(name)(model, x[:0], y[:0])
    assert len(empty.adversarial) == len(empty.success) == 0
    assert (empty.cost.forwards, empty.cost.backwards) == (0, 0)
    assert len(attack(name)(model, x[:1], y[:1]).success) == 1


def test_cost_is_what_passed_through_the_network(name):
    model, x, y = problem()
    passed = []
    handle = model.net.register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
    model.output_shape(x)
    passed.clear()
    before = (model.cost.forwards, model.cost.backwards)
    found = replace(attack(name), threat=Linf(1e-6))(model, x, y)
    handle.remove()
    assert found.cost.forwards == int(found.forwards.sum()) == model.cost.forwards - before[0]
    assert found.cost.backwards == int(found.backwards.sum()) == model.cost.backwards - before[1]
    assert sum(passed) >= len(x)  # at least the verdicts were taken on the network itself


def test_targeted_reaches_the_target(name):
    model, x, y = problem()
    target = (y + 1) % 5
    found = replace(attack(name), threat=Linf(1.0))(model, x, y, target=target)
    with model.frozen():
        reached = model(found.adversarial).argmax(1) == target
    assert torch.equal(reached, found.success)
    assert found.success.any()


def test_per_sample_eps(name):
    model, x, y = problem()
    eps = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.2])
    found = replace(attack(name), threat=Linf(eps))(model, x, y)
    assert (found.distance <= eps + 1e-6).all()
    assert found.distance[0] == 0


def test_chunked_network_gives_the_same(name):
    _, x, y = problem(torch.float64)
    whole = attack(name)(wrap(SmallNet(torch.float64)), x, y)
    parts = attack(name)(wrap(SmallNet(torch.float64), chunk=2), x, y)
    torch.testing.assert_close(whole.adversarial, parts.adversarial, atol=1e-9, rtol=0)


def test_memory_is_flat_over_50_calls(name):
    model, x, y = problem()

    def tensors() -> int:
        gc.collect()
        return sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())

    run = attack(name)
    run(model, x, y)
    before = tensors()
    for _ in range(50):
        run(model, x, y)
    assert tensors() <= before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:3], y), "different lengths"),
        (lambda x, y: (x, y.float()), "wrong form"),
        (lambda x, y: (x, y + 5), "out of range"),
        (lambda x, y: (x * 255, y), "leave the bounds"),
        (lambda x, y: (x / 0, y), "NaN or infinity"),
        (lambda x, y: (x.double(), y), "do not match"),
        (lambda x, y: ((x * 255).byte(), y), "floating-point"),
        (lambda x, y: (x[:, :2], y), "does not accept"),
        (lambda x, y: (x[0, 0, 0], y), "batch"),
    ],
)
def test_bad_input_is_one_clear_message(name, change, message):
    model, x, y = problem()
    with pytest.raises(UsageError, match=message):
        attack(name)(model, *change(x, y))


def test_bare_network_is_refused(name):
    _, x, y = problem()
    with pytest.raises(UsageError, match=r"robustkit\.wrap"):
        attack(name)(SmallNet(), x, y)


def test_entry_is_complete(name):
    entry = ATTACKS.get(name)
    assert entry.paper.startswith("https://") and entry.summary.endswith(".")
    assert all(option.help for option in entry.options())
    assert ATTACKS.catalogue()[name].summary == entry.summary
