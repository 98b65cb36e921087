"""`hf:ID[:SPLIT]`: a Hugging Face data set of pictures, from the hub, its cache, or a local folder.

Columns are found by their type: the picture by `Image`, the label by `ClassLabel`, or by their usual names. No code
that comes with a data set is run. Samples are dealt out class by class, as those of a folder.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing
from robustkit.data.samples import Data, dealt, inputs, labels
from robustkit.images import channels_of, decoding, to_array, upright

FORM = re.compile(r"^(?P<id>.+?)(?::(?P<split>[A-Za-z_]\w*(?:\[[^\]]*\])?))?$", re.DOTALL)
PICTURES, LABELS = ("image", "img", "pixel_values", "picture"), ("label", "labels", "fine_label", "target", "y")
SPLITS = ("test", "validation", "val")


class HubData(Data):
    """Rows of a Hugging Face data set, decoded when they are asked for."""

    def __init__(self, table: Any, picture: str, label: str, preprocessing: Preprocessing | None, name: str) -> None:
        self.name, self._table, self._picture, self._preprocessing = name, table, picture, preprocessing
        names = getattr(table.features[label], "names", None)
        self.classes = tuple(names) if names else None
        if not len(table):
            raise UsageError("the data are empty", expected="at least one sample", got="none", where=name)
        self._y = labels(np.asarray(table[label]), f"column {label} of {name}")
        self._rows = dealt(self._y.tolist())
        self._mode = channels_of(self._image(0), preprocessing)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        arrays = [
            to_array(self._image(i), self._mode, self._preprocessing, f"{self.name}, row {self._rows[i]}") for i in ids
        ]
        if len({array.shape for array in arrays}) > 1:
            raise UsageError(
                "the pictures have different sizes",
                expected="one size",
                where=self.name,
                fix="The network names no input size; resize them, or give open_data a Preprocessing with a size.",
            )
        x = torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(0, dtype=torch.uint8)
        return inputs(x, ids, self.name), self._y[[self._rows[i] for i in ids]]

    def fingerprint(self) -> str:
        """A sha256 over the library's own fingerprint of the table, its labels, and how pictures are resized."""
        p = self._preprocessing
        text = repr(
            (str(getattr(self._table, "_fingerprint", "")), self._mode, p and (p.size, p.crop_pct, p.interpolation))
        )
        return hashlib.sha256(text.encode() + self._y.numpy().tobytes()).hexdigest()

    def _image(self, i: int) -> Any:
        with decoding(f"{self.name}, row {self._rows[i]}"):
            return upright(self._table[self._rows[i]][self._picture])


def open_hub(text: str, preprocessing: Preprocessing | None = None) -> Data:
    """The split of a data set; without a name `test`, else `validation`, else the only one there is.

    Raises:
        UsageError: the library is not installed, the data set or split is not found, or it has no picture or label
            column.
    """
    parts = FORM.match(text)
    name, split = (parts["id"], parts["split"]) if parts else (text, None)
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise UsageError(
            "hf: data need the package datasets",
            got="it is not installed",
            where=f"hf:{text}",
            fix="Run: pip install '.[hub]'",
        ) from error
    try:
        found = library.load_dataset(name, split=split)
    except Exception as error:  # the library's own errors differ from version to version
        message = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(
            "the data set cannot be loaded",
            expected="an id on the hub, in its cache, or a local folder",
            got=message,
            where=f"hf:{text}",
            fix="Check the id, the split and the connection.",
        ) from error
    table = found if split else _only_split(found, text)
    return HubData(
        table,
        _column(table, "Image", PICTURES, text),
        _column(table, "ClassLabel", LABELS, text),
        preprocessing,
        f"hf:{text}",
    )


def _only_split(found: Any, text: str) -> Any:
    if not isinstance(found, dict):
        return found
    names = [name for name in SPLITS if name in found] or (list(found) if len(found) == 1 else [])
    if not names:
        raise UsageError("which split?", expected="hf:ID:SPLIT", got=", ".join(found), where=f"hf:{text}")
    return found[names[0]]


def _column(table: Any, kind: str, names: Sequence[str], text: str) -> str:
    features: dict[str, Any] = table.features
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    found = [name for name in names if name in found] or found or [name for name in names if name in features]
    if not found:
        raise UsageError(
            f"no column of type {kind}",
            expected=f"one, or one named {' or '.join(names[:2])}",
            got=", ".join(features),
            where=f"hf:{text}",
        )
    return found[0]
