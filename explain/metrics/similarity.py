"""How alike two batches of pixel maps are: top-k intersection, Spearman, cosine, SSIM, Spearman of HOG features.

Shapes: maps (N, H, W); results (N,), float64, 1 for equal maps. All but HOG run in one piece on the maps' device.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.feature import hog
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.explain.metrics.checks import check_finite
from robustkit.kernels.ranks import average_ranks, correlation, descending_ranks

TOP = 0.1
"""Share of the pixels that the top-k intersection looks at."""
WINDOW, SIGMA = 11, 1.5
"""Of the Gaussian window of SSIM."""
CLIP = 0.99
"""Quantile where maps are cut before they are scaled to [0, 1]: one bright pixel would leave the rest black."""
CELL = 16
"""Side of the cells of HOG, in pixels; a block is 3 x 3 of them."""


def similarity(a: Tensor, b: Tensor, *, k: float = TOP) -> dict[str, Tensor]:
    """``top_k``, ``spearman`` and ``cosine`` of two batches of maps, each (N,).

    >>> maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> {name: round(value[0].item(), 6) for name, value in similarity(maps, maps).items()}
    {'top_k': 1.0, 'spearman': 1.0, 'cosine': 1.0}
    """
    return {"top_k": top_k(a, b, k), "spearman": spearman(a, b), "cosine": cosine(a, b)}


def top_k(a: Tensor, b: Tensor, k: float = TOP) -> Tensor:
    """Share of the top pixels of a that are top in b, too; unrelated maps have about k in common.

    Args:
        a, b: maps; of equal pixels the first in reading order come first.
        k: share of the pixels, above 0 and at most 1; at least one pixel is taken.

    Raises:
        UsageError: no such share; maps of different size or with NaN.
    """
    _check(a, b)
    if isinstance(k, bool) or not 0 < k <= 1:
        raise UsageError(
            "the top share holds pixels",
            expected="a number above 0, at most 1",
            got=repr(k),
            where="k",
            fix="k=0.1 takes the top tenth.",
        )
    count = max(1, round(k * a[0].numel()))
    both = (descending_ranks(a) < count) & (descending_ranks(b) < count)
    return both.flatten(1).sum(1).double() / count


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation over the pixels, equal pixels sharing their mean rank; nan where a map is constant.

    Raises:
        UsageError: maps of different size or with NaN.
    """
    _check(a, b)
    return correlation(average_ranks(a.flatten(1)), average_ranks(b.flatten(1)))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between the maps; nan where a map is zero everywhere.

    Raises:
        UsageError: maps of different size or with NaN.
    """
    _check(a, b)
    a, b = (_unit(m.flatten(1).double()) for m in (a, b))
    return (a * b).sum(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of the maps scaled by :func:`unit_range`, Gaussian window of 11 pixels.

    nan for maps that are smaller than the window.

    Raises:
        UsageError: maps of different size or with NaN.
    """
    _check(a, b)
    if min(a.shape[1:]) < WINDOW:
        return a.new_full((len(a),), torch.nan, dtype=torch.float64)
    x, y = unit_range(a), unit_range(b)
    mean_x, mean_y = _window(x), _window(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x, var_y = unbiased * (_window(x * x) - mean_x**2), unbiased * (_window(y * y) - mean_y**2)
    common = unbiased * (_window(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (light * (2 * common + c2) / (var_x + var_y + c2)).flatten(1).mean(1)


def hog_spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of the histograms of oriented gradients of the scaled maps, picture by picture on the CPU.

    nan for maps below 48 pixels a side, which hold no block, and where the histograms of a map are constant.

    Raises:
        UsageError: maps of different size or with NaN.
    """
    _check(a, b)
    if min(a.shape[1:]) < 3 * CELL:
        return a.new_full((len(a),), torch.nan, dtype=torch.float64)
    return correlation(average_ranks(_hog(a)), average_ranks(_hog(b))).to(a.device)


def unit_range(maps: Tensor) -> Tensor:
    """Maps cut at their 99th percentile and scaled to [0, 1] each, float64; a constant map is 0.

    >>> unit_range(torch.tensor([[[1.0, 2.0], [3.0, 3.0]]]))
    tensor([[[0.0000, 0.5000],
             [1.0000, 1.0000]]], dtype=torch.float64)
    """
    flat = maps.flatten(1).double()
    ordered = flat.sort(1).values
    low, last = ordered[:, :1], flat.shape[1] - 1
    below = int(CLIP * last)
    high = ordered[:, below : below + 1].lerp(ordered[:, min(below + 1, last)][:, None], CLIP * last - below)
    high = torch.where(high > low, high, ordered[:, -1:])
    width = torch.where(high > low, high - low, 1)
    return ((flat - low) / width).clamp_max_(1).view(maps.shape)


def _hog(maps: Tensor) -> Tensor:
    """(N, F) on the CPU."""
    found = [hog(scaled, pixels_per_cell=(CELL, CELL)) for scaled in unit_range(maps).cpu().numpy()]
    return torch.from_numpy(np.stack(found))


def _window(maps: Tensor) -> Tensor:
    """Means under the Gaussian window, where it fits, (N, H - 10, W - 10)."""
    down, right = (_band(length).to(maps) for length in maps.shape[1:])
    return down @ maps @ right.T


def _band(length: int) -> Tensor:
    """The window along one axis as a matrix (length - 10, length), float64."""
    offset = torch.arange(length) - torch.arange(length - WINDOW + 1)[:, None] - WINDOW // 2
    taps = torch.exp(-0.5 * (offset.double() / SIGMA) ** 2).where(offset.abs() <= WINDOW // 2, 0)
    return taps / taps.sum(1, keepdim=True)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, nan where they are 0; divided by the largest entry first, so that no square vanishes."""
    rows = rows / rows.abs().amax(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length


def _check(a: Tensor, b: Tensor) -> None:
    for name, maps in (("a", a), ("b", b)):
        if not isinstance(maps, Tensor) or maps.ndim != 3 or 0 in maps.shape:
            raise UsageError(
                "maps are compared pixel by pixel",
                expected="a tensor (N, H, W)",
                got=f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__,
                where=name,
                fix="Sum over the channels: robustkit.core.heat.pixel_map(values, signed=False).",
            )
    if a.shape != b.shape:
        raise UsageError(
            "the maps have different sizes", expected=str(tuple(a.shape)), got=str(tuple(b.shape)), where="b"
        )
    check_finite(a, "a")
    check_finite(b, "b")
