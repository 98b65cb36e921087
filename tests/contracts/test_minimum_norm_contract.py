"""What every minimum-norm attack promises, tried on all of them. A new one is picked up from the registry."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.nearest import MinimumNorm
from robustkit.core.threat import THREATS
from robustkit.testing import HalfSpace
from tests.nets import SmallNet

EPS = {"linf": 0.05, "l2": 0.3, "l1": 2.0}
NAMES = [name for name in ATTACKS.names() if issubclass(ATTACKS.get(name).cls, MinimumNorm)]
PAIRS = [(name, norm) for name in NAMES for norm in ATTACKS.get(name).cls.norms]
FULL = {"cw": {"steps": 300, "lr": 0.003}, "ddn": {"steps": 300, "gamma": 0.02}}
"""Options with which the distance must be right, where the default takes too long for a test."""
QUICK = {
    "cw": {"search_steps": 4, "steps": 80, "initial_c": 1.0, "lr": 0.1},
    "ddn": {"steps": 60, "loss": "margin"},  # the tests read the loss as a margin
    "fmn": {"steps": 40},
    "fab": {"steps": 15},
    "deepfool": {"steps": 20},
}
"""Options for everything else."""


def images(n: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def problem(dtype: torch.dtype = torch.float32, n: int = 6, classes: int = 5):
    model, x = wrap(SmallNet(dtype, classes)), images(n, dtype)
    return model, x, answers(model, x)


def answers(model, x):
    with model.frozen():
        return model(x).argmax(1)


def attack(name: str, norm: str, eps=None, **options):
    """Quick options, inside a radius, or with ``eps=inf`` without a threat."""
    cls, options = ATTACKS.get(name).cls, {**QUICK.get(name, {}), **options}
    if isinstance(eps, float) and eps == float("inf"):
        return cls(norm=norm, **options)
    return cls(threat=THREATS[norm](EPS[norm] if eps is None else eps), **options)


each_norm = pytest.mark.parametrize(("name", "norm"), PAIRS)
each = pytest.mark.parametrize(("name", "norm"), [(name, ATTACKS.get(name).cls.norms[0]) for name in NAMES])


@each_norm
@pytest.mark.parametrize("shape", [(7,), (1, 6, 6)])
def test_the_distance_to_a_half_space(name, norm, shape):
    net = HalfSpace(shape, seed=2)
    x = 0.5 + 0.1 * torch.randn(6, *shape, generator=torch.Generator().manual_seed(4))
    model = wrap(net, bounds=(-9.0, 9.0)) if norm == "l1" else wrap(net)  # one pixel has to make all of the way
    found = ATTACKS.get(name).cls(norm=norm, **FULL.get(name, {}))(model, x, answers(model, x))
    assert found.success.all()
    torch.testing.assert_close(found.minimum, net.distance(x, norm), rtol=0.0202, atol=1e-6)
    assert torch.equal(found.minimum, found.distance)


class Stubborn(nn.Module):
    """Always the same answer; it has a gradient, or one that is zero everywhere."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.slope * x.flatten(1).mean(1)
        return torch.stack([9 + 0 * z, z, -z], 1)


@each_norm
@pytest.mark.parametrize("slope", [1.0, 0.0, 1e-30])
def test_failures_return_the_clean_input(name, norm, slope):
    model, x = wrap(Stubborn(slope)), images()
    for eps in (None, float("inf")):
        lost = attack(name, norm, eps)(model, x, torch.zeros(6, dtype=torch.long))
        assert torch.equal(lost.adversarial, x)
        assert not lost.success.any() and not lost.silent.any()
        assert (lost.distance == 0).all() and (lost.minimum == torch.inf).all()
        assert (lost.first_success_step == -1).all()
        assert lost.last.isfinite().all() and lost.loss.isfinite().all()


@each_norm
def test_a_binary_image_can_be_attacked(name, norm):
    """All pixels at a bound: an attack that cannot leave it gets nowhere."""
    net = HalfSpace((1, 6, 6), seed=2)
    x = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(4)).round()
    model = wrap(net)
    found = attack(name, norm, float("inf"))(model, x, answers(model, x))
    assert found.success.all()
    assert (found.minimum >= net.distance(x, norm) * 0.999).all()


