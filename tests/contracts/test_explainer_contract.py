"""What every registered saliency method promises. A new method is picked up from the registry."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS
from robustkit.core.model import wrap
from robustkit.core.specs import MethodSpec
from tests.nets import Seeded

CLASSES = {name: EXPLAINERS.get(name).cls for name in EXPLAINERS.names()}
SHORT = {
    "captum": "captum:IntegratedGradients,n_steps=3",
    "integrated": "integrated:steps=3",
    "moreaugrad": "moreaugrad:samples=2,max_samples=4,budget=24",
    "smoothgrad": "smoothgrad:samples=3",
    "xrai": "xrai:steps=3,scales=250+500",
}
"""Options that keep expensive methods short."""


class SmallNet(Seeded):
    """Strided and plain convolutions, BatchNorm, dropout, a ReLU in place; for 32x32 images."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=4, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
            dtype=dtype,
        )


def images(n: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A coarse pattern with some noise, so that there is something to segment."""
    draws = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 4, 4, generator=draws).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return (0.8 * coarse + 0.2 * torch.rand(n, 3, 32, 32, generator=draws)).to(dtype)


def explainer(name: str):
    spec = MethodSpec.parse(SHORT.get(name, name))
    return EXPLAINERS.get(name).build(spec.options)


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_form_of_the_result(name, dtype):
    model, x, target = wrap(SmallNet(dtype)), images(dtype=dtype), torch.tensor([1, 4, 0])
    found = explainer(name)(model, x, target)
    pixels = (3, 1, 32, 32)
    assert tuple(found.values.shape) == (pixels if CLASSES[name].pixels else tuple(x.shape))
    assert found.values.dtype == dtype and found.values.isfinite().all() and not found.values.requires_grad
    assert found.values.any()
    assert found.signed or (found.values >= 0).all()
    for tensor in (found.residual, found.standard_error, *found.extras.values()):
        assert tensor is None or (len(tensor) == 3 and not tensor.requires_grad)
    assert found.residual is None or tuple(found.residual.shape) == (3,)
    assert found.standard_error is None or found.standard_error.shape == found.values.shape
    with model.frozen():
        expected = model(x)[range(3), target]
    torch.testing.assert_close(found.value, expected)
    assert torch.equal(found.target, target) and torch.equal(found.x, x)
    assert found.method == name and found.output == "logit"


def test_the_predicted_class_is_the_default(name):
    model, x = wrap(SmallNet()), images(2)
    with model.frozen():
        expected = model(x).argmax(1)
    assert torch.equal(explainer(name)(model, x).target, expected)


def test_every_method_knows_its_cost(name):
    model, x, passed = wrap(SmallNet()), images(), []
    explainer(name)(model, x, 1)
    model.net.register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
    before = dataclasses.replace(model.cost)
    found = explainer(name)(model, x, 1)
    assert found.cost.forwards >= 2 * len(x) - 1 and sum(passed) >= len(x)
    assert found.cost.backwards >= len(x) or found.cost.backwards == 0
    assert found.cost.forwards == model.cost.forwards - before.forwards
    assert found.cost.backwards == model.cost.backwards - before.backwards


def test_same_call_same_bits_and_input_untouched(name):
    model, x = wrap(SmallNet()), images(2)
    copy = x.clone()
    one, two = (explainer(name)(model, x, 1, seed=5) for _ in range(2))
    assert torch.equal(one.values, two.values) and torch.equal(x, copy)


def test_a_map_does_not_depend_on_the_batch(name):
    """Keyed draws: on a float64 network, a sample alone, in a batch and in pieces has the same map."""
    model, x = wrap(SmallNet(torch.float64)), images(dtype=torch.float64)
    ids, target = torch.tensor([11, 3, 99]), torch.tensor([0, 4, 2])
    whole = explainer(name)(model, x, target, ids=ids, seed=1).values
    scale = float(whole.abs().max())
    alone = [
        explainer(name)(model, x[i : i + 1], target[i : i + 1], ids=ids[i : i + 1], seed=1).values for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-6 * scale, rtol=0)
    pieces = explainer(name)(model, x, target, ids=ids, seed=1, batch=2).values
    torch.testing.assert_close(whole, pieces, atol=1e-6 * scale, rtol=0)
    chunked = explainer(name)(wrap(SmallNet(torch.float64), chunk=2), x, target, ids=ids, seed=1).values
    torch.testing.assert_close(whole, chunked, atol=1e-6 * scale, rtol=0)


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
    rng = torch.get_rng_state()
    explainer(name)(model, x, 1)
    with pytest.raises(UsageError):
        explainer(name)(model, x, 99)
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    assert x.grad is None
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(m, kind) for m in net.modules() for kind in hooks)


def test_memory_is_flat_over_calls():
    """All methods in one test, for counting takes longer than explaining."""
    model, x, runs = wrap(SmallNet()), images(2), {name: explainer(name) for name in CLASSES}

    def tensors() -> int:
        gc.collect()
        return sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())

    def after(calls: int) -> int:
        for _ in range(calls):
            for run in runs.values():
                run(model, x, 1)
        return tensors()

    before = after(1)
    assert after(4) <= before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"x": x * 255}, "leave the bounds"),
        (lambda x: {"x": x / 0}, "NaN or infinity"),
        (lambda x: {"x": x.double()}, "do not match"),
        (lambda x: {"x": (x * 255).byte()}, "floating-point"),
        (lambda x: {"x": x[:, :2]}, "does not accept"),
        (lambda x: {"x": x[:0]}, "batch"),
        (lambda x: {"target": 5}, r"does not exist.*0 \.\. 4"),
        (lambda x: {"target": torch.tensor([0, 1, 2])}, "one for each of the 2 samples"),
        (lambda x: {"ids": torch.arange(3)}, "different lengths"),
        (lambda x: {"batch": 0}, "at least 1"),
        (lambda x: {"mask": torch.ones(32, 32)}, "mask does not fit"),
    ],
)
def test_bad_input_is_one_clear_message(name, change, message):
    model, x = wrap(SmallNet()), images(2)
    with pytest.raises(UsageError, match=message):
        explainer(name)(model, **{"x": x, "target": 1, **change(x)})


def test_a_network_without_gradient_names_the_method(name):
    class Rounded(SmallNet):
        def forward(self, x):
            return super().forward(x).detach().round()

    try:
        found = explainer(name)(wrap(Rounded()), images(2), 1)
    except UsageError as error:
        assert str(error).startswith(f"{name} needs the gradient of the network, and there is none")
    else:
        assert found.cost.backwards == 0, "only what asks for outputs alone can do without"


def test_bare_network_is_refused(name):
    with pytest.raises(UsageError, match=r"robustkit\.wrap"):
        explainer(name)(SmallNet(), images(1), 1)


def test_options_are_checked_and_frozen(name):
    method = explainer(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.output = "margin"
    assert EXPLAINERS.get(name).build({"output": "probability"}).output == "probability"
    with pytest.raises(UsageError, match=f"{name} cannot take this output"):
        EXPLAINERS.get(name).build({"output": "nothing"})
    with pytest.raises(UsageError, match="no option 'nothing'"):
        EXPLAINERS.get(name).build({"nothing": 1})(wrap(SmallNet()), images(1), 1)


def test_entry_is_complete(name):
    entry = EXPLAINERS.get(name)
    assert entry.paper.startswith("https://") and entry.summary.endswith(".")
    assert all(option.help for option in entry.options())
    assert EXPLAINERS.catalogue()[name].summary == entry.summary
