"""How often each confidence rule of certification errs: ``python -m benchmarks.coverage [--runs 4000] [--only WORD]``.

Networks answer by thresholds of their noisy pixels, so the probability of every class, and with it the radius that
holds, is known. Each run is one sample with its own keyed draws that goes through the certifier as a user calls it,
selection of the class included. Probabilities stand where a rule errs most: just below a value that a bound can take,
or exactly at the radius that is asked for, where both verdicts of a decision are counted as errors. A rule may err with
probability ``alpha``; it is held to alpha plus three standard errors, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

import robustkit as rk
from benchmarks.common import THREADS
from robustkit.certify.confidence import above, below, lower
from robustkit.certify.halves import SplitModel
from robustkit.certify.randomized import GIVEN_UP
from robustkit.core.certificate import ABSTAIN, Certificate
from robustkit.core.model import Model

ALPHA, SIGMA, N, N0, CAP, SEED = 0.05, 0.5, 200, 20, 1500, 0
HIGH = 150
"""Hits of N draws whose bound the probabilities stand just below."""
SMALL = 1e-9
SIDE = 4
"""Pixels of an image of the dense rules: the square of it."""
Errors = NDArray[np.bool_]
console = Console(width=120)


class Thresholds(nn.Module):
    """Class c with probability ``p[c]`` where the first pixels are standard normal around 0, scaled by sigma.

    Shapes: x (N, 1, H, W) -> (N, C) by pixel ``at``; with ``p`` (P, C) every pixel answers by its own, (N, C, H, W).
    """

    edges: Tensor

    def __init__(self, p: Sequence[Any], sigma: float = SIGMA, at: int | None = 0) -> None:
        super().__init__()
        rising = np.cumsum(np.atleast_2d(np.asarray(p, float)), 1)[:, :-1]
        self.register_buffer("edges", torch.from_numpy(sigma * ndtri(np.minimum(rising, 1.0))))
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        values = flat if self.at is None else flat[:, [self.at]]
        answers = F.one_hot((values[..., None] > self.edges).sum(-1), self.edges.shape[1] + 1)
        found = answers[:, 0] if self.at is not None else answers.movedim(-1, 1).unflatten(-1, x.shape[-2:])
        return found.to(x.dtype)


@dataclass(frozen=True)
class Rule:
    """One rule at one place: ``errs(runs)`` tells of each run whether it erred, which it may with ``ALPHA``."""

    title: str
    errs: Callable[[int], Errors]


def whole(*p: float) -> Model:
    """A network with classes of these probabilities."""
    return rk.wrap(Thresholds(p), bounds=(-1, 1))


def halves(left: Sequence[float], right: Sequence[float], sigma_right: float = SIGMA) -> Model:
    """A pair of them, one for each half."""
    pair = SplitModel(Thresholds(left), Thresholds(right, sigma_right, at=1), fill="zero")
    return rk.wrap(pair, bounds=(-1, 1))


def certificate(method: rk.Certifier, model: Model, runs: int, side: int = 2) -> Certificate:
    """Of ``runs`` equal samples, each with draws of its own."""
    return method(model, torch.zeros(runs, 1, side, side, dtype=torch.float64), seed=SEED, batch=8192)


def too_far(found: Certificate, truth: NDArray[np.float64]) -> Errors:
    """Whether a radius exceeds that which holds for the class, ``truth`` (C,)."""
    predicted = found.prediction.numpy()
    return (predicted != ABSTAIN) & (found.radius.numpy() > truth[predicted])


def just_below(k: int, alpha: float) -> float:
    """The probability whose bound is wrong with probability alpha, no less: k or more of N draws."""
    return float(lower(k, N, alpha)) * (1 - SMALL)


def one_sided(*p: float, n0: int = N0) -> Callable[[int], Errors]:
    method = rk.Smoothing(sigma=SIGMA, n=N, n0=n0, alpha=ALPHA)
    return lambda runs: too_far(certificate(method, whole(*p), runs), SIGMA * ndtri(np.array(p)))


def two_sided(*p: float) -> Callable[[int], Errors]:
    method = rk.Smoothing(sigma=SIGMA, n=N, n0=N0, alpha=ALPHA, bound="two-sided")
    truth = SIGMA / 2 * (ndtri(np.array(p)) - ndtri(rivals(np.array(p)).max(1)))
    return lambda runs: too_far(certificate(method, whole(*p), runs), truth)


def rivals(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, C - 1): of each class, the probabilities of the others."""
    return np.stack([np.delete(p, c) for c in range(len(p))])


