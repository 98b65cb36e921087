"""Grad-CAM against its closed form on a global-average-pooled network, captum, and the paper's loops on tokens."""

from __future__ import annotations

import captum.attr
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import interpolate

from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS
from robustkit.core.layers import find_layer
from robustkit.core.model import wrap
from robustkit.core.specs import MethodSpec
from robustkit.core.task import DenseClassification
from robustkit.explain.gradcam import GradCAM


def images(n=3, size=(32, 32)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def built(make, *args, std=1.0, **options):
    """A network with random weights that are the same every time, also in heads that begin at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = make(*args, **options).eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape) * std / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else 0)
    return net


def pooled(channels=6, classes=4):
    """Convolution, ReLU, mean over places, linear: the gradient at the ReLU is w / (h * w) everywhere."""
    body = [nn.Conv2d(3, channels, 3, stride=4, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(channels, classes))


def timm_net(name, **options):
    return built(timm.create_model, name, pretrained=False, **options)


@pytest.fixture(scope="module")
def resnet():
    return built(torchvision.models.resnet18, std=0.2)


@pytest.fixture(scope="module")
def vit():
    return timm_net("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, depth=2)


def test_equals_the_closed_form_where_the_network_averages_over_places():
    net, x = built(pooled), images()
    found = GradCAM(interpolation="nearest")(wrap(net), x, torch.tensor([0, 3, 1]))
    features = net[:2](x)
    expected = torch.einsum("nc,nchw->nhw", net[4].weight[[0, 3, 1]] / 64, features)[:, None].relu()
    torch.testing.assert_close(found.extras["coarse"].relu(), expected)
    torch.testing.assert_close(found.values, expected.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert found.values.shape == (3, 1, 32, 32) and not found.signed and found.notes[0] == "layer 1, 8 x 8 places"


def test_probability_has_the_gradient_of_the_softmax():
    net, x = built(pooled), images()
    found = GradCAM(output="probability", relu=False)(wrap(net), x, 2)
    p = net(x).softmax(1)
    weights = p[:, 2:3] * (net[4].weight[2] - p @ net[4].weight)  # d p_2 / d pooled features
    expected = (weights[:, :, None, None] / 64 * net[:2](x)).sum(1, keepdim=True)
    torch.testing.assert_close(found.extras["coarse"], expected)
    assert found.signed


@pytest.mark.parametrize("layer", [None, "layer2.1.relu"])
def test_equals_captum(resnet, layer):
    x, target = images(2, (64, 64)), torch.tensor([5, 700])
    found = GradCAM(layer=layer)(wrap(resnet), x, target, batch=1)
    module = dict(resnet.named_modules())[layer or "layer4"]
    theirs = captum.attr.LayerGradCam(resnet, module).attribute(x, target, relu_attributions=True).detach()
    expected = captum.attr.LayerAttribution.interpolate(theirs, (64, 64), "bilinear")
    torch.testing.assert_close(found.values, expected, atol=1e-6 * float(expected.max()), rtol=1e-4)
    assert expected.max() > 0


def test_the_layer_found_is_the_last_stage_of_usual_networks(resnet):
    assert find_layer(wrap(resnet), images(1, (64, 64))).name == "layer4"
    squeeze = torchvision.models.squeezenet1_1(weights=None).eval()
    assert find_layer(wrap(squeeze), images(1, (64, 64))).name == "classifier.2"
    mobile = timm_net("mobilenetv3_small_050")
    assert find_layer(wrap(mobile), images(1, (64, 64))).name == "blocks"
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(7)]
    vgg = nn.Sequential(*body, nn.Flatten(), nn.Linear(196, 2))
    assert find_layer(wrap(vgg), images(1)).name == "1", "pooling adds no features"


def slow_tokens(model, module, x, target, grid, prefix):
    """The paper's two sums over the tokens that have a place, one image and one channel at a time."""
    maps = []
    for image, label in zip(x, target, strict=True):
        kept = []
        handle = module.register_forward_hook(lambda m, i, o, kept=kept: kept.append(o))
        score = model.module(image[None])[0, label]
        handle.remove()
        (grad,) = torch.autograd.grad(score, kept)
        tokens, slopes = kept[0][0, prefix:], grad[0, prefix:]
        total = torch.zeros(len(tokens))
        for k in range(tokens.shape[1]):
            total += slopes[:, k].mean() * tokens[:, k]
        maps.append(total.relu().reshape(1, *grid))
    return interpolate(torch.stack(maps), size=x.shape[2:], mode="bilinear", align_corners=False).detach()


def test_vit_of_timm_takes_the_last_layer_that_reaches_the_class_token(vit):
    x, target = images(2, (32, 48)), torch.tensor([3, 8])
    found = GradCAM()(wrap(vit), x, target)
    assert found.notes == ("layer blocks.1.norm1, 4 x 6 places",)
    expected = slow_tokens(wrap(vit), vit.blocks[1].norm1, x, target, (4, 6), 1)
    torch.testing.assert_close(found.values, expected, atol=1e-6, rtol=1e-3)
    assert (found.values.flatten(1).amax(1) > 0).all()
    black = GradCAM(layer="blocks.1")(wrap(vit), x, target)  # after the last attention nothing reaches the class token
    assert not black.values.any() and "sample 0, 1 is zero everywhere" in black.notes[1]
    assert "does not depend on the layer" in black.notes[1]


def test_vit_of_torchvision_and_pooled_tokens_and_registers():
    theirs = built(torchvision.models.VisionTransformer, 32, 8, 2, 2, 16, 32, num_classes=5)
    found = find_layer(wrap(theirs), images(1))
    assert (found.name, found.size, found.prefix) == ("encoder.layers.encoder_layer_1.ln_1", (4, 4), 1)
    x, target = images(2), torch.tensor([1, 4])
    expected = slow_tokens(wrap(theirs), theirs.encoder.layers[1].ln_1, x, target, (4, 4), 1)
    torch.testing.assert_close(GradCAM()(wrap(theirs), x, target).values, expected, atol=1e-6, rtol=1e-3)

    small = {"depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    mean = timm_net("vit_tiny_patch16_224", img_size=32, patch_size=8, global_pool="avg", **small)
    assert find_layer(wrap(mean), images(1)).name == "blocks", "all tokens reach the mean"
    registers = timm_net("vit_small_patch14_reg4_dinov2", img_size=42, **small)
    found = find_layer(wrap(registers), images(1, (42, 42)))
    assert (found.name, found.size, found.prefix) == ("blocks.1.norm1", (3, 3), 5)


def test_swin_has_its_channels_last():
    shape = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)}
    net = timm_net("swin_tiny_patch4_window7_224", **shape)
    found = find_layer(wrap(net), images(1, (64, 64)))
    assert (found.name, found.form, found.size) == ("norm", "channels last", (2, 2))
    x = images(2, (64, 64))
    coarse = GradCAM()(wrap(net), x, 3).extras["coarse"]
    features = net.forward_features(wrap(net).module[0](x))
    expected = torch.einsum("c,nhwc->nhw", net.head.fc.weight[3] / 4, features)[:, None]
    torch.testing.assert_close(coarse, expected, atol=1e-6, rtol=1e-4)


