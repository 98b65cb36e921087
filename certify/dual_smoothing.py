"""Dual randomized smoothing: two smoothed votes, each on one half of the pixels (Xia et al., ICLR 2024).

``G(x) = argmax_c (p_c^left + p_c^right) / 2`` with ``p_c^s = P(f^s(half_s(x + sigma_s * e)) = c)``. With a and b the
normal quantiles of lower bounds on p_A^left and p_A^right, a shift of u noise levels in the left half and v in the
right leaves A in front while ``Phi(a - u) + Phi(b - v) > 1``, that is u + v < a + b, so

    R = (a + b) / sqrt(sigma_left^-2 + sigma_right^-2),     sigma (a + b) / sqrt(2) for equal noise.

a and b are not clipped at 0, alpha is split over the halves, and the counts are those that were drawn: the authors'
published code does otherwise, and its radii are no certificates. bound=two-sided bounds the other classes, too, at half
of alpha, and takes the larger of R and the length of the shortest shift that may let one of them draw level
(two_votes.py). Not the method of the same name of arXiv 2512.01782.
Shapes: x (N, C, H, W); prediction and radius (N,), or (N, H, W). Units: those of the input. Cost: 2 (n0 + n) forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtr, ndtri

from robustkit.certify.halves import FILL, SIDES, Fill, Half, SplitModel, check_images
from robustkit.certify.randomized import Randomized
from robustkit.certify.sampler import Vote
from robustkit.certify.two_votes import nearest_tie
from robustkit.core.certifier import CERTIFIERS
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.specs import Fraction

Array = NDArray[Any]


@CERTIFIERS.register("dual-smoothing", paper="https://openreview.net/forum?id=C1sQBG6Sqp")
@method
class DualSmoothing(Randomized):
    """Dual randomized smoothing: votes of two halves of the image, each smoothed by itself.

    >>> found = DualSmoothing(sigma=0.5).radius_of([np.array(0.9), np.array(0.4)])
    >>> round(float(found), 4)  # 0.5 * (1.2816 - 0.2533) / sqrt(2): one half may speak against the class
    0.3635
    """

    sigma_right: Fraction | None = Field(
        default=None, gt=0, description="noise of the right half, where it is not sigma"
    )
    fill: Fill = Field(default="mean", description=FILL + "; a SplitModel has its own")

    def votes(self, model: Model) -> tuple[Vote, ...]:
        net = model.net
        halves = [net.of(s) if isinstance(net, SplitModel) else Half(net, s, self.fill) for s in SIDES]
        return tuple(Vote(s, model.around(h), w) for s, h, w in zip(SIDES, halves, self.sigmas, strict=True))

    @property
    def sigmas(self) -> tuple[float, float]:
        """Noise of the left and of the right half."""
        return float(self.sigma), float(self.sigma if self.sigma_right is None else self.sigma_right)

    @property
    def parts(self) -> int:
        return 2

    def radius_of(self, lower: Sequence[Array]) -> Array:
        left, right = self.sigmas
        with np.errstate(invalid="ignore"):
            total = ndtri(lower[0]) + ndtri(lower[1])
        # bounds 0 and 1 show nothing
        return np.asarray(np.where(np.isnan(total), -np.inf, total) / np.sqrt(left**-2 + right**-2))

    def radius_between(self, lower: Sequence[Array], upper: Sequence[Array]) -> Array:
        return nearest_tie(lower, upper, self.sigmas)

    def level(self, radius: float) -> float:
        left, right = self.sigmas
        return float(ndtr(radius * np.sqrt(left**-2 + right**-2) / 2))

    def check(self, model: Model, shape: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().check(model, shape, outputs)
        check_images(shape, self.text)
