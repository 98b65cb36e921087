"""Where a direct search stands and which way it came, in memory and in a file that a kill cannot spoil."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.files import replace_file

STEPS = ("attack", "covering", "search", "poll")
START = "start"


@dataclass(frozen=True, eq=False)
class History:
    """The points that became the best one, in order.

    Attributes:
        points: (A, *S); (1, *S), the last, if they were not kept.
        values, goals, violations: (A,): penalised, f alone, largest constraint.
        evaluations: (A,), evaluations of Phi spent when the point was accepted.
        steps: which step found it; ``start`` for the first.
    """

    points: Tensor
    values: Tensor
    goals: Tensor
    violations: Tensor
    evaluations: Tensor
    steps: tuple[str, ...]

    def reaches(self, value: float) -> int | None:
        """Evaluations spent when the penalised value first was at least this; None if it never was."""
        found = (self.values >= value).nonzero()[:, 0].tolist()
        return int(self.evaluations[found[0]]) if found else None


@dataclass
class Tally:
    """Plain numbers of a search: all of them go into the file as JSON, which gives floats back bit for bit."""

    radius_attack: float
    radius_poll: float
    iteration: int = 0
    searches: int = 0
    attacks_failed: int = 0
    evaluations: int = 0
    opportunistic: int = 0
    backwards: int = 0
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys((START, *STEPS), 0))
    won: dict[str, int] = field(default_factory=lambda: dict.fromkeys((START, *STEPS), 0))


class Trajectory:
    """The best point, the radii, the books and the history.

    Attributes:
        tally: the plain numbers.
        x, value: the best point (n,) and its penalised value.
        gradient: (n,) at the best point, where attacks are made; else None.
        move: (n,), by which the last accepted point moved; zero before the first.
    """

    def __init__(self, tally: Tally, keep_points: bool = True) -> None:
        self.tally, self._keep = tally, keep_points
        self.value = -float("inf")
        self.x = self.move = torch.empty(0)
        self.gradient: Tensor | None = None
        self._points: list[Tensor] = []
        self._rows: list[tuple[float, float, float, int, str]] = []

    def accept(self, point: Tensor, value: float, goal: float, violation: float, step: str) -> None:
        """A new best point."""
        self.move = point - self.x if len(self._rows) else torch.zeros_like(point)
        self.x, self.value = point, value
        if not self._keep:
            self._points.clear()
        self._points.append(point)
        self._rows.append((value, goal, violation, self.tally.evaluations, step))

    def history(self, shape: tuple[int, ...]) -> History:
        """The way so far, points in their own shape."""
        values, goals, violations, counts, steps = zip(*self._rows, strict=True)
        return History(
            torch.stack(self._points).view(-1, *shape),
            torch.tensor(values, dtype=torch.double),
            torch.tensor(goals, dtype=torch.double),
            torch.tensor(violations, dtype=torch.double),
            torch.tensor(counts),
            tuple(steps),
        )

    def save(self, path: Path, identity: Mapping[str, object]) -> None:
        """Write it whole; a reader sees the old file or the new one.

        Raises:
            Incomplete: the disk is full, or the folder cannot be written.
        """
        tensors = {"points": torch.stack(self._points).cpu(), "move": self.move.cpu()}
        if self.gradient is not None:
            tensors["gradient"] = self.gradient.cpu()
        notes = {"identity": dict(identity), "tally": asdict(self.tally), "rows": self._rows}
        replace_file(path, save(tensors, {"search": json.dumps(notes)}))

    @staticmethod
    def load(path: Path, identity: Mapping[str, object], device: torch.device) -> Trajectory | None:
        """What the file holds; None if there is none.

        Raises:
            UsageError: the file is damaged, or belongs to another search; the differences are named.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                notes = json.loads((file.metadata() or {})["search"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            _same(notes["identity"], json.loads(json.dumps(dict(identity))), path)
            return Trajectory._of(notes, tensors, keep_points=bool(identity["keep_points"]))
        except (SafetensorError, OSError, KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
            raise UsageError(
                "cannot read a saved search",
                expected="a file that maximise() wrote",
                got=str(error) or type(error).__name__,
                where=str(path),
                fix="Remove it to start over.",
            ) from None

    @staticmethod
    def _of(notes: dict[str, Any], tensors: dict[str, Tensor], keep_points: bool) -> Trajectory:
        found = Trajectory(Tally(**notes["tally"]), keep_points)
        found._points, found._rows = list(tensors["points"]), [tuple(row) for row in notes["rows"]]
        found.x, found.move, found.value = found._points[-1], tensors["move"], found._rows[-1][0]
        found.gradient = tensors.get("gradient")
        return found


def _same(stored: Mapping[str, object], wanted: Mapping[str, object], path: Path) -> None:
    different = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    if different:
        raise UsageError(
            "the saved search is another one",
            expected=", ".join(f"{key}={wanted.get(key)}" for key in different),
            got=", ".join(f"{key}={stored.get(key)}" for key in different),
            where=str(path),
            fix="Give the same arguments, or another file.",
        )
