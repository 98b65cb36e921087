"""Maps that know nothing of the network: a measure that does not tell a method from these says nothing about it.

Each is a function of the picture, its id and the seed alone. Shapes: pictures (N, C, H, W), maps (N, H, W).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import felzenszwalb
from torch import Tensor

from robustkit.core.keyed import Draws
from robustkit.core.types import Bounds
from robustkit.explain.metrics.checks import check_finite, check_pictures, checked_ids
from robustkit.kernels.noise import key_of, keyed_uniform

CONTROLS = {
    "random": "a random value for every pixel",
    "sobel": "strength of the edges of the picture",
    "centre": "a Gaussian around the middle of the picture",
    "segments": "a random value for every segment of the picture",
}
SCALE, SMOOTH, LEAST = 150.0, 0.8, 0.003
"""Of the segments: Felzenszwalb's scale, the blur before, and the smallest segment as a share of the picture."""
SPREAD = 0.25
"""Standard deviation of the Gaussian, in heights and widths of the picture."""


def controls(x: Tensor, *, ids: Tensor | None = None, seed: int = 0, bounds: Bounds | None = None) -> dict[str, Tensor]:
    """Every control of every picture.

    Args:
        x: pictures (N, C, H, W).
        ids: (N,), key the random values; 0 .. N-1 by default.
        seed: of the random values.
        bounds: of the pictures, [0, 1] by default.

    Raises:
        UsageError: no pictures, NaN in them, or not one id for each.

    >>> sorted(controls(torch.rand(1, 3, 8, 8)))
    ['centre', 'random', 'segments', 'sobel']
    """
    check_pictures(x)
    check_finite(x, "x")
    draws = Draws(seed, checked_ids(x, ids), "controls")
    bounds = bounds or Bounds()
    grey = (x.detach().mean(1) - bounds.low) / bounds.width
    return {
        "random": draws.uniform(grey),
        "sobel": sobel(grey),
        "centre": centre(grey),
        "segments": segments((x.detach() - bounds.low) / bounds.width, draws.child("segments")),
    }


def sobel(grey: Tensor) -> Tensor:
    """Root mean square of the two Sobel derivatives of grey pictures (N, H, W), whose border is repeated."""
    kernel = torch.outer(torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([1.0, 0.0, -1.0])).to(grey)
    both = torch.stack([kernel, kernel.T])[:, None]
    edges = F.conv2d(F.pad(grey[:, None], [1] * 4, mode="replicate"), both)
    return (edges.square().sum(1) / 2).sqrt()


def centre(grey: Tensor) -> Tensor:
    """The same Gaussian for all, (N, H, W), 1 in the middle."""
    height, width = (_bell(length, grey) for length in grey.shape[1:])
    return torch.outer(height, width).expand_as(grey).contiguous()


def segments(pictures: Tensor, draws: Draws) -> Tensor:
    """One value for each segment (Felzenszwalb and Huttenlocher 2004) of pictures (N, C, H, W) in [0, 1]."""
    shown = pictures if pictures.shape[1] in (1, 3) else pictures.mean(1, keepdim=True)
    least = max(1, round(LEAST * shown.shape[2] * shown.shape[3]))
    found = []
    for picture, sample in zip(shown.movedim(1, -1).double().cpu().numpy(), draws.ids.tolist(), strict=True):
        labels = felzenszwalb(picture, scale=SCALE, sigma=SMOOTH, min_size=least)
        key = key_of(draws.seed, sample, draws.purpose, 0, 0)
        values = keyed_uniform([key], (int(labels.max()) + 1,), torch.float64, torch.device("cpu"))[0]
        found.append(values.numpy()[labels])
    return torch.from_numpy(np.stack(found)).to(pictures)


def _bell(length: int, like: Tensor) -> Tensor:
    offset = torch.arange(length, dtype=like.dtype, device=like.device) - (length - 1) / 2
    return torch.exp(-0.5 * (offset / (SPREAD * length)) ** 2)
