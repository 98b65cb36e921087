"""What every registered certifier promises. A new one is picked up from the registry."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.certify.randomized import Randomized
from robustkit.core.certificate import ABSTAIN
from robustkit.core.certifier import CERTIFIERS, Certifier, certifier_from
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.task import DenseClassification
from tests.nets import SmallNet

CLASSES = {name: CERTIFIERS.get(name).cls for name in CERTIFIERS.names()}
SHORT = {"sigma": 0.1, "n": 96, "n0": 10, "alpha": 0.01}
"""Few draws for what draws; 96 are three blocks."""
MODES = {
    "radius": {},
    "decide": {"mode": "decide", "radius": 0.05},
    "two-sided": {"bound": "two-sided"},
    "clip": {"clip": True},
    "grid": {"grid": True},
}
CASES = [
    (name, mode) for name, cls in CLASSES.items() for mode in (MODES if issubclass(cls, Randomized) else ("radius",))
]


def images(n: int = 3, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 6, 6)) -> torch.Tensor:
    """Random images of 8 bits."""
    levels = torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(1))
    return (levels / 255.0).to(dtype)


def certifier(name: str, mode: str = "radius", **options) -> Certifier:
    short = SHORT if issubclass(CLASSES[name], Randomized) else {}
    return CLASSES[name](**{**short, **MODES[mode], **options})


def same(one, two) -> bool:
    """Whether two certificates say the same of the same samples."""
    names = ("prediction", "radius", "certified", "n")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names) and one.reasons == two.reasons


class Constant(nn.Module):
    """Always class 2 of 4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, -1.0, 3.0, 1.0], dtype=x.dtype, device=x.device).expand(len(x), 4)


def lot(x: torch.Tensor, sides: int) -> torch.Tensor:
    """A number from 0 to sides - 1 for each input, by digits that noise changes beyond all guessing."""
    values = x.double().flatten(1)
    return (values @ torch.arange(1.0, values.shape[1] + 1).double().sqrt() * 1e7).floor() % sides


class Coin(nn.Module):
    """One class or the other: under noise, each half of the time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = lot(x, 2)
        return torch.stack([side, 1 - side], 1).to(x.dtype)


class Undefined(nn.Module):
    """As ``Constant``, but NaN for one input in so many."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(lot(x, self.every)[:, None] == 0, torch.nan, Constant()(x))


