"""The maps of the explanation page, packed so that the browser can draw them in any way without asking anybody.

A map travels as planes of bytes, (H, W) each: ``rank``, how much of the map lies above a pixel (robustkit.core.heat);
``signed``, where the sign means something; ``flags``, 1 for significant pixels and 2 for edges of regions. Each plane
is a row of differences to the pixel before, modulo 256; all are deflated together. Values need no plane: they follow
from the rank, by a table of 256 numbers for each map.
"""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robustkit.core import heat
from robustkit.core.errors import UsageError
from robustkit.core.files import inside
from robustkit.images import read_image

LARGE = 448
"""Longest side of what the network saw, in the page, and of a map."""
STATIC = 288
"""Longest side of the overlay that stands where no script runs."""
SMALL = 64
"""Maps up to this size are drawn pixel by pixel."""
ARRAYS = ("x", "values", "standard_error", "ranks")
"""What is read of a map; methods store more."""
Array = NDArray[Any]


def read_arrays(root: Path, name: str) -> dict[str, Array]:
    """The arrays of a map.

    Raises:
        UsageError: the file is missing or damaged, or leads out of the folder.
    """
    path = inside(root, name)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ARRAYS if key in stored.files}
        if arrays["values"].ndim != 3 or arrays["x"].shape[1:] != arrays["values"].shape[1:]:
            raise ValueError(f"values of shape {arrays['values'].shape}")
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            "cannot read a map of the run",
            expected="an npz with x and values, both (C, H, W)",
            got=str(error),
            where=str(path),
            fix="The run is damaged: start it again in another folder.",
        ) from None
    return arrays


def photo(root: Path, image: Mapping[str, Any]) -> tuple[Image.Image, Image.Image]:
    """The whole picture and what the network saw of it, scaled so that the latter fits into the page.

    Raises:
        UsageError: the file is missing or damaged, or leads out of the folder.
    """
    stored = read_image(inside(root, image["picture"])).convert("RGB")
    left, top, right, bottom = image["box"]
    across, down = stored.width / image["width"], stored.height / image["height"]
    factor = min(1.0, LARGE / max((right - left) * across, (bottom - top) * down))
    size = max(1, round(stored.width * factor)), max(1, round(stored.height * factor))
    whole = stored if size == stored.size else stored.resize(size, Image.Resampling.LANCZOS)
    across, down = size[0] / image["width"], size[1] / image["height"]
    edges = [round(left * across), round(top * down), round(right * across), round(bottom * down)]
    return whole, whole.crop((edges[0], edges[1], max(edges[2], edges[0] + 1), max(edges[3], edges[1] + 1)))


def cell(arrays: Mapping[str, Array], method: Mapping[str, Any], seen: Image.Image) -> dict[str, Any]:
    """What the page needs to draw one map, and the overlay for where no script runs."""
    values = torch.from_numpy(np.asarray(arrays["values"], dtype=np.float32))[None]
    regions = "ranks" in arrays
    pixels = _fitted(heat.pixel_map(values, bool(method["pixels"]))[0].numpy(), regions)
    ends, ranks = heat.value_range(pixels), heat.rank_map(pixels)
    planes, plus = {"rank": ranks}, 0.0
    if method["signed"]:
        signs = _fitted(heat.pixel_map(values, signed=True)[0].numpy(), regions)
        plus = heat.value_range(signs, signed=True).high
        planes["signed"] = heat.levels(signs, -plus, plus)
    flags = _flags(arrays, values, ranks.shape)
    if flags is not None:
        planes["flags"] = flags
    return {
        "map": packed(planes),
        "planes": " ".join(planes),
        "w": ranks.shape[1],
        "h": ranks.shape[0],
        "values": _table(pixels, ranks),
        "low": ends.low,
        "high": ends.high,
        "plus": plus,
        "sure": "standard_error" in arrays,
        "edges": regions,
        "small": max(ranks.shape) <= SMALL,
        "static": _static(pixels, seen, regions),
    }


def packed(planes: Mapping[str, NDArray[np.uint8]]) -> str:
    """Planes of bytes as differences, deflated, in base64."""
    rows = [np.diff(plane.ravel(), prepend=np.uint8(0)).tobytes() for plane in planes.values()]
    return base64.b64encode(zlib.compress(b"".join(rows), 9)).decode("ascii")


def jpeg(image: Image.Image, quality: int = 85) -> str:
    """A picture as a data URI: JPEG, or PNG where it is so small that every pixel is seen."""
    stream = io.BytesIO()
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    image.save(stream, format=kind, **({"quality": quality} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _fitted(pixels: Array, regions: bool) -> Array:
    """The map, shrunk where it is larger than the page shows."""
    factor = LARGE / max(pixels.shape)
    if factor >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
    way = Image.Resampling.NEAREST if regions else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels.astype(np.float32)).resize(size, way))


def _flags(arrays: Mapping[str, Array], values: torch.Tensor, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    if "standard_error" not in arrays and "ranks" not in arrays:
        return None
    flags = np.zeros(shape, dtype=np.uint8)
    if "standard_error" in arrays:
        error = torch.from_numpy(np.asarray(arrays["standard_error"], dtype=np.float32))[None]
        flags |= _fitted(heat.significant(values, error)[0].numpy(), True).astype(bool)
    if "ranks" in arrays:
        flags |= np.uint8(2) * heat.outlines(_fitted(arrays["ranks"].reshape(arrays["values"].shape[1:]), True))
    return flags


def _table(pixels: Array, ranks: NDArray[np.uint8]) -> list[float]:
    """The mean value of each rank, four digits; 0 for ranks that no pixel has."""
    known = ranks < 255
    counts = np.bincount(ranks[known], minlength=256)
    sums = np.bincount(ranks[known], weights=pixels[known].astype(np.float64), minlength=256)
    return [float(f"{mean:.4g}") for mean in sums / np.maximum(counts, 1)]


def _static(pixels: Array, seen: Image.Image, regions: bool) -> str:
    base = seen.copy()
    base.thumbnail((STATIC, STATIC))
    return jpeg(heat.overlay_image(base, pixels, regions=regions or max(base.size) <= SMALL), 80)
