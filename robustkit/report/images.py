"""Pictures inside the page: lossless PNG data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
LARGE = 256
"""Longest side of a gallery picture; larger ones are shrunk for the page."""


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A PNG of (H, W), (H, W, 3) or (H, W, 4) bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def is_picture(array: Array) -> bool:
    """Channels first, one or three of them."""
    return array.ndim == 3 and array.shape[0] in (1, 3)


def picture(array: Array, low: float, high: float) -> str:
    """An input (C, H, W) in [low, high] as a data URI."""
    scaled = np.clip((np.nan_to_num(array) - low) / ((high - low) or 1.0), 0, 1)
    pixels = np.rint(scaled * 255).astype(np.uint8)
    return data_uri(_shrunk(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)))


def perturbation(original: Array, adversarial: Array) -> tuple[str, float]:
    """The difference around mid-grey, scaled so that its largest value is white or black; and the scale."""
    delta = np.nan_to_num(adversarial - original)
    largest = float(np.abs(delta).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return picture(0.5 + factor * delta, 0.0, 1.0), factor


def nearest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrunk as other pictures are, without mixing colours."""
    step = -(-max(pixels.shape[:2]) // LARGE)
    return pixels[step // 2 :: step, step // 2 :: step]


def _shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    longest = max(pixels.shape[:2])
    if longest <= LARGE:
        return pixels
    size = (max(1, pixels.shape[1] * LARGE // longest), max(1, pixels.shape[0] * LARGE // longest))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
