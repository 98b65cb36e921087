"""Robust accuracy against eps, from one warm-started search a sample.

At the eps of the run the run's own verdicts count. Below it, only samples that the run broke are attacked, in growing
balls, beginning from their known adversarial input pulled in; above it, only those it did not break, beginning where
the search in the smaller ball ended. A sample broken in one ball is broken in every larger one: the curve never rises.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from dataclasses import fields
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.nearest import MinimumNorm
from robustkit.run.directory import RunDirectory
from robustkit.run.interval import clopper_pearson
from robustkit.run.plan import Plan, label_of
from robustkit.run.progress import Progress
from robustkit.run.stages import CLEAN, samples_file, tensors_file

CURVE = "samples-curve"
BELOW = (0.125, 0.25, 0.5, 0.75)
ABOVE = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0)


MOST_POINTS = 60
"""Points of the curve of a minimum-norm attack, one at every distance where there are fewer."""


def grid(eps: float, everything: float) -> list[float]:
    """Radii from 0 past eps to the one that holds all inputs.

    >>> grid(0.25, 1.0)
    [0.0, 0.03125, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.5, 0.75, 1.0]
    """
    radii = [0.0, *(eps * f for f in BELOW), eps, *(eps * f for f in ABOVE if eps * f < everything), everything]
    return sorted({r for r in radii if r <= max(everything, eps)})


def curve_attack(plan: Plan) -> Attack:
    """The last attack of the run that takes steps; a PGD of 20 steps where there is none."""
    for attack in reversed(plan.attacks):
        if climbs(attack):
            return attack
    built: Attack = ATTACKS.get("pgd").build({"steps": 20})
    return built


def curve_stage(plan: Plan, run: RunDirectory, progress: Progress) -> None:
    """Find the radius at which each sample breaks, chunk by chunk."""
    clean = {row["id"]: row for row in run.rows(CLEAN)}
    broken = {row["id"] for k in range(len(plan.attacks)) for row in run.rows(samples_file(plan, k)) if row["success"]}
    progress.start("curve", plan.n)
    for chunk in plan.chunks():
        ids = [i for i in chunk if clean[i]["correct"]]
        if ids and not run.chunk_done(CURVE, ids):
            began = time.monotonic()
            search = _Radii(plan, ids, clean)
            search.below(_known(plan, run, chunk, [i for i in ids if i in broken]))
            search.above([i for i in ids if i not in broken])
            run.append_rows(CURVE, search.rows())
            run.log("chunk", stage="curve", start=chunk.start, n=len(ids), seconds=time.monotonic() - began)
        progress.advance("curve", len(chunk))


def climbs(attack: Attack) -> bool:
    """Whether an attack climbs the loss inside the threat in steps, as PGD does."""
    return {"steps", "restarts"} <= {f.name for f in fields(attack)} and not isinstance(attack, MinimumNorm)


class _Radii:
    """The smallest radius of the grid at which each sample of a chunk breaks."""

    def __init__(self, plan: Plan, ids: list[int], clean: dict[int, dict[str, Any]]) -> None:
        self.plan, self.clean, self.attack = plan, clean, curve_attack(plan)
        eps = plan.threat.eps
        assert isinstance(eps, float | int)
        self.eps = float(eps)
        x, _ = plan.inputs(ids[:1])
        self.radii = grid(self.eps, plan.threat.everything(x, plan.model.bounds))
        self.radius: dict[int, float | None] = dict.fromkeys(ids)
        self.passes = dict.fromkeys(ids, (0, 0))

    def below(self, known: dict[int, Tensor]) -> None:
        """Samples broken at eps, in smaller balls."""
        self.radius.update(dict.fromkeys(known, self.eps))
        start: dict[int, Tensor | None] = dict(known)
        for radius in (r for r in self.radii if 0 < r < self.eps):
            start = self._try(radius, start)

    def above(self, ids: list[int]) -> None:
        """Samples that stand at eps, in larger balls."""
        start: dict[int, Tensor | None] = dict.fromkeys(ids)
        for radius in (r for r in self.radii if r > self.eps):
            start = self._try(radius, start)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"id": i, "radius": r, "forwards": self.passes[i][0], "backwards": self.passes[i][1]}
            for i, r in self.radius.items()
        ]

    def _try(self, radius: float, start: dict[int, Tensor | None]) -> dict[int, Tensor | None]:
        """Attack inside one ball; what still stands, with where its search ended."""
        ids = list(start)
        if not ids:
            return {}
        index = torch.tensor(ids)
        x, y = self.plan.inputs(ids)
        least = torch.tensor([self.clean[i].get("least", -1) for i in ids], device=y.device)
        known = [p for p in start.values() if p is not None]
        begin = torch.stack(known) if len(known) == len(ids) else None
        found = self.attack.with_threat(self.plan.threat.at(radius))(
            self.plan.model,
            x,
            y,
            target=self.plan.targets(index, y, least),
            ids=index,
            seed=self.plan.config.seed,
            start=begin,
        )
        standing: dict[int, Tensor | None] = {}
        for row, i in enumerate(ids):
            f, b = self.passes[i]
            self.passes[i] = (f + int(found.forwards[row]), b + int(found.backwards[row]))
            if found.success[row]:
                self.radius[i] = radius
            else:
                standing[i] = start[i] if begin is not None and radius < self.eps else found.last[row]
        return standing


def _known(plan: Plan, run: RunDirectory, chunk: range, ids: list[int]) -> dict[int, Tensor]:
    """A stored adversarial input of each of these samples."""
    found: dict[int, Tensor] = {}
    for k in range(len(plan.attacks)):
        tensors = run.read_tensors(tensors_file(plan, k, chunk))
        for row, i in enumerate(tensors["ids"].tolist()):
            found.setdefault(i, tensors["adversarial"][row].to(plan.model.device))
    return {i: found[i] for i in ids}


def curve_points(
    plan: Plan, rows: list[dict[str, Any]], clean_correct: int, chance: float | None
) -> dict[str, Any] | None:
    """The curve for the results: points down to chance (eight at least), and the area under them relative to eps."""
    if not rows and clean_correct:
        return None
    x, _ = plan.inputs([0])
    assert isinstance(plan.threat.eps, float | int)
    radii = grid(float(plan.threat.eps), plan.threat.everything(x, plan.model.bounds))
    breaking = [math.inf if row["radius"] is None else row["radius"] for row in rows]
    points = []
    for radius in radii:
        standing = sum(r > radius for r in breaking)
        accuracy = standing / plan.n
        points.append({"eps": radius, "robust_accuracy": accuracy, "interval": list(clopper_pearson(standing, plan.n))})
        if len(points) >= 8 and radius >= plan.threat.eps and accuracy <= (chance or 0):
            break
    area = sum((b["eps"] - a["eps"]) * (a["robust_accuracy"] + b["robust_accuracy"]) / 2 for a, b in pairwise(points))
    return {"attack": label_of(curve_attack(plan)), "chance": chance, "area": area, "points": points}


def stops_inside(attack: Attack) -> bool:
    """Whether a minimum-norm attack stops at the eps of the run, as in suites: its distances are then no curve."""
    return isinstance(attack, MinimumNorm) and attack.stop_inside


def minimum_points(rows: dict[int, dict[str, Any]], correct: int, n: int) -> dict[str, Any] | None:
    """The whole curve of a minimum-norm attack, from one run; None for other attacks.

    A sample stands below the distance at which it was broken. ``median`` is that over the samples that are right when
    clean, None where half of them were not broken at any distance.
    """
    found = sorted(row["minimum"] for row in rows.values() if row.get("minimum", -1) >= 0)
    if not any("minimum" in row for row in rows.values()):
        return None
    middle = median([*found, *[math.inf] * (len(rows) - len(found))])
    steps = [found[i * len(found) // MOST_POINTS] for i in range(MOST_POINTS)] if len(found) > MOST_POINTS else found
    points = []
    for radius in sorted({0.0, *steps, *found[-1:]}):
        standing = correct - bisect_right(found, radius) if radius else correct
        interval = list(clopper_pearson(standing, n))
        points.append({"eps": radius, "robust_accuracy": standing / n, "interval": interval})
    return {"found": len(found), "median": middle if math.isfinite(middle) else None, "points": points}
