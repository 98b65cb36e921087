"""The halves of an image: a partition, each filled in from its own pixels alone; and networks that see one each."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.certify.halves import SIDES, Half, SplitModel, half, keep
from robustkit.core.errors import UsageError

FILLS = ("paper", "mean", "zero")
SHAPES = ((1, 2, 2), (3, 4, 4), (2, 3, 3), (1, 4, 5), (3, 5, 2), (2, 7, 6))


def images(shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(x, side, fill):
    """Pixel by pixel, as the fills are described."""
    (height, width), found = x.shape[-2:], torch.zeros_like(x)
    mine = [[(i + j) % 2 == SIDES.index(side) for j in range(width)] for i in range(height)]

    def value(image, channel, i, j):
        return x[image, channel, i, j] if mine[i][j] else torch.zeros((), dtype=x.dtype)

    for image, channel, i, j in itertools.product(*map(range, x.shape)):
        if mine[i][j]:
            found[image, channel, i, j] = x[image, channel, i, j]
            if fill == "paper":
                rows, columns = (range(k - k % 2, min(k - k % 2 + 2, end)) for k, end in ((i, height), (j, width)))
                found[image, channel, i, j] += max(value(image, channel, r, c) for r in rows for c in columns)
        elif fill == "mean":
            beside = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
            kept = [x[image, channel, r, c] for r, c in beside if 0 <= r < height and 0 <= c < width]
            found[image, channel, i, j] = sum(kept) / len(kept)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_halves_are_a_checkerboard(shape):
    x = images(shape)
    left, right = (keep(x, side) for side in SIDES)
    assert left.shape == shape[1:] and torch.equal(left, ~right)
    assert left.tolist() == [[(i + j) % 2 == 0 for j in range(shape[2])] for i in range(shape[1])]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_half_is_that_of_a_loop(shape, side, fill):
    x = images(shape)
    torch.testing.assert_close(half(x, side, fill), slow(x, side, fill))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_half_is_a_function_of_its_own_pixels(shape, side, fill):
    x = images(shape)
    for other in (7.0, torch.nan, torch.inf):
        changed = torch.where(keep(x, side), x, other)
        assert torch.equal(half(x, side, fill), half(changed, side, fill))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_finite_and_stay_in_the_half(shape, side, fill):
    x = images(shape).requires_grad_()
    half(x, side, fill).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[..., ~keep(x, side)] == 0).all() and (x.grad[..., keep(x, side)] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fill", FILLS)
def test_a_half_keeps_the_precision(fill, dtype):
    x = images((3, 5, 4)).to(dtype)
    found = half(x, "right", fill)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), slow(x.double(), "right", fill), rtol=0.02, atol=0.02)


class Scores(nn.Module):
    """Four classes, from weights of one seed."""

    def __init__(self, seed, size=3 * 3 * 4):
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.w


def slow_split(x, left, right, fill):
    chances = [net(slow(x, side, fill)).softmax(1) for side, net in zip(SIDES, (left, right), strict=True)]
    return (sum(chances) / 2).log()


@pytest.mark.parametrize("fill", FILLS)
def test_a_split_model_averages_the_probabilities_of_its_halves(fill):
    x, one, two = images((3, 3, 4)), Scores(0), Scores(1)
    torch.testing.assert_close(SplitModel(one, two, fill)(x), slow_split(x, one, two, fill))
    torch.testing.assert_close(SplitModel(one, fill=fill)(x), slow_split(x, one, one, fill))


def test_a_split_model_gives_each_half_to_its_own_network():
    x, split = images((3, 3, 4)), SplitModel(Scores(0), Scores(1), "mean")
    for side, net, found in zip(SIDES, (split.left, split.right), split.apart(x), strict=True):
        torch.testing.assert_close(found, net(slow(x, side, "mean")))
        assert torch.equal(found, split.of(side)(x))


def test_one_network_for_both_halves_has_its_parameters_once():
    assert len(list(SplitModel(Scores(0)).parameters())) == 1
    assert len(list(SplitModel(Scores(0), Scores(1)).parameters())) == 2


def test_weights_of_a_split_model_load_again():
    x, split = images((3, 3, 4)), SplitModel(Scores(0), Scores(1))
    other = SplitModel(Scores(2), Scores(3))
    other.load_state_dict(split.state_dict())
    assert torch.equal(other(x), split(x))


def test_a_split_model_is_a_network_like_any_other():
    x = images((3, 3, 4)).sigmoid()
    model = rk.wrap(SplitModel(Scores(0), Scores(1)), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    mean, std = (torch.tensor(v, dtype=x.dtype).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(model(x), slow_split((x - mean) / std, Scores(0), Scores(1), "paper"))
    shifted = x.clone().requires_grad_()
    grad = torch.autograd.grad(model(shifted)[:, 0].sum(), shifted)[0]
    assert grad.isfinite().all() and (grad != 0).all()


@pytest.mark.parametrize("shape", [(4,), (1, 1, 5), (3, 4, 1), (2, 3, 4, 5)])
def test_inputs_without_halves_are_refused(shape):
    with pytest.raises(UsageError, match="at least 2x2 pixels"):
        SplitModel(nn.Flatten())(torch.zeros(2, *shape))


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="paper, mean, zero"):
        SplitModel(Scores(0), fill="grey")
    with pytest.raises(UsageError, match="left, right"):
        Half(Scores(0), "top")
    with pytest.raises(UsageError, match="paper, mean, zero"):
        Half(Scores(0), "left", "grey")
