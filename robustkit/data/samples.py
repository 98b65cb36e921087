"""The interface of all data, its form in memory, and the checks that every source shares."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.core.errors import UsageError

READ = 256  # samples read at a time where only their labels are wanted


class Data(ABC):
    """A finite, ordered set of labelled samples. A sample's id is its place in that order, 0 to len - 1, for good.

    Attributes:
        name: how reports call it.
        classes: names of the classes by label, where they are known.
    """

    name: str
    classes: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The samples with these ids: x (n, *S) float32 and y (n,) int64, on the CPU; y of dense tasks as in `labels`.

        8-bit values are divided by 255; floating-point values are passed as they are.

        Raises:
            UsageError: a sample that cannot be read or holds NaN or infinity.
        """

    def targets(self) -> Tensor:
        """y of all samples, in order; without their inputs where the labels lie apart from them."""
        ids = range(len(self))
        return torch.cat([self.take(ids[i : i + READ])[1] for i in range(0, len(self), READ)])

    def picture_file(self, sample: int) -> Path | None:
        """The picture that a sample was made of, where it lies in a file."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 (hex) that changes when the samples, their labels or their order do."""


class TensorData(Data):
    """Samples in memory.

    Args:
        x: (N, *S), uint8 or floating point.
        y: (N,), whole numbers; (N, H, W) for dense labels; (N, C, H, W) floating point for values.

    Raises:
        UsageError: empty, x and y of different length, labels that are not whole numbers or not one per sample.

    >>> data = TensorData(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> x, y = data.take([1])
    >>> x.dtype, y.tolist()
    (torch.float32, [1])
    """

    def __init__(self, x: Any, y: Any, *, name: str = "tensors", classes: Sequence[str] | None = None) -> None:
        self.name, self.classes = name, tuple(classes) if classes is not None else None
        self._x = numeric(x, f"x of {name}").detach().cpu()
        self._y = labels(y, f"y of {name}").cpu()
        check_lengths(self._x, self._y, name)
        self._sha256 = ""

    def __len__(self) -> int:
        return len(self._y)

    def targets(self) -> Tensor:
        return self._y

    def take(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(list(ids), dtype=torch.int64)
        return inputs(self._x[rows], ids, self.name), self._y[rows]

    def fingerprint(self) -> str:
        self._sha256 = self._sha256 or hash_of(self._x, self._y)
        return self._sha256


def numeric(values: Any, where: str) -> Tensor:
    """A tensor of real numbers from a tensor, an array or nested lists.

    Raises:
        UsageError: objects, text, complex numbers or ragged rows.
    """
    try:
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        got = f"dtype {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise UsageError("not an array of numbers", expected="numbers of one shape", got=got, where=where) from error
    if tensor.is_complex():
        raise UsageError("complex numbers", expected="real numbers", got=str(tensor.dtype), where=where)
    return tensor


def labels(values: Any, where: str) -> Tensor:
    """Labels as int64: (N,), or (N, H, W) for dense ones. A column (N, 1) is taken as (N,).

    Targets of a regression stay float32: numbers of shape (N, C, H, W), or (N, H, W) with fractions.

    Raises:
        UsageError: fractions, negative classes, one-hot rows or another shape.
    """
    y = numeric(values, where)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if _are_targets(y):
        return y.to(torch.float32)
    if y.ndim in (0, 2):
        raise UsageError(
            "labels of the wrong shape",
            expected="one whole number per sample, (N,)",
            got=f"shape {tuple(y.shape)}",
            where=where,
            fix="For one-hot rows give y.argmax(1)." if y.ndim == 2 else "",
        )
    if y.is_floating_point() and not bool((y == y.round()).all()):
        raise UsageError(
            "labels are not whole numbers",
            expected="class indices",
            got=f"{y.dtype} with fractions or NaN",
            where=where,
        )
    y = y.to(torch.int64)
    if y.ndim == 1 and len(y) and int(y.min()) < 0:
        raise UsageError("a label is negative", expected="class indices from 0", got=str(int(y.min())), where=where)
    return y


def _are_targets(y: Tensor) -> bool:
    """Whether these are values to predict at every pixel."""
    if not y.is_floating_point() or y.ndim < 3:
        return False
    return y.ndim > 3 or not bool((y == y.round()).all())


def check_lengths(x: Tensor, y: Tensor, where: str) -> None:
    """As many labels as samples, and at least one.

    Raises:
        UsageError: otherwise.
    """
    if x.ndim == 0 or len(x) != len(y):
        got = f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}"
        raise UsageError("x and y have different lengths", expected="one label per sample", got=got, where=where)
    if not len(y):
        raise UsageError("the data are empty", expected="at least one sample", got="none", where=where)


def inputs(x: Tensor, ids: Sequence[int], where: str) -> Tensor:
    """x as float32 in the units of the network: 8-bit values over 255, everything else as it is.

    Raises:
        UsageError: NaN or infinity, named by sample.
    """
    if x.dtype == torch.uint8:
        return x.float() / 255
    x = x.to(torch.float32)
    finite = torch.isfinite(x).flatten(1).all(1) if x.ndim > 1 else torch.isfinite(x)
    if not bool(finite.all()):
        bad = [int(ids[row]) for row in (~finite).nonzero().flatten().tolist()]
        shown = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
        raise UsageError("samples hold NaN or infinity", expected="finite numbers", got=f"samples {shown}", where=where)
    return x


def hash_of(*tensors: Tensor) -> str:
    """sha256 over dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def dealt(classes: Sequence[int]) -> list[int]:
    """An order in which each class has its turn: places in `classes`, every prefix as balanced as it can be.

    >>> dealt([0, 0, 0, 1, 2])
    [0, 3, 4, 1, 2]
    """
    seen: Counter[int] = Counter()
    turns = []
    for label in classes:
        turns.append((seen[label], label))
        seen[label] += 1
    return sorted(range(len(turns)), key=turns.__getitem__)
