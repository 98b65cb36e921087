"""Maximise f(Phi(x)) by directional attacks and covering direct search (https://arxiv.org/abs/2510.01461).

Every iteration tries an attack: the steepest step along the gradient of f(Phi(x)), as long as the radius that its
last successes earned it, and pulled back onto the constraints that it breaks. Where attacks gain little, direct search
goes on from the best point: a covering step (a uniform point of a fixed ball, so that trial points become dense
there), a search step (a random direction, ever longer), and a poll of directions that span space positively. The
first step that gains ends the iteration. Costs are counted in points: forward through Phi (evaluations), backward.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from robustkit.attacks.hybrid import Hybrid, require
from robustkit.attacks.penalised import Constraints, Goal, Penalised, Trials
from robustkit.attacks.polling import PollSet
from robustkit.attacks.trajectory import START, History, Tally, Trajectory
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.kernels.balls import steepest_l2

TINY = 1e-10
"""Keeps the relative gain finite where f is zero."""
OVERSHOOT = 0.02
"""Share of a violation by which a correction goes beyond the constraint: curved ones would stay broken by a trace."""


@dataclass(frozen=True, eq=False)
class MaximiseResult:
    """What a search found and spent.

    Attributes:
        x: (*S), the best point.
        value, goal, violation: its penalised value, f alone, and its largest constraint (feasible where <= 0).
        evaluations: points passed forward through Phi.
        opportunistic: how many of them one at a time would have needed, stopping at the first gain.
        backwards: points passed backward; a gradient reuses the forward of its point and is no evaluation.
        spent, won: per step, its evaluations and how often it found a better point.
        stopped: why: the ``budget``, or the ``radii`` of all failing steps were smallest.
        history: the way.
    """

    x: Tensor
    value: float
    goal: float
    violation: float
    evaluations: int
    opportunistic: int
    backwards: int
    spent: dict[str, int]
    won: dict[str, int]
    stopped: Literal["budget", "radii"]
    history: History


def maximise(
    f: Goal,
    phi: Model | nn.Module | Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    constraints: Constraints | None = None,
    scale: float = 1.0,
    barrier: bool = False,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    how: Hybrid | None = None,
    evaluations: int = 20_000,
    seed: int = 0,
    keep_points: bool = True,
    checkpoint: Path | None = None,
    every: int = 10,
) -> MaximiseResult:
    """Maximise f(Phi(x)) subject to c(x, Phi(x)) <= 0 (as a penalty) and lower <= x <= upper.

    Args:
        f: from outputs (k, *O) to (k,); differentiable if attacks are made.
        phi: from points (k, *S) to outputs, each row on its own; without randomness.
        x0: (*S), inside the box.
        constraints: from points and outputs to (k, m).
        scale: of the constraints: f - ||scale * relu(c)||^2 is maximised, whose maximum breaks them by a trace.
        barrier: refuse every point that breaks a constraint; x0 must keep them all.
        lower, upper: numbers or tensors that broadcast to *S.
        how: radii and steps.
        evaluations: most evaluations of Phi, the one at x0 included; never exceeded.
        seed: of all random draws.
        keep_points: keep every accepted point in the history; False for the last alone, where points are large.
        checkpoint: file to keep the state in. A search that finds one goes on from there, also with a larger
            ``evaluations``, and ends bit for bit as if it had never stopped.
        every: iterations between two writes.

    Raises:
        UsageError: x0 leaves the box, breaks a constraint behind the barrier, or gives no finite value; a shape is
            wrong; an attack finds no gradient; the checkpoint is another search's.
        Incomplete: the checkpoint cannot be written.

    >>> found = maximise(lambda y: -y.square().sum(1), lambda x: x - 0.25, torch.ones(3), how=Hybrid(norm="l2"))
    >>> torch.allclose(found.x, torch.tensor(0.25), atol=1e-3), found.stopped
    (True, 'radii')
    """
    how = how or Hybrid()
    require(evaluations >= 1, "evaluations", ">= 1", evaluations)
    require(every >= 1, "every", ">= 1", every)
    problem = Penalised.of(f, phi, x0, constraints, scale, barrier, lower, upper)
    identity = _identity(problem, x0, how, seed, keep_points) if checkpoint else {}
    with problem.model.frozen(seed):
        at = Trajectory.load(checkpoint, identity, x0.device) if checkpoint else None
        run = _Run(problem, how, seed, evaluations, at or Trajectory(Tally(how.radius, how.radius), keep_points))
        try:
            if at is None:
                run.begin(x0.detach().flatten())
            while not run.ended:
                if checkpoint and run.tally.iteration % every == 0:
                    run.at.save(checkpoint, identity)
                run.iterate()
        except _Spent:
            return run.result("budget")
        return run.result("radii")


class _Spent(Exception):
    """The budget allows no further evaluation. The file keeps the iteration's start: what follows is redone alike."""