@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_success_is_to_be_wrong_within_the_radius(name, norm, dtype):
    model, x, y = problem(dtype)
    free = attack(name, norm, float("inf"))(model, x, y)
    eps = float(free.minimum.float().median())
    found = attack(name, norm, eps)(model, x, y)
    assert found.adversarial.dtype == dtype and found.adversarial.shape == x.shape
    assert (found.adversarial >= 0).all() and (found.adversarial <= 1).all()
    assert found.adversarial.isfinite().all()
    assert torch.equal(found.distance, THREATS[norm](eps).distance(found.adversarial, x))
    wrong = answers(model, found.adversarial) != y
    assert torch.equal(found.success, wrong)  # failures return the clean input, which is right
    assert torch.equal(found.success, found.minimum <= eps)
    assert (found.distance <= eps).all()
    assert torch.equal(found.first_success_step >= 0, found.success)
    assert found.success.any() and not found.silent.any()


@each_norm
def test_without_a_threat_any_distance_counts(name, norm):
    model, x, y = problem()
    found = attack(name, norm, float("inf"))(model, x, y)
    assert found.success.all()
    assert torch.equal(found.minimum, found.distance)
    assert torch.equal(found.distance, THREATS[norm](0.0).distance(found.adversarial, x))
    assert (answers(model, found.adversarial) != y).all()


@each_norm
def test_a_larger_radius_breaks_a_superset(name, norm):
    model, x, y = problem(torch.float64)
    minimum = attack(name, norm, float("inf"))(model, x, y).minimum
    before = torch.zeros(6, dtype=torch.bool)
    for eps in (float(minimum.min()) / 2, float(minimum.median()), float(minimum.max()) * 1.01):
        found = attack(name, norm, eps)(model, x, y)
        assert (before <= found.success).all()
        before = found.success
    assert before.all()


@each_norm
def test_stop_inside_breaks_as_many_and_is_no_dearer(name, norm):
    model, x, y = problem(torch.float64, n=12)
    eps = float(attack(name, norm, float("inf"))(model, x, y).minimum.median()) * 1.05
    full, quick = (attack(name, norm, eps, stop_inside=stop)(model, x, y) for stop in (False, True))
    assert (quick.distance <= eps).all()
    assert quick.success.sum() >= full.success.sum() - 1  # a search that refines in the end may gain one more
    assert quick.cost.forwards <= full.cost.forwards
    assert (answers(model, quick.adversarial) != y)[quick.success].all()


@each_norm
@pytest.mark.parametrize("stop_inside", [False, True])
def test_batch_invariance_row_by_row(name, norm, stop_inside):
    """Keyed draws, per-sample books: on a float64 network, a sample alone and in a batch end at the same place."""
    model, x, y = problem(torch.float64)
    ids = torch.tensor([11, 3, 99, 42, 7, 0])
    eps = float(attack(name, norm, float("inf"))(model, x, y).minimum.median()) * 1.02
    options = {"stop_inside": stop_inside}
    whole = attack(name, norm, eps, **options)(model, x, y, ids=ids, seed=1)
    alone = [
        attack(name, norm, eps, **options)(model, x[i : i + 1], y[i : i + 1], ids=ids[i : i + 1], seed=1)
        for i in range(len(x))
    ]
    assert torch.equal(whole.success, torch.cat([r.success for r in alone]))
    for field in ("adversarial", "minimum", "loss"):
        one = torch.cat([getattr(r, field) for r in alone])
        torch.testing.assert_close(getattr(whole, field), one, atol=1e-9, rtol=0)


@each
def test_wrong_inputs_are_at_distance_zero(name, norm):
    model, x, y = problem()
    other = (y + 1) % 5
    found = attack(name, norm, 0.0)(model, x, other)
    assert found.success.all()
    assert torch.equal(found.adversarial, x) and (found.minimum == 0).all()


@each
def test_few_classes(name, norm):
    for classes in (2, 3):
        model, x, y = problem(classes=classes)
        assert attack(name, norm, float("inf"))(model, x, y).success.all()


@each_norm
def test_targeted_reaches_the_target(name, norm):
    model, x, y = problem()
    target = (y + 1) % 5
    found = attack(name, norm, float("inf"))(model, x, y, target=target)
    assert torch.equal(answers(model, found.adversarial) == target, found.success)
    assert found.success.any()