def dual(left: Sequence[float], right: Sequence[float], sigma_right: float = SIGMA) -> Callable[[int], Errors]:
    method = rk.DualSmoothing(sigma=SIGMA, sigma_right=sigma_right, n=N, n0=N0, alpha=ALPHA)
    truth = (ndtri(np.array(left)) + ndtri(np.array(right))) / math.hypot(1 / SIGMA, 1 / sigma_right)
    return lambda runs: too_far(certificate(method, halves(left, right, sigma_right), runs), truth)


def dual_bounds(left: float, right: float) -> Callable[[int], Errors]:
    """Either bound of the two halves above the probability it bounds."""
    method = rk.DualSmoothing(sigma=SIGMA, n=N, n0=N0, alpha=ALPHA)
    truth = np.array([[left, 1 - left], [right, 1 - right]]).T

    def errs(runs: int) -> Errors:
        found = certificate(method, halves((left, 1 - left), (right, 1 - right)), runs)
        bounds = lower(found.extras["hits"].numpy(), N, method.budget((2,)))
        wrong: Errors = (bounds > truth[found.extras["choice"].numpy()]).any(1)
        return wrong

    return errs


def dual_two_sided(left: Sequence[float], right: Sequence[float]) -> Callable[[int], Errors]:
    method = rk.DualSmoothing(sigma=SIGMA, n=N, n0=N0, alpha=ALPHA, bound="two-sided")
    p = [np.array(left), np.array(right)]
    truth = np.maximum(method.radius_of(p), method.radius_between(p, [rivals(one) for one in p]))
    return lambda runs: too_far(certificate(method, halves(left, right), runs), truth)


def decision(method: rk.Certifier, model: Model, verdict: str) -> Callable[[int], Errors]:
    """Class 0 holds the radius that is asked for, and no larger one: neither verdict is right of it."""

    def errs(runs: int) -> Errors:
        found = certificate(method, model, runs)
        if verdict == "certified":
            return found.certified.numpy()
        gave_up = np.array([reason == GIVEN_UP for reason in found.reasons])
        return gave_up & (found.extras["choice"].numpy() == 0)

    return errs


