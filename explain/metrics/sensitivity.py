"""Max-sensitivity: how far a map moves when the picture hardly does (https://arxiv.org/abs/1901.09392, sec. 4.2).

``max over e of ||map(x + e) - map(x)|| / ||map(x)||`` for draws ``e ~ U(-r, r)`` of every value, keyed by seed and
sample, with ``x + e`` put back into the bounds. The class stays the one that was explained, and the method makes the
same draws of its own at every copy, so that what moves is the map and not the noise. 0 is a map that does not move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError
from robustkit.core.explainer import Explainer
from robustkit.core.gradients import default_batch
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.types import Bounds, Cost
from robustkit.explain.metrics.checks import check_finite, check_whole, checked_ids
from robustkit.kernels.balls import norm

RADIUS = 0.02
"""Of the perturbation, as a share of the width of the bounds."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What was found.

    Attributes:
        value: (N,), the largest ratio; nan or infinite where the map at x is zero everywhere.
        ratios: (N, samples), of every draw.
        radius: of the perturbation, in units of the input.
        notes: maps that are zero everywhere.
        cost: of explaining the copies.
    """

    value: Tensor
    ratios: Tensor
    radius: float
    notes: tuple[str, ...]
    cost: Cost


def max_sensitivity(
    model: Model,
    x: Tensor,
    explainer: Explainer,
    attribution: Attribution,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    radius: float | None = None,
    samples: int = 10,
    batch: int | None = None,
) -> Sensitivity:
    """Max-sensitivity of every map.

    Args:
        model, x: what was explained.
        explainer, attribution: how, and what came out (with the same ids and seed).
        ids: (N,), key the draws; 0 .. N-1 by default.
        seed: of the draws.
        radius: r, in units of the input; 0.02 of the width of the bounds by default.
        samples: draws for each sample.
        batch: most points in the network at once.

    Cost: ``samples`` times that of the map.

    Raises:
        UsageError: the attribution is of other inputs; a radius that is not positive; no draw.
    """
    check_same(x, attribution)
    check_whole(samples, "samples")
    ids = checked_ids(x, ids)
    radius = checked_radius(radius, model.bounds)
    with model.metered() as cost:
        pieces = []
        for numbers in copies(x, samples):
            count = len(numbers)
            moved = perturbed(x, ids, seed, numbers, radius, model.bounds)
            found = explainer(
                model, moved, attribution.target.repeat(count), ids=ids.repeat(count), seed=seed, batch=batch
            )
            pieces.append(distances(found.values, attribution.values))
        ratios = torch.cat(pieces, 1) / norm(attribution.values, 2)[:, None]
    value = ratios.amax(1)
    return Sensitivity(value, ratios, radius, _notes(value, ids), cost)


def sensitivity_of(
    function: Callable[[Tensor, Tensor], dict[str, Tensor]],
    x: Tensor,
    bounds: Bounds,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    radius: float | None = None,
    samples: int = 10,
) -> dict[str, Tensor]:
    """The same for maps that need no network: ``function(pictures, ids)`` gives maps by name; each (N,)."""
    ids, radius = checked_ids(x, ids), checked_radius(radius, bounds)
    whole = function(x, ids)
    ratios: dict[str, list[Tensor]] = {name: [] for name in whole}
    for numbers in copies(x, samples):
        found = function(perturbed(x, ids, seed, numbers, radius, bounds), ids.repeat(len(numbers)))
        for name, maps in found.items():
            ratios[name].append(distances(maps, whole[name]) / norm(whole[name], 2)[:, None])
    return {name: torch.cat(pieces, 1).amax(1) for name, pieces in ratios.items()}


def copies(x: Tensor, samples: int) -> Iterator[range]:
    """Numbers 0 .. samples - 1 in pieces: a few full batches of copies at once, so that memory stays flat."""
    piece = max(1, 4 * default_batch(x) // len(x))
    for start in range(0, samples, piece):
        yield range(start, min(start + piece, samples))


def perturbed(x: Tensor, ids: Tensor, seed: int, numbers: range, radius: float, bounds: Bounds) -> Tensor:
    """x with each of some draws added, (numbers x N, *S), draw by draw."""
    draws = Draws(seed, ids, "max-sensitivity")
    return torch.cat([bounds.clamp(x + radius * (2 * draws.again(i).uniform(x) - 1)) for i in numbers])


def distances(copied: Tensor, values: Tensor) -> Tensor:
    """Distance of every copy (count x N, *S) from the map (N, *S), (N, count)."""
    there = copied.view(-1, *values.shape).transpose(0, 1)
    found: Tensor = torch.linalg.vector_norm((there - values[:, None]).flatten(2), dim=2)
    return found


def check_same(x: Tensor, attribution: Attribution) -> None:
    """The attribution is one of x, and finite.

    Raises:
        UsageError: it is not.
    """
    if attribution.x.shape != x.shape or not torch.equal(attribution.x, x):
        raise UsageError(
            "the attribution explains other inputs",
            expected=f"inputs of shape {tuple(x.shape)}, the same values",
            got=f"shape {tuple(attribution.x.shape)}",
            where=f"attribution of {attribution.method}",
            fix="Pass attribution.x.",
        )
    check_finite(attribution.values, f"attribution of {attribution.method}")


def checked_radius(radius: float | None, bounds: Bounds) -> float:
    """The radius, by default a share of the width of the bounds.

    Raises:
        UsageError: it is not positive.
    """
    if radius is None:
        return RADIUS * bounds.width
    if isinstance(radius, bool) or not 0 < radius < float("inf"):
        raise UsageError("a perturbation has a size", expected="a number above 0", got=repr(radius), where="radius")
    return float(radius)


def _notes(value: Tensor, ids: Tensor) -> tuple[str, ...]:
    zero = (~value.isfinite()).nonzero()[:, 0].tolist()
    if not zero:
        return ()
    return (f"no max-sensitivity for sample {', '.join(str(int(ids[i])) for i in zero)}: its map is zero everywhere",)
