"""Is the radius at least R? As few draws as the answer takes, by bets that may be looked at at any time.

After every block of a sample its counts are looked at: shown (with error alpha), given up (with error beta), or go on.
Where a sample stops depends on its own draws alone; a batch is filled with the next blocks of all samples at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.certify.sampler import BLOCK, Sampler

Counts = tuple[NDArray[np.int64], ...]
"""Hits of every vote, one array each."""
Look = Callable[[Counts, NDArray[np.int64]], NDArray[np.bool_]]
"""Hits of every vote and draws so far -> which of these looks are decided."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What was decided.

    Attributes:
        shown: (N,) bool, the radius is at least R.
        given_up: (N,) bool, it is below R.
        draws: (N,), draws of each vote that the decision counts.
        hits: (V, N), answers of each vote that were the class.
    """

    shown: NDArray[np.bool_]
    given_up: NDArray[np.bool_]
    draws: NDArray[np.int64]
    hits: NDArray[np.int64]


def decide(sampler: Sampler, purpose: str, chosen: Tensor, cap: int, shown: Look, hopeless: Look) -> Decisions:
    """Draw until every sample is decided, or ``cap`` draws of each vote are spent.

    Args:
        sampler: of the answers.
        purpose: key of the draws.
        chosen: (N,), the class that is asked about.
        cap: most draws.
        shown, hopeless: when to stop.
    """
    n, votes = len(chosen), len(sampler.votes)
    found = Decisions(np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.int64), np.zeros((votes, n), np.int64))
    queue, last = deque(range(n)), -(-cap // BLOCK)
    target = chosen.to(sampler.x.device)
    while queue:
        per, extra = divmod(sampler.together, len(queue)) if len(queue) < sampler.together else (1, 0)
        now = [queue.popleft() for _ in range(min(len(queue), sampler.together))]
        first = found.draws[now] // BLOCK
        blocks = [range(f, min(f + per + (i < extra), last)) for i, f in enumerate(first)]
        hits = _hits(sampler, purpose, target, now, blocks, cap)
        ends = np.cumsum([len(block) for block in blocks])
        so_far = _running(hits, ends) + found.hits[:, np.repeat(now, np.diff(ends, prepend=0))]
        draws = np.minimum((np.concatenate([np.asarray(block) for block in blocks]) + 1) * BLOCK, cap)
        yes, no = shown(tuple(so_far), draws), hopeless(tuple(so_far), draws)
        for sample, *part in zip(now, [0, *ends], ends, strict=False):
            mine = slice(*part)
            if (
                not _settled(found, sample, so_far[:, mine], draws[mine], yes[mine], no[mine])
                and found.draws[sample] < cap
            ):
                queue.append(sample)
    sampler.check()
    return found


def _hits(
    sampler: Sampler, purpose: str, target: Tensor, samples: list[int], blocks: list[range], cap: int
) -> NDArray[np.int64]:
    """(V, B): how many draws of each block gave the class; one transfer a batch."""
    rows = torch.tensor([s for s, block in zip(samples, blocks, strict=True) for _ in block])
    numbers = torch.tensor([j for block in blocks for j in block])
    wanted = (cap - numbers * BLOCK).clamp_max(BLOCK)
    place = torch.arange(len(rows)).repeat_interleave(wanted).to(target.device)
    wants = target[rows.to(target.device)][place]
    found = [
        torch.zeros(len(rows), dtype=torch.int64, device=target.device).scatter_add_(0, place, (a == wants).long())
        for a in sampler.answers(purpose, rows, numbers, wanted)
    ]
    hits: NDArray[np.int64] = torch.stack(found).cpu().numpy()
    return hits


def _settled(
    found: Decisions,
    sample: int,
    so_far: NDArray[np.int64],
    draws: NDArray[np.int64],
    yes: NDArray[np.bool_],
    no: NDArray[np.bool_],
) -> bool:
    """Note the first of these looks that decides, or the last one; whether it decides."""
    stops = np.flatnonzero(yes | no)
    at = int(stops[0]) if len(stops) else len(draws) - 1
    found.shown[sample], found.given_up[sample] = yes[at], no[at] and not yes[at]
    found.draws[sample], found.hits[:, sample] = draws[at], so_far[:, at]
    return len(stops) > 0


def _running(hits: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running sums along the last axis that begin anew after each of ``ends``.

    >>> _running(np.array([[1, 2, 3, 4]]), np.array([3, 4])).tolist()
    [[1, 3, 6, 4]]
    """
    total = np.pad(np.cumsum(hits, 1), ((0, 0), (1, 0)))
    starts = np.concatenate([[0], ends[:-1]])
    found: NDArray[np.int64] = total[:, 1:] - np.repeat(total[:, starts], np.diff(ends, prepend=0), 1)
    return found