def any_time(p: float, shown: Callable[..., Any]) -> Callable[[int], Errors]:
    """Bets against the truth that are looked at after every single draw."""

    def errs(runs: int) -> Errors:
        draws = np.random.default_rng(SEED).random((runs, CAP)) < p
        n = np.arange(1, CAP + 1)
        parts = [shown(np.cumsum(part, 1), n, p, ALPHA).any(1) for part in np.array_split(draws, max(1, runs // 500))]
        return np.concatenate(parts)

    return errs


def dense(correction: str, low: Sequence[float], radius: float | None) -> Callable[[int], Errors]:
    """Any pixel of an image that is certified too far; class 0 of pixel i has probability ``low[i]``."""
    method = rk.Smoothing(sigma=SIGMA, n=N, n0=N0, alpha=ALPHA, correction=correction, radius=radius)  # type: ignore[arg-type]
    p = np.stack([np.array(low), 1 - np.array(low)], 1)
    model = rk.wrap(Thresholds(p, at=None), bounds=(-1, 1))
    truth = SIGMA * ndtri(p).reshape(SIDE, SIDE, 2)

    def errs(runs: int) -> Errors:
        found = certificate(method, model, runs, SIDE)
        holds = np.take_along_axis(truth[None], found.prediction.clamp_min(0).numpy()[..., None], -1)[..., 0]
        wrong = found.certified.numpy() & (found.radius.numpy() > holds)
        return np.asarray(wrong.reshape(runs, -1).any(1))

    return errs


def predicted(*p: float) -> Callable[[int], Errors]:
    """Classes that are equally likely: any answer but abstention counts as an error."""
    method = rk.Smoothing(sigma=SIGMA, n=N, n0=N0, alpha=ALPHA)

    def errs(runs: int) -> Errors:
        found = method.predict(
            whole(*p), torch.zeros(runs, 1, 2, 2, dtype=torch.float64), seed=SEED, batch=8192
        ).numpy()
        return (found != ABSTAIN) & (np.array(p)[found] <= max(p))

    return errs


def decisions() -> list[Rule]:
    """Both verdicts of one vote and of two, at the radius that holds exactly."""
    radius = 0.25
    single = rk.Smoothing(sigma=SIGMA, n=CAP, n0=N0, alpha=ALPHA, beta=ALPHA, mode="decide", radius=radius)
    p = float(ndtr(radius / SIGMA))
    pair = rk.DualSmoothing(sigma=SIGMA, n=CAP, n0=N0, alpha=ALPHA, beta=ALPHA, mode="decide", radius=radius)
    left = 0.9
    right = float(ndtr(radius * math.sqrt(2) / SIGMA - ndtri(left)))
    subjects = {"smoothing": (single, whole(p, 1 - p)), "dual": (pair, halves((left, 1 - left), (right, 1 - right)))}
    return [
        Rule(f"decide, {name}: {verdict}", decision(method, model, verdict))
        for name, (method, model) in subjects.items()
        for verdict in ("certified", "given up")
    ]


def rules() -> list[Rule]:
    """All of them."""
    high, split = just_below(HIGH, ALPHA), just_below(HIGH, ALPHA / 2)
    pixel, rest = just_below(HIGH, ALPHA / SIDE**2), just_below(HIGH, 2 * ALPHA / SIDE**2)
    half = SIDE**2 // 2
    top = just_below(N, ALPHA)
    asked, shared = (float(SIGMA * ndtri(p * (1 + SMALL / 2))) for p in (pixel, rest))
    return [
        Rule("radius, one-sided, p just below a bound", one_sided(high, 1 - high)),
        Rule("radius, one-sided, p below the largest bound", one_sided(top, 1 - top)),
        Rule("radius, one-sided, two equal classes, n0 = n", one_sided(0.5, 0.5, n0=N)),
        Rule("radius, one-sided, ten equal classes", one_sided(*[0.1] * 10)),
        Rule("radius, two-sided, two classes", two_sided(split, 1 - split)),
        Rule("radius, two-sided, equal runners-up", two_sided(0.5, 0.25, 0.25)),
        Rule("radius, two-sided, equal classes", two_sided(0.45, 0.45, 0.1)),
        Rule("dual, equal halves", dual((split, 1 - split), (split, 1 - split))),
        Rule("dual, one half against the class", dual((0.95, 0.05), (0.3, 0.7))),
        Rule("dual, unequal noise", dual((split, 1 - split), (0.6, 0.4), sigma_right=0.8)),
        Rule("dual, halves that cancel", dual((0.8, 0.2), (0.2, 0.8))),
        Rule("dual, either of its bounds", dual_bounds(split, split)),
        Rule("dual, two-sided, equal runners-up", dual_two_sided((0.5, 0.25, 0.25), (0.6, 0.2, 0.2))),
        Rule("dual, two-sided, a class for each half", dual_two_sided((0.6, 0.3, 0.1), (0.3, 0.6, 0.1))),
        Rule("at any time, p above 0.5 though it is not", any_time(0.5, above)),
        Rule("at any time, p above 0.95 though it is not", any_time(0.95, above)),
        Rule("at any time, p below 0.95 though it is not", any_time(0.95, below)),
        *decisions(),
        Rule("dense, Bonferroni, no pixel more certain", dense("bonferroni", [pixel] * SIDE**2, None)),
        Rule("dense, Bonferroni, a radius asked for", dense("bonferroni", [pixel] * SIDE**2, asked)),
        Rule("dense, Holm, no pixel more certain", dense("holm", [pixel] * SIDE**2, asked)),
        Rule(
            "dense, Holm, half of the pixels hold it",
            dense("holm", [0.999] * half + [rest] * half, shared),
        ),
        Rule("predict, two equal classes", predicted(0.5, 0.5)),
        Rule("predict, three equal classes", predicted(1 / 3, 1 / 3, 1 / 3)),
        Rule("predict, two of ten classes equal", predicted(0.3, 0.3, *[0.05] * 8)),
    ]


def allowed(runs: int) -> float:
    """Largest share of errors that alpha explains: three standard errors above it."""
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def main() -> int:
    """Run every rule and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--runs", type=int, default=4000, help="of each rule")
    parser.add_argument("--only", default="", help="rules whose title holds this word")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    most = allowed(arguments.runs)
    table = Table("rule", "errors", "share", f"at most {most:.4f}", box=None)
    missed = 0
    chosen = [rule for rule in rules() if arguments.only in rule.title]
    for rule in track(chosen, console=Console(stderr=True)):
        errors = int(rule.errs(arguments.runs).sum())
        missed += errors > most * arguments.runs
        verdict = "met" if errors <= most * arguments.runs else "missed"
        table.add_row(rule.title, f"{errors:,} of {arguments.runs:,}", f"{errors / arguments.runs:.4f}", verdict)
    console.print(table)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