@each_norm
def test_per_sample_eps(name, norm):
    model, x, y = problem()
    minimum = attack(name, norm, float("inf"))(model, x, y).minimum
    eps = minimum * torch.tensor([0.0, 0.5, 0.99, 1.05, 2.0, 3.0])
    found = attack(name, norm, eps)(model, x, y)
    assert found.success.tolist() == [False] * 3 + [True] * 3
    assert (found.distance <= eps).all() and (found.minimum[:3] > eps[:3]).all()


@each
def test_leaves_no_trace(name, norm):
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
    copy, rng = x.detach().clone(), torch.get_rng_state()
    attack(name, norm)(model, x, y)
    with pytest.raises(UsageError):
        attack(name, norm)(model, x, y + 99)
    assert torch.equal(rng, torch.get_rng_state()) and torch.equal(x, copy)
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    assert x.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@each_norm
def test_same_call_same_bits(name, norm):
    model, x, y = problem()
    one, two = (attack(name, norm)(model, x, y, seed=5) for _ in range(2))
    assert torch.equal(one.adversarial, two.adversarial) and torch.equal(one.minimum, two.minimum)


@each_norm
def test_cost_is_what_passed_through_the_network(name, norm):
    weight = torch.randn(108, 4, generator=torch.Generator().manual_seed(0))
    passed = []

    def net(x: torch.Tensor) -> torch.Tensor:
        passed.append(len(x))
        return torch.tanh(x.flatten(1) @ weight)

    model, x = wrap(net), images()
    y = answers(model, x)
    run = attack(name, norm)
    run(model, x, y)  # makes what is made once
    passed.clear()
    before = (model.cost.forwards, model.cost.backwards)
    found = run(model, x, y)
    assert sum(passed) == found.cost.forwards == int(found.forwards.sum()) == model.cost.forwards - before[0]
    assert found.cost.backwards == int(found.backwards.sum()) == model.cost.backwards - before[1]


@each
def test_chunked_network_gives_the_same(name, norm):
    _, x, y = problem(torch.float64)
    whole = attack(name, norm)(wrap(SmallNet(torch.float64)), x, y)
    parts = attack(name, norm)(wrap(SmallNet(torch.float64), chunk=2), x, y)
    torch.testing.assert_close(whole.adversarial, parts.adversarial, atol=1e-9, rtol=0)


@each
def test_empty_batch_and_batch_of_one(name, norm):
    model, x, y = problem()
    empty = attack(name, norm)(model, x[:0], y[:0])
    assert len(empty.adversarial) == len(empty.success) == len(empty.minimum) == 0
    assert (empty.cost.forwards, empty.cost.backwards) == (0, 0)
    assert len(attack(name, norm)(model, x[:1], y[:1]).success) == 1


@each
def test_memory_is_flat(name, norm):
    model, x, y = problem()

    def tensors() -> int:
        gc.collect()
        return sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())

    run = attack(name, norm)
    run(model, x, y)
    before = tensors()
    for _ in range(10):
        run(model, x, y)
    assert tensors() <= before


@each
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
def test_bad_input_is_one_clear_message(name, norm, change, message):
    model, x, y = problem()
    with pytest.raises(UsageError, match=message):
        attack(name, norm)(model, *change(x, y))


@pytest.mark.parametrize("name", NAMES)
def test_norms_that_do_not_fit_are_refused(name):
    entry = ATTACKS.get(name)
    model, x, y = problem()
    missing = [norm for norm in THREATS if norm not in entry.cls.norms]
    for norm in missing:
        with pytest.raises(UsageError, match="norm"):
            entry.build({"norm": norm})(model, x, y)
        with pytest.raises(UsageError, match="norm"):
            entry.cls(threat=THREATS[norm](0.1))(model, x, y)
    for norm in entry.cls.norms:
        other = next(n for n in THREATS if n != norm)
        with pytest.raises(UsageError, match="norm"):
            entry.cls(norm=norm, threat=THREATS[other](0.1))(model, x, y)


@each
def test_bare_network_is_refused(name, norm):
    _, x, y = problem()
    with pytest.raises(UsageError, match=r"robustkit\.wrap"):
        attack(name, norm)(SmallNet(), x, y)


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_complete(name):
    entry = ATTACKS.get(name)
    assert entry.paper.startswith("https://") and entry.summary.endswith(".")
    assert {"norm", "stop_inside"} <= {option.name for option in entry.options()}
    assert all(option.help for option in entry.options())
    assert ATTACKS.catalogue()[name].summary == entry.summary
