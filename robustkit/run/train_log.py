"""What a training writes down after every epoch: ``log.csv``, a line for people, and events for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from robustkit.core.errors import UsageError

Row = Mapping[str, Any]
FIRST, LAST = ("epoch", "step", "lr", "eps", "loss"), ("held_out", "seconds", "forwards", "backwards")


def flat(row: Row) -> dict[str, Any]:
    """A row of an epoch with one level of keys; what was not measured is left out.

    >>> flat({"epoch": 1, "terms": {"kl": 0.5}, "held_out": None})
    {'epoch': 1, 'terms/kl': 0.5}
    """
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": number for name, number in value.items() if number is not None}
        elif value is not None:
            found[key] = value
    return found


def csv_of(rows: Sequence[Row]) -> str:
    """The epochs as comma-separated values, a column for everything that any of them has, in an order of its own."""
    lines = [flat(row) for row in rows]
    columns = sorted({key for line in lines for key in line}, key=_place)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _place(column: str) -> tuple[int, str]:
    """Where a column stands: terms and accuracies between the first and the last ones."""
    name = column.partition("/")[0]
    if name in FIRST:
        return FIRST.index(name) - len(FIRST), column
    return (LAST.index(name) + 1 if name in LAST else 0), column


def line_of(row: Row, epochs: int) -> str:
    """An epoch in one line."""
    parts = [f"loss {row['loss']:.4f}"]
    parts += [f"{name} {value:.1%}" for name, value in sorted(row["accuracy"].items())]
    if row["held_out"]:
        robust = row["held_out"]["robust"]
        parts.append(
            f"held out: clean {row['held_out']['clean']:.1%}" + (f", robust {robust:.1%}" if robust is not None else "")
        )
    return f"epoch {row['epoch']}/{epochs}: " + ", ".join(parts)


class Board:
    """Events for TensorBoard in the run's folder; does nothing unless they are wanted.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            module = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UsageError(
                "events need the package tensorboard",
                got="it is not installed",
                where="tensorboard",
                fix="Run: pip install '.[train]'",
            ) from error
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: Row) -> None:
        """The numbers of an epoch, at its step."""
        if self._writer is not None:
            for key, value in flat(row).items():
                self._writer.add_scalar(key, value, row["step"])
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
