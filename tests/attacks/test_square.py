"""Square against a slow version written from the paper, sample by sample and window by window."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkit.attacks.square import BLOCK, Square
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.model import wrap
from robustkit.core.threat import L1, L2, Linf
from robustkit.kernels import windows
from robustkit.kernels.l1 import project_l1_box

THREATS = {"linf": Linf(0.02), "l2": L2(0.2), "l1": L1(1.0)}


class Net(nn.Module):
    """A smooth network of images of any size, in double precision."""

    def __init__(self, shape, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        size = torch.Size(shape).numel()
        self.first = nn.Parameter(torch.randn(size, 12, generator=generator, dtype=torch.float64) / size**0.5)
        self.second = nn.Parameter(torch.randn(12, classes, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return (4 * (x.flatten(1) - 0.5) @ self.first).tanh() @ self.second


def problem(shape, n=3):
    model = wrap(Net(shape))
    x = torch.rand(200, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with model.frozen():
        outputs = model(x)
    sure = (outputs.topk(2, 1).values @ torch.tensor([1.0, -1.0], dtype=torch.float64)).argsort(descending=True)[:n]
    return model, x[sure], outputs[sure].argmax(1)


# -- the slow version --------------------------------------------------------------------------------------------------


def margin_of(model, point, y):
    z = model.module(point[None])[0]
    return float(torch.cat([z[:y], z[y + 1 :]]).max() - z[y])


def slow_pyramid(side, p):
    def heap(height, width):
        out = torch.zeros(height, width, dtype=torch.float64)
        for k in range(max(height, width)):
            for i in range(height):
                for j in range(width):
                    if abs(i - height // 2) <= k and abs(j - width // 2) <= k and k <= max(height // 2, width // 2):
                        out[i, j] += 1 / (k + 1) ** 2
        return out / out.flatten().norm(p) if out.numel() else out

    whole = torch.cat([heap(side // 2, side), -heap(side - side // 2, side)])
    return whole / whole.flatten().norm(p)


def place(u, side, length):
    return min(int(u * (length - side + 1)), length - side)


def signs(u, size):
    return torch.where(u < 0.5, -1.0, 1.0).double() * size


def project(point, x, threat):
    if threat.norm == "linf":
        return (x + (point - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    if threat.norm == "l1":
        return project_l1_box(point[None], x[None], threat.eps, 0.0, 1.0)[0]
    delta = point - x
    return (x + delta * min(1.0, threat.eps / float(delta.norm()))).clamp(0, 1)


def slow_start(x, threat, draws):
    channels, height, width = x.shape
    if threat.norm == "linf":
        u = draws.child("start").uniform(x[None, :, :1, :])[0]
        return project(x + signs(u, threat.eps), x, threat)
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    u = draws.child("start").uniform(x.new_empty(1, channels, rows, columns))[0]
    turned = float(draws.child("start").child("turn").uniform(x.new_empty(1, 1))[0, 0]) >= 0.5
    tile = slow_pyramid(side, threat.p)
    tile = tile.T if turned else tile
    delta, top, left = torch.zeros_like(x), (height - rows * side) // 2, (width - columns * side) // 2
    for c in range(channels):
        for i in range(rows):
            for j in range(columns):
                sign = -1.0 if u[c, i, j] < 0.5 else 1.0
                delta[c, top + i * side : top + (i + 1) * side, left + j * side : left + (j + 1) * side] = sign * tile
    return project(x + threat.eps * delta / delta.flatten().norm(threat.p), x, threat)


def slow_step(x, best, u, threat, share):
    channels, height, width = x.shape
    delta, p, eps = best - x, threat.p, threat.eps
    if threat.norm == "linf":
        side = min(max(round((share * height * width) ** 0.5), 1), height, width)
        top, left = place(float(u[0]), side, height), place(float(u[1]), side, width)
        moved = best.clone()
        moved[:, top : top + side, left : left + side] += signs(u[5:], 2 * eps)[:, None, None]
        return project(moved, x, threat)
    side = max(round((share * height * width) ** 0.5), 3)
    side = min(side + (side % 2 == 0), min(height, width))
    side -= side % 2 == 0 and side > 2
    top, left = place(float(u[0]), side, height), place(float(u[1]), side, width)
    other_top, other_left = place(float(u[2]), side, height), place(float(u[3]), side, width)
    profile = slow_pyramid(side, p)
    profile = profile if u[4] < 0.5 else profile.T
    window = (slice(top, top + side), slice(left, left + side))
    second = (slice(other_top, other_top + side), slice(other_left, other_left + side))
    both = torch.zeros(height, width, dtype=torch.bool)
    both[window], both[second] = True, True
    held = delta[:, window[0], window[1]].clone()
    unused = max(eps**p - float(delta.flatten().norm(p)) ** p, 0.0) / channels
    new = delta.clone()
    new[:, second[0], second[1]] = 0
    for c in range(channels):
        sign = -1.0 if u[5 + c] < 0.5 else 1.0
        patch = sign * profile + held[c] / max(float(held.flatten().norm(p)), 1e-12)
        budget = (float(delta[c][both].norm(p)) ** p + unused) ** (1 / p)
        new[c, window[0], window[1]] = patch / float(patch.flatten().norm(p)) * budget
    return project(x + eps * new / new.flatten().norm(p), x, threat)


def slow(model, x, y, threat, queries, sample):
    draws = Draws(0, torch.tensor([sample]), "square")
    best = slow_start(x, threat, draws)
    value = margin_of(model, best, y)
    for query in range(1, queries):
        like = torch.empty(1, BLOCK, 5 + x.shape[0], dtype=torch.float32)
        u = draws.again(query // BLOCK).uniform(like)[0, query % BLOCK]
        share = 0.8 / 2 ** sum(query > limit for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        proposal = slow_step(x, best, u, threat, share)
        risen = margin_of(model, proposal, y)
        if risen > value:
            best, value = proposal, risen
    return value


# -- held against it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 7, 12), (2, 4, 3)])
@pytest.mark.parametrize("norm", THREATS)
def test_finds_what_the_slow_version_finds(norm, shape):
    model, x, y = problem(shape)
    found = Square(threat=THREATS[norm], queries=130)(model, x, y)
    assert not found.success.any()  # so that every query is asked
    with torch.no_grad():
        for i in range(len(x)):
            assert abs(float(found.loss[i]) - slow(model, x[i], int(y[i]), THREATS[norm], 130, i)) < 1e-9
    assert (found.forwards == 130).all() and (found.backwards == 0).all()


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 21])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_profile_is_that_of_the_paper(side, p):
    torch.testing.assert_close(windows.pyramid(side, p), slow_pyramid(side, p), atol=1e-12, rtol=0)


def test_windows_are_uniform_and_inside():
    u = torch.arange(0, 1, 1 / 4000)
    counts = windows.places(u, 3, 10).bincount()
    assert len(counts) == 8 and int(counts.max() - counts.min()) <= 1


def test_more_queries_find_more_and_broken_samples_stop_asking():
    model = wrap(Net((1, 8, 8)))
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with model.frozen():
        y = model(x).argmax(1)
    few, many = (Square(threat=Linf(0.1), queries=q)(model, x, y) for q in (20, 400))
    assert (few.success & ~many.success).sum() == 0
    assert many.success.sum() > few.success.sum()
    assert many.forwards[few.success].max() < 400


def test_small_images_and_single_queries_work():
    for shape in ((1, 1, 1), (3, 2, 2), (1, 3, 40)):
        model, x, y = problem(shape)
        for threat in THREATS.values():
            for queries in (1, 12):
                assert (Square(threat=threat, queries=queries)(model, x, y).forwards <= queries + 1).all()


def test_what_is_no_image_is_refused():
    model = wrap(nn.Linear(6, 2).double())
    with pytest.raises(UsageError, match=r"windows of images.*\(N, 6\).*apgd"):
        Square()(model, torch.rand(2, 6, dtype=torch.float64), torch.tensor([0, 1]))


def test_schedule_can_be_fitted_to_the_queries():
    assert Square(queries=100)._share(60) == 0.2
    assert Square(queries=100, rescale_schedule=True)._share(60) == 0.8 / 2**7
