"""MoreauGrad against closed forms, against scipy on a small network, and against its own definition."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS
from robustkit.core.keyed import Draws
from robustkit.explain.moreaugrad import MoreauGrad
from robustkit.kernels.prox import group_soft_threshold, groups_of, soft_threshold, square_labels

EXACT = {"noise_level": 0.0, "tolerance": 1e-7}


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


class Linear(nn.Module):
    """Logits (0, w.x)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(*shape, seed=7))

    def forward(self, x):
        value = x.flatten(1) @ self.weight.flatten()
        return torch.stack([torch.zeros_like(value), value], 1)


class Quadratic(nn.Module):
    """Logits (0, x'Ax / 2), A with eigenvalues from 0 to ``most``."""

    def __init__(self, size: int, most: float) -> None:
        super().__init__()
        basis, _ = torch.linalg.qr(randn(size, size, seed=3))
        self.matrix = nn.Parameter(basis @ torch.diag(torch.linspace(0, most, size, dtype=torch.double)) @ basis.T)

    def forward(self, x):
        value = ((x.flatten(1) @ self.matrix) * x.flatten(1)).sum(1) / 2
        return torch.stack([torch.zeros_like(value), value], 1)


def small_net(seed: int = 0, channels: int = 2) -> nn.Module:
    """Smooth and well bent, on images of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Tanh(), nn.Linear(24, 4)
        ).double()
    with torch.no_grad():
        net[0].weight *= 6
        net[5].weight *= 4
    return net


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_level", [0.0, 0.1])
def test_of_a_linear_network_the_map_is_the_weight(noise_level):
    net = Linear(3, 5, 7)
    found = MoreauGrad(samples=3, noise_level=noise_level)(rk.wrap(net), rand(2, 3, 5, 7), 1)
    assert torch.allclose(found.values, net.weight.detach().expand(2, -1, -1, -1), atol=1e-6)
    assert found.extras["steps"].tolist() == [1, 1]
    assert not found.notes


def test_of_a_linear_network_the_sparse_map_is_the_soft_threshold_of_the_weight():
    net = Linear(3, 5, 7)
    found = MoreauGrad(penalty="l1", eta=0.7, **EXACT)(rk.wrap(net), rand(2, 3, 5, 7), 1)
    want = soft_threshold(net.weight.detach()[None], 0.7)
    assert torch.allclose(found.values, want.expand(2, -1, -1, -1))
    assert torch.equal(found.values == 0, (want == 0).expand(2, -1, -1, -1))
    assert 0.2 < float(found.extras["support"].double().mean()) < 0.8
    assert torch.equal(found.extras["support"], found.values != 0)


LABELS = torch.randint(-2, 6, (2, 6, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({"group_size": 3}, square_labels(6, 7, 3)),
        ({"group_size": 4}, square_labels(6, 7, 4)),  # divides neither side
        ({"group_size": 100}, torch.zeros(6, 7, dtype=torch.long)),
        ({"labels": LABELS[0]}, LABELS[0]),
        ({"labels": LABELS.int()}, LABELS),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_of_a_linear_network_the_group_map_is_the_group_threshold_of_the_weight(options, labels, channels):
    net = Linear(channels, 6, 7)
    found = MoreauGrad(penalty="group", eta=0.9, **options, **EXACT)(rk.wrap(net), rand(2, channels, 6, 7), 1)
    weight = net.weight.detach().expand(2, -1, -1, -1)
    want = torch.zeros(2, channels, 6, 7, dtype=torch.double)
    for i in range(2):
        own = labels if labels.ndim == 2 else labels[i]
        for value in own.unique():
            part = weight[i][:, own == value]
            want[i][:, own == value] = part * (1 - 0.9 * part.numel() ** 0.5 / part.norm()).clamp_min(0)
    assert torch.allclose(found.values, want)
    assert torch.equal(found.values == 0, want == 0)
    for i in range(2):  # the groups of the result split the pixels as the labels do
        own = (labels if labels.ndim == 2 else labels[i]).flatten()
        pairs = torch.stack([own, found.extras["groups"][i].flatten()], 1).unique(dim=0)
        assert len(pairs) == len(own.unique()) == len(pairs[:, 1].unique())


@pytest.mark.parametrize("most", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_of_a_quadratic_network_the_map_has_a_closed_form(rho, most):
    net, x = Quadratic(12, most), rand(3, 12)
    matrix = net.matrix.detach()
    want = x @ matrix @ torch.linalg.inv(torch.eye(12, dtype=torch.double) + rho * matrix)
    found = MoreauGrad(rho=rho, **EXACT)(rk.wrap(net), x, 1)
    assert not found.notes
    assert torch.allclose(found.values, want, atol=1e-5, rtol=1e-5)


def test_without_smoothing_it_is_smoothgrads_gradient():
    net, x = small_net(), rand(2, 2, 8, 8)
    tiny = MoreauGrad(rho=1e-9, noise_level=0.0)(rk.wrap(net), x, 0)
    assert torch.allclose(tiny.values, EXPLAINERS.get("gradient").cls()(rk.wrap(net), x, 0).values, atol=1e-6)


def test_images_in_bytes_give_the_same_map_in_units_of_bytes():
    net, x = small_net(), rand(2, 2, 8, 8)
    first = nn.Conv2d(2, 2, 1, groups=2, bias=False).double()
    first.weight = nn.Parameter(torch.full_like(first.weight, 1 / 255))
    in_bytes = rk.wrap(nn.Sequential(first, net), bounds=(0.0, 255.0))
    options = {"penalty": "l1", "keep": 0.3, "samples": 3, "rho": 0.5, "tolerance": 1e-6}
    found = MoreauGrad(**options)(in_bytes, x * 255, 0)
    want = MoreauGrad(**options)(rk.wrap(net), x, 0)
    assert torch.allclose(found.values * 255, want.values, atol=1e-4 * float(want.values.abs().max()))
    assert torch.equal(found.extras["support"], want.extras["support"])


# -- a network -------------------------------------------------------------------------------------------------------


RHO, ETA, DRAWS = 1.0, 0.1, 3


def small_problem():
    """A network, an image and the noisy copies that seed 5 gives it: with the noise fixed all minimise one function."""
    net, x = small_net(), rand(1, 2, 5, 5)
    sigma = 0.1 * float(x.max() - x.min())
    noise = Draws(5, torch.tensor([0]), "moreaugrad").normal_of(torch.zeros(DRAWS).long(), torch.arange(DRAWS), x)
    return net, x, x + sigma * noise


def ours(penalty):
    net, x, _ = small_problem()
    method = MoreauGrad(
        penalty=penalty,
        rho=RHO,
        eta=None if penalty == "none" else ETA,
        samples=DRAWS,
        max_samples=DRAWS,
        group_size=2,
        tolerance=1e-7,
    )
    return method(rk.wrap(net), x, 2, seed=5).values


@pytest.mark.parametrize("penalty", ["none", "l1"])
def test_of_a_smooth_network_it_is_what_scipy_finds(penalty):
    """In halves d = p - q with p, q >= 0, where the l1 norm is smooth."""
    net, x, noisy = small_problem()
    eta = 0.0 if penalty == "none" else ETA

    def value(flat):
        halves = torch.tensor(flat).view(2, *x.shape).requires_grad_()
        d = halves[0] - halves[1]
        total = net(noisy + d)[:, 2].mean() + d.square().sum() / (2 * RHO) + eta * halves.sum()
        (grad,) = torch.autograd.grad(total, halves)
        return float(total.detach()), grad.flatten().numpy()

    start, box = torch.zeros(2 * x.numel(), dtype=torch.double).numpy(), [(0, None)] * (2 * x.numel())
    tight = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-9}
    slow = minimize(value, start, jac=True, bounds=box, method="L-BFGS-B", options=tight)
    halves = torch.tensor(slow.x).view(2, *x.shape)
    want, found = (halves[1] - halves[0]) / RHO, ours(penalty)
    assert (found - want).norm() < 1e-4 * want.norm()
    gradient = EXPLAINERS.get("gradient").cls()(rk.wrap(net), x, 2).values
    assert (found - gradient).norm() > 0.05 * want.norm()  # rho matters here
    if penalty == "l1":
        assert torch.equal(found == 0, want.abs() < 1e-6)
        assert 0 < int((found == 0).sum()) < x.numel()


def test_of_a_smooth_network_the_group_map_is_what_the_papers_loop_finds():
    """Proximal gradient descent on d with a small step, for long; its d is -rho times the map."""
    net, x, noisy = small_problem()
    groups, step = groups_of(square_labels(5, 5, 2), 1), 0.3
    limits = ETA * (groups.pixels * 2).sqrt().double()
    d = torch.zeros_like(x)
    for _ in range(300):
        d.requires_grad_()
        (grad,) = torch.autograd.grad(net(noisy + d)[:, 2].mean() + d.square().sum() / (2 * RHO), d)
        d = group_soft_threshold(d.detach() - step * grad, groups, step * limits)
    found = ours("group")
    assert (found + d / RHO).norm() < 1e-5 * found.norm()
    assert torch.equal(found == 0, d == 0)
    assert 0 < int((found == 0).sum()) < x.numel()


def redone(method, net, x, found, target):
    """The relative residual of every map from its definition, one sample at a time."""
    result = []
    for i in range(len(x)):
        m = int(found.extras["draws"][i])
        noise = Draws(0, torch.tensor([i]), "moreaugrad").normal_of(
            torch.zeros(m, dtype=torch.long), torch.arange(m), x[:1]
        )
        sigma = method.noise_level * (x[i].max() - x[i].min())
        point = (x[i] + sigma * noise - method.rho * found.values[i]).requires_grad_()
        (grad,) = torch.autograd.grad(net(point)[:, target].mean(), point)
        grad = grad.sum(0)[None]
        eta = found.extras["eta"][i : i + 1] if method.penalty != "none" else None
        if method.penalty == "l1":
            grad = soft_threshold(grad, eta)
        elif method.penalty == "group":
            labels = found.extras["groups"][i]
            groups = groups_of(labels, 1)
            grad = group_soft_threshold(grad, groups, eta[:, None] * (groups.pixels * x.shape[1]).sqrt())
        result.append((grad[0] - found.values[i]).norm() / found.values[i].norm())
    return torch.stack(result).detach()


@pytest.mark.parametrize("penalty", ["none", "l1", "group"])
def test_the_residual_that_is_reported_is_the_true_one(penalty):
    net, x = small_net(3), rand(3, 2, 9, 8, seed=2)
    method = MoreauGrad(penalty=penalty, rho=0.5, samples=4, group_size=3, keep=0.4)
    found = method(rk.wrap(net), x, 1)
    assert torch.allclose(redone(method, net, x, found, 1), found.extras["fixed_point_residual"], atol=1e-6)
    assert (found.extras["fixed_point_residual"] <= 0.01).all()
    assert not found.notes


@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_keep_is_the_share_that_a_linear_network_keeps(penalty):
    net = Linear(2, 10, 10)
    found = MoreauGrad(penalty=penalty, keep=0.2, group_size=2, **EXACT)(rk.wrap(net), rand(2, 2, 10, 10), 1)
    assert found.extras["support"].double().flatten(1).mean(1).tolist() == [0.2, 0.2]
    everything = MoreauGrad(penalty=penalty, keep=1.0, group_size=2, **EXACT)(rk.wrap(net), rand(2, 2, 10, 10), 1)
    assert torch.allclose(everything.values, net.weight.detach().expand(2, -1, -1, -1))


@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_equal_values_stay_or_go_together(penalty):
    """The network of a plateau: the threshold lies under it and not at it, where nothing would be left."""
    net = Linear(1, 8, 8)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[:, 2:6, 2:8] = 1.0
        net.weight[:, 0, 0] = 0.25
    found = MoreauGrad(penalty=penalty, keep=0.1, group_size=2, **EXACT)(rk.wrap(net), rand(1, 1, 8, 8), 1)
    left = net.weight.detach()[0] == 1
    assert torch.equal(found.extras["support"][0, 0], left)
    assert torch.allclose(found.values[0, 0][left], torch.tensor(0.75 if penalty == "l1" else 0.875).double())


def test_groups_of_other_images_take_no_part_in_keep():
    labels = torch.stack([square_labels(10, 10, 5), 100 + square_labels(10, 10, 2)])
    found = MoreauGrad(penalty="group", keep=0.5, labels=labels, **EXACT)(
        rk.wrap(Linear(1, 10, 10)), rand(2, 1, 10, 10), 1
    )
    for i, kept in ((0, 2), (1, 12)):
        assert len(labels[i][found.extras["support"][i, 0]].unique()) == kept


def test_too_large_an_eta_leaves_nothing():
    found = MoreauGrad(penalty="l1", eta=1e3)(rk.wrap(small_net()), rand(1, 2, 8, 8), 0)
    assert not found.values.any()
    assert found.extras["fixed_point_residual"].tolist() == [0]
    assert not found.notes


def test_superpixels_follow_the_image_and_take_any_number_of_channels():
    x = torch.full((1, 4, 24, 24), 0.2)
    x[:, :, 6:18, 9:20] = 0.9
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 24 * 24, 3))
    found = MoreauGrad(penalty="group", groups="superpixels", superpixels=20, keep=0.5)(rk.wrap(net), x)
    labels = found.extras["groups"][0]
    values = labels.unique().tolist()
    assert 2 <= len(values) <= 30
    inside = torch.tensor([float((x[0, 0][labels == value] > 0.5).double().mean()) for value in values])
    assert torch.equal(inside, inside.round()) and 0 < inside.sum() < len(values)
    for value in labels.unique():
        assert len(found.extras["support"][0][:, labels == value].unique()) == 1


def test_noise_draws_grow_where_the_residual_stalls():
    """Kinks: of sign(x) smoothed by few draws the gradient jumps, of many less so."""

    class Kinked(nn.Module):
        def forward(self, x):
            value = (x - 0.5).abs().flatten(1).sum(1)
            return torch.stack([-value, value], 1)

    x = 0.5 + 0.02 * torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x[:, 0], x[:, 1] = 0.0, 1.0
    few = MoreauGrad(rho=0.01, samples=4, max_samples=4, budget=4000)(rk.wrap(Kinked()), x, 1)
    many = MoreauGrad(rho=0.01, samples=4, budget=4000)(rk.wrap(Kinked()), x, 1)
    assert few.extras["draws"].tolist() == [4, 4]
    assert (many.extras["draws"] > 4).all()
    assert (many.extras["fixed_point_residual"] < few.extras["fixed_point_residual"]).all()
    assert (
        len(few.notes) == 1 and "2 of 2 maps are no fixed point yet" in few.notes[0] and "smaller rho" in few.notes[0]
    )
    assert torch.allclose(redone(MoreauGrad(rho=0.01), Kinked(), x, many, 1), many.extras["fixed_point_residual"])


@pytest.mark.parametrize(("samples", "budget", "max_steps"), [(4, 8, 100), (4, 61, 100), (5, 2000, 3)])
def test_no_image_costs_more_than_its_budget(samples, budget, max_steps):
    model = rk.wrap(small_net())
    method = MoreauGrad(rho=50.0, tolerance=1e-9, samples=samples, budget=budget, max_steps=max_steps)
    found = method(model, rand(3, 2, 8, 8), 0)
    most = min(budget, samples * (max_steps + 1))
    assert most - samples < found.cost.backwards / 3 <= most
    assert found.notes


def test_a_sample_gives_the_same_alone_and_in_any_batch():
    x, model = rand(4, 2, 8, 8), rk.wrap(small_net())
    for penalty in ("none", "l1", "group"):
        method = MoreauGrad(penalty=penalty, rho=0.5, samples=3, group_size=3)
        together = method(model, x, 0)
        alone = method(model, x[2:3], 0, ids=torch.tensor([2]), batch=2)
        assert torch.allclose(together.values[2], alone.values[0], atol=1e-12)
        assert torch.equal(together.extras["steps"][2:3], alone.extras["steps"])
        pieces = method(model, x, 0, batch=1)
        assert torch.allclose(together.values, pieces.values, atol=1e-12)


def test_samples_that_are_found_leave_the_computation():
    model, x = rk.wrap(Quadratic(12, 100.0)), rand(2, 12)
    x[1] = 0  # a fixed point at once
    found = MoreauGrad(**EXACT)(model, x, 1)
    assert found.extras["steps"][1] == 1 < found.extras["steps"][0]
    assert found.cost.backwards == 2 + int(found.extras["steps"].sum())


def test_no_graph_is_kept_from_step_to_step():
    """The authors' loop hangs every iterate on the one before."""
    net, seen = small_net(), []

    def look(module, inputs):
        depth, node = 0, inputs[0].grad_fn
        while node is not None:
            depth, node = depth + 1, next((parent for parent, _ in node.next_functions if parent), None)
        seen.append((depth, weakref.ref(inputs[0])))

    handle = net[0].register_forward_pre_hook(look)
    try:
        found = MoreauGrad(rho=50.0, tolerance=1e-9, samples=2, max_steps=30)(rk.wrap(net), rand(1, 2, 8, 8), 0)
    finally:
        handle.remove()
    gc.collect()
    assert len(seen) > 30
    assert max(depth for depth, _ in seen) <= 2
    assert not any(ref() is not None for _, ref in seen)
    assert not found.values.requires_grad and all(not t.requires_grad for t in found.extras.values())


