"""Pictures of maps: sums, ranges, ranks and top shares by closed forms; colours by matplotlib's own."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from robustkit.core import heat
from robustkit.core.errors import UsageError
from robustkit.core.types import Bounds

MAPS = arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(-3, 3).map(float))


def test_a_pixel_map_sums_channels():
    values = torch.tensor([[1.0, -2.0], [3.0, 5.0], [-4.0, 0.0]]).view(1, 3, 1, 2)
    assert heat.pixel_map(values, signed=False).tolist() == [[[8.0, 7.0]]]
    assert heat.pixel_map(values, signed=True).tolist() == [[[0.0, 3.0]]]
    with pytest.raises(UsageError, match="made of images"):
        heat.pixel_map(torch.zeros(2, 3), signed=True)


def test_significant_pixels_are_longer_than_two_errors():
    values = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).repeat(1, 1, 1, 2)
    error = torch.tensor([[2.4, 0.0], [2.6, 0.0]]).T.reshape(1, 2, 1, 2)  # lengths 2.4 and 2.6 against 5
    assert heat.significant(values, error).tolist() == [[[True, False]]]


def test_the_range_ends_at_the_99th_percentile():
    pixels = np.arange(101.0).reshape(1, 101)
    assert heat.value_range(pixels) == (0, 99, 0, 100)
    assert heat.value_range(-pixels, signed=True) == (-99, 99, -100, 0)
    assert heat.value_range(pixels - 50) == (-50, 49, -50, 50)  # a map of regions that speak against the class
    assert heat.value_range(pixels + 50) == (0, 149, 50, 150)


@pytest.mark.parametrize(
    ("pixels", "signed", "wanted"),
    [
        (np.zeros((2, 2)), False, (0, 1, 0, 0)),
        (np.full((2, 2), 3.0), False, (0, 3, 3, 3)),
        (np.full((2, 2), -3.0), True, (-3, 3, -3, -3)),
        (np.eye(20) * (np.arange(20) == 0), False, (0, 1, 0, 1)),  # sparser than the percentile: the largest value
        (np.array([[math.nan, 2.0, math.inf]]), False, (0, 2, 2, 2)),
    ],
)
def test_ranges_of_odd_maps(pixels, signed, wanted):
    assert heat.value_range(pixels, signed) == pytest.approx(wanted)


def test_a_map_of_nan_has_no_range_and_is_not_drawn():
    pixels = np.full((2, 3), math.nan)
    assert math.isnan(heat.value_range(pixels).minimum)
    assert np.asarray(heat.heat_image(pixels))[..., 3].max() == 0
    assert (heat.rank_map(pixels) == 255).all() and not heat.top_mask(pixels, 1.0).any()


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(1, 100))
def test_ranks_are_the_share_above(pixels, percent):
    ranks = heat.rank_map(pixels)
    flat = pixels.ravel()
    slow = [math.floor(255 * sum(other > v for other in flat) / len(flat)) for v in flat]
    assert ranks.ravel().tolist() == slow
    for kept in (ranks < 2.55 * percent, heat.top_mask(pixels, percent / 100)):
        assert kept.sum() >= math.floor(len(flat) * percent / 100) and kept.any()
        assert kept.all() or pixels[kept].min() > pixels[~kept].max()  # the largest, and no tie is torn apart


def test_the_top_share_of_distinct_values_is_exact():
    pixels = np.random.default_rng(0).permutation(1000).reshape(20, 50)
    for share in (0.001, 0.1, 0.3, 0.5, 1.0):
        assert heat.top_mask(pixels, share).sum() == 1000 * share
        assert pixels[heat.top_mask(pixels, share)].min() == 1000 - 1000 * share
        assert abs((heat.rank_map(pixels) < 255 * share).sum() - 1000 * share) <= 4  # bytes: steps of 1 / 255


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_no_share_is_an_error(share):
    with pytest.raises(UsageError, match="above 0, at most 1"):
        heat.top_mask(np.eye(3), share)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((1, 2, 3)), np.zeros((0, 3))])
def test_what_is_no_map_is_an_error(array):
    with pytest.raises(UsageError, match="not a pixel map"):
        heat.rank_map(array)


def test_colours_are_those_of_the_map_and_zero_is_its_middle():
    pixels = np.array([[0.0, 0.5, 1.0]])
    drawn = np.asarray(heat.heat_image(pixels, limits=(0, 1)))
    wanted = matplotlib.colormaps["inferno"](np.array([0, 128, 255]), bytes=True)
    assert np.abs(drawn[0, :, :3].astype(int) - wanted[:, :3]).max() <= 1 and (drawn[..., 3] == 255).all()
    signed = np.asarray(heat.heat_image(np.array([[-2.0, 0.0, 2.0]]), signed=True)).astype(int)
    assert signed[0, 1, :3].min() > 240  # near white: nothing
    assert signed[0, 0, 2] > signed[0, 0, 0] and signed[0, 2, 0] > signed[0, 2, 2]  # blue against, red for


def test_the_overlay_leaves_weak_pixels_to_the_grey_picture():
    base = Image.fromarray(np.full((1, 2, 3), 200, np.uint8))
    drawn = np.asarray(heat.overlay_image(base, np.array([[0.0, 1.0]])))
    assert drawn[0, 0].tolist() == [round(heat.DIM * 200)] * 3
    assert np.abs(drawn[0, 1].astype(int) - heat.colours(heat.MAGNITUDE)[255]).max() < 20


def test_enlarging_mixes_pixels_but_not_regions():
    pixels = np.array([[0.0, 1.0]])
    mixed = np.asarray(heat.heat_image(pixels, size=(64, 32)))
    apart = np.asarray(heat.heat_image(pixels, size=(64, 32), regions=True))
    assert mixed.shape == apart.shape == (32, 64, 4)
    assert len(np.unique(mixed.reshape(-1, 4), axis=0)) > 10 and len(np.unique(apart.reshape(-1, 4), axis=0)) == 2


def test_kept_pixels_alone_are_drawn():
    keep = np.array([[True, False]])
    assert np.asarray(heat.heat_image(np.ones((1, 2)), keep=keep))[0, :, 3].tolist() == [255, 0]
    base = Image.fromarray(np.array([[[250, 10, 10]] * 2], np.uint8))
    cut = np.asarray(heat.cutout_image(base, keep))
    assert cut[0, 0].tolist() == [250, 10, 10] and len(set(cut[0, 1].tolist())) == 1 and cut[0, 1, 0] < 60


def test_outlines_lie_between_regions():
    regions = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert heat.outlines(regions).tolist() == [[False, True, False], [True, True, True], [False, False, False]]
    drawn = np.asarray(heat.outline_image(Image.new("RGB", (6, 6)), regions))
    assert (drawn[..., 0] == 255).sum() == (heat.outlines(np.kron(regions, np.ones((2, 2))))).sum()


def test_pictures_of_one_and_three_channels():
    grey = np.asarray(heat.picture(torch.tensor([[[-1.0, 0.0, 1.0]]]), Bounds(-1, 1)))
    assert grey.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    colour = np.asarray(heat.picture(np.array([1.0, 0.0, 0.2]).reshape(3, 1, 1)))
    assert colour.tolist() == [[[255, 0, 51]]]
    with pytest.raises(UsageError, match="no picture"):
        heat.picture(torch.zeros(2, 4, 4))
