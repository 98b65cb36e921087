"""Integration of gradients along straight paths from baselines: what integrated gradients and XRAI share.

``IG = (x - b) * integral over a in [0, 1] of the gradient at b + a (x - b)``, here a sum over nodes ``a_k`` with
weights ``w_k``; of several baselines the mean. All paths of all samples are one stream of points, and each product
``w_k (x - b) g_k`` goes straight into one sum for its sample: memory is that of a batch, however many steps and
baselines there are.

``sum of IG = f(x) - f(b)`` in the limit (completeness). What is missing or too much, the residual, is returned and
never spread over the map: spreading it makes it 0 and the map no better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo
from torch import Tensor

from robustkit.core.attribution import Note
from robustkit.core.explainer import Explainer, Map, Subject
from robustkit.core.gradients import Points, WeightedSum, check_gradients
from robustkit.core.options import method
from robustkit.explain.baselines import Baseline, Setting, checked, given, named
from robustkit.kernels.balls import per_sample

Rule = Literal["gauss-legendre", "midpoint", "trapezoid", "left", "right", "linspace"]
LARGE = 0.05
"""Residual, relative to the difference of the outputs, above which a map is said to be inexact."""
COARSE, ROUND = 17, 16
"""steps=auto: nodes to begin with, and the most that a path gets in one round."""
KEPT = 8
"""steps=auto: batches of gradients that are kept at once."""


def rule_of(name: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights, (steps,) each, float64; the weights add up to 1 for every rule.

    >>> [t.tolist() for t in rule_of("trapezoid", 3)]
    [[0.0, 0.5, 1.0], [0.25, 0.5, 0.25]]
    """
    whole = torch.arange(steps, dtype=torch.float64)
    even = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if name == "gauss-legendre":
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(steps))
        return (1 + nodes) / 2, weights / 2
    if name == "trapezoid":
        weights = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        return whole / (steps - 1), weights
    if name == "linspace":
        return whole / (steps - 1), even
    return (whole + {"left": 0.0, "midpoint": 0.5, "right": 1.0}[name]) / steps, even


def _checked_rule(rule: Rule, info: ValidationInfo) -> Rule:
    if rule in ("trapezoid", "linspace") and info.data.get("steps") == 1:
        raise ValueError("another rule for a single step: this one has a node at both ends")
    return rule


@method
class PathMethod(Explainer):
    """A method that integrates gradients from baselines to the input."""

    steps: PositiveInt | Literal["auto"] = Field(
        default=50, description="gradients on each path; auto: as many as the tolerance takes, by trapezoids"
    )
    rule: Annotated[Rule, AfterValidator(_checked_rule)] = Field(
        default="gauss-legendre",
        description="quadrature: gauss-legendre, midpoint, trapezoid, left, right, or linspace (both ends in full)",
    )
    baseline: Annotated[str, AfterValidator(checked)] = Field(
        default="black",
        description='start of the path: black, white, mean, blur, uniform, min, max; several as "black+white"',
    )
    uniform_samples: PositiveInt = Field(default=5, description="draws, each a path, of baseline=uniform")
    blur: float = Field(
        default=0.05, gt=0, le=1, description="sigma of baseline=blur, in shares of the longer side of the image"
    )
    tolerance: float = Field(
        default=0.02, gt=0, lt=1, description="steps=auto: residual to stop at, relative to the difference of outputs"
    )
    max_steps: int = Field(default=257, ge=COARSE, description="steps=auto: most gradients on a path")
    reference: Tensor | tuple[Tensor, ...] | None = None

    def baselines(self, subject: Subject) -> list[Baseline]:
        """Where the paths begin: what was given in Python, else what the option names."""
        if self.reference is None:
            return named(subject, self.baseline, Setting(self.uniform_samples, self.blur))
        return given(subject, [self.reference] if isinstance(self.reference, Tensor) else self.reference)

    def integrated(self, subject: Subject) -> Map:
        """Integrated gradients (N, *S) with their residual, whatever the method makes of them.

        Extras: ``difference`` (N,), f(x) less the mean f(b), and for steps=auto ``steps`` (N, B), gradients taken.
        """
        baselines = self.baselines(subject)
        extras: dict[str, Tensor] = {}
        notes: list[str] = []
        if self.steps == "auto":
            values, taken, notes = adaptive(subject, baselines, self.tolerance, self.max_steps)
            extras["steps"] = taken
        else:
            values = fixed(subject, baselines, *rule_of(self.rule, self.steps))
        check_gradients(values, subject.draws.ids)
        difference = subject.value - values_at(subject, baselines).mean(1)
        residual = values.flatten(1).sum(1) - difference
        if self.reference is not None:
            notes.append("the baseline was given as a tensor, not by the option")
        notes += incomplete(residual, difference)
        return Map(values, residual=residual, extras={"difference": difference, **extras}, notes=tuple(notes))


