"""Integrated gradients against closed forms, captum, and slow versions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.explain.baselines import blurred
from robustkit.explain.integrated import IntegratedGradients
from robustkit.explain.paths import COARSE, ROUND, rule_of

RULES = ("gauss-legendre", "midpoint", "trapezoid", "left", "right", "linspace")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


class Quadratic(nn.Module):
    """Outputs (x'Ax/2, sum of cubes, w.x)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(size, size, generator=generator)
        self.a = nn.Parameter(root + root.T)
        self.w = nn.Parameter(torch.randn(size, generator=generator))

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([(flat @ self.a * flat).sum(1) / 2, flat.pow(3).sum(1), flat @ self.w], 1)


X = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(2))
PHOTOS = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def quadratic():
    return rk.wrap(Quadratic(12))


@pytest.fixture(scope="module")
def conv():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(192, 5)
    )
    return rk.wrap(net.eval(), mean=MEAN, std=STD)


# -- quadrature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_the_weights_of_every_rule_add_up_to_one(rule, steps):
    nodes, weights = rule_of(rule, steps)
    assert len(nodes) == len(weights) == steps
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert bool((nodes.diff() > 0).all()) and float(nodes[0]) >= 0 and float(nodes[-1]) <= 1


def test_the_quadratic_has_a_closed_form(quadratic):
    flat = X.flatten(1)
    found = IntegratedGradients(steps=2)(quadratic, X, 0)
    torch.testing.assert_close(found.values.flatten(1), flat * (flat @ quadratic.net.a.detach()) / 2)
    cubes = IntegratedGradients(steps=2)(quadratic, X, 1)
    torch.testing.assert_close(cubes.values, X.pow(3))
    torch.testing.assert_close(found.residual, torch.zeros(3), atol=1e-4, rtol=0)


def test_the_trapezoid_halves_the_ends_and_is_exact_for_the_quadratic(quadratic):
    flat = X.flatten(1)
    exact = flat * (flat @ quadratic.net.a.detach()) / 2
    found = IntegratedGradients(rule="trapezoid", steps=10)(quadratic, X, 0)
    torch.testing.assert_close(found.values.flatten(1), exact)
    nodes = torch.linspace(0, 1, 10)
    by_torch = torch.trapezoid((3 * nodes.square()).expand(3, 3, 2, 2, 10), nodes)
    cubes = IntegratedGradients(rule="trapezoid", steps=10)(quadratic, X, 1)
    torch.testing.assert_close(cubes.values, by_torch * X.pow(3))


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_network_is_exact_under_every_rule(quadratic, rule):
    reference = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    found = IntegratedGradients(rule=rule, steps=3, reference=reference)(quadratic, X, 2)
    torch.testing.assert_close(found.values.flatten(1), (X - reference).flatten(1) * quadratic.net.w.detach())
    assert "given as a tensor" in found.notes[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("gauss-legendre", "gausslegendre"),
        ("midpoint", "riemann_middle"),
        ("left", "riemann_left"),
        ("right", "riemann_right"),
    ],
)
def test_captum_finds_the_same(conv, ours, theirs):
    from captum.attr import IntegratedGradients as Captum

    target = torch.tensor([0, 4, 2])
    reference = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(6))
    found = IntegratedGradients(rule=ours, steps=21, reference=reference)(conv, PHOTOS, target, batch=10)
    other, delta = Captum(conv.module).attribute(
        PHOTOS, reference, target=target, n_steps=21, method=theirs, return_convergence_delta=True
    )
    torch.testing.assert_close(found.values, other.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.residual, delta.float(), atol=1e-4, rtol=1e-3)


# -- completeness ----------------------------------------------------------------------------------------------------


def test_the_residual_is_what_the_sum_misses_and_is_left_there(conv):
    found = IntegratedGradients(rule="left", steps=2, baseline="black+white")(conv, PHOTOS, 1)
    ends = (conv(torch.zeros_like(PHOTOS)) + conv(torch.ones_like(PHOTOS)))[:, 1] / 2
    difference = conv(PHOTOS)[:, 1] - ends
    torch.testing.assert_close(found.extras["difference"], difference, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.residual, found.values.flatten(1).sum(1) - difference, atol=1e-4, rtol=1e-4)
    worst = float((found.residual / difference).abs().max())
    assert worst > 0.05 and f"{worst:.3g}" in found.notes[0]
    fine = IntegratedGradients(steps=100, baseline="black+white")(conv, PHOTOS, 1)
    assert float((fine.residual / difference).abs().max()) < 0.05 and fine.notes == ()


