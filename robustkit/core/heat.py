"""Maps as pictures: pixel maps, colours, overlays, what lies in the top share, outlines of regions.

Everything works on one map (H, W), an array or a tensor, but :func:`pixel_map` and :func:`significant`, which take a
batch. Pictures of maps and of inputs are :mod:`PIL` images. Magnitudes are drawn in *inferno*, which is perceptually
uniform, signed values in a diverging map whose middle is 0. Colours end at the 99th percentile of the map's absolute
values, so that a few large values do not leave the rest dark; what lies beyond is drawn in the last colour.
NaN is never drawn, and never part of a top share.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.types import Bounds

if TYPE_CHECKING:
    from PIL.Image import Image

MAGNITUDE = "inferno"
SIGNED = "RdBu_r"
PERCENTILE = 99.0
"""Where the colours end, of the absolute values."""
Z = 2.0
"""Standard errors that a significant value is away from 0."""
DIM = 0.62
"""What is left of the brightness of a picture under its heat, and outside a cut-out."""
Bytes = NDArray[np.uint8]
Array = NDArray[Any]


class Range(NamedTuple):
    """Values at the two ends of the colours, and the smallest and largest of the map."""

    low: float
    high: float
    minimum: float
    maximum: float


def pixel_map(values: Tensor, signed: bool) -> Tensor:
    """One value for each pixel: the sum over channels, of absolute values unless signed; (N, C, H, W) to (N, H, W).

    >>> import torch
    >>> v = torch.tensor([1.0, -3.0]).view(1, 2, 1, 1)
    >>> pixel_map(v, signed=False).item(), pixel_map(v, signed=True).item()
    (4.0, -2.0)

    Raises:
        UsageError: values of another shape.
    """
    if values.ndim != 4:
        raise UsageError(
            "a pixel map is made of images",
            expected="values (N, C, H, W)",
            got=f"shape {tuple(values.shape)}",
            fix="Use the values as they are.",
        )
    return (values if signed else values.abs()).sum(1)


def significant(values: Tensor, standard_error: Tensor, z: float = Z) -> Tensor:
    """(N, H, W), where the values of a pixel are longer than ``z`` times their standard errors, over the channels."""
    return values.square().sum(1) > z**2 * standard_error.square().sum(1)


def as_array(pixels: Array | Tensor) -> Array:
    """The map as float64 on the CPU.

    Raises:
        UsageError: not two axes, or nothing in it.
    """
    array = np.asarray(pixels.detach().cpu() if isinstance(pixels, Tensor) else pixels, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise UsageError("not a pixel map", expected="one map (H, W)", got=f"shape {tuple(array.shape)}")
    return array


def value_range(pixels: Array | Tensor, signed: bool = False) -> Range:
    """Where the colours of a map begin and end: -p to p if signed, otherwise min(0, minimum) to p.

    p is the 99th percentile of the absolute values; the largest of them where that is 0, and 1 where all are. NaN and
    infinite values are left out.

    >>> value_range(np.array([[-2.0, 2.0]]), signed=True)
    Range(low=-2.0, high=2.0, minimum=-2.0, maximum=2.0)
    """
    array = as_array(pixels)
    finite = array[np.isfinite(array)]
    if not finite.size:
        return Range(-1.0 if signed else 0.0, 1.0, math.nan, math.nan)
    minimum, maximum = float(finite.min()), float(finite.max())
    if signed:
        top = _top(np.abs(finite))
        return Range(-top, top, minimum, maximum)
    low = min(0.0, minimum)
    return Range(low, low + _top(finite - low), minimum, maximum)


def _top(sizes: Array) -> float:
    return float(np.percentile(sizes, PERCENTILE)) or float(sizes.max()) or 1.0


def levels(pixels: Array | Tensor, low: float, high: float) -> Bytes:
    """Values as 0 .. 255 between the two ends; what lies beyond is cut, NaN is 0."""
    share = (as_array(pixels) - low) / (high - low)
    return _bytes(255 * np.clip(np.nan_to_num(share, nan=0.0), 0, 1))


@lru_cache(maxsize=8)
def colours(name: str) -> Bytes:
    """The 256 colours of one of matplotlib's maps, (256, 3)."""
    import matplotlib

    return _bytes(255 * matplotlib.colormaps[name](np.arange(256))[:, :3])


def rank_map(pixels: Array | Tensor) -> Bytes:
    """How much of the map lies above each pixel, as 0 .. 254: ``floor(255 * share)``; NaN is 255.

    The top share p are the pixels with a value below 255 p. Equal pixels are in or out together, so that a region that
    begins inside the share is in it as a whole; a constant map is all 0.

    >>> rank_map(np.array([[4.0, 3.0, 3.0, 1.0]])).tolist()
    [[0, 63, 63, 191]]
    """
    array = as_array(pixels)
    known = ~np.isnan(array)
    ordered = np.sort(array[known])
    above = len(ordered) - np.searchsorted(ordered, array[known], side="right")
    ranks = np.full(array.shape, 255, dtype=np.uint8)
    ranks[known] = 255 * above // max(len(ordered), 1)
    return ranks