def incomplete(residual: Tensor, difference: Tensor) -> list[str]:
    """What to say about residuals above :data:`LARGE`, if any; both (N,)."""
    size = residual.abs() / difference.abs()
    bad = residual.abs() > LARGE * difference.abs()
    if not bool(bad.any()):
        return []
    text = (
        f"{int(bad.sum())} of {len(bad)} maps miss completeness by more than {LARGE:.0%} of the difference of the "
        f"outputs (worst: {float(size[bad].max()):.3g} of it): take more steps, or steps=auto"
    )
    return [Note(text, bad)]


def values_at(subject: Subject, baselines: Sequence[Baseline]) -> Tensor:
    """The target at every baseline, (N, B); one forward each."""
    x, count = subject.x, len(baselines)

    def stream() -> Iterator[Points]:
        for index in subject.engine.batches(len(x) * count):
            sample = index // count
            start = _starts(baselines, sample, index % count, x[sample.to(x.device)])
            yield Points(sample, start, x.new_ones(len(index)))

    return subject.engine.values(stream()).view(len(x), count)


# -- quadrature with the same nodes for every path -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PathPoints(Points):
    """Points of paths.

    Attributes:
        delta: (P, *S), x - b of the path.
        path: (P,) int64 on the CPU, number of the path where they are told apart.
    """

    delta: Tensor
    path: Tensor


class _Shares:
    """sum_k w_k (x - b_k) g_k of every sample."""

    def __init__(self, like: Tensor) -> None:
        self.sums = WeightedSum(like)

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        assert isinstance(points, PathPoints)
        self.sums.add(points, value, grad * points.delta)


def fixed(subject: Subject, baselines: Sequence[Baseline], nodes: Tensor, weights: Tensor) -> Tensor:
    """Integrated gradients (N, *S), the mean over baselines, with these nodes and weights (n,) on every path."""
    x, shares = subject.x, _Shares(subject.x)
    count, steps = len(baselines), len(nodes)
    places, sizes = nodes.to(x), (weights / count).to(x)

    def stream() -> Iterator[PathPoints]:
        for index in subject.engine.batches(len(x) * count * steps):
            path, step = index // steps, (index % steps).to(x.device)
            yield _points(subject, baselines, path, places[step], sizes[step])

    subject.engine.run(stream(), shares)
    return shares.sums.total


def _points(subject: Subject, baselines: Sequence[Baseline], path: Tensor, place: Tensor, weight: Tensor) -> PathPoints:
    """Points at ``place`` (P,) of the paths (P,); path number = sample * B + baseline."""
    sample = path // len(baselines)
    end = subject.x[sample.to(subject.x.device)]
    start = _starts(baselines, sample, path % len(baselines), end)
    delta = end - start
    return PathPoints(sample, torch.addcmul(start, per_sample(place, delta), delta), weight, delta, path)


