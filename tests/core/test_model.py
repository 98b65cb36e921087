"""The wrapper: it says what the network says, counts what passes, folds what can be folded, and leaves no trace."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.fold import folded
from robustkit.core.model import Model, wrap
from robustkit.core.objective import LabelObjective, dlr, margin
from robustkit.core.task import Classification, DenseClassification, Regression


def linear(n_in: int = 4, n_out: int = 3) -> nn.Module:
    net = nn.Linear(n_in, n_out)
    with torch.no_grad():
        net.weight.copy_(torch.arange(n_in * n_out).view(n_out, n_in) / 10.0)
    return net


@pytest.mark.parametrize(
    "pack",
    [
        lambda z: z,
        lambda z: SimpleNamespace(logits=z),
        lambda z: {"logits": z},
        lambda z: OrderedDict(out=z, aux=z * 0),
        lambda z: (z, None),
        lambda z: [z],
    ],
)
def test_outputs_of_every_form(pack):
    net = linear()
    x = torch.rand(5, 4)
    model = wrap(lambda x: pack(net(x)))
    torch.testing.assert_close(model(x), net(x))


@pytest.mark.parametrize("bad", [None, {"boxes": torch.zeros(1)}, "text", (), SimpleNamespace(logits=None)])
def test_outputs_of_no_form_are_named(bad):
    with pytest.raises(UsageError, match="returned no logits"):
        wrap(lambda x: bad)(torch.rand(1, 4))


def test_normalises_inside():
    net = nn.Conv2d(3, 2, 1)
    x = torch.rand(2, 3, 4, 4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    expected = net((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(wrap(net, mean=mean, std=std, task="segmentation")(x), expected)
    torch.testing.assert_close(wrap(net, mean=0.5, std=0.5, task="segmentation")(x), net((x - 0.5) / 0.5))


def test_reads_mean_and_std_from_timm_torchvision_and_hugging_face():
    net = timm.create_model("resnet18", pretrained=False)
    model = wrap(net)
    assert model.mean == tuple(net.pretrained_cfg["mean"]) and model.preprocessing.source == "timm"
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    model = wrap(torchvision.models.resnet18(), preprocessing=weights)
    assert model.std == (0.229, 0.224, 0.225) and model.preprocessing.size == (224, 224)
    assert model.preprocessing.crop_pct == pytest.approx(224 / 256)
    processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"height": 32, "width": 48})
    assert wrap(linear(), preprocessing=processor).preprocessing.size == (32, 48)


def test_value_and_grad_is_autograd_and_counts():
    net, x, y = linear(), torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    model = wrap(net, chunk=2)
    with model.metered() as cost:
        value, grad, outputs = model.value_and_grad(x, LabelObjective(Classification(), y))
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(net(leaf), y, reduction="none")
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(loss.sum(), leaf)[0])
    torch.testing.assert_close(outputs, net(x).detach())
    assert (cost.forwards, cost.backwards) == (5, 5)
    assert all(p.grad is None for p in net.parameters())
    assert not value.requires_grad and not outputs.requires_grad


def test_no_gradient_is_an_error_and_an_unused_input_a_zero():
    objective = LabelObjective(Classification(), torch.zeros(2, dtype=torch.long))
    with pytest.raises(UsageError, match="no gradient"):
        wrap(lambda x: F.one_hot(x.argmax(1), 4).float()).value_and_grad(torch.rand(2, 4), objective)
    weight = torch.ones(2, 3, requires_grad=True)
    _, grad, _ = wrap(lambda x: weight).value_and_grad(torch.rand(2, 4), objective)
    assert (grad == 0).all()


@pytest.mark.parametrize(
    "spoil", [lambda x: x.mul_(2), lambda x: {}[1], lambda x: 1 / 0, lambda x: x @ torch.rand(3, 3)]
)
def test_networks_that_fail_are_named(spoil):
    with pytest.raises(UsageError, match="does not accept these inputs"):
        wrap(lambda x: linear()(spoil(x))).output_shape(torch.rand(2, 4))


def test_frozen_restores_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4)).train()
    net[0].eval()
    net[1].weight.requires_grad_(False)
    model, rng = wrap(net), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="planned"), model.frozen():
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        torch.rand(3)
        raise RuntimeError("planned")
    assert net.training and not net[0].training and net[1].training
    assert [p.requires_grad for p in net.parameters()] == [False, True]
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_fast_copy_is_the_same_function(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False, num_classes=7).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            g = torch.Generator().manual_seed(0)
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=g))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=g))
    size = 224 if "vit" in name else 64
    x = torch.rand(2, 3, size, size)
    model = wrap(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with model.frozen(), torch.no_grad():
        fast = model.fast(x)
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    norms = [m for m in fast.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def test_fast_copy_is_made_anew_when_weights_change():
    net, x = conv_net().eval(), torch.rand(2, 1, 6, 6)
    model = wrap(net)
    first = model.fast(x)
    assert model.fast(x) is first
    with torch.no_grad():
        net[0].weight.mul_(2)
        net[1].running_mean.add_(0.3)
        torch.testing.assert_close(model.fast(x)(x), model(x))
    assert model.fast(x) is not first


class Shared(nn.Module):
    """The convolution's output is used twice: folding its BatchNorm would change the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(0.7)

    def forward(self, x):
        z = self.conv(x)
        return (self.norm(z) + z).mean((2, 3))


