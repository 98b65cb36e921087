"""What plain and dual smoothing share: the options, the draws, how alpha is spent, and what is said of the result.

A method says which votes there are, and which radius follows from bounds on their probabilities. Counting, confidence,
abstention, sequential decisions and dense outputs are here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs
from torch import Tensor

from robustkit.certify import confidence
from robustkit.certify.grid import GridNoise, check_grid
from robustkit.certify.noise import Gaussian, Noise
from robustkit.certify.sampler import Sampler, Vote, batch_for
from robustkit.certify.sequential import decide
from robustkit.core.certificate import ABSTAIN
from robustkit.core.certifier import CERTIFIERS, Certifier, Finding, Subject
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.specs import Fraction

Array = NDArray[Any]
ROUNDING = 1e-12
"""Share by which radii are made smaller: more than the rounding of the normal quantile."""
MOST = 10**12
"""More draws than anyone makes."""
RANDOM = 1e-4
"""Largest difference between two passes of one batch, relative to the largest output, that is rounding."""


@method
class Randomized(Certifier):
    """A certificate by the answers of a network to noisy inputs: it may be wrong with probability alpha."""

    norm: ClassVar[str] = "l2"
    probabilistic: ClassVar[bool] = True
    sigma: Fraction = Field(default=0.25, gt=0, description="standard deviation of the noise, in units of the input")
    n: int = Field(default=100_000, ge=1, description="draws of each vote; mode=decide: the most of them")
    n0: int = Field(default=100, ge=1, description="draws that choose the class, which are not counted again")
    alpha: float = Field(default=0.001, gt=0, lt=1, description="probability that a certificate may be wrong")
    mode: Literal["radius", "decide"] = Field(
        default="radius", description="radius: the largest that n draws show; decide: is it at least radius?"
    )
    radius: Fraction | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="the radius that is asked for, in units of the input"
    )
    beta: float = Field(
        default=0.001, gt=0, lt=1, description="mode=decide: probability to give up on a radius that does hold"
    )
    bound: Literal["one-sided", "two-sided"] = Field(
        default="one-sided", description="two-sided: runner-up classes are bounded, too, at half of alpha"
    )
    clip: bool = Field(
        default=False, description="clip noisy inputs to the bounds; then the certified function does so, too"
    )
    grid: bool = Field(
        default=False, description="inputs on multiples of 1/255 and exactly discretised noise: sound in floating point"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, values: Any) -> Any:
        """``mode=decide:radius=0.5`` says both in one word."""
        given = dict(getattr(values, "kwargs", None) or {})
        mode, colon, radius = str(given.get("mode", "")).partition(":radius=")
        if not colon:
            return values
        if given.get("radius") is not None:
            raise ValueError("one radius, not two")
        return ArgsKwargs(values.args, {**given, "mode": mode, "radius": radius})

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.n < self.n0:
            raise ValueError(f"n >= n0: {self.n} draws for the certificate, {self.n0} to choose the class")
        if self.mode == "decide" and self.radius is None:
            raise ValueError("a radius with mode=decide, such as radius=0.5")
        if self.mode == "decide" and self.bound == "two-sided":
            raise ValueError("bound=one-sided with mode=decide")
        if self.grid and self.clip:
            raise ValueError("grid or clip, not both: the grid clips far outside of the bounds")
        return self

    # -- what a method says of itself ---------------------------------------------------------------------------------

    @abstractmethod
    def votes(self, model: Model) -> tuple[Vote, ...]:
        """The smoothed classifiers whose mean decides."""

    @abstractmethod
    def radius_of(self, lower: Sequence[Array]) -> Array:
        """The radius that follows from bounds on the probability of the class, one array for each vote; may be <= 0."""

    def radius_between(self, lower: Sequence[Array], upper: Sequence[Array]) -> Array:
        """The same with upper bounds on the other classes: arrays (N, C - 1, *P) for each vote."""
        raise UsageError("no two-sided bound", where=self.text)

    @abstractmethod
    def level(self, radius: float) -> float:
        """The probability at which all votes together certify the radius."""

    # -- the certificate ----------------------------------------------------------------------------------------------

    def certify(self, subject: Subject) -> Finding:
        sampler = self.sampler(subject)
        _check_constant(sampler)
        chosen = sampler.counts("selection", self.n0)[:, :, :-1].sum(0).argmax(1)
        found = self._decide if self.mode == "decide" else self._fixed
        return found(sampler, chosen)

    def sampler_for(
        self, model: Model, x: Tensor, *, ids: Tensor | None = None, seed: int = 0, batch: int | None = None
    ) -> Sampler:
        """What draws for inputs outside of :meth:`__call__`; the model is to be frozen by the caller."""
        keys = default_ids(len(x)) if ids is None else ids.cpu()
        draws = Draws(seed, keys, CERTIFIERS.entry_of(self).name)
        outputs = model.output_shape(x, gradients=False)
        self.check(model, tuple(x.shape[1:]), outputs)
        return self.sampler(Subject(model, x, outputs, draws, batch, lambda passed: None), certificate=False)

    def sampler(self, subject: Subject, certificate: bool = True) -> Sampler:
        """What draws for a batch; whether to be sound in floating point, too, where that is asked for."""
        batch, votes = subject.batch or batch_for(subject.x[0].numel()), self.votes(subject.model)
        noise = self._noise(subject, votes, certificate)
        return Sampler(subject.x, votes, subject.outputs, noise, subject.draws, batch, subject.tell)

    def check(self, model: Model, shape: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        if model.eot != 1:
            raise UsageError(
                "the network is random by itself",
                expected="one answer to one input",
                got=f"eot={model.eot}",
                where="model",
                fix="Smoothing adds the only randomness it can certify; wrap the network with eot=1.",
            )
        if len(outputs) not in (1, 3) or outputs[0] < 2:
            raise UsageError(
                "smoothing certifies classes",
                expected="outputs (N, C) or (N, C, H, W) with C >= 2",
                got=f"(N, {', '.join(map(str, outputs))})",
                where="the network's outputs",
            )
        if len(outputs) == 3 and self.mode == "decide":
            raise UsageError(
                "decisions are about one class for each input",
                expected="mode=radius, with a radius",
                got="mode=decide for dense outputs",
                where=self.text,
                fix=f"Write mode=radius,radius={self.radius:g}.",
            )
        if self.grid:
            check_grid(model)

    def remarks(self, outputs: tuple[int, ...]) -> tuple[str, ...]:
        most, asked = self.limit(outputs), float(self.radius or 0.0)
        if 0 < most >= asked:
            return ()
        what = f"n = {self.n:,} draws show no radius "
        if most <= 0:
            what += f"at all with alpha = {self.alpha:g}: every sample will be left undecided"
        else:
            what += f"above {most:.4g}, and {asked:g} is asked for: nothing will be certified"
        least = self._least(asked, outputs)
        enough = f"At least n = {least:,} is needed" if least else "No n that can be drawn is enough: raise sigma"
        return (f"{what}. {enough}",)

    def limit(self, outputs: tuple[int, ...] = (2,)) -> float:
        """The largest radius that n draws can show: all of them gave the same answer."""
        return self._limit(self.n, outputs)

    def _limit(self, n: int, outputs: tuple[int, ...]) -> float:
        p = self._lower(np.array(n), np.array(n), self.budget(outputs))
        return float(_down(self.radius_of([p] * self.parts)))

    def _least(self, radius: float, outputs: tuple[int, ...]) -> int | None:
        """The smallest n whose limit is the radius (of 0: above it); None if that is more than anyone draws."""
        at_least = max(radius, np.finfo(float).tiny)
        found = bisect_left(range(MOST), at_least, key=lambda n: self._limit(n, outputs) if n else -math.inf)
        return found if found < MOST else None

    @property
    def parts(self) -> int:
        """Number of votes."""
        return 1

    def budget(self, outputs: tuple[int, ...]) -> float:
        """What one bound may spend of alpha: it is split over votes and pixels, and between classes."""
        share = self.alpha / self.parts / math.prod(outputs[1:])
        return share / 2 if self.bound == "two-sided" else share

    def _lower(self, k: Array, n: Array, alpha: float) -> Array:
        """The bound of the mode."""
        bound = confidence.anytime_lower if self.mode == "decide" else confidence.lower
        return bound(k, n, alpha)

    def _noise(self, subject: Subject, votes: Sequence[Vote], certificate: bool) -> Noise:
        if self.grid:
            return GridNoise(subject.x, tuple(vote.sigma for vote in votes), strict=certificate)
        return Gaussian(subject.model.bounds if self.clip else None)

    def _fixed(self, sampler: Sampler, chosen: Tensor) -> Finding:
        """n fresh draws, then bounds."""
        counts = sampler.counts("certify", self.n)
        hits = counts.gather(2, chosen[None, :, None].expand(len(counts), -1, -1, *chosen.shape[1:]))[:, :, 0]
        lower = self._slackened(self._hits_lower(hits, sampler), sampler)
        radius = self.radius_of(lower)
        if self.bound == "two-sided":
            radius = np.maximum(radius, self.radius_between(lower, self._others(counts, chosen, sampler)))
        shown, certified = self._shown(_down(radius), hits, sampler)
        n = torch.full((len(chosen),), self.n * self.parts)
        extras = {"hits": hits.movedim(0, 1), "counts": counts.movedim(0, 1)}
        return self._finding(sampler, chosen, shown, certified, _reasons(shown, certified), n, extras)

    def _hits_lower(self, hits: Tensor, sampler: Sampler) -> list[Array]:
        budget = self.budget(sampler.outputs)
        return [confidence.lower(one, self.n, budget) for one in hits.cpu().numpy()]

    def _others(self, counts: Tensor, chosen: Tensor, sampler: Sampler) -> list[Array]:
        """Upper bounds on all classes but the chosen one, (N, C - 1, *P) for each vote; each at its part of alpha."""
        classes = sampler.outputs[0]
        budget = self.budget(sampler.outputs) / (classes - 1)
        index = torch.arange(classes - 1, device=chosen.device).view(1, -1, *[1] * (chosen.ndim - 1))
        others = index + (index >= chosen[:, None])
        found = [confidence.upper(one.gather(1, others).cpu().numpy(), self.n, budget) for one in counts]
        return [np.minimum(bound + sampler.noise.slack, 1.0) for bound in found]

    def _slackened(self, lower: list[Array], sampler: Sampler) -> list[Array]:
        return [np.maximum(bound - sampler.noise.slack, 0.0) for bound in lower]

    def _shown(self, radius: Array, hits: Tensor, sampler: Sampler) -> tuple[Array, NDArray[np.bool_]]:
        """What is shown of samples (pixels): radii, and whether they reach the one asked for, or exceed 0."""
        return radius, radius > 0 if not self.radius else radius >= self.radius

    def _decide(self, sampler: Sampler, chosen: Tensor) -> Finding:
        """Draws until the radius is shown, or given up."""
        wanted, votes = float(self.radius or 0.0), self.parts
        slack = sampler.noise.slack

        def shown(hits: Sequence[Array], n: Array) -> NDArray[np.bool_]:
            lower = [confidence.anytime_lower(k, n, self.alpha / votes) - slack for k in hits]
            radius = _down(self.radius_of([np.maximum(bound, 0) for bound in lower]))
            return np.asarray((radius >= wanted) & (radius > 0))

        def hopeless(hits: Sequence[Array], n: Array) -> NDArray[np.bool_]:
            upper = [confidence.anytime_upper(k, n, self.beta / votes) + slack for k in hits]
            return np.asarray(self.radius_of([np.minimum(bound, 1) for bound in upper]) < wanted)

        made = decide(sampler, "decide", chosen, self.n, shown, hopeless)
        radius = np.where(made.shown, wanted, 0.0)
        hits = torch.from_numpy(made.hits)
        ends = zip(made.shown, made.given_up, strict=True)
        reasons = tuple("" if yes else GIVEN_UP if no else UNDECIDED for yes, no in ends)
        draws = torch.from_numpy(made.draws) * votes
        return self._finding(sampler, chosen, radius, made.shown, reasons, draws, {"hits": hits.T})

    def _finding(
        self,
        sampler: Sampler,
        chosen: Tensor,
        radius: Array,
        certified: NDArray[np.bool_],
        reasons: tuple[str, ...],
        n: Tensor,
        extras: dict[str, Tensor],
    ) -> Finding:
        good = torch.from_numpy(np.asarray(radius > 0) | certified)
        classes = chosen.cpu()
        prediction = torch.where(good, classes, ABSTAIN)
        size = torch.from_numpy(np.where(radius > 0, radius, 0.0))
        return Finding(
            prediction=prediction,
            radius=size,
            certified=torch.from_numpy(certified),
            reasons=reasons,
            n=n,
            arithmetic=_arithmetic(sampler),
            asked=self.radius,
            alpha=self.alpha,
            extras={
                "choice": classes,
                "undefined": sampler.undefined.cpu(),
                **{name: tensor.cpu() for name, tensor in extras.items()},
            },
            notes=_nan_note(sampler),
        )


NO_RADIUS = "abstained: no class is shown to be the most likely one"
GIVEN_UP = "the radius does not hold, or hardly: given up early"
UNDECIDED = "undecided: all draws are spent"


def _down(radius: Array) -> Array:
    """A little smaller: on the safe side of rounding."""
    return np.where(np.isfinite(radius), radius - ROUNDING * (1 + np.abs(radius)), -np.inf)


def _reasons(radius: Array, certified: NDArray[np.bool_]) -> tuple[str, ...]:
    if certified.ndim > 1:
        shares = 1 - certified.reshape(len(certified), -1).mean(1)
        return tuple(f"{100 * share:.1f} % of the pixels are not certified" if share else "" for share in shares)
    return tuple(
        "" if shown else NO_RADIUS if size <= 0 else f"certified only up to {size:.4g}"
        for shown, size in zip(certified, radius, strict=True)
    )


def _arithmetic(sampler: Sampler) -> str:
    dtype = str(sampler.votes[0].model.dtype).removeprefix("torch.")
    return f"the network as it computes in {dtype}; {sampler.noise.arithmetic}"


def _nan_note(sampler: Sampler) -> tuple[str, ...]:
    bad = int(sampler.undefined.sum())
    return (f"{bad:,} answers were NaN and count for no class",) if bad else ()


def _check_constant(sampler: Sampler) -> None:
    """Whether each network gives one answer to one input.

    Raises:
        UsageError: it does not.
    """
    rows = torch.zeros(1, dtype=torch.long)
    copies = sampler.noise.noisy(sampler.x, rows, rows, sampler.draws.child("constant"), sampler.votes[0].sigma, 8)[0]
    for vote in sampler.votes:
        first, second = (vote.model(copies).double().nan_to_num() for _ in range(2))
        size = float((first - second).abs().max())
        if size > max(RANDOM, 4 * torch.finfo(sampler.x.dtype).eps) * max(float(first.abs().max()), 1e-12):
            raise UsageError(
                "the network is random by itself",
                expected="the same answer to the same input",
                got=f"outputs that differ by {size:.3g} between two passes",
                where=f"the network's forward ({vote.name})",
                fix="Take dropout, random crops or noise out of its forward; smoothing adds the noise.",
            )