class Halves(nn.Module):
    """For every pixel: the upper half of the image is always class 2, the lower half is a coin."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coin = torch.cat([Coin()(x), 0 * x.flatten(1)[:, :1]], 1)[:, :, None, None].expand(-1, -1, 3, 6)
        return torch.cat([Constant()(x)[:, :3, None, None].expand_as(coin), coin], 2)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_form_of_the_certificate(case, dtype):
    method, x = certifier(*case), images(dtype=dtype)
    found = method(wrap(SmallNet(dtype)), x)
    assert len(found) == 3 and found.prediction.dtype == torch.int64 and found.radius.dtype == torch.float64
    assert found.certified.dtype == torch.bool and found.n.dtype == torch.int64
    assert found.prediction.shape == found.radius.shape == found.certified.shape == found.n.shape == (3,)
    assert ((found.prediction >= ABSTAIN) & (found.prediction < 5)).all()
    assert (found.radius >= 0).all() and found.radius.isfinite().all()
    assert not (found.abstained & (found.certified | (found.radius > 0))).any()
    assert [not reason for reason in found.reasons] == found.certified.tolist()
    assert set(found.outcome) <= {"certified", "unknown"}, "nobody has attacked"
    assert found.norm == method.norm and found.norm in ("linf", "l2", "l1") and found.dimension == 108
    assert found.method == case[0] and found.settings == {f.name: getattr(method, f.name) for f in fields(method)}
    assert str(dtype).removeprefix("torch.") in found.arithmetic
    assert found.falsified is None and found.witness is None
    for tensor in found.extras.values():
        assert len(tensor) == 3 and not tensor.requires_grad


def fields(method: Certifier) -> list:
    return [f for f in dataclasses.fields(method) if f.init]


def test_probabilities_are_stated(case):
    method = certifier(*case)
    found = method(wrap(SmallNet()), images())
    assert (found.alpha is None) == (not method.probabilistic)
    assert found.alpha is None or (0 < found.alpha < 1 and (found.n > 0).all())
    assert found.asked == MODES[case[1]].get("radius")


def test_a_constant_network_is_certified_and_a_fair_coin_is_not(case):
    """The two ends: an answer that nothing changes, and one that anything does."""
    method, x = certifier(*case), images(2)
    found = method(wrap(Constant()), x)
    assert found.prediction.tolist() == [2, 2] and found.outcome == ("certified",) * 2 and (found.radius > 0).all()
    try:
        found = method(wrap(Coin()), x)
    except UsageError:
        return  # a method that reads the network's layers cannot read this one
    assert (found.radius < 0.05).all() and "certified" not in found.outcome
    assert all(found.reasons)


def test_same_call_same_bits_and_input_untouched(case):
    model, x = wrap(SmallNet()), images()
    copy = x.clone()
    assert same(certifier(*case)(model, x, seed=5), certifier(*case)(model, x, seed=5)) and torch.equal(x, copy)


def test_draws_depend_on_seed_and_sample(name):
    """Another seed, or another id, is another draw."""
    if not CLASSES[name].probabilistic:
        return
    model, x = wrap(Coin()), images(1).expand(6, -1, -1, -1)
    ids = torch.zeros(6, dtype=torch.long)
    hits = [certifier(name)(model, x, ids=i, seed=s).extras["counts"] for i, s in ((ids, 1), (ids, 2), (ids + 1, 1))]
    assert not torch.equal(hits[0], hits[1]) and not torch.equal(hits[0], hits[2])
    assert (hits[0] == hits[0][:1]).all(), "and an equal key is an equal draw"


def test_a_certificate_does_not_depend_on_the_batch(case):
    """On a float64 network: a sample alone, in company, in any order, in pieces of any size."""
    model, x = wrap(SmallNet(torch.float64)), images(dtype=torch.float64)
    ids, method = torch.tensor([11, 3, 99]), certifier(*case)
    whole = method(model, x, ids=ids, seed=1)
    alone = [method(model, x[i : i + 1], ids=ids[i : i + 1], seed=1) for i in range(3)]
    assert torch.equal(whole.radius, torch.cat([one.radius for one in alone]))
    assert torch.equal(whole.n, torch.cat([one.n for one in alone]))
    turned = method(model, x.flip(0), ids=ids.flip(0), seed=1)
    assert torch.equal(whole.radius, turned.radius.flip(0)) and whole.reasons == turned.reasons[::-1]
    assert same(whole, method(model, x, ids=ids, seed=1, batch=7))
    assert same(whole, method(wrap(SmallNet(torch.float64), chunk=50), x, ids=ids, seed=1))


def test_every_certifier_knows_its_cost(case):
    model, x, passed, told = wrap(SmallNet()), images(), [], []
    method = certifier(*case)
    method(model, x)
    model.net.register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
    before = dataclasses.replace(model.cost)
    found = method(model, x, progress=told.append)
    assert found.cost.forwards == sum(passed) == model.cost.forwards - before.forwards
    assert found.cost.backwards == model.cost.backwards - before.backwards
    if method.probabilistic:
        assert found.cost.backwards == 0 and found.cost.forwards >= int(found.n.sum())
        assert told == sorted(told) and int(found.n.sum()) <= told[-1] <= found.cost.forwards


def test_leaves_no_trace(name):
    net, x = SmallNet(), images(2)
    model = wrap(net)
    net.train()
    net.body[3].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net.body[0].weight.requires_grad_(False)
    x.requires_grad_(True)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    certifier(name)(model, x)
    with pytest.raises(UsageError):
        certifier(name)(model, x[:, :2])
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    assert x.grad is None
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(m, kind) for m in net.modules() for kind in hooks)


def test_dropout_is_off_and_the_mode_does_not_matter(name):
    net, x = SmallNet(), images()
    one = certifier(name)(wrap(net), x)
    net.train()
    assert same(one, certifier(name)(wrap(net), x))


def test_memory_is_flat_over_calls():
    """All certifiers in one test, for counting takes longer than certifying."""
    model, x, methods = wrap(SmallNet()), images(1), [certifier(*case) for case in CASES if case[1] != "clip"]

    def after(calls: int) -> int:
        for _ in range(calls):
            for method in methods:
                method(model, x)
        gc.collect()
        return sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())

    before = after(1)
    assert after(2) <= before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"x": x * 255}, "leave the bounds"),
        (lambda x: {"x": x / 0}, "NaN or infinity"),
        (lambda x: {"x": x.double()}, "do not match"),
        (lambda x: {"x": (x * 255).byte()}, "floating-point"),
        (lambda x: {"x": x[:, :2]}, "does not accept"),
        (lambda x: {"x": x[:0]}, "batch"),
        (lambda x: {"x": x[0, 0, 0]}, "batch"),
        (lambda x: {"ids": torch.arange(3)}, "different lengths"),
        (lambda x: {"batch": 0}, "at least 1"),
    ],
)
def test_bad_input_is_one_clear_message(name, change, message):
    model, x = wrap(SmallNet()), images(2)
    with pytest.raises(UsageError, match=message):
        certifier(name)(model, **{"x": x, **change(x)})


def test_bare_network_is_refused(name):
    with pytest.raises(UsageError, match=r"robustkit\.wrap"):
        certifier(name)(SmallNet(), images(1))


def test_a_random_network_is_refused(name):
    """By itself, or on purpose."""
    if not CLASSES[name].probabilistic:
        return

    class Shaky(SmallNet):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.rand_like(x))

    for model in (wrap(Shaky()), wrap(Shaky(), eot=4)):
        with pytest.raises(UsageError, match="random by itself"):
            certifier(name)(model, images(2))


def test_answers_that_are_no_numbers(case):
    """A few count for no class, and lower what is certified; more than 1 % end the run."""
    if not CLASSES[case[0]].probabilistic:
        return
    x, method = images(4), certifier(*case, n=400, n0=400)
    few, sound = method(wrap(Undefined(400)), x), method(wrap(Constant()), x)
    assert few.extras["undefined"].sum() > 0 and any("NaN" in note for note in few.notes)
    assert (few.radius <= sound.radius).all() and (few.prediction == 2).all()
    with pytest.raises(UsageError, match="NaN to noisy inputs"):
        method(wrap(Undefined(9)), x)


def test_neither_gradients_nor_parameters_are_needed(name):
    """Any function of a batch will do, for methods that only ask."""
    if not CLASSES[name].probabilistic:
        return

    def by_numpy(x: torch.Tensor) -> torch.Tensor:
        values = x.detach().numpy().reshape(len(x), -1)
        return torch.from_numpy(np.stack([values.mean(1), values.std(1)], 1))

    found = certifier(name)(wrap(by_numpy), images())
    assert found.outcome == ("certified",) * 3 and found.cost.backwards == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 7, 5), (4, 6, 7), (3, 2, 2), (7,), (4, 5)])
def test_any_shape_of_input_or_a_clear_message(name, shape):
    try:
        found = certifier(name)(wrap(Constant()), images(2, shape=shape))
    except UsageError as error:
        assert len(shape) != 3 and "images" in str(error)
    else:
        assert found.outcome == ("certified",) * 2 and found.dimension == torch.Size(shape).numel()


def test_dense_outputs_get_a_certificate_for_every_pixel_or_a_clear_message(case):
    model, x = wrap(Halves(), task=DenseClassification()), images(2)
    try:
        found = certifier(*case, **({"n": 500} if CLASSES[case[0]].probabilistic else {}))(model, x)
    except UsageError as error:
        assert "dense outputs" in str(error) and case[1] == "decide"
        return
    assert found.prediction.shape == found.radius.shape == found.certified.shape == (2, 6, 6) and found.n.shape == (2,)
    assert (found.prediction[:, :3] == 2).all() and (found.radius[:, :3] > 0).all() and found.certified[:, :3].all()
    assert found.abstained[:, 3:].all() and not found.certified[:, 3:].any() and found.outcome == ("unknown",) * 2
    assert found.reasons == ("50.0 % of the pixels are not certified",) * 2
    assert found.accuracy(torch.full((2, 6, 6), 2)) == 0.5


def test_text_and_settings_make_the_same_certifier(case):
    method = certifier(*case)
    assert certifier_from(method.text) == method and certifier_from(method) is method
    assert str(case[0]) == method.text.partition(":")[0]
    assert CERTIFIERS.get(case[0]).build(method(wrap(Constant()), images(1)).settings) == method
    assert isinstance(method.remarks((4,)), tuple)


def test_options_are_checked_and_frozen(name):
    method = certifier(name)
    first = fields(method)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, first, getattr(method, first))
    with pytest.raises(UsageError, match=f"{name} cannot take this {first}"):
        CERTIFIERS.get(name).build({first: "nothing of the kind"})
    with pytest.raises(UsageError, match="no option 'nothing'"):
        CERTIFIERS.get(name).build({"nothing": 1})


@pytest.mark.parametrize("value", [None, 3, nn.ReLU()])
def test_what_is_no_certifier(value):
    with pytest.raises(UsageError, match="not a certifier"):
        certifier_from(value)


def test_entry_is_complete(name):
    entry = CERTIFIERS.get(name)
    assert entry.paper.startswith("https://") and entry.summary.endswith(".") and entry.version >= 1
    assert all(option.help for option in entry.options())
    assert CERTIFIERS.catalogue()[name].summary == entry.summary
    assert entry.cls.norm in ("linf", "l2", "l1")