def top_mask(pixels: Array | Tensor, share: float) -> NDArray[np.bool_]:
    """The pixels of the top share, (H, W); equal pixels are in or out together.

    Raises:
        UsageError: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UsageError(
            "no such share of the pixels", expected="a number above 0, at most 1", got=f"{share!r}", where="top"
        )
    array = as_array(pixels)
    known = ~np.isnan(array)
    if not known.any():
        return known
    kept = max(1, math.ceil(share * int(known.sum())))
    least = float(np.partition(array[known], -kept)[-kept])
    return np.asarray(known & (array >= least))


def outlines(regions: Array | Tensor) -> NDArray[np.bool_]:
    """Where a pixel lies in another region than its right or lower neighbour, (H, W)."""
    array = as_array(regions)
    edges = np.zeros(array.shape, dtype=bool)
    edges[:, :-1] |= array[:, :-1] != array[:, 1:]
    edges[:-1] |= array[:-1] != array[1:]
    return edges


def picture(x: Array | Tensor, bounds: Bounds | None = None) -> Image:
    """An input (C, H, W) of one or three channels as an RGB picture.

    Raises:
        UsageError: it is no picture.
    """
    from PIL import Image

    bounds = bounds or Bounds()
    array = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.size == 0:
        raise UsageError(
            "the input is no picture",
            expected="(C, H, W) with one or three channels",
            got=f"shape {tuple(array.shape)}",
            fix="Use the values as they are.",
        )
    scaled = np.clip((np.nan_to_num(array) - bounds.low) / bounds.width, 0, 1)
    pixels = np.rint(255 * np.broadcast_to(scaled, (3, *array.shape[1:])))
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1).astype(np.uint8)))


def heat_image(
    pixels: Array | Tensor,
    *,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    keep: Array | Tensor | None = None,
    strength: bool = False,
    size: tuple[int, int] | None = None,
    regions: bool = False,
) -> Image:
    """The map in colours, RGBA; NaN is transparent.

    Args:
        pixels: the map (H, W).
        signed: in colours around 0.
        limits: values at the two ends of the colours, those of :func:`value_range` by default.
        keep: (H, W), the pixels to show; the others are transparent.
        strength: weak values are more transparent, for the overlay.
        size: (width, height) of the picture.
        regions: the map is constant on regions: enlarged without mixing neighbours.
    """
    from PIL import Image

    array = as_array(pixels)
    low, high = limits or value_range(array, signed)[:2]
    shown = ~np.isnan(array) if keep is None else ~np.isnan(array) & (as_array(keep) != 0)
    codes = levels(_scaled(array, size, regions), low, high)
    alpha = _opacity(codes, signed) if strength else np.full(codes.shape, 255, dtype=np.uint8)
    alpha = np.where(_scaled(shown, size, True) != 0, alpha, np.uint8(0))
    return Image.fromarray(np.dstack([colours(SIGNED if signed else MAGNITUDE)[codes], alpha]))


def overlay_image(base: Image, pixels: Array | Tensor, **heat: Any) -> Image:
    """The map over the picture, which is grey and dimmed; RGB, as large as the picture. ``heat``: see heat_image."""
    from PIL import Image

    layer = heat_image(pixels, **{"strength": True, "size": base.size, **heat})
    grey = base.convert("L").point([round(DIM * v) for v in range(256)]).convert("RGBA")
    return Image.alpha_composite(grey, layer).convert("RGB")


def cutout_image(base: Image, keep: Array | Tensor) -> Image:
    """The picture where it is kept, (H, W) of any size, and a dimmed grey one elsewhere; RGB."""
    from PIL import Image

    mask = Image.fromarray((_scaled(as_array(keep), base.size, True) != 0).astype(np.uint8) * 255)
    faded = base.convert("L").point([round(0.35 * v) for v in range(256)]).convert("RGB")
    return Image.composite(base.convert("RGB"), faded, mask)


def outline_image(base: Image, regions: Array | Tensor) -> Image:
    """The picture with the edges of regions, (H, W) of any size, in white; RGB."""
    from PIL import Image

    pixels = np.array(base.convert("RGB"))
    pixels[outlines(_scaled(as_array(regions), base.size, True))] = 255
    return Image.fromarray(pixels)


def _scaled(array: Array, size: tuple[int, int] | None, regions: bool) -> Array:
    """The map at another size (width, height): bilinear, or the nearest pixel for maps of regions."""
    from PIL import Image

    if size is None or size == array.shape[::-1]:
        return array
    way = Image.Resampling.NEAREST if regions else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(array.astype(np.float32)).resize(size, way))


def _opacity(codes: Bytes, signed: bool) -> Bytes:
    """The stronger, the less transparent: by the distance from the colour that means nothing."""
    strength = np.abs(codes / 127.5 - 1) if signed else codes / 255
    return _bytes(240 * strength**0.75)


def _bytes(values: Array) -> Bytes:
    return np.asarray(np.rint(values), dtype=np.uint8)