def test_the_standard_error_is_that_of_the_gradient_at_the_minimum():
    net, x = small_net(), rand(1, 2, 8, 8)
    found = MoreauGrad(rho=1.0, samples=6)(rk.wrap(net), x, 0)
    noise = Draws(0, torch.tensor([0]), "moreaugrad").normal_of(torch.zeros(6, dtype=torch.long), torch.arange(6), x)
    point = (x + 0.1 * (x.max() - x.min()) * noise - found.values).requires_grad_()
    (grad,) = torch.autograd.grad(net(point)[:, 0].sum(), point)
    assert torch.allclose(found.standard_error[0], grad.std(0) / 6**0.5)
    assert MoreauGrad(noise_level=0.0)(rk.wrap(net), x, 0).standard_error is None


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [torch.zeros(8, 7).long(), torch.zeros(2, 8, 8).long(), torch.zeros(8, 8)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(UsageError, match=r"labels do not fit.*\(8, 8\) or \(1, 8, 8\)"):
        MoreauGrad(penalty="group", labels=labels)(rk.wrap(small_net()), rand(1, 2, 8, 8), 0)


def test_labels_without_groups_are_refused():
    with pytest.raises(UsageError, match="penalty='group'"):
        MoreauGrad(penalty="l1", labels=torch.zeros(8, 8).long())(rk.wrap(small_net()), rand(1, 2, 8, 8), 0)


def test_groups_need_images():
    with pytest.raises(UsageError, match=r"no images.*penalty=l1"):
        MoreauGrad(penalty="group")(rk.wrap(Linear(6)), rand(1, 6), 1)


def test_a_budget_for_no_step_is_refused():
    with pytest.raises(UsageError, match=r"budget is too small.*32 draws.*budget=63"):
        MoreauGrad(samples=32, budget=63)(rk.wrap(small_net()), rand(1, 2, 8, 8), 0)


def test_a_gradient_that_is_no_number_is_named():
    class Broken(nn.Module):
        def forward(self, x):
            value = x.sum(1) * (x[:, 0] - 0.5).sqrt()
            return torch.stack([value, -value], 1)

    x = rand(2, 5)
    x[0, 0], x[1, 0] = 0.9, 0.1
    with pytest.raises(UsageError, match=r"not finite.*sample 1"):
        MoreauGrad(noise_level=0.0, output=lambda o, c: o[:, 0])(rk.wrap(Broken()), x, 0)