def _starts(baselines: Sequence[Baseline], sample: Tensor, number: Tensor, like: Tensor) -> Tensor:
    """The baseline ``number`` (P,) of every ``sample`` (P,), (P, *S); made once for all points that share it."""
    starts = torch.empty_like(like)
    for chosen in number.unique().tolist():
        here = (number == chosen).nonzero()[:, 0]
        rows, back = sample[here].unique(return_inverse=True)
        made = baselines[chosen](rows)
        starts[here.to(like.device)] = made if len(made) == 1 else made[back.to(like.device)]
    return starts


# -- quadrature that refines where it is wrong -----------------------------------------------------------------------


def adaptive(
    subject: Subject, baselines: Sequence[Baseline], tolerance: float, most: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Integrated gradients by trapezoids that are halved where they are wrong.

    The error of a trapezoid from ``a`` to ``a'`` is known for nothing: the slope of f along the path is
    ``sum (x - b) g``, and its integral over the interval should be ``f(a') - f(a)``. In each round the intervals of
    largest error are halved, until their errors, with sign, add up to less than the tolerance.

    The weight of a gradient is known only when its neighbours are, so those of a path are kept until it is done: some
    paths at a time, within :data:`KEPT` batches (or one path, if that takes more).

    Returns:
        values (N, *S); steps (N, B), gradients of each path; notes.
    """
    x, count = subject.x, len(baselines)
    total = WeightedSum(x)
    taken, failed = torch.zeros(len(x) * count, dtype=torch.long), 0
    group = max(1, KEPT * subject.engine.batch // most)
    for paths in torch.arange(len(x) * count).split(group):
        failed += _refined(subject, baselines, paths, tolerance, most, total, taken)
    notes = []
    if failed:
        notes = [f"{failed} of {len(taken)} paths stopped at max_steps={most}, above the tolerance of {tolerance:g}"]
    return total.total, taken.view(len(x), count).to(x.device), notes


def _refined(
    subject: Subject,
    baselines: Sequence[Baseline],
    paths: Tensor,
    tolerance: float,
    most: int,
    total: WeightedSum,
    taken: Tensor,
) -> int:
    """Add some paths (P,) to the sums; returns how many did not get below the tolerance."""
    x, count = subject.x, len(baselines)
    nodes = _Nodes(x, paths, most)
    fresh = torch.linspace(0, 1, COARSE, dtype=torch.float64).expand(len(paths), -1)
    while True:
        _evaluate(subject, baselines, nodes, fresh)
        errors, change = nodes.errors()
        good = errors.sum(1).abs() <= tolerance * change.abs()
        full = nodes.count >= most
        done = torch.ones_like(good) if full else good
        if bool(done.any()):
            ended = nodes.paths[done]
            taken[ended] = nodes.count
            delta = _points(subject, baselines, ended, x.new_zeros(len(ended)), x.new_zeros(len(ended))).delta
            share = nodes.integral(done) * delta
            weight = x.new_full((len(ended),), 1 / count)
            total.add(Points(ended // count, share, weight), x.new_zeros(len(ended)), share)
        if full or bool(done.all()):
            return int((~good).sum())
        nodes.keep(~done)
        fresh = nodes.halves(errors[~done], min(ROUND, most - nodes.count))


class _Nodes:
    """Nodes of some paths, the same number on each.

    Attributes:
        paths: (P,), their numbers; count: nodes of each.
        place, value, slope: (P, count) float64 on the CPU, sorted by place: f and its slope along the path.
    """

    def __init__(self, like: Tensor, paths: Tensor, most: int) -> None:
        self.paths, self.count = paths, 0
        self.place, self.value, self.slope = (torch.zeros(len(paths), 0, dtype=torch.float64) for _ in range(3))
        self._slot = torch.zeros(len(paths), 0, dtype=torch.long)
        self._row = torch.arange(len(paths))
        self._kept = like.new_empty((len(paths), most, *like.shape[1:]))

    def add(self, place: Tensor, value: Tensor, slope: Tensor) -> None:
        """New nodes (P, K), whose gradients are stored in the next slots."""
        slot = torch.arange(self.count, self.count + place.shape[1]).expand(len(place), -1)
        self.count += place.shape[1]
        self.place, order = torch.cat([self.place, place], 1).sort(1)
        self.value = torch.cat([self.value, value], 1).gather(1, order)
        self.slope = torch.cat([self.slope, slope], 1).gather(1, order)
        self._slot = torch.cat([self._slot, slot], 1).gather(1, order)

    def store(self, path: Tensor, slot: Tensor, grad: Tensor) -> None:
        """Keep gradients (Q, *S) of the paths at these positions (Q,) in slots (Q,)."""
        self._kept[self._row[path].to(grad.device), slot.to(grad.device)] = grad

    def errors(self) -> tuple[Tensor, Tensor]:
        """Trapezoid less truth of every interval (P, count - 1), and f at the end less f at the start (P,)."""
        width = self.place.diff(dim=1)
        area = width * (self.slope[:, 1:] + self.slope[:, :-1]) / 2
        return area - self.value.diff(dim=1), self.value[:, -1] - self.value[:, 0]

    def halves(self, errors: Tensor, most: int) -> Tensor:
        """The middles (P, K) of the intervals of largest error."""
        worst = errors.abs().topk(min(most, errors.shape[1]), dim=1).indices
        return (self.place.gather(1, worst) + self.place.gather(1, worst + 1)) / 2

    def integral(self, which: Tensor) -> Tensor:
        """sum_k w_k g_k of some paths, (Q, *S)."""
        width = self.place[which].diff(dim=1)
        weight = torch.zeros(len(width), self.count, dtype=width.dtype)
        weight[:, 1:] += width / 2
        weight[:, :-1] += width / 2
        by_slot = torch.zeros_like(weight).scatter_(1, self._slot[which], weight).to(self._kept)
        rows = self._row[which].to(self._kept.device)
        return torch.stack([by_slot[i] @ self._kept[row, : self.count].flatten(1) for i, row in enumerate(rows)]).view(
            len(rows), *self._kept.shape[2:]
        )

    def keep(self, which: Tensor) -> None:
        """Drop the other paths."""
        self.paths, self._row, self._slot = self.paths[which], self._row[which], self._slot[which]
        self.place, self.value, self.slope = self.place[which], self.value[which], self.slope[which]


class _Keeper:
    """Puts gradients into the slots of their paths; remembers values and slopes in the order of the stream."""

    def __init__(self, nodes: _Nodes, fresh: int) -> None:
        self.nodes, self.fresh, self.done = nodes, fresh, 0
        self.value: list[Tensor] = []
        self.slope: list[Tensor] = []

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        assert isinstance(points, PathPoints)
        index = torch.arange(self.done, self.done + len(value))
        self.done += len(value)
        self.nodes.store(index // self.fresh, self.nodes.count + index % self.fresh, grad)
        self.value.append(value)
        self.slope.append((points.delta * grad).flatten(1).sum(1))


def _evaluate(subject: Subject, baselines: Sequence[Baseline], nodes: _Nodes, fresh: Tensor) -> None:
    """Take the gradients at new nodes (P, K) of the paths."""
    keeper = _Keeper(nodes, fresh.shape[1])
    places = fresh.reshape(-1).to(subject.x)

    def stream() -> Iterator[PathPoints]:
        for index in subject.engine.batches(fresh.numel()):
            path, place = nodes.paths[index // fresh.shape[1]], places[index.to(places.device)]
            yield _points(subject, baselines, path, place, torch.ones_like(place))

    subject.engine.run(stream(), keeper)
    value, slope = (torch.cat(part).double().cpu().view(fresh.shape) for part in (keeper.value, keeper.slope))
    nodes.add(fresh, value, slope)
