"""Maps in files: one npz for an image and a method, with its input, the values and whatever else the method found."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError
from robustkit.core.types import Cost

OWN = ("x", "values", "target", "value", "residual", "standard_error")
"""Arrays that are no extras of a method."""


def map_bytes(found: Attribution, i: int) -> bytes:
    """Map ``i`` of a batch as the bytes of an npz file; equal maps give equal bytes."""
    tensors = {name: getattr(found, name) for name in OWN} | found.extras
    stream = io.BytesIO()
    arrays: dict[str, Any] = {name: _numbers(t[i]) for name, t in tensors.items() if t is not None}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def read_values(file: Path) -> Tensor:
    """The values of a map, (C, H, W) or another shape of one sample.

    Raises:
        UsageError: the file is missing or damaged.
    """
    return torch.from_numpy(_read(file, ["values"])["values"])


def read_maps(files: Sequence[Path], *, device: torch.device | str = "cpu", **facts: Any) -> Attribution:
    """Maps of one method and of inputs of one shape, as a batch.

    Args:
        files: one for each image.
        device: where to put them.
        facts: what the files do not hold: method, settings, output, signed, notes, bounds, class_names.

    Raises:
        UsageError: a file is missing or damaged; inputs of different shapes.
    """
    found = [_read(file) for file in files]
    shapes = {array["x"].shape for array in found}
    if len(shapes) != 1:
        raise UsageError(
            "the maps do not fit into one batch",
            expected="at least one map, and inputs of one shape",
            got=" and ".join(str(shape) for shape in sorted(shapes)[:2]) or "none",
            where=str(files[0].parent) if files else "",
            fix="Read the npz files one by one.",
        )
    names = [name for name in found[0] if all(name in array for array in found)]
    batch: dict[str, Any] = {
        name: torch.from_numpy(np.stack([array[name] for array in found])).to(device) for name in names
    }
    own = {name: batch.pop(name) for name in OWN if name in batch}
    return Attribution(**own, extras=batch, cost=Cost(), **facts)


def _read(file: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names or stored.files}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            "cannot read a map",
            got=str(error),
            where=str(file),
            fix="The run is damaged: start it again in another folder.",
        ) from None


def _numbers(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
