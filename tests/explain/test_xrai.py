"""XRAI and its kernels against scipy, slow versions of the paper's algorithm, and skimage."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from skimage.morphology import disk
from torch import nn

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.explain.integrated import IntegratedGradients
from robustkit.explain.xrai import XRAI
from robustkit.kernels import segments
from robustkit.kernels.regions import Regions, bits_of_labels, bits_of_masks, dilate, merge, merge_once, outlines
from robustkit.kernels.segments import KEPT, Segmentation, threaded

SIZE = (40, 36)
SMALL = {"scales": "5+20", "min_size": 40, "min_pixels": 20, "radius": 2}
CUT = Segmentation((5.0, 20.0), 0.8, 40)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segmentation at 48 x 48 instead of 224 x 224: the tests are to be quick."""
    monkeypatch.setattr(segments, "SIDE", 48)
    monkeypatch.setattr(segments, "_kept", OrderedDict())


@cache
def images(count=3):
    """Soft blobs, (N, 3, H, W) in [0, 1]."""
    noise = torch.rand(count, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)


@cache
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 12 * 11, 3))
    return rk.wrap(net, mean=(0.5,) * 3, std=(0.25,) * 3)


def random_masks(seed, count=60):
    """Overlapping boxes, some of them twice, one empty, and pixels that none covers."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks[1:]:
        top, left = rng.integers(0, 30), rng.integers(0, 30)
        mask[top : top + rng.integers(1, 15), left : left + rng.integers(1, 15)] = True
    masks[20:25] = masks[5:10]
    masks[:, 35:, 30:] = False
    return masks


def attributions():
    """Normal numbers, and whole numbers of few values: many means are equal."""
    rng = np.random.default_rng(9)
    return {"normal": rng.normal(size=SIZE), "ties": rng.integers(-1, 2, SIZE).astype(float), "zero": np.zeros(SIZE)}


def slow(masks, attribution, smallest, area=1.0, fast=False):
    """The algorithm of the paper with the rules of its authors' code, mask by mask."""
    values, covered, left = np.full(SIZE, np.nan), np.zeros(SIZE, bool), list(range(len(masks)))
    picked = []

    def mean(part):
        return attribution[part].mean() if part.any() else -np.inf

    if fast:
        for k in sorted(left, key=lambda k: -mean(masks[k])):
            fresh = masks[k] & ~covered
            if fresh.sum() >= smallest:
                picked.append((k, fresh, mean(fresh)))
                covered |= fresh
    else:
        while covered.mean() <= area:
            left = [k for k in left if (masks[k] & ~covered).sum() >= smallest]
            if not left:
                break
            best = max(left, key=lambda k: mean(masks[k] & ~covered))  # max keeps the first of equals
            fresh = masks[best] & ~covered
            picked.append((best, fresh, mean(fresh)))
            covered |= fresh
            left.remove(best)
    numbers, ranks = np.full(SIZE, -1), np.full(SIZE, len(picked) + 1)
    for k, fresh, gain in picked:
        values[fresh], numbers[fresh] = gain, k
    for rank, (_, fresh, _) in enumerate(sorted(picked, key=lambda pick: -pick[2])):
        ranks[fresh] = rank + 1
    if not covered.all():
        values[~covered] = attribution[~covered].mean()
    return values, ranks, numbers


# -- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 50])
def test_dilation_is_that_of_scipy(radius):
    masks = np.random.default_rng(radius).random((70 if radius < 50 else 2, *SIZE)) > 0.998
    grown = Regions.of(dilate(bits_of_masks(masks), radius), len(masks))
    for k, mask in enumerate(masks):
        found = np.zeros(SIZE, bool)
        found.flat[grown.members(k)] = True
        assert np.array_equal(found, binary_dilation(mask, disk(radius)))


def test_lists_hold_the_masks_of_pixels_and_the_pixels_of_masks():
    masks = random_masks(1, 130)
    regions = Regions.of(bits_of_masks(masks), len(masks))
    flat = masks.reshape(len(masks), -1)
    for k, mask in enumerate(flat):
        assert np.array_equal(regions.members(k), np.flatnonzero(mask))
    pixels = np.array([0, 700, 3, 3, 1439])
    over, lengths = regions.masks_over(pixels)
    assert np.array_equal(over, np.concatenate([np.flatnonzero(flat[:, p]) for p in pixels]))
    assert np.array_equal(lengths, flat[:, pixels].sum(0))


