"""Randomized smoothing: the class that a network gives most often under Gaussian noise (https://arxiv.org/abs/1902.02918).

``g(x) = argmax_c P(f(x + sigma * e) = c)``, e ~ N(0, I). With ``p_A >= p > 1/2`` no input closer than
``R = sigma * Phi^-1(p)`` in L2 gets another class from g. The class comes from n0 draws; p is the one-sided
Clopper-Pearson bound of n fresh ones. Two-sided: ``R = sigma / 2 * (Phi^-1(p_A) - Phi^-1(p_B))``, with half of alpha
for p_A and the other half for all other classes. Noise is added before the normaliser and is not clipped.
Shapes: x (N, *S); prediction and radius (N,), or (N, H, W) of dense outputs. Units: those of the input. Cost: n0 + n
forwards for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from torch import Tensor

from robustkit.certify.confidence import holm
from robustkit.certify.randomized import Randomized
from robustkit.certify.sampler import Sampler, Vote
from robustkit.core.certificate import ABSTAIN
from robustkit.core.certifier import CERTIFIERS
from robustkit.core.errors import UsageError
from robustkit.core.keyed import default_ids
from robustkit.core.model import Model
from robustkit.core.options import method

Array = NDArray[Any]


@CERTIFIERS.register("smoothing", paper="https://arxiv.org/abs/1902.02918")
@method
class Smoothing(Randomized):
    """Randomized smoothing: a certified L2 radius from how often the network answers alike under Gaussian noise.

    >>> round(Smoothing(sigma=0.5, n=10_000).limit(), 4)  # all draws agree: sigma * Phi^-1(alpha ** (1 / n))
    1.5993
    """

    correction: Literal["bonferroni", "holm"] = Field(
        default="bonferroni",
        description="dense outputs: how alpha is shared among pixels; holm is sharper and needs a radius",
    )

    @model_validator(mode="after")
    def _one_test(self) -> Any:
        if self.correction == "holm" and self.bound == "two-sided":
            raise ValueError("bound=one-sided with correction=holm")
        return self

    def votes(self, model: Model) -> tuple[Vote, ...]:
        return (Vote("whole", model, self.sigma),)

    def radius_of(self, lower: Sequence[Array]) -> Array:
        return np.asarray(self.sigma * ndtri(lower[0]))

    def radius_between(self, lower: Sequence[Array], upper: Sequence[Array]) -> Array:
        return np.asarray(self.sigma / 2 * (ndtri(lower[0]) - ndtri(upper[0].max(1))))

    def level(self, radius: float) -> float:
        return float(ndtr(radius / self.sigma))

    def check(self, model: Model, shape: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().check(model, shape, outputs)
        if self.correction == "holm" and len(outputs) == 3 and self.radius is None:
            raise UsageError(
                "Holm's correction tests one radius for all pixels",
                expected="a radius",
                got="none",
                where=self.text,
                fix="Add radius=0.1, or use correction=bonferroni.",
            )

    def _shown(self, radius: Array, hits: Tensor, sampler: Sampler) -> tuple[Array, NDArray[np.bool_]]:
        if self.correction == "bonferroni" or hits.ndim < 4:
            return super()._shown(radius, hits, sampler)
        asked = float(self.radius or 0.0)
        p = min(self.level(asked) + sampler.noise.slack, 1.0)
        values = binom.sf(hits[0].cpu().numpy() - 1, self.n, p)
        certified = holm(values.reshape(len(values), -1), self.alpha).reshape(values.shape)
        # all of alpha is spent on the radius asked for: nothing is said of any other
        return np.where(certified, asked, 0.0), certified

    def predict(
        self, model: Model, x: Tensor, *, ids: Tensor | None = None, seed: int = 0, batch: int | None = None
    ) -> Tensor:
        """The class of the smoothed classifier from n draws; -1 where it is not clear with error alpha.

        The two most frequent answers are compared by a two-sided binomial test (the paper's PREDICT). (N,), or
        (N, H, W) of dense outputs, where alpha is that of each pixel. Inputs may lie outside of the bounds.

        Raises:
            UsageError: as when called, but for the bounds.
        """
        ids = default_ids(len(x)) if ids is None else ids
        self._check(model, x, ids, batch)
        with model.frozen(seed), torch.no_grad():
            sampler = self.sampler_for(model, x, ids=ids, seed=seed, batch=batch)
            top = sampler.counts("predict", self.n)[0, :, :-1].topk(2, dim=1)
        first, second = (counts.numpy() for counts in top.values.cpu().unbind(1))
        # at one half the two tails are alike
        clear = (first > second) & (2 * binom.sf(first - 1, first + second, 0.5) <= self.alpha)
        return torch.where(torch.from_numpy(clear), top.indices[:, 0].cpu(), ABSTAIN)