def test_a_class_of_a_segmentation_within_a_mask():
    encoder = built(nn.Sequential, nn.Conv2d(3, 5, 3, stride=4, padding=1), nn.ReLU())
    decoder = built(nn.Sequential, nn.Upsample(scale_factor=4), nn.Conv2d(5, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    net, x = nn.Sequential(encoder, decoder), images(2)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    found = GradCAM(relu=False)(wrap(net, task=DenseClassification()), x, 1, mask=mask)
    assert found.notes[0] == "layer 0, 8 x 8 places", "the coarsest features, and not the logits"
    features = encoder(x).detach().requires_grad_()
    (grad,) = torch.autograd.grad(decoder(features)[:, 1, :16].sum(), features)
    expected = (grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)
    torch.testing.assert_close(found.extras["coarse"], expected.detach())


def test_several_passes_are_averaged():
    net, x = built(pooled), images()
    once, twice = GradCAM()(wrap(net), x, 1), GradCAM()(wrap(net, eot=2), x, 1)
    torch.testing.assert_close(once.values, twice.values)
    assert (twice.cost.forwards, twice.cost.backwards) == (2 * once.cost.forwards, 2 * once.cost.backwards)


def test_pieces_by_memory_give_the_same_and_the_network_is_left_as_it_was(resnet):
    x = images(5)
    whole = GradCAM()(wrap(built(pooled)), x, 1)
    torch.testing.assert_close(whole.values, GradCAM()(wrap(built(pooled), chunk=2), x, 1, batch=3).values)
    assert not any(m._forward_hooks for m in resnet.modules())
    named = EXPLAINERS.get("gradcam").build(
        MethodSpec.parse("gradcam:layer=0").options
    )  # a number, as text forms read it
    assert named(wrap(built(pooled)), x, 1).notes[0] == "layer 0, 8 x 8 places"
    assert (whole.cost.forwards, whole.cost.backwards) == (5 + 1 + 5, 1 + 5)


def test_a_map_that_is_black_says_why():
    net = built(pooled)
    net[4].weight.data[1] = -1
    found = GradCAM()(wrap(net), images(2), 1, ids=torch.tensor([7, 9]))
    assert not found.values.any()
    assert "sample 7, 9 is zero everywhere: everything in the layer speaks against the target" in found.notes[1]
    assert GradCAM(relu=False)(wrap(net), images(2), 1).values.any()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer5", r"no layer 'layer5' .*Did you mean layer"),
        ("fc", r"'fc' lies on no grid.*got \(1, 1000\)"),
        ("avgpool", r"lies on no grid"),
        ("", "no layer ''"),
    ],
)
def test_layers_that_cannot_be_taken_are_named(resnet, layer, message):
    with pytest.raises(UsageError, match=message):
        EXPLAINERS.get("gradcam").build({"layer": layer})(wrap(resnet), images(1, (64, 64)))


def test_networks_without_layers_are_refused():
    with pytest.raises(UsageError, match=r"no layer with a grid.*plain function"):
        GradCAM()(wrap(lambda x: x.flatten(1)[:, :5] * 2), images(1))
    with pytest.raises(UsageError, match="wrap the module"):
        GradCAM(layer="a")(wrap(lambda x: x.flatten(1)[:, :5]), images(1))
    with pytest.raises(UsageError, match="explains images"):
        GradCAM()(wrap(nn.Linear(4, 3)), torch.rand(2, 4))

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.used(x).mean((2, 3))

    with pytest.raises(UsageError, match="'idle' gives no tensor"):
        GradCAM(layer="idle")(wrap(Idle()), images(1))