def test_labels_are_numbered_by_map_and_label():
    labels = np.stack([np.arange(1440).reshape(SIZE) // 20, np.arange(1440).reshape(SIZE) % 3 - 1])
    bits, count = bits_of_labels(labels)
    regions = Regions.of(bits, count)
    assert count == 75
    for k in range(72):
        assert np.array_equal(regions.members(k), np.flatnonzero(labels[0] == k))
    for k in range(3):
        assert np.array_equal(regions.members(72 + k), np.flatnonzero(labels[1] == k - 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
@pytest.mark.parametrize("way", ["full", "part", "fast"])
@pytest.mark.parametrize("smallest", [1, 12])
def test_the_merge_is_the_slow_one(seed, kind, way, smallest):
    masks, attribution = random_masks(seed), attributions()[kind]
    regions = Regions.of(bits_of_masks(masks), len(masks))
    area = 0.3 if way == "part" else 1.0
    fast = way == "fast"
    found = merge_once(regions, attribution, smallest) if fast else merge(regions, attribution, smallest, area)
    values, ranks, numbers = slow(masks, attribution, smallest, area, fast)
    assert np.array_equal(found.values, values)
    assert np.array_equal(found.ranks, ranks)
    assert np.array_equal(found.masks, numbers)


def test_what_no_mask_covers_gets_its_mean_and_the_last_rank():
    attribution = attributions()["normal"] + 5.0
    attribution[35:, 30:] += 100
    masks = random_masks(0)
    found = merge(Regions.of(bits_of_masks(masks), len(masks)), attribution, 1)
    rest = ~masks.any(0)
    assert rest[35:, 30:].all() and np.array_equal(found.masks == -1, rest)
    assert np.all(found.values[rest] == attribution[rest].mean())
    assert np.all(found.ranks[rest] == found.ranks.max())
    none = merge(Regions.of(bits_of_masks(masks[:1]), 1), attribution, 1)
    assert np.all(none.values == attribution.mean()) and np.all(none.ranks == 1)


def test_ranks_go_from_the_highest_mean_to_the_lowest():
    found = merge(Regions.of(bits_of_masks(random_masks(2)), 60), attributions()["normal"], 5)
    inner = found.masks >= 0
    levels = np.array([found.values[inner & (found.ranks == rank)].mean() for rank in range(1, found.ranks.max())])
    assert np.all(np.diff(levels) <= 1e-12)


def test_outlines_lie_between_regions():
    edges = outlines(np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]]))
    assert edges.astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


# -- segments ---------------------------------------------------------------------------------------------------------


def test_segments_depend_on_the_image_alone_and_are_kept():
    image = images()[0].movedim(0, -1).numpy()
    first = CUT([image])[0]
    assert CUT([image.copy()])[0] is first
    assert Segmentation((5.0,), 0.8, 40)([image])[0].shape == (1, *SIZE)
    brighter = CUT([image * 0.5 + 0.25])[0]
    assert brighter is not first and np.mean(brighter == first) > 0.9
    assert first.shape == (2, *SIZE) and first[0].max() > 3


def test_few_segments_are_kept(monkeypatch):
    cut = Segmentation((20.0,))
    monkeypatch.setattr(segments, "felzenszwalb", lambda image, **_: (image[..., 0] > 0).astype(np.int64))
    for k in range(KEPT + 3):
        cut([np.eye(3)[:, :, None] * [1.0, 2.0, 3.0 + k]])
    assert len(segments._kept) == KEPT
    segments.forget()
    assert len(segments._kept) == 0


def test_threads_keep_the_order():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert threaded(lambda k: k * k, list(range(20))) == [k * k for k in range(20)]
        alone = [CUT([image.movedim(0, -1).numpy() * 0.9])[0] for image in images()]
        segments.forget()
        together = CUT([image.movedim(0, -1).numpy() * 0.9 for image in images()])
        assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(before)


# -- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["full", "fast"])
@pytest.mark.parametrize("channels", ["max", "sum"])
def test_the_method_is_the_slow_one_on_its_own_segments(algorithm, channels):
    found = XRAI(steps=5, algorithm=algorithm, channels=channels, **SMALL)(model(), images(), 1)
    base = IntegratedGradients(steps=5, baseline="min+max")(model(), images(), 1)
    torch.testing.assert_close(found.residual, base.residual)
    torch.testing.assert_close(found.relative_residual, base.relative_residual)
    reduced = base.values.amax(1) if channels == "max" else base.values.sum(1)
    for i, image in enumerate(images()):
        maps = CUT([image.movedim(0, -1).numpy()])[0]
        masks = np.stack([binary_dilation(one == k, disk(2)) for one in maps for k in range(one.min(), one.max() + 1)])
        values, ranks, numbers = slow(masks, reduced[i].double().numpy(), 20, fast=algorithm == "fast")
        torch.testing.assert_close(found.values[i, 0].double(), torch.from_numpy(values), atol=1e-7, rtol=1e-5)
        assert np.array_equal(found.extras["ranks"][i], ranks)
        assert np.array_equal(found.extras["segments"][i], numbers)
        assert ranks.max() > 3


def test_a_batch_is_its_samples():
    method = XRAI(steps=4, **SMALL)
    together = method(model(), images(), 0)
    assert together.values.shape == (3, 1, *SIZE)
    for i in range(3):
        alone = method(model(), images()[i : i + 1], 0, batch=3)
        torch.testing.assert_close(alone.values[0], together.values[i], atol=1e-6, rtol=1e-5)
        assert torch.equal(alone.extras["ranks"][0], together.extras["ranks"][i])


def test_given_segments_and_attributions_take_the_place_of_ours():
    base = torch.from_numpy(np.stack([attributions()["normal"]] * 3))
    masks = torch.from_numpy(random_masks(4))
    values, ranks, _ = slow(masks.numpy(), base[0].numpy(), 50)
    for given in (masks, masks.expand(3, -1, -1, -1), (masks, masks, masks)):
        found = XRAI(segments=given, base_attribution=base)(model(), images(), 0)
        torch.testing.assert_close(found.values[2, 0], torch.from_numpy(values).float())
        assert np.array_equal(found.extras["ranks"][2], ranks)
    assert found.residual is None and found.cost.backwards == 0
    labels = torch.arange(1440).view(SIZE) // 120
    grown = np.stack([binary_dilation(labels.numpy() == k, disk(3)) for k in range(12)])
    for maps in (labels.expand(3, -1, -1), labels.expand(3, 1, -1, -1)):
        found = XRAI(segments=maps, base_attribution=base[:, None], radius=3)(model(), images(), 0)
        values, ranks, _ = slow(grown, base[0].numpy(), 50)
        torch.testing.assert_close(found.values[0, 0], torch.from_numpy(values).float())


def test_relative_sizes_grow_with_the_image():
    base, labels = torch.from_numpy(np.stack([attributions()["normal"]] * 3)), torch.arange(1440).view(1, *SIZE) // 120
    side = (SIZE[0] * SIZE[1]) ** 0.5 / 224
    common = {"segments": labels.expand(3, -1, -1), "base_attribution": base}
    found = XRAI(radius=12, min_pixels=1000, relative=True, **common)(model(), images(), 0)
    same = XRAI(radius=round(12 * side), min_pixels=round(1000 * side**2), **common)(model(), images(), 0)
    assert torch.equal(found.values, same.values)
    assert round(12 * side) == 2 and not torch.equal(found.values, XRAI(**common)(model(), images(), 0).values)


def test_the_area_threshold_stops_early():
    some = XRAI(steps=4, area_threshold=0.3, **SMALL)(model(), images(), 0)
    full = XRAI(steps=4, **SMALL)(model(), images(), 0)
    share = (some.extras["segments"] >= 0).float().mean((1, 2))
    assert bool((share > 0.3).all()) and bool((share < 1).all())
    picked = some.extras["segments"] >= 0
    assert torch.equal(some.values[:, 0][picked], full.values[:, 0][picked])


def test_a_constant_image_is_an_error_that_says_so():
    x = torch.stack([images()[0], torch.full((3, *SIZE), 0.25)])
    with pytest.raises(UsageError, match=r"a constant image has no segments.*sample 7, all 0.25"):
        XRAI(steps=4)(model(), x, 0, ids=torch.tensor([4, 7]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": torch.zeros(2, *SIZE, dtype=torch.long)}, "segments do not fit the images"),
        ({"segments": torch.zeros(3, *SIZE)}, "segments do not fit the images"),
        ({"segments": torch.zeros(4, 8, 8, dtype=torch.bool)}, "segments do not fit the images"),
        ({"base_attribution": torch.zeros(3, 8, 8)}, "base attribution does not fit"),
        ({"base_attribution": torch.full((3, *SIZE), torch.inf)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_said(options, message):
    with pytest.raises(UsageError, match=message):
        XRAI(steps=4, **SMALL, **{} if "segments" in options else {"segments": torch.ones(1, *SIZE).bool()}, **options)(
            model(), images(), 0
        )


def test_vectors_and_wrong_scales_are_refused():
    with pytest.raises(UsageError, match="the method explains images"):
        XRAI()(rk.wrap(nn.Linear(4, 2)), torch.rand(2, 4), 0)
    for scales in ("50,100", "0", "-1+5", ""):
        with pytest.raises(ValueError, match="scales"):
            XRAI(scales=scales)
