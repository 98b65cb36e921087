"""Insertion and deletion against RISE's loop written out, a network whose curve is known, and the promised cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.explain.metrics import insertion_deletion
from robustkit.explain.metrics.insertion import area, blur_taps, substrate

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def conv_net(channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16 * 16, 4)
        ).double()


def pictures(n: int = 3, channels: int = 3, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, channels, side, side, generator=generator, dtype=torch.double)


def maps_like(x: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.rand(len(x), *x.shape[2:], generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def rise(net: nn.Module, image: np.ndarray, saliency: np.ndarray, label: int, game: str, step: int) -> np.ndarray:
    """One curve as the authors measure it: normalised picture, pixel by pixel into a flat array, a forward a step."""
    kernel = gaussian_filter(np.pad([[1.0]], 5), 5)
    blurred = np.zeros_like(image)
    padded = np.pad(image, ((0, 0), (5, 5), (5, 5)))
    for i, j in np.ndindex(image.shape[1:]):
        blurred[:, i, j] = (padded[:, i : i + 11, j : j + 11] * kernel).sum((1, 2))
    start, finish = (image, np.zeros_like(image)) if game == "deletion" else (blurred, image)
    start, finish = start.reshape(3, -1).copy(), finish.reshape(3, -1)
    order = sorted(range(start.shape[1]), key=lambda p: -saliency.flat[p])
    scores = []
    for done in range(0, len(order) + 1, step):
        with torch.no_grad():
            scores.append(float(net(torch.tensor(start).view(1, *image.shape)).softmax(1)[0, label]))
        for pixel in order[done : done + step]:
            start[:, pixel] = finish[:, pixel]
    return np.array(scores)


@pytest.mark.parametrize(("game", "ground"), [("deletion", "mean"), ("insertion", "blur")])
def test_equals_the_loop_of_rise(game, ground):
    net, x = conv_net(), pictures()
    model = wrap(net, mean=MEAN, std=STD)
    maps, classes = {"one": maps_like(x, 5), "two": maps_like(x, 6)}, torch.tensor([0, 3, 1])
    found = insertion_deletion(model, x, maps, classes, steps=16, batch=7)
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (MEAN, STD))
    for name, curves in found.items():
        for i in range(len(x)):
            slow = rise(net, ((x[i] - mean) / std).numpy(), maps[name][i].numpy(), int(classes[i]), game, 16)
            np.testing.assert_allclose(getattr(curves, game)[ground][i], slow, atol=1e-6)
            auc = (slow.sum() - slow[0] / 2 - slow[-1] / 2) / 16
            np.testing.assert_allclose(getattr(curves, f"{game}_auc")[ground][i], auc, atol=1e-6)


def test_the_blur_keeps_the_mass_and_a_constant_picture():
    assert float(blur_taps().sum()) == pytest.approx(1, abs=1e-12)
    model = wrap(nn.Flatten(), mean=MEAN, std=STD)
    flat = torch.tensor(MEAN).view(1, 3, 1, 1).expand(1, 3, 9, 7).contiguous()
    torch.testing.assert_close(substrate(model, flat, "blur"), flat)
    assert substrate(model, pictures().float(), "mean")[2, :, 4, 4].tolist() == pytest.approx(MEAN)


def test_without_a_known_mean_the_picture_gives_its_own():
    x = pictures()
    found = substrate(wrap(nn.Flatten()), x, "mean")
    torch.testing.assert_close(found, x.mean((2, 3), keepdim=True).expand_as(x))


class Share(nn.Module):
    """Probability of class 0 is the share of white pixels in a picture whose pixels are 0 or 1."""

    def forward(self, x):
        p = x.mean((1, 2, 3)).clamp(1e-7, 1 - 1e-7)
        return torch.stack([p.log(), (1 - p).log()], 1)


def test_closed_form_of_a_network_that_counts():
    """White pixels put into black first: the score rises to q over a share q of the way, and stays."""
    x = torch.zeros(1, 1, 10, 10)
    x.view(-1)[:30] = 1
    model = wrap(Share(), mean=0.0, std=1.0)
    curves = insertion_deletion(model, x, {"best": x[:, 0]}, torch.zeros(1, dtype=torch.long), steps=100)["best"]
    q = 0.3
    assert float(curves.insertion_auc["mean"][0]) == pytest.approx(q * q / 2 + (1 - q) * q, abs=1e-6)
    assert float(curves.deletion_auc["mean"][0]) == pytest.approx(q * q / 2, abs=1e-6)
    torch.testing.assert_close(area(curves.deletion["mean"]), curves.deletion_auc["mean"])


def test_equal_pixels_go_in_reading_order_and_the_last_step_takes_the_rest():
    x = torch.ones(1, 1, 3, 3)
    model = wrap(Share(), mean=0.0, std=1.0)
    found = insertion_deletion(model, x, {"flat": torch.ones(1, 3, 3)}, torch.tensor([0]), steps=4, substrates=["mean"])
    torch.testing.assert_close(found["flat"].insertion["mean"][0] * 9, torch.tensor([0, 2, 4, 6, 9.0]))


def test_counts_its_forwards_and_stays_within_the_bar():
    x, model = pictures(2), wrap(conv_net(), mean=MEAN, std=STD)
    maps = {str(i): maps_like(x, i) for i in range(8)}
    model.output_shape(x)
    with model.metered() as cost:
        found = insertion_deletion(model, x, maps, torch.tensor([0, 1]), steps=112)
    assert (cost.forwards, cost.backwards) == (2 * (3 + 8 * 4 * 111), 0)
    assert cost.forwards == 2 * 3 + sum(c.cost.forwards for c in found.values())
    assert cost.forwards / (2 * 8) <= 2 * 224


def test_a_curve_depends_neither_on_the_batch_nor_on_other_maps():
    x, model = pictures(), wrap(conv_net(), mean=MEAN, std=STD)
    maps, classes = {"a": maps_like(x, 1), "b": maps_like(x, 2)}, torch.tensor([1, 2, 0])
    whole = insertion_deletion(model, x, maps, classes, steps=9)["b"]
    seen = []
    alone = insertion_deletion(
        model, x[1:2], {"b": maps["b"][1:2]}, classes[1:2], steps=9, batch=5, progress=lambda *a: seen.append(a)
    )["b"]
    for game in ("insertion", "deletion"):
        for ground in ("mean", "blur"):
            ours, theirs = getattr(whole, game)[ground][1:2], getattr(alone, game)[ground]
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert seen[-1] == (35, 35) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_small_pictures_and_other_scores():
    x = pictures(1, 1, 4)
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double())
    one = {"m": maps_like(x, 1)}
    found = insertion_deletion(model, x, one, torch.tensor([2]), output="logit")["m"]
    assert found.insertion["mean"].shape == (1, 17)  # at most a step for each pixel
    assert float(found.insertion["mean"][0, -1]) == pytest.approx(float(model(x)[0, 2]), abs=1e-9)
    assert insertion_deletion(model, x, one, torch.tensor([2]), steps=1)["m"].deletion["blur"].shape == (1, 2)


def test_bad_input_says_what_is_wrong():
    x, model = pictures(), wrap(conv_net(), mean=MEAN, std=STD)
    maps, classes = {"m": maps_like(x, 1)}, torch.tensor([0, 1, 2])
    holed = maps["m"].clone()
    holed[1, 2, 3] = torch.nan
    cases = [
        ({"maps": {"m": maps["m"][:, :8]}}, r"does not fit the pictures: expected .*\(3, 16, 16\).*\(3, 8, 16\)"),
        ({"maps": {"m": holed}}, r"a map is not finite.*row 1.*maps\['m'\]"),
        ({"classes": torch.tensor([0, 1, 4])}, r"class does not exist: expected 0 .. 3.*got 4"),
        ({"classes": torch.tensor([0, 1])}, r"classes do not fit"),
        ({"classes": torch.tensor([0.0, 1, 2])}, r"classes do not fit"),
        ({"steps": 0}, r"steps is a whole number"),
        ({"substrates": ["black"]}, r"unknown substrate 'black'"),
        ({"substrates": "mean"}, r"substrates are a list"),
        ({"x": x[0]}, r"measured on pictures"),
        ({"model": wrap(conv_net(), task="regression")}, r"measured on classifiers"),
    ]
    for change, message in cases:
        given = {"model": model, "x": x, "maps": maps, "classes": classes, **change}
        options = {key: given.pop(key) for key in ("steps", "substrates") if key in given}
        with pytest.raises(UsageError, match=message):
            insertion_deletion(*given.values(), **options)