# -- baselines -------------------------------------------------------------------------------------------------------


def tensors(x):
    """The named baselines, written out."""
    return {
        "black": torch.zeros_like(x),
        "white": torch.ones_like(x),
        "mean": torch.tensor(MEAN).view(1, 3, 1, 1).expand_as(x),
        "min": torch.stack([torch.full_like(one, float(one.min())) for one in x]),
        "max": torch.stack([torch.full_like(one, float(one.max())) for one in x]),
    }


def test_every_name_is_the_baseline_it_says(conv):
    for name, tensor in tensors(PHOTOS).items():
        found = IntegratedGradients(steps=4, baseline=name)(conv, PHOTOS, 0)
        same = IntegratedGradients(steps=4, reference=tensor)(conv, PHOTOS, 0)
        torch.testing.assert_close(found.values, same.values)


def test_black_and_white_are_the_bounds():
    model = rk.wrap(Quadratic(12), bounds=(-1, 3))
    for name, level in (("black", -1), ("white", 3)):
        found = IntegratedGradients(steps=2, baseline=name)(model, X, 1)
        torch.testing.assert_close(found.values, X**3 - level**3, atol=1e-3, rtol=1e-4)


def test_the_mean_colour_is_that_of_the_image_where_the_model_has_none(quadratic):
    found = IntegratedGradients(steps=2, baseline="mean")(quadratic, X, 2)
    torch.testing.assert_close(
        found.values.flatten(1), (X - X.mean((2, 3), keepdim=True)).flatten(1) * quadratic.net.w.detach()
    )
    rows = X.flatten(1)
    found = IntegratedGradients(steps=2, baseline="mean")(quadratic, rows, 2)
    torch.testing.assert_close(found.values, (rows - rows.mean(1, keepdim=True)) * quadratic.net.w.detach())


def test_blur_is_the_gaussian_of_scipy(conv):
    from scipy.ndimage import gaussian_filter

    slow = torch.stack(
        [
            torch.stack(
                [torch.from_numpy(gaussian_filter(plane.numpy(), 1.2, mode="nearest", radius=4)) for plane in one]
            )
            for one in PHOTOS
        ]
    )
    torch.testing.assert_close(blurred(PHOTOS, 1.2), slow, atol=1e-6, rtol=1e-5)
    found = IntegratedGradients(steps=4, baseline="blur", blur=0.1)(conv, PHOTOS, 0)
    same = IntegratedGradients(steps=4, reference=slow)(conv, PHOTOS, 0)
    torch.testing.assert_close(found.values, same.values, atol=1e-5, rtol=1e-4)


