"""The pictures of an explanation: the originals beside the maps, heat maps and overlays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from robustkit.core import heat
from robustkit.core.files import replace_file
from robustkit.run.directory import RunDirectory
from robustkit.run.explain_subjects import Shown

LONG_SIDE = 1024
"""Of the pictures that are kept."""

Row = dict[str, Any]


def keep_picture(run: RunDirectory, name: str, shown: Shown | None) -> Row:
    """Write the picture of an input; what the row of the input says of it, nulls for inputs that are no pictures."""
    if shown is None:
        return {"picture": None, "width": None, "height": None, "box": None}
    width, height = shown.image.size
    kept = shown.image
    if max(width, height) > LONG_SIDE:
        kept = kept.copy()
        kept.thumbnail((LONG_SIDE, LONG_SIDE))
    replace_file(run.file(name), _png(kept))
    return {"picture": name, "width": width, "height": height, "box": list(shown.box)}


def draw(
    run: RunDirectory, name: str, pixels: Tensor, image: Row, *, keep: Tensor | None, regions: bool
) -> dict[str, str | None]:
    """Write the heat map and the overlay of a map, as large as what the network saw of the kept picture.

    Args:
        run: where.
        name: of the map's own file, which the pictures lie beside.
        pixels: the map (H, W).
        image: the row of its input, with the picture, its size and the box.
        keep: the pixels to show, (H, W).
        regions: the map is constant on regions.
    """
    stem = Path(name).with_suffix("").as_posix()
    base = _seen(run.file(image["picture"]), image) if image["picture"] else None
    drawn = heat.heat_image(pixels, size=None if base is None else base.size, keep=keep, regions=regions)
    replace_file(run.file(f"{stem}_heat.png"), _png(drawn))
    if base is None:
        return {"heat": f"{stem}_heat.png", "overlay": None}
    over = heat.overlay_image(base, pixels, keep=keep, regions=regions)
    replace_file(run.file(f"{stem}_overlay.png"), _png(over))
    return {"heat": f"{stem}_heat.png", "overlay": f"{stem}_overlay.png"}


def _seen(file: Path, image: Row) -> Image.Image:
    """The part of a kept picture that the network sees."""
    with Image.open(file, formats=("PNG",)) as kept:
        x, y = kept.width / image["width"], kept.height / image["height"]
        left, top, right, bottom = image["box"]
        box = round(left * x), round(top * y), round(right * x), round(bottom * y)
        return kept.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
