"""What draws show of a smoothed classifier at one input: that its class is another one, or that it is the claimed one.

With p_c the mean over the votes of the probability of class c, another class is shown where lower bounds of one class
r add up to more than upper bounds of the claimed one: then p_r > p_claimed. r comes from draws of its own. The bounds
are those of Clopper and Pearson, each at an equal part of the error (Bonferroni), so that either statement is wrong
with probability alpha at most.
Shapes: x (N, *S), claimed (N,). Cost: votes times (draws that choose + n) forwards for each input that is worth it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from robustkit.certify import confidence
from robustkit.certify.randomized import Randomized
from robustkit.certify.sampler import Sampler
from robustkit.core.model import Model

CHOOSE = 100
"""Draws that choose the class that may be in front of the claimed one."""


def refutes(
    certifier: Randomized,
    model: Model,
    x: Tensor,
    claimed: Tensor,
    *,
    ids: Tensor,
    seed: int,
    alpha: float,
    n: int,
    batch: int | None = None,
    turn: int = 0,
) -> Tensor:
    """Whether the smoothed classifier is shown to give another class than the claimed one, (N,) bool on the CPU.

    Args:
        certifier: says which networks vote, and on which noise.
        model: the wrapped network.
        x: inputs (N, *S).
        claimed: (N,), classes.
        ids: (N,), keys of the draws, which are none of those of certificates.
        seed: of the draws.
        alpha: probability that the claimed class is refuted although no other has a larger probability.
        n: draws of each vote.
        batch: most copies in the network at once.
        turn: number of the test of a sample: inputs that were chosen by the outcome of one need fresh draws.
    """
    with model.frozen(seed), torch.no_grad():
        first = certifier.sampler_for(model, x, ids=ids, seed=seed, batch=batch)
        claim = claimed.to(x.device)[:, None]
        chances = first.counts(f"falsify-select/{turn}", CHOOSE).sum(0)[:, :-1]
        rival = chances.scatter(1, claim, -1).argmax(1, keepdim=True)
        # nothing but work is lost by not asking where the claimed class is in front of all others
        worth = (chances.gather(1, rival) > chances.gather(1, claim))[:, 0].nonzero()[:, 0]
        found = torch.zeros(len(x), dtype=torch.bool)
        if len(worth):
            sampler = certifier.sampler_for(model, x[worth], ids=ids[worth.cpu()], seed=seed, batch=batch)
            found[worth.cpu()] = _ahead(sampler, f"falsify/{turn}", n, rival[worth], claim[worth], alpha)
    return found


def confirms(
    certifier: Randomized,
    model: Model,
    x: Tensor,
    claimed: Tensor,
    *,
    ids: Tensor,
    seed: int,
    alpha: float,
    n: int,
    batch: int | None = None,
) -> Tensor:
    """Whether the smoothed classifier is shown to give the claimed class, (N,) bool on the CPU; see :func:`refutes`."""
    with model.frozen(seed), torch.no_grad():
        sampler = certifier.sampler_for(model, x, ids=ids, seed=seed, batch=batch)
        claim = claimed.to(x.device)[:, None]
        index = torch.arange(sampler.outputs[0] - 1, device=x.device)
        return _ahead(sampler, "falsify-confirm", n, claim, index + (index >= claim), alpha)


def resolution(certifier: Randomized, n: int, alpha: float) -> float:
    """By how much the probability of another class must be in front for n draws to show it, about, and at worst."""
    return float(-ndtri(alpha / (2 * certifier.parts)) / math.sqrt(n))


def _ahead(sampler: Sampler, purpose: str, n: int, front: Tensor, others: Tensor, alpha: float) -> Tensor:
    """(N,) bool: the class ``front`` (N, 1) is shown to have a larger mean probability than all ``others`` (N, K)."""
    counts = sampler.counts(purpose, n)
    votes, slack = len(counts), sampler.noise.slack
    hits, rest = (_of(counts, classes) for classes in (front, others))
    low = np.maximum(confidence.lower(hits, n, alpha / 2 / votes) - slack, 0).sum(0)
    high = np.minimum(confidence.upper(rest, n, alpha / 2 / votes / others.shape[1]) + slack, 1).sum(0)
    return torch.from_numpy((low > high).all(1))


def _of(counts: Tensor, classes: Tensor) -> NDArray[np.int32]:
    """Counts (V, N, K) of some classes (N, K)."""
    found: NDArray[np.int32] = counts.gather(2, classes.expand(len(counts), -1, -1)).cpu().numpy()
    return found
