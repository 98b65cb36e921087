"""Which part of a picture the network sees: held against a picture whose pixels say where they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustkit.core.preprocessing import Preprocessing
from robustkit.images import resize_and_crop, seen_box


def ruler(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.dstack([columns, rows, 0 * rows]).astype(np.uint8))


@pytest.mark.parametrize("size", [(250, 120), (120, 250), (64, 64), (17, 90), (200, 201)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.7])
def test_the_box_is_what_the_crop_shows(size, crop):
    preprocessing = Preprocessing((0.5,), (0.5,), size=(32, 48), crop_pct=crop)
    left, top, right, bottom = seen_box(size, preprocessing)
    seen = np.asarray(resize_and_crop(ruler(*size), (32, 48), crop, "nearest")).astype(float)
    step = (right - left) / 48, (bottom - top) / 32  # original pixels for each of the input's
    columns, rows = seen[16, :, 0], seen[:, 24, 1]
    assert np.abs(columns - (left + step[0] * (np.arange(48) + 0.5) - 0.5)).max() <= 0.51 + 1e-6
    assert np.abs(rows - (top + step[1] * (np.arange(32) + 0.5) - 0.5)).max() <= 0.51 + 1e-6
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


def test_without_a_size_all_of_it_is_seen():
    assert seen_box((7, 5), None) == (0, 0, 7, 5)
    assert seen_box((7, 5), Preprocessing((0.5,), (0.5,))) == (0, 0, 7, 5)
