"""`hf:ID`: image classifiers of the Hugging Face hub, its cache, or a local folder."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing, read_preprocessing
from robustkit.images import RESAMPLING
from robustkit.zoo.source import Source, fetched
from robustkit.zoo.weights import load_into, read_state


def find(name: str, weights: Path | None) -> Source:
    """An image classifier of the hub, its cache, or a local folder. Code that comes with it is not run."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            "hf: models need the package transformers",
            got="it is not installed",
            where=f"hf:{name}",
            fix="Run: pip install '.[hub]'",
        ) from error
    net: nn.Module = fetched(lambda: library.AutoModelForImageClassification.from_pretrained(name), f"hf:{name}")
    processor = fetched(lambda: library.AutoImageProcessor.from_pretrained(name), f"hf:{name}, image processor")
    if weights is not None:
        load_into(net, read_state(weights), str(weights))
    return Source(net.eval(), processor_preprocessing(processor), _names_of(net))


def processor_preprocessing(processor: Any) -> Preprocessing | None:
    """Mean, std, crop and interpolation of a Hugging Face image processor, as far as they are switched on."""
    found = read_preprocessing(processor)
    if found is None:
        return None
    if getattr(processor, "do_normalize", True) is False:
        found = replace(found, mean=(0.0,) * len(found.mean), std=(1.0,) * len(found.std))
    if found.size and getattr(processor, "do_center_crop", False) and (crop := getattr(processor, "crop_size", None)):
        height, width = int(crop["height"]), int(crop["width"])
        found = replace(found, size=(height, width), crop_pct=min(1.0, height / found.size[0]))
    if share := getattr(processor, "crop_pct", None):
        found = replace(found, crop_pct=float(share))
    names = {int(value): name for name, value in RESAMPLING.items()}
    kind = getattr(processor, "resample", None)
    return found if kind is None else replace(found, interpolation=names.get(int(kind), found.interpolation))


def _names_of(net: nn.Module) -> Sequence[str] | None:
    names = getattr(getattr(net, "config", None), "id2label", None) or {}
    return tuple(str(names[key]) for key in sorted(names, key=int)) or None
