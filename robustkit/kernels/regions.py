"""Regions of an image as bits, and their greedy merging: the part of XRAI that comes after the gradients.

Regions overlap: each is a mask of its own. All masks of an image are bits of one array, so that growing them is a few
OR operations on all at once, and lists of the masks over each pixel make the merging cost what it changes: every pixel
is covered once, and only the masks over it hear of it. All of it runs on the CPU in numpy, sums in float64.

Shapes: label maps (L, H, W) int; masks (K, H, W) bool; bits (H, W, ceil(K / 64)) uint64; pixels are numbered by rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint64]
Bools = NDArray[np.bool_]

WORD = np.dtype("<u8")
SLACK = 1e-11
"""Relative rounding of running sums, above what they gather: means as close as that are taken anew and compared."""


# -- bits -------------------------------------------------------------------------------------------------------------


def bits_of_labels(labels: Ints) -> tuple[Bits, int]:
    """One bit for every label of every map, and how many there are: maps in order, in each the labels in order.

    >>> bits_of_labels(np.array([[[0, 1]], [[0, 0]]]))[0].ravel().tolist()
    [5, 6]
    """
    flat = labels.reshape(len(labels), -1) - labels.min((1, 2))[:, None]
    sizes = flat.max(1) + 1
    number = flat + np.concatenate([[0], np.cumsum(sizes)[:-1]])[:, None]
    count = int(sizes.sum())
    bits = np.zeros((flat.shape[1], -(-count // 64)), WORD)
    pixel = np.arange(flat.shape[1])
    for row in number:
        bits[pixel, row >> 6] |= np.ones(1, WORD) << (row & 63).astype(WORD)
    return bits.reshape(*labels.shape[1:], -1), count


def bits_of_masks(masks: Bools) -> Bits:
    """One bit for every mask."""
    count = len(masks)
    padded = np.zeros((*masks.shape[1:], -(-count // 64) * 64), bool)
    padded[..., :count] = np.moveaxis(masks, 0, -1)
    return np.packbits(padded, axis=-1, bitorder="little").view(WORD)


def dilate(bits: Bits, radius: int) -> Bits:
    """Every mask grown by a disk: the pixels no farther than ``radius`` from one of its own.

    >>> dilate(np.array([[[1]], [[0]], [[0]]], WORD), 1).ravel().tolist()
    [1, 1, 0]
    """
    grown, wide, reach = bits.copy(), bits.copy(), 0
    for dy in range(radius, -1, -1):  # rows far from the middle of the disk are short, so ``wide`` only grows
        while (reach + 1) ** 2 + dy**2 <= radius**2:
            reach += 1
            wide[:, reach:] |= bits[:, :-reach]
            wide[:, :-reach] |= bits[:, reach:]
        rest = max(0, len(bits) - dy)
        grown[dy:] |= wide[:rest]
        grown[:rest] |= wide[dy:]
    return grown


# -- lists ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Regions:
    """The masks over each pixel and the pixels of each mask.

    Attributes:
        shape: (H, W).
        count: masks, K; some may be empty.
        over, over_start: masks over pixel p are ``over[over_start[p] : over_start[p + 1]]``, in order.
        pixels, pixels_start: pixels of mask k are ``pixels[pixels_start[k] : pixels_start[k + 1]]``, in order.
    """

    shape: tuple[int, int]
    count: int
    over: Ints
    over_start: Ints
    pixels: Ints
    pixels_start: Ints

    @classmethod
    def of(cls, bits: Bits, count: int) -> Regions:
        """Read the bits of ``count`` masks."""
        height, width = bits.shape[:2]
        octets = np.ascontiguousarray(bits).view(np.uint8).reshape(-1)
        filled = np.flatnonzero(octets != 0).astype(np.int32)
        hit = np.flatnonzero(np.unpackbits(octets[filled], bitorder="little").view(bool)).astype(np.int32)
        pixel, place = np.divmod(filled[hit >> 3], np.int32(bits.shape[2] * 8))
        over = (place << 3) | (hit & 7)
        start = np.concatenate([[0], np.cumsum(np.bincount(pixel, minlength=height * width))])
        by_mask = csr_array((np.ones(len(over), bool), over, start), (height * width, count)).tocsc()
        return cls((height, width), count, over, start, by_mask.indices, by_mask.indptr)

    def members(self, mask: int) -> Ints:
        """The pixels of a mask."""
        return self.pixels[self.pixels_start[mask] : self.pixels_start[mask + 1]]

    def masks_over(self, pixels: Ints) -> tuple[Ints, Ints]:
        """All masks over some pixels, pixel by pixel, and how many of them each has."""
        begin = self.over_start[pixels]
        lengths = self.over_start[pixels + 1] - begin
        offset = np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
        return self.over[offset + np.arange(len(offset))], lengths


# -- merging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Merged:
    """What became of the pixels; each (H, W).

    Attributes:
        values: float64, the mean attribution of the part of a mask that a pixel was covered with.
        ranks: int64, 1 .. R from the highest mean to the lowest, equals in the order of picking; the pixels that no
            mask covered come last.
        masks: int64, number of the mask that covered the pixel, -1 for none.
    """

    values: Floats
    ranks: Ints
    masks: Ints


class _Canvas:
    """Pixels as they are covered."""

    def __init__(self, regions: Regions, attribution: Floats) -> None:
        self.regions, self.attribution = regions, attribution
        self.part = np.full(attribution.size, -1, np.int64)
        self.free = np.ones(attribution.size, bool)
        self.means: list[float] = []
        self.picks: list[int] = []

    def fresh(self, mask: int) -> Ints:
        """Pixels of a mask that are not covered."""
        members = self.regions.members(mask)
        return members[self.free[members]]

    def cover(self, mask: int, pixels: Ints) -> None:
        """Cover these pixels of a mask."""
        self.part[pixels] = len(self.picks)
        self.free[pixels] = False
        self.means.append(float(self.attribution[pixels].mean()))
        self.picks.append(mask)

    def merged(self) -> Merged:
        """The maps; uncovered pixels get their mean."""
        means = np.array([*self.means, self.attribution[self.free].mean() if self.free.any() else 0.0])
        ranks = np.empty(len(means), np.int64)
        ranks[np.argsort(-means[:-1], kind="stable")] = np.arange(1, len(means))
        ranks[-1] = len(means)
        picks = np.array([*self.picks, -1])
        shape = self.regions.shape
        return Merged(means[self.part].reshape(shape), ranks[self.part].reshape(shape), picks[self.part].reshape(shape))


def merge(regions: Regions, attribution: Floats, smallest: int, area: float = 1.0) -> Merged:
    """Cover the image greedily: again and again with the mask whose uncovered part has the highest mean attribution.

    Args:
        regions: the masks.
        attribution: (H, W).
        smallest: a mask with fewer uncovered pixels than this (at least 1) is dropped.
        area: share of the image; covering stops when more than that is covered.
    """
    canvas = _Canvas(regions, np.ascontiguousarray(attribution, np.float64).ravel())
    weight = np.repeat(canvas.attribution, np.diff(regions.over_start))
    left = np.diff(regions.pixels_start).astype(np.float64)
    sums = np.bincount(regions.over, weight, regions.count)
    slack = SLACK * np.bincount(regions.over, np.abs(weight), regions.count)
    covered = 0
    while covered / canvas.part.size <= area:
        gain = np.full(regions.count, -np.inf)
        np.divide(sums, left, out=gain, where=left >= smallest)
        mask, pixels = _best(canvas, gain, slack / np.maximum(left, 1))
        if mask < 0:
            break
        canvas.cover(mask, pixels)
        covered += len(pixels)
        over, lengths = regions.masks_over(pixels)
        left -= np.bincount(over, minlength=regions.count)
        sums -= np.bincount(over, np.repeat(canvas.attribution[pixels], lengths), regions.count)
    return canvas.merged()


def merge_once(regions: Regions, attribution: Floats, smallest: int) -> Merged:
    """Cover the image with the masks from the highest mean to the lowest; means are taken once, of whole masks.

    Args: as of :func:`merge`.
    """
    canvas = _Canvas(regions, np.ascontiguousarray(attribution, np.float64).ravel())
    members = [regions.members(k) for k in range(regions.count)]
    gain = np.array([canvas.attribution[pixels].mean() if len(pixels) else -np.inf for pixels in members])
    for mask in np.argsort(-gain, kind="stable").tolist():
        pixels = canvas.fresh(mask)
        if len(pixels) >= smallest:
            canvas.cover(mask, pixels)
    return canvas.merged()


def _best(canvas: _Canvas, gain: Floats, slack: Floats) -> tuple[int, Ints]:
    """The first mask of the highest mean and its uncovered pixels; -1 if there is none.

    Running sums round, so the means of those that come near the highest are taken anew: equals stay equal.
    """
    top = int(gain.argmax())
    if gain[top] == -np.inf:
        return -1, np.empty(0, np.int64)
    near = np.flatnonzero(gain + slack >= gain[top] - slack[top]).tolist()
    parts = [canvas.fresh(mask) for mask in near]
    if len(parts) == 1:
        return near[0], parts[0]
    chosen = int(np.argmax([canvas.attribution[pixels].mean() for pixels in parts]))
    return near[chosen], parts[chosen]


def outlines(regions: Ints) -> Bools:
    """Pixels (H, W) of a map of regions whose right or lower neighbour is of another region.

    >>> outlines(np.array([[1, 1, 2], [1, 1, 2]])).astype(int).tolist()
    [[0, 1, 0], [0, 1, 0]]
    """
    edges = np.zeros(regions.shape, bool)
    edges[..., :-1] = regions[..., :-1] != regions[..., 1:]
    edges[..., :-1, :] |= regions[..., :-1, :] != regions[..., 1:, :]
    return edges
