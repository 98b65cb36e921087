"""Datasets read by index, and what a sample or a batch may look like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from robustkit.core.errors import RobustkitError, UsageError
from robustkit.data.samples import Data, check_lengths, hash_of, inputs, labels, numeric

X_KEYS = ("pixel_values", "image", "images", "x", "input", "inputs")
Y_KEYS = ("labels", "label", "y", "target", "targets")
PROBED = 64  # samples whose values go into a dataset's fingerprint
Collate = Callable[[list[Any]], Any]


class DatasetData(Data):
    """A dataset read by index.

    Raises:
        UsageError: empty, or one that gives another sample each time it is asked (random augmentation).
    """

    def __init__(
        self, dataset: Any, *, rows: Sequence[int] | None = None, collate: Collate | None = None, name: str = ""
    ) -> None:
        self.name, self.classes = name or type(dataset).__name__, _class_names(dataset)
        self._dataset, self._collate = dataset, collate or default_collate
        self._rows = range(len(dataset)) if rows is None else rows
        if not self._rows:
            raise UsageError("the data are empty", expected="at least one sample", got="none", where=self.name)
        first = range(min(4, len(self)))
        with torch.random.fork_rng(devices=[]):  # one stream for both, or augmentation would draw the same twice
            once, again = hash_of(*self._take(first)), hash_of(*self._take(first))
        if once != again:
            raise UsageError(
                "the data set gives another sample each time",
                expected="the same sample for the same index",
                got="random ones",
                where=self.name,
                fix="Leave random augmentation out of the evaluation's transform.",
            )

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            return self._take(ids)

    def _take(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        if not len(ids):
            x, y = self._take([0])
            return x[:0], y[:0]
        with reading(f"{self.name}, samples {ids[0]} to {ids[-1]}"):
            batch = self._collate([self._dataset[self._rows[i]] for i in ids])
        x, y = checked(batch, self.name)
        if len(x) != len(ids):
            raise UsageError(
                "the collation lost samples", expected=f"{len(ids)} samples", got=str(len(x)), where=self.name
            )
        return inputs(x, ids, self.name), y

    def fingerprint(self) -> str:
        """A sha256 over the length and up to 64 samples spread evenly: reading all could take hours."""
        ids = sorted({round(i * (len(self) - 1) / (PROBED - 1)) for i in range(PROBED)})
        digest = hashlib.sha256(str(len(self)).encode())
        for i in ids:
            digest.update(hash_of(*self.take([i])).encode())
        return digest.hexdigest()


@contextmanager
def reading(where: str) -> Iterator[None]:
    """The user's own code runs inside: its exceptions become one UsageError."""
    try:
        yield
    except RobustkitError:
        raise
    except Exception as error:
        picture = "PIL" in str(error)
        raise UsageError(
            "a sample cannot be read",
            got=f"{type(error).__name__}: {error}".partition("\n")[0],
            where=where,
            fix="Pictures must be tensors: add ToImage() or ToTensor() to the transform." if picture else "",
        ) from error


def checked(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    """x (n, *S) and whole labels (n, ...) of a batch.

    Raises:
        UsageError: no pair, not numbers, or of different lengths.
    """
    first, second = pair(batch, name)
    x, y = numeric(first, f"x of {name}").detach().cpu(), labels(second, f"y of {name}").cpu()
    check_lengths(x, y, name)
    return x, y


def pair(item: Any, where: str) -> tuple[Any, Any]:
    """x and y of a tuple, a list or a mapping with the usual names.

    Raises:
        UsageError: anything else.
    """
    if isinstance(item, Mapping):
        found = [next((item[key] for key in keys if key in item), None) for keys in (X_KEYS, Y_KEYS)]
        if all(part is not None for part in found):
            return found[0], found[1]
        got = f"a mapping with keys {', '.join(map(str, item))}"
    elif isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    else:
        got = type(item).__name__
    raise UsageError(
        "a sample is not a pair",
        expected="(x, y), or a mapping with x and y",
        got=got,
        where=where,
        fix="Labels are needed: accuracy is measured against them.",
    )


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    while (names := getattr(dataset, "classes", None)) is None and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # Subset and its like
    plain = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    return tuple(names) if plain and names else None
