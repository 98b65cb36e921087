"""What a network wants to be fed: read from the places where its makers wrote it down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs.

    Attributes:
        mean, std: per channel, on the scale of inputs in [0, 1].
        size: (height, width) of the input, where it is known.
        crop_pct: share of the resized image that the centre crop keeps.
        interpolation: of the resize: nearest, bilinear, bicubic or lanczos.
        source: where this was read.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    source: str = "given"


def read_preprocessing(source: object) -> Preprocessing | None:
    """From a timm network, torchvision weights, or a Hugging Face image processor; None where nothing is found."""
    if isinstance(source, Preprocessing):
        return source
    for read in (_timm, _torchvision, _hugging_face):
        found = read(source)
        if found is not None:
            return found
    return None


def _timm(net: object) -> Preprocessing | None:
    cfg: Any = getattr(net, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not {"mean", "std"} <= cfg.keys():
        return None
    shape = cfg.get("input_size")
    return Preprocessing(
        _floats(cfg["mean"]),
        _floats(cfg["std"]),
        tuple(shape[1:]) if shape else None,
        float(cfg.get("crop_pct") or 1),
        str(cfg.get("interpolation") or "bicubic"),
        "timm",
    )


def _torchvision(weights: object) -> Preprocessing | None:
    transforms: Any = getattr(weights, "transforms", None)
    if not callable(transforms) or not hasattr(weights, "meta"):
        return None
    t = transforms()
    if not all(hasattr(t, name) for name in ("mean", "std", "crop_size", "resize_size")):
        return None
    crop, resize = t.crop_size[0], t.resize_size[0]
    mode = getattr(t.interpolation, "value", "bilinear")
    return Preprocessing(_floats(t.mean), _floats(t.std), (crop, crop), crop / resize, str(mode), "torchvision")


def _hugging_face(processor: object) -> Preprocessing | None:
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        return None
    size: Any = getattr(processor, "size", None) or {}
    edge = size.get("shortest_edge", size.get("height")) if hasattr(size, "get") else None
    return Preprocessing(
        _floats(mean), _floats(std), (edge, size.get("width", edge)) if edge else None, source="huggingface"
    )


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
