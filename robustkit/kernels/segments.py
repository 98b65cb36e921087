"""Segmentations of images at several scales, as XRAI takes them (https://arxiv.org/abs/1906.02825, sec. 3).

An image is stretched to [-1, 1], resized to 224 x 224, cut into segments by the method of Felzenszwalb and Huttenlocher
(https://doi.org/10.1023/B:VISI.0000022288.19776.77) at each scale, and the label maps are brought back to its own size.
Images and scales are shared out among as many threads as torch has. Segments depend on the image alone, so the last
ones are kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb
from skimage.transform import resize

SIDE = 224
KEPT = 32
"""Images whose segments are kept."""

Job = TypeVar("Job")
Done = TypeVar("Done")
Labels = NDArray[np.int32]
_kept: OrderedDict[bytes, Labels] = OrderedDict()
_lock = Lock()


@dataclass(frozen=True)
class Segmentation:
    """How images are cut.

    Attributes:
        scales: larger ones give larger segments.
        sigma: of the Gaussian that smoothes the image first, in pixels of the resized image.
        min_size: smallest segment, in pixels of the resized image.
    """

    scales: tuple[float, ...] = (50.0, 100.0, 150.0, 250.0, 500.0, 1200.0)
    sigma: float = 0.8
    min_size: int = 150

    def __call__(self, images: Sequence[NDArray[Any]]) -> list[Labels]:
        """Label maps (L, H, W), one for each scale, of images (H, W, C) of any range that are not constant."""
        keys = [self._key(image) for image in images]
        found = [_recall(key) for key in keys]
        missing = [i for i, labels in enumerate(found) if labels is None]
        resized = threaded(lambda i: _stretched(images[i]), missing)
        jobs = list(product(range(len(missing)), self.scales))
        maps = threaded(lambda job: self._cut(resized[job[0]], job[1], images[missing[job[0]]].shape[:2]), jobs)
        for at, i in enumerate(missing):
            found[i] = _keep(keys[i], np.stack(maps[at * len(self.scales) : (at + 1) * len(self.scales)]))
        return [labels for labels in found if labels is not None]

    def _cut(self, image: NDArray[Any], scale: float, shape: tuple[int, ...]) -> Labels:
        labels = felzenszwalb(image, scale=scale, sigma=self.sigma, min_size=self.min_size)
        back = resize(labels, shape, order=0, mode="constant", preserve_range=True, anti_aliasing=False)
        return np.asarray(back, np.int32)

    def _key(self, image: NDArray[Any]) -> bytes:
        digest = hashlib.blake2b(repr((self, image.shape, image.dtype.str)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image).tobytes())
        return digest.digest()


def threaded(work: Callable[[Job], Done], jobs: Sequence[Job]) -> list[Done]:
    """``work`` on every job, in their order, by as many threads as torch has."""
    workers = min(torch.get_num_threads(), len(jobs))
    if workers < 2:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, jobs))


def forget() -> None:
    """Drop all segments that are kept."""
    with _lock:
        _kept.clear()


def _stretched(image: NDArray[Any]) -> NDArray[Any]:
    """From -1 to 1, and resized."""
    low, high = image.min(), image.max()
    even = (image - low) / (high - low) * 2 - 1
    found: NDArray[Any] = resize(even, (SIDE, SIDE), order=3, mode="constant", preserve_range=True, anti_aliasing=True)
    return found


def _recall(key: bytes) -> Labels | None:
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
        return _kept.get(key)


def _keep(key: bytes, labels: Labels) -> Labels:
    labels.setflags(write=False)
    with _lock:
        _kept[key] = labels
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return labels
