"""Data from objects: a DataLoader, a Dataset, tensors (x, y), or anything that yields samples or batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from robustkit.core.errors import UsageError
from robustkit.data.datasets import DatasetData, checked, pair, reading
from robustkit.data.samples import Data, TensorData


def as_data(source: object, limit: int | None = None, *, name: str = "") -> Data:
    """Make data of an object.

    - Data: as it is.
    - (x, y), two tensors or arrays: as they are (channels first).
    - A Dataset with a length, or a list of (x, y): by index, in its own order, batches built by torch's collation.
    - A DataLoader over such a dataset: the same with the loader's collate_fn. Its batch size and shuffling do not
      matter; a sampler that picks a subset is followed, in the order of the dataset.
    - Any other iterable, of samples or of batches (x, y): read into memory, up to `limit` samples.

    Args:
        source: the object.
        limit: samples to read of an iterable; it has no effect on the rest.
        name: how reports call it.

    Raises:
        UsageError: none of these, or a sample that is no pair of numbers and label.
    """
    if isinstance(source, Data):
        return source
    if (
        isinstance(source, tuple | list)
        and len(source) == 2
        and all(isinstance(part, Tensor | np.ndarray) for part in source)
    ):
        return TensorData(*source, name=name or "tensors")
    name = name or type(getattr(source, "dataset", source)).__name__
    if isinstance(source, DataLoader):
        return _loader(source, limit, name)
    if isinstance(source, str | bytes | Mapping | Tensor | np.ndarray):
        raise _no_data(source, name)
    if _by_index(source) and not _holds_batches(source):
        return DatasetData(source, name=name)
    if isinstance(source, Iterable):
        return _read(source, limit, name)
    raise _no_data(source, name)


def _no_data(source: object, name: str) -> UsageError:
    return UsageError(
        "this is not data",
        expected="a Dataset, a DataLoader, (x, y) tensors or an iterable of (x, y)",
        got=type(source).__name__,
        where=name,
        fix='To open data by name use open_data("demo:mnist").',
    )


def _loader(loader: DataLoader[Any], limit: int | None, name: str) -> Data:
    dataset: Any = loader.dataset
    if loader.batch_sampler is None or not _by_index(dataset):
        return _read(loader, limit, name)
    sampler = getattr(loader.batch_sampler, "sampler", None)
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(dataset)
    )
    if type(loader.batch_sampler) is not BatchSampler or not (whole or isinstance(sampler, SubsetRandomSampler)):
        raise UsageError(
            "the loader's sampler does not say which samples are meant",
            expected="each sample at most once",
            got=type(sampler or loader.batch_sampler).__name__,
            where=name,
            fix="Give a loader over torch.utils.data.Subset(dataset, indices), or the dataset itself.",
        )
    rows = sorted(int(i) for i in sampler.indices) if isinstance(sampler, SubsetRandomSampler) else None
    return DatasetData(dataset, rows=rows, collate=loader.collate_fn, name=name)


def _by_index(source: object) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, IterableDataset)


def _holds_batches(source: Any) -> bool:
    """Whether a list holds batches (x, y) rather than samples; datasets always hold samples."""
    return isinstance(source, tuple | list) and len(source) > 0 and _is_batch(source[0])


def _is_batch(item: Any) -> bool:
    x, y = pair(item, "the first item")
    shape, of_labels = tuple(getattr(x, "shape", ())), tuple(getattr(y, "shape", ()))
    if len(shape) < 2 or shape[:1] != of_labels[:1]:
        return False
    if len(shape) == len(of_labels) == 3:  # images (N, H, W) and their labels, or one image (C, H, W) and its values
        return not torch.as_tensor(y).is_floating_point()
    return len(of_labels) in (1, 3) or len(shape) == len(of_labels) == 4


def _read(source: Iterable[Any], limit: int | None, name: str) -> Data:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    count = 0
    with torch.random.fork_rng(devices=[]), reading(name):
        for item in source:
            x, y = checked(item if _is_batch(item) else default_collate([pair(item, name)]), name)
            xs.append(x)
            ys.append(y)
            count += len(y)
            if limit is not None and count >= limit:
                break
    if not count:
        raise UsageError("the data are empty", expected="at least one sample", got="none", where=name)
    shapes = {tuple(x.shape[1:]) for x in xs}
    if len(shapes) > 1:
        raise UsageError(
            "samples of different shapes",
            expected="one shape",
            got=" and ".join(map(str, islice(shapes, 2))),
            where=name,
        )
    return TensorData(torch.cat(xs)[:limit], torch.cat(ys)[:limit], name=name)