class _Run:
    """One search: its rules in the order in which an iteration applies them."""

    def __init__(self, problem: Penalised, how: Hybrid, seed: int, budget: int, at: Trajectory) -> None:
        self.problem, self.how, self.budget, self.at, self.tally = problem, how, budget, at, at.tally
        self.graph = "attack" in how.steps
        self.ended = False
        self._draws = Draws(seed, default_ids(1), "direct-search")
        self._steps = {"attack": self._attack, "covering": self._covering, "search": self._search, "poll": self._poll}

    def begin(self, x0: Tensor) -> None:
        """Evaluate the start."""
        trials = self._evaluate(START, x0[None])
        if not bool(trials.values.isfinite()[0]):
            raise UsageError(
                "the search cannot start here",
                expected="f and constraints finite" + (", constraints <= 0" if self.problem.barrier else ""),
                got=f"f = {float(trials.goals[0])}, largest constraint {float(trials.violations[0])}",
                where="x0",
            )
        self._accept(START, trials, 0)

    def iterate(self) -> None:
        """Try the steps in turn; the first that gains ends the iteration (an attack only by a gain worth it)."""
        smallest, value, spent = self._smallest, self.at.value, self.tally.evaluations
        for step in self.how.steps:
            if self._steps[step]():
                break
        self.tally.iteration += 1
        idle = self.tally.evaluations == spent and not {"attack", "poll"} & set(self.how.steps)
        self.ended = self.at.value == value and (smallest or idle)

    @property
    def _smallest(self) -> bool:
        """There are radii, and none can become smaller."""
        radii = {
            "attack": self.tally.radius_attack <= self.how.attack_radii[0],
            "poll": self.tally.radius_poll <= self.how.poll_radii[0],
        }
        used = [least for step, least in radii.items() if step in self.how.steps]
        return bool(used) and all(used)

    # -- the steps: each says whether the iteration is over ------------------------------------------------------

    def _attack(self) -> bool:
        old, tally, how = self.at.value, self.tally, self.how
        direction = self._steepest()
        won = bool(direction.any()) and self._attempt_attack(direction)
        gain = (self.at.value - old) / (abs(old) + TINY)
        factor = how.grow if gain >= how.min_gain else how.nudge if won else 1 / how.shrink
        tally.attacks_failed += not won
        tally.radius_attack = _within(tally.radius_attack * factor, how.attack_radii)
        return won and gain >= how.min_gain

    def _steepest(self) -> Tensor:
        """The direction of unit norm with the largest slope among those that the box does not block at once, (n,)."""
        gradient, x = self.at.gradient, self.at.x
        assert gradient is not None, "attacks are made with gradients kept"
        blocked = ((x >= self.problem.upper) & (gradient > 0)) | ((x <= self.problem.lower) & (gradient < 0))
        free = torch.where(blocked, 0, gradient)
        linf = self.how.norm == "linf" or (self.how.norm == "both" and self.tally.attacks_failed % 2 == 0)
        return free.sign() if linf else steepest_l2(free[None])[0]

    def _attempt_attack(self, direction: Tensor) -> bool:
        radii = self.tally.radius_attack * direction.new_tensor(self.how.multipliers)
        x = self.at.x
        failed = self._attempt("attack", len(radii), lambda index: x + radii[index, None] * direction)
        for _ in range(self.how.corrections):
            if failed is None or not bool((failed.violations > 0).any()):
                break
            failed = self._corrected(failed)
        return failed is None

    def _corrected(self, failed: Trials) -> Trials | None:
        """From the best of some failed points a step back towards the constraints that it breaks."""
        i = failed.mildest()
        back = failed.restoration(i)
        self.tally.backwards += len(failed.points)
        point = failed.points[i].detach() + (1 + OVERSHOOT) * back
        return self._attempt("attack", 1, lambda index: point[None])

    def _covering(self) -> bool:
        """A uniform point of the l-infinity ball of the first radius."""
        u = self._draw("covering").uniform(self.at.x[None])[0]
        return self._gained("covering", self.how.radius * (2 * u - 1))

    def _search(self) -> bool:
        """A random direction, longer with every search: radius * sqrt(searches + 1)."""
        z = self._draw("search").normal(self.at.x[None])[0]
        length = min(self.how.radius * (self.tally.searches + 1) ** 0.5, self.how.poll_radii[1])
        self.tally.searches += 1
        won = self._gained("search", length * z / z.abs().amax())
        if won:
            self._scale_poll(self.how.poll_factor)
        return won

    def _poll(self) -> bool:
        """The directions of a positive spanning set, in order of promise."""
        directions = PollSet.of(self._draw("poll").normal(self.at.x[None])[0], self.how.poll)
        order, x, radius = self._order(directions), self.at.x, self.tally.radius_poll
        won = self._attempt("poll", len(order), lambda index: x + radius * directions.rows(order[index])) is None
        self._scale_poll(self.how.poll_factor if won else 1 / self.how.poll_factor)
        return won

    def _order(self, directions: PollSet) -> Tensor:
        if not self.how.ordered:
            return torch.arange(len(directions), device=self.at.x.device)
        guide = self.at.move if self.at.gradient is None else self.at.gradient
        return directions.slopes(guide).argsort(descending=True, stable=True)

    def _scale_poll(self, factor: float) -> None:
        self.tally.radius_poll = _within(self.tally.radius_poll * factor, self.how.poll_radii)

    def _draw(self, step: str) -> Draws:
        return self._draws.child(step).again(self.tally.iteration)

    # -- evaluations ---------------------------------------------------------------------------------------------

    def _gained(self, step: str, move: Tensor) -> bool:
        point = self.at.x + move
        return self._attempt(step, 1, lambda index: point[None]) is None

    def _attempt(self, step: str, count: int, points: Callable[[Tensor], Tensor]) -> Trials | None:
        """Evaluate points in batches until one is better: None, and it is the best point now; else the last batch.

        Points that the box maps onto the best point are not evaluated.
        """
        x, failed, start = self.at.x, Trials.none(self.at.x), 0
        while start < count:
            size = min(self.how.batch, count - start, max(1, self.budget - self.tally.evaluations))
            batch = self.problem.clip(points(torch.arange(start, start + size, device=x.device)))
            start += size
            batch = batch[(batch != x).any(1)]
            if len(batch) == 0:
                continue
            failed = self._evaluate(step, batch)
            better = failed.values > self.at.value
            if bool(better.any()):
                self.tally.opportunistic -= len(batch) - int(better.nonzero()[0]) - 1
                self._accept(step, failed, int(failed.values.argmax()))
                return None
        return failed

    def _evaluate(self, step: str, points: Tensor) -> Trials:
        if self.tally.evaluations + len(points) > self.budget:
            raise _Spent
        trials = self.problem.evaluate(points, graph=self.graph)
        self.tally.evaluations += len(points)
        self.tally.opportunistic += len(points)
        self.tally.spent[step] += len(points)
        return trials

    def _accept(self, step: str, trials: Trials, i: int) -> None:
        self.tally.won[step] += 1
        if self.graph:
            self.at.gradient = trials.gradient(i)
            self.tally.backwards += len(trials.points)
        values = (float(trials.values[i]), float(trials.goals[i]), float(trials.violations[i]))
        self.at.accept(trials.points[i].detach().clone(), *values, step)

    def result(self, stopped: Literal["budget", "radii"]) -> MaximiseResult:
        """What stands in the books."""
        history, tally = self.at.history(self.problem.shape), self.tally
        return MaximiseResult(
            history.points[-1],
            self.at.value,
            float(history.goals[-1]),
            float(history.violations[-1]),
            tally.evaluations,
            tally.opportunistic,
            tally.backwards,
            dict(tally.spent),
            dict(tally.won),
            stopped,
            history,
        )


def _within(radius: float, limits: tuple[float, float]) -> float:
    return min(max(radius, limits[0]), limits[1])


def _identity(problem: Penalised, x0: Tensor, how: Hybrid, seed: int, keep_points: bool) -> dict[str, object]:
    """What must be equal for a saved search to go on; functions cannot be compared and are not part of it."""
    tensors = {"x0": x0, "lower": problem.lower, "upper": problem.upper}
    return {
        **asdict(how),
        **{name: _digest(tensor) for name, tensor in tensors.items()},
        "scale": problem.scale,
        "barrier": problem.barrier,
        "seed": seed,
        "keep_points": keep_points,
        "shape": list(x0.shape),
        "dtype": str(x0.dtype),
    }


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
