"""Pictures on disk to arrays, without trusting the file.

Four formats are read and no other parser is reachable; a picture with more pixels than Pillow's limit is an error,
not a warning; the EXIF orientation is applied; a damaged file is named. Resize and crop are those of torchvision's
and timm's evaluation transforms: the short side to size / crop_pct, then the centre.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_PIXELS = 89_478_485  # Pillow's own default: a quarter of a gigabyte as RGB
GRAY_MODES = frozenset({"1", "L", "LA"})
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
Mode = Literal["L", "RGB"]


def read_image(path: Path) -> Image.Image:
    """The picture, upright and fully decoded, in the mode it is stored in.

    Raises:
        UsageError: missing, not one of FORMATS, damaged, or larger than MAX_PIXELS.
    """
    with decoding(str(path)), Image.open(path, formats=FORMATS) as image:
        return upright(image)


@contextmanager
def decoding(where: str) -> Iterator[None]:
    """Pillow runs inside: a picture that is too large is an error, not a warning, and every error names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UsageError(
            "the picture is too large to be opened safely",
            expected=f"at most {MAX_PIXELS:,} pixels",
            got=str(error),
            where=where,
            fix="Make it smaller, or leave it out: a small file can unpack to fill the memory.",
        ) from error
    except UnidentifiedImageError as error:
        raise UsageError("not a picture", expected=", ".join(FORMATS), got="another format", where=where) from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's parsers raise all three on damaged files
        raise UsageError("the picture cannot be read", expected="a whole file", got=str(error), where=where) from error


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; a decoded copy that outlives its file."""
    if image.width * image.height > MAX_PIXELS:  # also where somebody has switched Pillow's own limit off
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    return ImageOps.exif_transpose(image)


def channels_of(image: Image.Image, preprocessing: Preprocessing | None) -> Mode:
    """One channel or three: as many as the network has means, otherwise as the picture is stored."""
    if preprocessing is not None and len(preprocessing.mean) in (1, 3):
        return "L" if len(preprocessing.mean) == 1 else "RGB"
    return "L" if image.mode in GRAY_MODES else "RGB"


def to_array(image: Image.Image, mode: Mode, preprocessing: Preprocessing | None, where: str) -> NDArray[np.uint8]:
    """The picture as (C, H, W) uint8, resized and cropped where the preprocessing names a size.

    Raises:
        UsageError: more than 8 bits per channel, which a conversion would clip silently; an unknown interpolation.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise UsageError(
            "the picture has more than 8 bits per channel",
            expected="8 bits",
            got=f"mode {image.mode}",
            where=where,
            fix="Convert it to 8 bits, or give the data as an npz file of floats.",
        )
    image = image.convert(mode)
    if preprocessing is not None and preprocessing.size is not None:
        image = resize_and_crop(image, preprocessing.size, preprocessing.crop_pct, preprocessing.interpolation)
    array = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(array[None] if mode == "L" else array.transpose(2, 0, 1))


def resize_and_crop(image: Image.Image, size: tuple[int, int], crop_pct: float, interpolation: str) -> Image.Image:
    """Scale so that the picture just covers size / crop_pct, then cut `size` (height, width) out of the middle.

    Raises:
        UsageError: an interpolation that is not in RESAMPLING.
    """
    if interpolation not in RESAMPLING:
        raise UsageError("unknown interpolation", expected=", ".join(RESAMPLING), got=repr(interpolation))
    scaled, box = _geometry(image.size, size, crop_pct)
    return image.resize(scaled, RESAMPLING[interpolation]).crop(box)


def seen_box(size: tuple[int, int], preprocessing: Preprocessing | None) -> tuple[float, float, float, float]:
    """What the network sees of a picture of this (width, height): left, top, right, bottom in the picture's pixels.

    All of it where the preprocessing names no size. Fractions of pixels are meant.

    >>> seen_box((896, 448), Preprocessing((0.5,), (0.5,), size=(224, 224)))
    (224.0, 0.0, 672.0, 448.0)
    """
    if preprocessing is None or preprocessing.size is None:
        return 0.0, 0.0, float(size[0]), float(size[1])
    scaled, box = _geometry(size, preprocessing.size, preprocessing.crop_pct)
    x, y = size[0] / scaled[0], size[1] / scaled[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _geometry(
    picture: tuple[int, int], size: tuple[int, int], crop_pct: float
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The size to scale a picture (width, height) to, and what is cut out of that: left, top, right, bottom."""
    height, width = size
    # floor and int as torchvision and timm round, so that pictures agree with theirs to the pixel
    ratio = max(math.floor(height / crop_pct) / picture[1], math.floor(width / crop_pct) / picture[0])
    scaled = max(width, int(picture[0] * ratio + 1e-6)), max(height, int(picture[1] * ratio + 1e-6))
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return scaled, (left, top, left + width, top + height)
