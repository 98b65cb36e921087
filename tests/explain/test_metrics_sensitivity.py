"""Max-sensitivity against a slow version and linear networks, and the controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import sobel
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.model import wrap
from robustkit.core.types import Bounds
from robustkit.explain.gradient import Gradient, InputTimesGradient
from robustkit.explain.metrics import controls, max_sensitivity
from robustkit.explain.metrics import sensitivity as module
from robustkit.explain.smoothgrad import SmoothGrad


def pictures(n: int = 3, channels: int = 3, side: int = 12) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))


def smooth() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 4))


def test_the_gradient_of_a_linear_network_does_not_move():
    model, x = wrap(linear()), pictures()
    for explainer in (Gradient(), SmoothGrad(samples=3)):
        found = max_sensitivity(model, x, explainer, explainer(model, x))
        assert float(found.value.max()) < 1e-5


def test_closed_form_of_input_times_gradient():
    """Of a linear network the ratio is ||w e|| / ||w x||."""
    model, x = wrap(linear()), pictures().clamp(0.1, 0.9)
    explainer = InputTimesGradient()
    attribution = explainer(model, x)
    found = max_sensitivity(model, x, explainer, attribution, samples=4, seed=3)
    w = model.net[1].weight[attribution.target].view_as(x).detach()
    draws = Draws(3, torch.arange(3), "max-sensitivity")
    for i in range(4):
        e = 0.02 * (2 * draws.again(i).uniform(x) - 1)
        assert float(e.abs().max()) <= 0.02
        slow = (w * e).flatten(1).norm(dim=1) / (w * x).flatten(1).norm(dim=1)
        torch.testing.assert_close(found.ratios[:, i], slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.value, found.ratios.amax(1))


@pytest.mark.parametrize("explainer", [Gradient(), SmoothGrad(samples=3)])
def test_equals_a_loop_over_draws_and_samples(explainer, monkeypatch):
    monkeypatch.setattr(module, "default_batch", lambda x: 2)  # copies in pieces of two draws
    model, x, ids = wrap(smooth(), bounds=(0, 2)), pictures(), torch.tensor([4, 0, 7])
    target = torch.tensor([1, 3, 0])
    attribution = explainer(model, x, target, ids=ids, seed=5)
    found = max_sensitivity(model, x, explainer, attribution, ids=ids, seed=5, samples=5)
    assert found.radius == pytest.approx(0.04) and found.notes == ()
    assert found.cost.backwards == 5 * attribution.cost.backwards
    for n in range(3):
        ratios = []
        for i in range(5):
            e = 2 * Draws(5, ids[n : n + 1], "max-sensitivity").again(i).uniform(x[:1]) - 1
            moved = (x[n : n + 1] + 0.04 * e).clamp(0, 2)
            there = explainer(model, moved, target[n : n + 1], ids=ids[n : n + 1], seed=5).values
            here = attribution.values[n : n + 1]
            ratios.append(float((there - here).norm() / here.norm()))
        assert found.ratios[n].tolist() == pytest.approx(ratios, abs=1e-4)
        assert float(found.value[n]) == pytest.approx(max(ratios), abs=1e-4)


def test_a_zero_map_has_no_sensitivity_and_says_so():
    net = linear()
    net[1].weight.data[2] = 0
    model, x = wrap(net), pictures()
    attribution = Gradient()(model, x, torch.tensor([0, 2, 1]))
    found = max_sensitivity(model, x, Gradient(), attribution, ids=torch.tensor([7, 8, 9]))
    assert found.value.isfinite().tolist() == [True, False, True]
    assert found.notes == ("no max-sensitivity for sample 8: its map is zero everywhere",)


def test_bad_input_says_what_is_wrong():
    model, x = wrap(linear()), pictures()
    attribution = Gradient()(model, x)
    cases = [
        ({"radius": 0}, "perturbation has a size"),
        ({"samples": 0}, "samples is a whole number"),
        ({"ids": torch.arange(2)}, "different lengths"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            max_sensitivity(model, x, Gradient(), attribution, **options)
    with pytest.raises(UsageError, match="other inputs"):
        max_sensitivity(model, x.flip(0), Gradient(), attribution)


def test_sobel_equals_scikit_image():
    x = pictures(2)
    slow = np.stack([sobel(picture.mean(0).numpy()) for picture in x])
    np.testing.assert_allclose(controls(x)["sobel"], slow, atol=1e-6)


def test_controls_depend_on_picture_id_and_seed_alone():
    x, ids = pictures(), torch.tensor([3, 1, 4])
    whole = controls(x, ids=ids, seed=2)
    alone = controls(x[1:2], ids=ids[1:2], seed=2)
    other = controls(x, ids=ids, seed=3)
    assert set(whole) == {"random", "sobel", "centre", "segments"}
    for name, maps in whole.items():
        assert maps.shape == (3, 12, 12) and maps.isfinite().all()
        torch.testing.assert_close(alone[name], maps[1:2], atol=1e-6, rtol=0)
    assert not torch.equal(whole["random"], other["random"]) and torch.equal(whole["sobel"], other["sobel"])
    scaled = controls(x * 4 - 1, ids=ids, seed=2, bounds=Bounds(-1, 3))
    torch.testing.assert_close(scaled["sobel"], whole["sobel"])
    assert torch.equal(scaled["segments"], whole["segments"])


def test_the_centre_is_the_middle_and_segments_are_those_of_the_picture():
    x = torch.zeros(1, 2, 15, 21)
    x[..., 10:] = 1
    found = controls(x)
    assert int(found["centre"].argmax()) == 7 * 21 + 10
    torch.testing.assert_close(found["centre"], found["centre"].flip(1, 2))
    left, right = found["segments"][..., :8], found["segments"][..., 13:]
    assert left.unique().numel() == right.unique().numel() == 1 and left[0, 0, 0] != right[0, 0, 0]
    with pytest.raises(UsageError, match="measured on pictures"):
        controls(x[0])
