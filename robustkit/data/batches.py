"""Batches to train on: a part held out, an order for every epoch, and samples read ahead by torch's DataLoader.

Order and augmentation are functions of seed, epoch and sample. An epoch that was cut goes on with the rest of its rows.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustkit.core.augment import Augmentation
from robustkit.core.errors import RobustkitError, UsageError
from robustkit.data.samples import Data
from robustkit.kernels.noise import key_of

Batch = tuple[Tensor, Tensor, Tensor]


def held_out_size(n: int) -> int:
    """How many of n samples to hold out: 10 %, or 1,000 where that is more and at most a quarter; at least one.

    >>> [held_out_size(n) for n in (50_000, 4_000, 100, 3)]
    [5000, 1000, 25, 1]
    """
    return max(1, math.ceil(n / 10), min(1000, n // 4))


def held_out(labels: Sequence[int] | Tensor, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Places to train on, in order, and places to hold out, any first of which are as balanced as they can be.

    Every class gives the same number while it has more than half of its samples left; then larger classes give more,
    and the last sample of a class goes only when nothing else is left. Labels of pixels have no classes to balance.

    Args:
        labels: one per sample, (N,); or dense ones (N, ...).
        count: how many to hold out.
        seed: which of a class.

    Raises:
        UsageError: nothing would be left, or nothing held out.

    >>> train, held = held_out([0, 0, 0, 0, 1, 1, 1, 1, 2], 4, seed=0)
    >>> sorted(int(i) // 4 for i in held), len(train)
    ([0, 0, 1, 1], 5)
    """
    y = torch.as_tensor(labels)
    if not 0 < count < len(y):
        raise UsageError(
            "not a number of samples to hold out", expected=f"1 to {len(y) - 1}", got=str(count), where="holdout"
        )
    classes = y.tolist() if y.ndim == 1 else [0] * len(y)
    generator = torch.Generator().manual_seed(key_of(seed, 0, "held-out", 0, 0))
    by_class: dict[int, list[int]] = {}
    for place in torch.randperm(len(y), generator=generator).tolist():
        by_class.setdefault(classes[place], []).append(place)
    turns = []
    for turn, places in enumerate(by_class.values()):  # classes as they were drawn: the first are no better than others
        half, last = len(places) // 2, len(places) - 1
        turns += [(0 if i < half else 1 + (i == last), i, turn, place) for i, place in enumerate(places)]
    held = [turn[-1] for turn in sorted(turns)[:count]]
    return sorted(set(range(len(y))) - set(held)), held


def order(ids: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch: each id at most once, in an order that depends on seed and epoch.

    A last batch that is not full is left out, unless it is the only one.

    >>> [len(batch) for batch in order(range(10), 4, seed=0, epoch=0)], order([7], 4, seed=0, epoch=0)
    ([4, 4], [[7]])
    """
    generator = torch.Generator().manual_seed(key_of(seed, epoch, "order", 0, 0))
    shuffled = [ids[place] for place in torch.randperm(len(ids), generator=generator).tolist()]
    rows = [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]
    return rows[:-1] if len(rows) > 1 and len(rows[-1]) < batch_size else rows


def batches(
    data: Data,
    rows: Sequence[Sequence[int]],
    *,
    augment: Augmentation | None = None,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """The samples of each row: ids (n,) int64, x (n, *S) float32 and y, on the CPU. No global generator is read.

    Args:
        data: what the ids are of.
        rows: ids of each batch, as :func:`order` gives them or the rest of that.
        augment: what is done to each x; its draws depend on seed, epoch and the sample's id.
        seed: of the run.
        epoch: number of the epoch.
        workers: processes that read ahead; 0 reads here.

    Raises:
        UsageError: a sample that cannot be read; augmentation where every pixel has a label.
    """
    loader: DataLoader[Any] = DataLoader(
        Rows(data, augment, seed, epoch),
        sampler=rows,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_they_are,
        generator=torch.Generator().manual_seed(key_of(seed, epoch, "workers", 0, 0)),
        worker_init_fn=_worker,
    )
    for found in loader:
        if isinstance(found, RobustkitError):
            raise found
        yield found


class Rows(Dataset[Any]):
    """Whole batches by the ids of their samples; an error is returned, since torch loses its parts on the way."""

    def __init__(self, data: Data, augment: Augmentation | None, seed: int, epoch: int) -> None:
        self._data, self._augment, self._seed, self._epoch = data, augment, seed, epoch

    def __getitem__(self, ids: Sequence[int]) -> Batch | RobustkitError:
        try:
            x, y = self._data.take(ids)
            return torch.tensor(ids, dtype=torch.int64), self._changed(x, y, ids), y
        except RobustkitError as error:
            return error

    def _changed(self, x: Tensor, y: Tensor, ids: Sequence[int]) -> Tensor:
        if self._augment is None:
            return x
        if y.ndim > 1:
            raise UsageError(
                "labels of pixels do not move with the pictures",
                expected="none",
                got=repr(self._augment.name),
                where="augment",
                fix="Let your data do it: path.py:factory.",
            )
        return self._augment(x, [key_of(self._seed, sample, "augment", self._epoch, 0) for sample in ids])


def _as_they_are(found: Any) -> Any:
    return found


def _worker(number: int) -> None:
    """Ctrl-C is for the process that trains: it ends its workers when the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