def test_uniform_draws_are_keyed_by_sample(conv):
    ids, method = torch.tensor([7, 3, 5]), IntegratedGradients(steps=4, baseline="uniform", uniform_samples=3)
    found = method(conv, PHOTOS, 0, ids=ids, seed=1)
    drawn = [Draws(1, ids, "integrated").child("baseline").again(k).uniform(PHOTOS) for k in range(3)]
    same = IntegratedGradients(steps=4, reference=tuple(drawn))(conv, PHOTOS, 0)
    torch.testing.assert_close(found.values, same.values)
    alone = method(conv, PHOTOS[1:2], 0, ids=ids[1:2], seed=1, batch=5)
    torch.testing.assert_close(alone.values, found.values[1:2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(method(conv, PHOTOS, 0, ids=ids, seed=2).values, found.values)


@pytest.mark.parametrize("steps", [6, "auto"])
def test_several_baselines_are_the_mean_of_each_alone(conv, steps):
    names = [*tensors(PHOTOS), "blur"]
    together = IntegratedGradients(steps=steps, baseline="+".join(names))(conv, PHOTOS, 0)
    alone = [IntegratedGradients(steps=steps, baseline=name)(conv, PHOTOS, 0) for name in names]
    torch.testing.assert_close(together.values, sum(one.values for one in alone) / len(names), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.residual, sum(one.residual for one in alone) / len(names), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("steps", [9, "auto"])
def test_the_map_does_not_depend_on_the_batch(conv, steps):
    method = IntegratedGradients(steps=steps, baseline="black+white", tolerance=0.1)
    found = method(conv, PHOTOS, 0)
    for batch in (1, 5):
        torch.testing.assert_close(method(conv, PHOTOS, 0, batch=batch).values, found.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method(conv, PHOTOS[2:], 0).values, found.values[2:], atol=1e-5, rtol=1e-4)


# -- steps=auto ------------------------------------------------------------------------------------------------------


class Steep(nn.Module):
    """A step at 0.3 of the way and a slow rise: what even nodes waste their time on."""

    def forward(self, x):
        rise = x.flatten(1).mean(1) / 0.5
        return torch.stack([torch.sigmoid(80 * (rise - 0.3)) + 0.1 * x.flatten(1).square().sum(1), rise], 1)


def bisected(f, gradient, tolerance, most):
    """One path, straight from the description: nodes and gradients in lists, the worst intervals halved."""
    places = torch.linspace(0, 1, COARSE, dtype=torch.float64).tolist()
    while True:
        values, slopes = [f(a) for a in places], [float(gradient(a).sum()) for a in places]
        gaps = list(pairwise(places))
        errors = [
            (b - a) * (slopes[i] + slopes[i + 1]) / 2 - (values[i + 1] - values[i]) for i, (a, b) in enumerate(gaps)
        ]
        if abs(sum(errors)) <= tolerance * abs(values[-1] - values[0]) or len(places) >= most:
            return len(places), sum((b - a) * (gradient(a) + gradient(b)) / 2 for a, b in gaps)
        worst = sorted(range(len(gaps)), key=lambda i: -abs(errors[i]))[: min(ROUND, most - len(places))]
        places = sorted([*places, *(sum(gaps[i]) / 2 for i in worst)])


@pytest.mark.parametrize(("tolerance", "most"), [(0.05, 257), (1e-4, 257), (1e-6, 40)])
def test_auto_halves_the_worst_intervals(tolerance, most):
    x = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64) + torch.linspace(-0.2, 0.3, 9).double().view(1, 1, 3, 3)
    model = rk.wrap(Steep().double())

    def gradient(a):
        leaf = (a * x).requires_grad_()
        return torch.autograd.grad(model.net(leaf)[0, 0], leaf)[0] * x

    steps, slow = bisected(lambda a: float(model.net(a * x)[0, 0]), gradient, tolerance, most)
    found = IntegratedGradients(steps="auto", tolerance=tolerance, max_steps=most)(model, x, 0)
    assert int(found.extras["steps"]) == steps == found.cost.backwards
    torch.testing.assert_close(found.values, slow, atol=1e-9, rtol=1e-7)
    size = float((found.residual / found.extras["difference"]).abs())
    assert (size <= tolerance) == (most == 257)
    assert any("max_steps=40" in note for note in found.notes) == (most == 40)


def test_auto_spends_its_steps_where_they_are_needed():
    x = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.5
    model = rk.wrap(Steep())
    found = IntegratedGradients(steps="auto", tolerance=1e-3)(model, x, 0)
    even = IntegratedGradients(rule="trapezoid", steps=int(found.extras["steps"].max()))(model, x, 0)
    assert bool((found.residual.abs() < even.residual.abs()).all())
    easy = IntegratedGradients(steps="auto")(model, x, 1)
    assert easy.extras["steps"].flatten().tolist() == [COARSE] * 4


# -- what does not go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "grey"}, "black, white, mean, .* joined by"),
        ({"baseline": "black+black"}, "every baseline once"),
        ({"rule": "trapezoid", "steps": 1}, "node at both ends"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        IntegratedGradients(**options)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.zeros(2, 2, 2), "does not fit the inputs"),
        (torch.full((1, 1, 1, 1), -0.5), "leaves the bounds"),
        (torch.full((1, 1, 1, 1), torch.nan), "leaves the bounds"),
        ((), "no baseline is given"),
    ],
)
def test_references_that_do_not_fit(quadratic, reference, message):
    with pytest.raises(UsageError, match=message):
        IntegratedGradients(reference=reference)(quadratic, X, 0)


def test_baselines_that_the_model_cannot_have(quadratic):
    free = rk.wrap(Quadratic(12), bounds=(float("-inf"), float("inf")))
    with pytest.raises(UsageError, match="no bounds to take a colour from"):
        IntegratedGradients()(free, X, 0)
    with pytest.raises(UsageError, match="only images can be blurred"):
        IntegratedGradients(baseline="blur")(quadratic, X.flatten(1), 0)


@pytest.mark.parametrize("steps", [4, "auto"])
def test_a_gradient_that_is_no_number_names_the_sample(steps):
    model = rk.wrap(lambda x: ((x - 0.5) + (x - 0.5).abs()).flatten(1).sqrt())  # below 0.5: infinity times 0
    x = torch.stack([torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 0.2)])
    with pytest.raises(UsageError, match=r"not finite.* sample 9 "):
        IntegratedGradients(steps=steps, baseline="white")(model, x, 0, ids=torch.tensor([8, 9]))