def test_what_cannot_be_folded_is_used_as_it_is():
    x = torch.rand(2, 1, 6, 6)
    shared = Shared().eval()
    assert folded(shared, x) is shared
    hooked = conv_net().eval()
    hooked[1].register_forward_hook(lambda m, i, o: o * 2)
    torch.testing.assert_close(folded(hooked, x)(x), hooked(x))
    plain = conv_net().eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(plain, x).modules())

    class Uncopyable(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

        def forward(self, x):
            return x.flatten(1)

    lone = Uncopyable()
    assert folded(lone, x) is lone


def test_memory_back_off_halves_for_good():
    seen = []

    def hungry(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return x.flatten(1)

    model, x = wrap(hungry), torch.rand(10, 4)
    torch.testing.assert_close(model(x), x)
    assert model.chunk == 2 and seen == [10, 5, 2, 2, 2, 2, 2]
    assert model.cost.forwards == 10
    model(x)
    assert seen[7:] == [2] * 5


def test_repeated_passes_average_and_count():
    model = wrap(lambda x: x.flatten(1) + torch.randn(len(x), 4), eot=400)
    with model.frozen(seed=1):
        one = model(torch.zeros(2, 4))
    assert one.abs().max() < 0.3 and model.cost.forwards == 800
    with model.frozen(seed=1):
        assert torch.equal(model(torch.zeros(2, 4)), one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5]}, "belong together"),
        ({"mean": [0.5], "std": [0.0]}, "do not fit"),
        ({"mean": [0.5] * 3, "std": [1.0]}, "do not fit"),
        ({"bounds": (1, 0)}, "empty"),
        ({"task": "clasification"}, "Did you mean classification"),
        ({"eot": 0}, "at least 1"),
        ({"preprocessing": 3}, "no mean and std"),
    ],
)
def test_bad_wraps_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        wrap(linear(), **arguments)
    with pytest.raises(UsageError, match="not a model"):
        wrap(3)


def test_wrapping_twice_is_once_and_hash_sees_weights_and_buffers():
    model = wrap(conv_net())
    assert wrap(model) is model and isinstance(model, Model)
    before = model.state_sha256()
    model.net[1].running_mean.add_(1)
    assert model.state_sha256() != before


def test_objectives_against_their_formulas():
    z = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 1.0, 0.5]], dtype=torch.double)
    y = torch.tensor([0, 0])
    assert margin(z, y).tolist() == [-2.0, 2.0]
    assert dlr(z, y).tolist() == pytest.approx([-(3 - 1) / (3 - 0.5), -(0 - 2) / (2 - 0.5)])
    t = torch.tensor([2, 1])
    assert dlr(z, y, t).tolist() == pytest.approx([-(3 - 0.5) / (3 - (0.5 - 1) / 2), -(0 - 2) / (2 - (0.5 + 0) / 2)])
    for k in (2, 3):
        assert torch.allclose(dlr(z[:, :k] * 7 + 3, y), dlr(z[:, :k], y)) and dlr(z[:, :k], y).isfinite().all()
    with pytest.raises(UsageError, match="loss=ce"):
        LabelObjective(Regression(), y, loss="dlr")


def test_dense_and_regression_tasks():
    z = torch.zeros(1, 3, 2, 2)
    z[0, 1] = 5
    y = torch.tensor([[[1, 1], [0, 255]]])
    task = DenseClassification(fraction=0.5)
    assert not task.failed(z, y).item() and DenseClassification(fraction=0.3).failed(z, y).item()
    pixel = F.cross_entropy(z, y, reduction="none", ignore_index=255)
    assert task.loss(z, y).item() == pytest.approx(pixel.sum().item() / 3)
    assert task.loss(z, torch.full_like(y, 255)).item() == 0
    task.check(z, y)
    with pytest.raises(UsageError, match="out of range"):
        task.check(z, y + 2)
    one = torch.tensor([[[[0.5]]]])
    assert Regression(0.4).failed(one, one * 0).item() and not Regression(0.6).failed(one, one * 0).item()
    with pytest.raises(UsageError, match="do not fit"):
        Regression().check(one, torch.zeros(1, 2, 1, 1))
