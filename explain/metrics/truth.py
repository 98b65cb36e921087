"""How much of a map lies on the pixels that are known to matter (https://arxiv.org/abs/2003.07258, sec. 3).

Shapes: maps (N, H, W), the larger the more important; truth (N, H, W) bool; scores (N,) from 0 to 1. Values below 0
count as 0. Pixels of the same value share their rank, so that a map that says nothing scores what chance would: the
share of pixels that matter. A map of zeros has no mass anywhere, also scored as chance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.errors import UsageError

SCORES = {
    "mass": "relevance mass accuracy: share of the map's sum that lies on pixels that matter",
    "rank": "relevance rank accuracy: share of pixels that matter among as many of the largest values",
    "pointing": "pointing game: whether the largest value lies on a pixel that matters",
}


def truth_scores(maps: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Every score of :data:`SCORES`, (N,) each.

    >>> found = truth_scores(torch.tensor([[[3.0, 1.0, 0.0]]]), torch.tensor([[[True, False, False]]]))
    >>> {name: round(float(score), 2) for name, score in found.items()}
    {'mass': 0.75, 'rank': 1.0, 'pointing': 1.0}
    """
    return {
        "mass": relevance_mass(maps, truth),
        "rank": relevance_rank(maps, truth),
        "pointing": pointing_game(maps, truth),
    }


def relevance_mass(maps: Tensor, truth: Tensor) -> Tensor:
    """Share of the sum of each map that lies on the truth."""
    flat, marked = _checked(maps, truth)
    total = flat.sum(1)
    share = (flat * marked).sum(1) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, share, marked.mean(1))


def relevance_rank(maps: Tensor, truth: Tensor) -> Tensor:
    """Share of the truth among as many largest values; of values on the edge, what a random choice would expect."""
    flat, marked = _checked(maps, truth)
    return _among_largest(flat, marked, marked.sum(1).long())


def pointing_game(maps: Tensor, truth: Tensor) -> Tensor:
    """Whether the largest value lies on the truth; of several, the share that does."""
    flat, marked = _checked(maps, truth)
    return _among_largest(flat, marked, torch.ones(len(flat), dtype=torch.long, device=flat.device))


def _among_largest(flat: Tensor, marked: Tensor, count: Tensor) -> Tensor:
    edge = flat.sort(1, descending=True).values.gather(1, count[:, None] - 1)
    above, tied = flat > edge, flat == edge
    left = (count - above.sum(1)) / tied.sum(1)
    return ((marked * above).sum(1) + left * (marked * tied).sum(1)) / count


def _checked(maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if maps.ndim != 3 or maps.shape != truth.shape or truth.dtype != torch.bool:
        raise UsageError(
            "the truth does not fit the maps",
            expected="maps (N, H, W) and a mask of truth of the same shape, bool",
            got=f"maps {tuple(maps.shape)}, truth {truth.dtype} {tuple(truth.shape)}",
            where="truth",
            fix="One value for each pixel: attribution.pixel_map().",
        )
    if not bool(truth.flatten(1).any(1).all()) or not bool(maps.isfinite().all()):
        raise UsageError(
            "maps must be numbers and some pixel of every image must matter",
            got="NaN or infinity in maps" if not bool(maps.isfinite().all()) else "an empty mask",
            where="maps" if not bool(maps.isfinite().all()) else "truth",
        )
    flat = maps.flatten(1).clamp_min(0)
    return flat, truth.flatten(1).to(flat)
