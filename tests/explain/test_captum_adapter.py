"""Every class of captum through our wrapper, against captum called by hand."""

from __future__ import annotations

import inspect
import warnings

import captum.attr
import pytest
import torch
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS
from robustkit.core.model import wrap
from robustkit.core.specs import MethodSpec
from robustkit.core.task import DenseClassification
from robustkit.explain.captum_adapter import CaptumMethod, cells, from_captum

TARGET = torch.tensor([2, 0, 3])


class Small(nn.Module):
    """Two convolutions, and logits of some size: what captum's Lime finds below 0.01 it drops."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(32, 4)

    def forward(self, x):
        return 30 * self.head(self.pool(self.body(x)).flatten(1))


class Plain(Small):
    """The same without a product, which LRP sees nothing of."""

    def forward(self, x):
        return self.head(self.pool(self.body(x)).flatten(1))


def small(cls=Small):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return cls().eval()


NET = small()
X = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
MASK = cells((3, 12, 12), 2)


def explain(text, model=None, x=X, target=TARGET, **options):
    spec = MethodSpec.parse(f"captum:{text}")
    return EXPLAINERS.get("captum").build({**spec.options, **options.pop("more", {})})(
        model or wrap(NET), x, target, **options
    )


def theirs(cls, *args, target=TARGET, x=X, net=NET, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(captum.attr, cls)(net, *args).attribute(x.clone().requires_grad_(), target=target, **options)


@pytest.mark.parametrize(
    ("text", "cls", "options"),
    [
        ("Saliency", "Saliency", {}),
        ("Saliency,abs=false", "Saliency", {"abs": False}),
        ("InputXGradient", "InputXGradient", {}),
        ("IntegratedGradients,n_steps=7", "IntegratedGradients", {"n_steps": 7}),
        ("IntegratedGradients,baselines=0.25", "IntegratedGradients", {"baselines": 0.25}),
        ("IntegratedGradients,baselines=white", "IntegratedGradients", {"baselines": 1.0}),
        ("GuidedBackprop", "GuidedBackprop", {}),
        ("Deconvolution", "Deconvolution", {}),
        ("DeepLift,baselines=gray", "DeepLift", {"baselines": 0.5}),
        ("DeepLiftShap", "DeepLiftShap", {"baselines": torch.stack([X[0] * 0, X[0] * 0 + 1])}),
        (
            "Occlusion,sliding_window_shapes=4,strides=3",
            "Occlusion",
            {"sliding_window_shapes": (3, 4, 4), "strides": (3, 3, 3)},
        ),
        ("FeatureAblation,feature_mask=2", "FeatureAblation", {"feature_mask": MASK}),
        ("ShapleyValues", "ShapleyValues", {"feature_mask": cells((3, 12, 12), 6)}),
    ],
)
def test_equals_captum_by_hand_in_one_batch_and_in_pieces(text, cls, options):
    expected = theirs(cls, **options)
    if isinstance(expected, tuple):
        expected = expected[0]
    for batch in (None, 2) if cls != "ShapleyValues" else (2,):
        found = explain(text, batch=batch)
        torch.testing.assert_close(found.values, expected.detach(), atol=1e-6, rtol=1e-4)
    assert found.signed == (text != "Saliency") and found.method == "captum" and found.settings["name"] == cls


def test_lrp_equals_captum_and_needs_layers_that_it_knows():
    net = small(Plain)
    torch.testing.assert_close(explain("LRP", wrap(net)).values, theirs("LRP", net=net).detach())
    with pytest.raises(UsageError, match=r"Normalize.* has no rule"):
        explain("LRP", wrap(net, mean=0.5, std=0.5))


def test_grad_cam_and_guided_grad_cam_find_their_layer():
    found = explain("LayerGradCam,relu_attributions=true")
    coarse = theirs("LayerGradCam", NET.body[3], relu_attributions=True)
    expected = captum.attr.LayerAttribution.interpolate(coarse, (12, 12), "bilinear").detach()
    torch.testing.assert_close(found.values, expected)
    guided = explain("GuidedGradCam,layer=body.1")
    torch.testing.assert_close(guided.values, theirs("GuidedGradCam", NET.body[1]).detach())


def test_options_of_the_constructor_and_the_residual():
    found = explain("IntegratedGradients,n_steps=5")
    delta = theirs("IntegratedGradients", n_steps=5, return_convergence_delta=True)[1]
    torch.testing.assert_close(found.residual, delta.float(), atol=1e-6, rtol=1e-3)
    total = found.values.flatten(1).sum(1) - (NET(X) - NET(X * 0))[range(3), TARGET]
    torch.testing.assert_close(found.residual, total.detach(), atol=1e-5, rtol=1e-3)
    local = explain("IntegratedGradients,n_steps=5,multiply_by_inputs=false")
    torch.testing.assert_close(local.values * X, found.values)
    assert local.residual is None
    many = explain("DeepLiftShap", batch=4)
    low, high = (theirs("DeepLift", baselines=b, return_convergence_delta=True)[1] for b in (X[:1] * 0, X[:1] * 0 + 1))
    torch.testing.assert_close(many.residual, ((low + high) / 2).detach(), atol=1e-5, rtol=1e-3)


def test_residual_shows_that_the_trapezoid_of_captum_is_short():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval()
    found = explain("IntegratedGradients,n_steps=10,method=riemann_trapezoid", wrap(linear))
    value = (linear(X) - linear(X * 0))[range(3), TARGET].detach()
    torch.testing.assert_close(found.values.flatten(1).sum(1) - value, found.residual, atol=1e-5, rtol=1e-3)
    assert bool(found.notes) == bool((found.residual.abs() > 0.05 * value.abs()).any())


@pytest.mark.parametrize(
    "cls", ["IntegratedGradients", "Occlusion,sliding_window_shapes=6,strides=6", "FeatureAblation"]
)
@pytest.mark.parametrize("output", ["probability", "margin"])
def test_the_output_is_ours(cls, output):
    def number(x, classes):
        scores = NET(x)
        if output == "probability":
            return scores.softmax(1).gather(1, classes[:, None])[:, 0]
        own = scores.gather(1, classes[:, None])[:, 0]
        return own - scores.scatter(1, classes[:, None], -torch.inf).amax(1)

    name, options = cls.partition(",")[0], {}
    if name == "Occlusion":
        options = {"sliding_window_shapes": (3, 6, 6), "strides": (3, 6, 6)}
    if name == "FeatureAblation":
        options = {"feature_mask": MASK}
    method = getattr(captum.attr, name)(number)
    expected = method.attribute(X, additional_forward_args=TARGET, **options)
    found = explain(cls, more={"output": output})
    torch.testing.assert_close(found.values, expected.detach(), atol=1e-6, rtol=1e-4)


def test_inputs_are_seen_before_normalisation_and_bounds_move_the_black():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = wrap(NET, mean=mean, std=std, bounds=(-1, 1))
    found = explain("IntegratedGradients", model)
    scaled = nn.Sequential(model.module[0], NET)
    torch.testing.assert_close(found.values, theirs("IntegratedGradients", net=scaled, baselines=-1.0).detach())


@pytest.mark.parametrize(
    "text",
    [
        "GradientShap,n_samples=3,stdevs=1/10",
        "KernelShap,n_samples=12,feature_mask=6",
        "Lime,n_samples=12,feature_mask=6",
        "ShapleyValueSampling,n_samples=2,feature_mask=6",
        "NoiseTunnel,nt_samples=3,stdevs=1",
        "NoiseTunnel,attribution_method=IntegratedGradients,nt_samples=2,n_steps=3",
    ],
)
def test_draws_depend_on_seed_and_sample_alone(text):
    state = torch.get_rng_state()
    ids = torch.tensor([7, 1, 4])
    whole = explain(text, ids=ids, seed=3)
    alone = [explain(text, x=X[i : i + 1], target=int(TARGET[i]), ids=ids[i : i + 1], seed=3) for i in range(3)]
    torch.testing.assert_close(whole.values, torch.cat([a.values for a in alone]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(whole.values, explain(text, ids=ids, seed=4).values)
    assert torch.equal(whole.values, explain(text, ids=ids, seed=3).values)
    assert not torch.equal(whole.values[0], whole.values[1])


def test_equals_captum_with_the_same_draws():
    from robustkit.kernels.noise import key_of

    found = explain("Lime,n_samples=20,feature_mask=6", ids=torch.tensor([7, 1, 4]), seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(key_of(3, 1, "captum:Lime", 0, 0) % 2**31)
        expected = theirs(
            "Lime", x=X[1:2], target=0, n_samples=20, feature_mask=cells((3, 12, 12), 6), perturbations_per_eval=20
        )
    torch.testing.assert_close(found.values[1:2], expected)


def test_permutation_exchanges_features_between_samples_and_says_so():
    found = explain("FeaturePermutation,feature_mask=6")
    assert found.values.any() and "every map depends on all of them" in found.notes[0]


def test_a_map_that_is_black_is_named():
    found = explain("Lime,n_samples=12,feature_mask=6", wrap(small(Plain)))  # captum's Lasso drops what is so small
    assert not found.values.any() and found.notes == ("the map of sample 0, 1, 2 is zero everywhere",)


def test_noise_tunnel_of_squares_is_unsigned():
    assert not explain("NoiseTunnel,nt_samples=2,abs=false,nt_type=vargrad").signed
    assert explain("NoiseTunnel,nt_samples=2,abs=false").signed
    assert not explain("NoiseTunnel,nt_samples=2").signed


@pytest.mark.parametrize(
    ("text", "forwards", "backwards"),
    [
        ("Saliency", 3, 3),
        ("IntegratedGradients,n_steps=5", 3 * 5 + 6, 15),
        ("Occlusion,sliding_window_shapes=6,strides=6", 3 * 5, 0),
        ("DeepLift", 6 + 6, 6),
        ("LayerGradCam", 1 + 3, 1 + 3),
    ],
)
def test_every_pass_is_counted(text, forwards, backwards):
    found = explain(text)
    assert (found.cost.forwards, found.cost.backwards) == (3 + forwards, backwards)


def test_an_instance_keeps_its_settings_and_is_put_on_the_wrapped_network():
    other = small()
    made = captum.attr.IntegratedGradients(other, multiply_by_inputs=False)
    found = from_captum(made, n_steps=4)(wrap(NET), X, TARGET)
    expected = captum.attr.IntegratedGradients(NET, multiply_by_inputs=False).attribute(X, target=TARGET, n_steps=4)
    torch.testing.assert_close(found.values, expected.float())
    assert made.forward_func is other and found.settings["n_steps"] == 4
    tunnel = from_captum(captum.attr.NoiseTunnel(captum.attr.Saliency(other)), nt_samples=3, stdevs=0.2)
    assert torch.equal(tunnel(wrap(NET), X, 1).values, explain("NoiseTunnel,nt_samples=3,stdevs=0.2", target=1).values)
    lift = captum.attr.DeepLift(other)
    torch.testing.assert_close(from_captum(lift)(wrap(NET), X, TARGET).values, explain("DeepLift").values)
    assert not lift.forward_handles and not lift.backward_handles
    cam = from_captum(captum.attr.LayerGradCam(NET, NET.body[1]))(wrap(NET), X, TARGET)
    torch.testing.assert_close(cam.values, explain("LayerGradCam,layer=body.1").values)
    with pytest.raises(UsageError, match="no part of the wrapped network"):
        from_captum(captum.attr.LayerGradCam(other, other.body[1]))(wrap(NET), X, TARGET)


def test_a_class_with_tensors_of_the_batch():
    found = from_captum(captum.attr.IntegratedGradients, baselines=X.flip(0), n_steps=4)(wrap(NET), X, TARGET, batch=2)
    torch.testing.assert_close(
        found.values, theirs("IntegratedGradients", baselines=X.flip(0), n_steps=4).detach().float()
    )
    assert found.settings["baselines"] == "Tensor 3 3 12 12"


def test_a_class_of_a_segmentation_within_a_mask():
    net = nn.Conv2d(3, 4, 3, padding=1).eval()
    mask = torch.zeros(3, 12, 12, dtype=torch.bool)
    mask[0, :3], mask[1, 4:6], mask[2, 8:] = True, True, True
    found = explain("Occlusion", wrap(net, task=DenseClassification()), target=2, mask=mask, batch=2)

    def number(x, mask):
        return (net(x)[:, 2] * mask).flatten(1).sum(1)

    window = {"sliding_window_shapes": (3, 2, 2), "strides": (3, 1, 1)}
    expected = captum.attr.Occlusion(number).attribute(X, additional_forward_args=mask, **window)
    torch.testing.assert_close(found.values, expected.detach(), atol=1e-5, rtol=1e-4)


def test_inputs_that_are_no_images():
    net, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval(), torch.rand(2, 6)
    found = explain("FeatureAblation", wrap(net), x, 1)
    torch.testing.assert_close(
        found.values, captum.attr.FeatureAblation(net).attribute(x, target=1).detach(), atol=1e-6, rtol=1e-4
    )
    assert explain("Occlusion,sliding_window_shapes=2", wrap(net), x, 1).values.shape == (2, 6)


def stop_inside_captum(module, inputs):
    if any("captum/attr" in frame.filename for frame in inspect.stack(0)):
        raise ValueError("stop")


@pytest.mark.parametrize("text", ["DeepLift", "GuidedBackprop", "GuidedGradCam", "LRP", "LayerGradCam"])
def test_the_network_is_left_as_it_was_also_on_error(text):
    net = small(Plain)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    plain = [set(vars(m)) for m in net.modules()]
    method = CaptumMethod(name=text)
    method(wrap(net), X, TARGET)
    handle = net.register_forward_pre_hook(stop_inside_captum)
    with pytest.raises(UsageError, match="captum stopped with an error: got ValueError: stop"):
        method(wrap(net), X, TARGET)
    handle.remove()
    for kept, module in zip(plain, net.modules(), strict=True):
        assert set(vars(module)) == kept
        assert not any(v for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_guided_methods_say_when_there_is_nothing_to_guide():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 4)).eval()
    found = explain("GuidedBackprop", wrap(net))
    assert "there are none: its gradient is the plain one" in found.notes[0]
    torch.testing.assert_close(found.values, theirs("Saliency", net=net, abs=False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IntegratedGradient", r"no class 'IntegratedGradient' .*Did you mean IntegratedGradients"),
        ("LayerConductance", r"LayerConductance of captum does not attribute inputs .*Saliency"),
        ("NeuronGradient", "does not attribute inputs"),
        ("Attribution", "does not attribute inputs"),
        ("TokenReferenceBase", "no class|no method of captum"),
        ("IntegratedGradients,steps=3", r"no option 'steps' .*Did you mean n_steps"),
        ("Saliency,target=3", "no option 'target'"),
        ("IntegratedGradients,baselines=pink", "unknown baseline: expected black, gray, white.*got 'pink'"),
        ("IntegratedGradients,baselines=black+white", "takes one baseline"),
        ("IntegratedGradients,n_steps=many", "IntegratedGradients of captum stopped with an error: got"),
        ("LayerGradCam,layer=7", "no layer '7'"),
        ("DeepLift,output=margin", r"DeepLift of captum has rules for layers.*expected output=logit"),
        ("NoiseTunnel,attribution_method=DeepLift,output=probability", "rules for layers"),
        ("FeatureAblation,feature_mask=0", "a cell holds pixels"),
        ("NoiseTunnel,attribution_method=Nothing", "no class 'Nothing'"),
    ],
)
def test_what_cannot_be_done_is_said(text, message):
    with pytest.raises(UsageError, match=message):
        explain(text)


def test_more_that_cannot_be_done():
    with pytest.raises(UsageError, match=r"no method of captum.*got Linear"):
        from_captum(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="captum needs the gradient of the network, and there is none"):
        explain("Saliency", wrap(lambda x: x.detach().flatten(1)[:, :4].round()))
    assert explain("Occlusion", wrap(lambda x: x.detach().flatten(1)[:, :4].round())).values.shape == X.shape
    with pytest.raises(UsageError, match=r"not finite.*sample 1"):
        explain("Saliency", wrap(lambda x: (x - X[1]).square().flatten(1).sum(1).sqrt()[:, None].expand(-1, 4)))
    reused = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 3), reused, nn.Conv2d(4, 4, 3), reused, nn.Flatten(), nn.Linear(256, 4))
    with pytest.raises(UsageError, match=r"DeepLift of captum stopped.*used more than once"):
        explain("DeepLift", wrap(twice))
    assert not any("hooks" in k and v for m in twice.modules() for k, v in vars(m).items() if isinstance(v, dict))
