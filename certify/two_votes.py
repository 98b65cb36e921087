"""The radius of two smoothed votes, from a lower bound on the class and upper bounds on every other one.

A shift of u noise levels in the left half and v in the right one leaves class A ahead of c while

    Phi(a - u) - Phi(l + u) + Phi(b - v) - Phi(r + v) > 0,

with a, b the normal quantiles of the lower bounds and l, r those of the upper bounds of c. That falls in u and in v, so
all shifts no longer than t in the directions from theta1 to theta2 are safe where the one point
``u = t cos(theta1) / sigma_left, v = t sin(theta2) / sigma_right`` is: longer than each of them in both halves. t is
found by bisection; cells of directions that may hold the nearest tie are split until the rest is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[Any]
CELLS, SPLIT, LEVELS = 8, 4, 6
"""Cells of directions at first, parts of each that is split, and how often that is done at most."""
ENOUGH = 1e-3
"""Share of the radius that may be given up for speed."""
HALVINGS, FARTHEST = (40, 12), 64.0
"""Of the length, at first and after a split; and where it starts, in noise levels: beyond all quantiles."""
ROUNDING = 1e-12
"""What the sum above must exceed: more than its rounding, and that of quantiles and directions."""
TOGETHER = 512
"""Ties that are looked for at once."""


def nearest_tie(lower: Sequence[Array], upper: Sequence[Array], sigmas: tuple[float, float]) -> Array:
    """Length that no shift to a tie falls below, (N, *P); ``-inf`` where another class may be ahead already.

    >>> bounds = [np.array([0.9]), np.array([0.6])], [np.array([[0.06, 0.05]]), np.array([[0.2, 0.3]])]
    >>> nearest_tie(*bounds, (0.5, 0.5)).round(3)  # 0.543 without bounds on the others
    array([0.653])

    Args:
        lower: on the class, (N, *P) of the left and of the right vote.
        upper: on the other classes, (N, C - 1, *P) of each.
        sigmas: noise of each.
    """
    ours = [np.asarray(bound, float).reshape(-1) for bound in lower]
    # what the class has, no other has
    theirs = [
        np.minimum(np.moveaxis(np.asarray(bound, float), 1, -1).reshape(own.size, -1), 1 - own[:, None])
        for bound, own in zip(upper, ours, strict=True)
    ]
    sample, rival = _front(*theirs)
    chances = np.stack([*(own[sample] for own in ours), *(their[sample, rival] for their in theirs)])
    alike, place = np.unique(chances, axis=1, return_inverse=True)
    found = np.concatenate([_tie(ndtri(part), sigmas) for part in _parts(alike)])
    radius = np.full(ours[0].shape, np.inf)
    np.minimum.at(radius, sample, found[place.reshape(-1)])
    return radius.reshape(np.shape(lower[0]))


def _front(left: Array, right: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Samples and classes whose bounds no other class of the sample exceeds in both votes: only they can tie first."""
    order = np.lexsort((-right, -left), axis=-1)
    sorted_right = np.take_along_axis(right, order, -1)
    ahead = np.ones(order.shape, bool)
    ahead[:, 1:] = sorted_right[:, 1:] > np.maximum.accumulate(sorted_right, -1)[:, :-1]
    sample, place = np.nonzero(ahead)
    return sample, order[sample, place]


def _parts(columns: Array) -> list[Array]:
    return np.split(columns, range(TOGETHER, columns.shape[1], TOGETHER), axis=1)


def _tie(quantiles: Array, sigmas: tuple[float, float]) -> Array:
    """Length that no tie falls below, (Q,), for quantiles a, b, l, r (4, Q)."""
    zero = np.zeros(quantiles.shape[1])
    apart = _ahead(quantiles, zero, zero)
    found, nearest = np.where(apart, np.inf, -np.inf), np.full(zero.shape, FARTHEST * max(sigmas))
    which, width = np.repeat(np.flatnonzero(apart), CELLS), np.pi / 2 / CELLS
    start, safe = np.tile(width * np.arange(CELLS), np.count_nonzero(apart)), np.zeros(which.shape)
    for level in range(LEVELS):
        u, v = np.cos(start) / sigmas[0], np.sin(start + width) / sigmas[1]
        safe = _length(quantiles[:, which], u, v, safe, nearest[which], HALVINGS[min(level, 1)])
        # the end of what is safe is (nearly) a tie itself
        np.minimum.at(nearest, which, safe * np.hypot(u * sigmas[0], v * sigmas[1]))
        split = (safe < (1 - ENOUGH) * nearest[which]) & (level < LEVELS - 1)
        np.minimum.at(found, which[~split], safe[~split])
        width /= SPLIT
        start = (start[split, None] + width * np.arange(SPLIT)).reshape(-1)
        which, safe = np.repeat(which[split], SPLIT), np.repeat(safe[split], SPLIT)
    return found


def _length(quantiles: Array, u: Array, v: Array, low: Array, high: Array, halvings: int) -> Array:
    """The largest length t found at which ``(t u, t v)`` is no tie yet; ``low`` is known to be one."""
    for _ in range(halvings):
        middle = (low + high) / 2
        safe = _ahead(quantiles, middle * u, middle * v)
        low, high = np.where(safe, middle, low), np.where(safe, high, middle)
    return low


def _ahead(quantiles: Array, u: Array, v: Array) -> NDArray[np.bool_]:
    a, b, left, right = quantiles
    return np.asarray(ndtr(a - u) - ndtr(left + u) + ndtr(b - v) - ndtr(right + v) > ROUNDING)
