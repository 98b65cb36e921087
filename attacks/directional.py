"""Directional attacks: the perturbation that moves the outputs furthest along a given direction u.

``max <u, Phi(x + d)>`` over the threat, sample by sample (https://arxiv.org/abs/2510.01461, the attack operator): one
step, an iterated ascent, or queries alone; :func:`maximise` builds an optimiser on them. No label is involved and
nothing counts as a success: the result is a gain. Shapes: x (N, *S), u (N, *O) or (*O). Units: those of
``model.bounds`` for x, of the outputs times u for gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustkit.attacks.ascent import Ascent, Walk, pick
from robustkit.attacks.direct_search import MaximiseResult, maximise
from robustkit.attacks.hybrid import Hybrid
from robustkit.core.attack import check_inputs
from robustkit.core.direction import DirectionObjective
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.core.threat import Threat
from robustkit.core.types import Cost

__all__ = [
    "DirectionalResult",
    "Hybrid",
    "MaximiseResult",
    "directional_attack",
    "directional_queries",
    "directional_step",
    "maximise",
]


@dataclass(frozen=True, eq=False)
class DirectionalResult:
    """What a directional attack found.

    Attributes:
        adversarial: (N, *S), in threat and bounds; x itself where no point tried was better.
        perturbation: (N, *S), ``adversarial - x``.
        gain: (N,), <u, Phi(adversarial) - Phi(x)>, measured, never negative.
        queries: (N,), forwards spent on each sample.
        cost: passes in all.
    """

    adversarial: Tensor
    perturbation: Tensor
    gain: Tensor
    queries: Tensor
    cost: Cost


def directional_step(
    model: Model, x: Tensor, u: Tensor, threat: Threat, *, radii: Sequence[float] | None = None
) -> DirectionalResult:
    """One vector-Jacobian product J^T u and the steepest step along it, at one radius or the best of several.

    The direction does not depend on the radius, so that one forward and one backward serve all radii; the points of
    all radii are then measured as one batched forward. Cost: N (1 + R) forwards, N backwards.

    Args:
        radii: lengths of the step in the norm of the threat, at most its eps; its eps alone by default.

    Raises:
        UsageError: the inputs, the direction or a radius do not fit the model or the threat.
    """
    objective = _prepared(model, x, u)
    sizes = [threat.eps] if radii is None else _checked_radii(radii, threat)
    x = x.detach()
    with model.frozen(), model.metered() as cost:
        base, grad, _ = model.value_and_grad(x, objective)
        points = torch.stack([threat.at(size).step(x, x, grad, size, model.bounds) for size in sizes])
        values = _of_copies(model, points, objective)
    best = values.argmax(0)
    point = points[best, torch.arange(len(x), device=x.device)]
    return _result(x, point, values.amax(0) - base, torch.full_like(best, 1 + len(sizes)), cost)


def _of_copies(model: Model, points: Tensor, objective: DirectionObjective) -> Tensor:
    """The objective of R points for every sample, (R, N), from points (R, N, *S): one batched forward."""
    outputs = model(points.flatten(0, 1))
    return (
        torch.stack([objective(part) for part in outputs.chunk(len(points))])
        if len(outputs)
        else outputs.new_zeros(len(points), 0)
    )


def directional_attack(
    model: Model,
    x: Tensor,
    u: Tensor,
    threat: Threat,
    *,
    steps: int = 20,
    rule: Literal["apgd", "pgd"] = "apgd",
    step_size: float | None = None,
    restarts: int = 1,
    ids: Tensor | None = None,
    seed: int = 0,
) -> DirectionalResult:
    """Ascent on <u, Phi(x + d)> inside the threat; the best point of all restarts counts.

    Cost: N restarts (steps + 1) forwards, N restarts steps backwards.

    Args:
        steps: gradient steps a restart.
        rule: ``pgd`` takes steps of one length; ``apgd`` starts with 2 eps, adds momentum, and where a sample stops
            gaining halves its step and goes back to its best point (https://arxiv.org/abs/2003.01690, sec. 3).
        step_size: of ``pgd``; by default 2.5 eps / steps.
        restarts: the first starts at x, later ones at a uniform point of the ball.
        ids: sample ids (N,) that key the random draws; 0 .. N-1 by default.
        seed: of the random draws.

    Raises:
        UsageError: the inputs or the direction do not fit the model; steps or restarts below 1; an unknown rule.
    """
    objective = _prepared(model, x, u)
    _positive(steps=steps, restarts=restarts)
    if rule not in ("apgd", "pgd"):
        raise UsageError("no such rule", expected="apgd or pgd", got=repr(rule), where="rule")
    if step_size is not None and rule == "apgd":
        raise UsageError("apgd finds its own step sizes", got=str(step_size), where="step_size", fix='Use rule="pgd".')
    x = x.detach()
    draws = Draws(seed, default_ids(len(x)) if ids is None else ids.cpu(), "directional")
    with model.frozen(seed), model.metered() as cost:
        ascent = Ascent(model, x, objective, threat)
        for restart in range(restarts):
            start = x if restart == 0 else threat.start(x, model.bounds, draws.again(restart))
            if rule == "pgd":
                ascent.pgd(start, steps, step_size)
            else:
                ascent.apgd(start, steps)
    queries = torch.full((len(x),), restarts * (steps + 1), device=x.device)
    return _result(x, ascent.best, ascent.gain, queries, cost)


def directional_queries(
    model: Model,
    x: Tensor,
    u: Tensor,
    threat: Threat,
    *,
    queries: int = 1000,
    block: int = 1,
    step_size: float | None = None,
    ids: Tensor | None = None,
    seed: int = 0,
) -> DirectionalResult:
    """Ascent by outputs alone: random coordinates, one sign and then the other, kept where <u, Phi> grows.

    After SimBA (https://arxiv.org/abs/1905.07121, algorithm 1) with u in the place of a class probability. All
    samples ask at once, each its own question: every one of the ``queries`` is one batched forward, and a sample
    takes the second sign only where the first did not gain.

    Args:
        queries: forwards for each sample, the one at x included.
        block: coordinates moved together, with random signs against each other.
        step_size: by which each moves; by default 2 eps, so that in l-infinity it lands on the side of the ball.
        ids: sample ids (N,) that key the random draws; 0 .. N-1 by default.
        seed: of the random draws.

    Raises:
        UsageError: the inputs or the direction do not fit the model; queries or block below 1, step_size not above 0.
    """
    objective = _prepared(model, x, u)
    _positive(queries=queries, block=block)
    if step_size is not None and not 0 < step_size < float("inf"):
        raise UsageError("a step must have a length", expected="> 0", got=str(step_size), where="step_size")
    x = x.detach()
    size = 2 * threat.eps if step_size is None else step_size
    draws = Draws(seed, default_ids(len(x)) if ids is None else ids.cpu(), "directional/queries")
    with model.frozen(seed), model.metered() as cost:
        adv, base = x, objective(model(x))
        value, walk = base, Walk(x, min(block, x.flatten(1).shape[1]), draws)
        for _ in range(queries - 1):
            point = threat.project(adv + walk.move(size), x, model.bounds)
            new = objective(model(point))
            better = new > value
            adv, value = pick(better, point, adv), torch.where(better, new, value)
            walk.tell(better)
    return _result(x, adv, value - base, torch.full((len(x),), queries, device=x.device), cost)


# -- shared ----------------------------------------------------------------------------------------------------------


def _result(x: Tensor, point: Tensor, gain: Tensor, queries: Tensor, cost: Cost) -> DirectionalResult:
    better = gain > 0
    point = pick(better, point, x)
    return DirectionalResult(point, point - x, torch.where(better, gain, 0), queries, cost)


def _prepared(model: Model, x: Tensor, u: Tensor) -> DirectionObjective:
    """Everything is checked before anything is computed."""
    if not isinstance(model, Model):
        raise UsageError(
            "directional attacks take a wrapped model",
            expected="a robustkit Model",
            got=type(model).__name__,
            where="model",
            fix='Wrap it once: model = robustkit.wrap(net, task="regression").',
        )
    model.check(x)
    if x.ndim < 2:
        raise UsageError("inputs must be a batch", expected="(N, ...)", got=f"shape {tuple(x.shape)}", where="x")
    if len(x):
        check_inputs(x.detach(), model)
    if not isinstance(u, Tensor):
        raise UsageError("a direction must be a tensor", got=type(u).__name__, where="u")
    shape = model.output_shape(x) if len(x) else tuple(u.shape[1:])
    u = u.to(x.device)
    objective = DirectionObjective(u.expand(len(x), *shape) if u.shape == shape else u)
    objective(torch.empty((len(x), *shape), dtype=x.dtype, device="meta"))  # its shape is checked, nothing computed
    return objective


def _checked_radii(radii: Sequence[float], threat: Threat) -> list[float]:
    most = float(torch.as_tensor(threat.eps).min())
    for radius in radii:
        if not 0 <= radius <= most:
            raise UsageError(
                "a radius leaves the threat", expected=f"0 <= radius <= {most:g}", got=str(radius), where="radii"
            )
    if not radii:
        raise UsageError("no radius", expected="at least one", where="radii")
    return list(radii)


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UsageError(
                f"cannot attack with this {name}", expected="a whole number >= 1", got=str(number), where=name
            )
