"""How far a run is: what the engine reports, and three ways to show it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """What the engine calls. A stage is "clean", "preflight", an attack ("pgd:steps=40") ...; its unit is samples."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; ``total`` samples are to be done."""

    def advance(self, stage: str, n: int, robust_accuracy: float | None = None) -> None:
        """``n`` more samples are done; the share of samples that nothing has broken yet, where it is known."""

    def status(self, stage: str, text: str) -> None:
        """How far the samples at work are, where they take long."""

    def note(self, text: str) -> None:
        """Something the user should read: a warning, a decision."""


class NoProgress:
    """Shows nothing."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, stage: str, n: int, robust_accuracy: float | None = None) -> None:
        pass

    def status(self, stage: str, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class NotesOnly(NoProgress):
    """Shows what the user should read, and no progress."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    def note(self, text: str) -> None:
        say(self._console, text)


class PlainProgress(NoProgress):
    """A line when a stage begins, every few seconds, and when it ends; for logs and continuous integration."""

    def __init__(self, console: Console | None = None, every: float = 5.0) -> None:
        self._console = console or Console(stderr=True)
        self._every = every
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._said = 0.0

    def start(self, stage: str, total: int) -> None:
        self._totals[stage], self._done[stage], self._began[stage] = total, 0, time.monotonic()
        self._said = time.monotonic()
        say(self._console, f"{stage}: {_count(0, total)}")

    def advance(self, stage: str, n: int, robust_accuracy: float | None = None) -> None:
        self._done[stage] = self._done.get(stage, 0) + n
        done, total, now = self._done[stage], self._totals.get(stage, 0), time.monotonic()
        if done < total and now - self._said < self._every:
            return
        self._said = now
        left = (now - self._began.get(stage, now)) / max(done, 1) * max(total - done, 0)
        parts = (_count(done, total), _robust(robust_accuracy), f"{left:.0f} s left" if done < total else "")
        say(self._console, f"{stage}: {', '.join(filter(None, parts))}")

    def status(self, stage: str, text: str) -> None:
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            say(self._console, f"{stage}: {_count(self._done.get(stage, 0), self._totals.get(stage, 0))}, {text}")

    def note(self, text: str) -> None:
        say(self._console, text)


class RichProgress(NoProgress):
    """A bar per stage with the remaining time and the robust accuracy so far; for a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[robust]}", markup=False),
            console=console or Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: str, total: int) -> None:
        self._tasks[stage] = self._bars.add_task(stage, total=total, robust="")

    def advance(self, stage: str, n: int, robust_accuracy: float | None = None) -> None:
        task = self._tasks[stage]
        self._bars.advance(task, n)
        self._bars.update(task, robust=_robust(robust_accuracy))

    def status(self, stage: str, text: str) -> None:
        self._bars.update(self._tasks[stage], robust=text)

    def note(self, text: str) -> None:
        say(self._bars.console, text)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def make_progress(kind: str | None) -> NoProgress:
    """The display called "none", "plain" or "rich"; by default rich on a terminal and plain elsewhere."""
    if kind == "none":
        return NoProgress()
    terminal = sys.stderr.isatty()
    return RichProgress() if kind == "rich" or (kind is None and terminal) else PlainProgress()


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _count(done: int, total: int) -> str:
    """Samples done; a stage of one step has none to count."""
    return f"{done}/{total}" if total != 1 else "done" if done else "begun"


def _robust(share: float | None) -> str:
    return "" if share is None else f"robust accuracy {100 * share:.1f} %"
