"""RAT: regional adversarial training (https://arxiv.org/abs/2109.00678), a reconstruction.

The paper trains on points of a region that the path of the attack spans, with labels that are smoothed by their
distance from the input. Region, law, number of points and smoothing were not available to us: each is an option here.

``path = [x, x_1 .. x_K]``, PGD as in :mod:`robustkit.defenses.adversarial`; points z of the region:

- ``hull``: ``sum_k w_k x_k``, ``w ~ Dirichlet(concentration)``;
- ``segment``: ``x + u (x_K - x)``, ``u ~ U(0, 1)``;
- ``box``: each coordinate uniform between the least and the greatest of the path.

``loss = mean over {x_K, z_1 .. z_S} of CE(f(z), y; s(z))``, the label smoothed by ``s(z) = smoothing * |z - x| / eps``.
Shapes: x, z (N, *S); path (K + 1, N, *S). Units: those of ``model.bounds``. Cost of a step: K forwards and backwards of
the batch, and one of each for every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import gammaincinv
from torch import Tensor

from robustkit.core.defense import DEFENSES, AdversarialDefense
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.model import Model
from robustkit.core.options import method

Region = Literal["hull", "segment", "box"]


@DEFENSES.register("rat", paper="https://arxiv.org/abs/2109.00678")
@method
class RAT(AdversarialDefense):
    """Regional adversarial training: random points near the attack's path, labels softer further out (reconstruction).

    Raises, when stepped:
        UsageError: besides those of every defense: no perturbed point to train on; labels smoothed by 1 or more.

    >>> RAT(region="box", samples=2).parts
    3
    """

    logits: ClassVar[bool] = True
    region: Region = Field(
        default="hull", description="hull of the path, segment from the input to its end, or box around it"
    )
    samples: int = Field(default=1, ge=0, description="points of the region for every input, S")
    concentration: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="region=hull: of the Dirichlet weights; 1 is uniform, near 0 a point of the path, large its mean",
    )
    smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="label smoothing at distance eps, in proportion to the distance below"
    )
    origin: Literal["clean", "start"] = Field(
        default="clean", description="where the path begins: the input, or the random start of the attack"
    )
    endpoint: bool = Field(default=True, description="train on the end of the path, too")
    clean: bool = Field(default=False, description="train on the input, too")

    @property
    def parts(self) -> int:
        return self.clean + self.endpoint + self.samples

    @property
    def place(self) -> int:
        return int(self.clean)

    def check(self, model: Model, x: Tensor) -> None:
        super().check(model, x)
        if not self.endpoint and self.samples == 0:
            raise UsageError(
                "no perturbed input is trained on",
                expected="samples of 1 or more, or endpoint=true",
                got="samples=0, endpoint=false",
                where=self.name,
                fix="Use erm to train on clean inputs.",
            )
        if self.label_smoothing + self.smoothing >= 1:
            raise UsageError(
                "nothing of the label is left at distance eps",
                expected="label_smoothing + smoothing below 1",
                got=f"{self.label_smoothing:g} + {self.smoothing:g}",
                where=self.name,
            )

    def craft(self, lesson: Lesson) -> Parts:
        start, *rest = self.attack(lesson)
        path = [lesson.x if self.origin == "clean" else start, *rest]
        found = {"clean": lesson.x} if self.clean else {}
        if self.endpoint:
            found["adversarial"] = path[-1]
        return found | {f"region_{number}": z for number, z in enumerate(self.points(lesson, path), 1)}

    def points(self, lesson: Lesson, path: Sequence[Tensor]) -> Sequence[Tensor]:
        """Points of the region, (N, *S) each, inside ball and bounds."""
        if self.samples == 0:
            return ()
        draws = lesson.draws.child("region")
        if self.region == "hull":
            found = hull_points(path, dirichlet(draws, self.samples, len(path), self.concentration))
        elif self.region == "segment":
            found = segment_points(path, draws, self.samples)
        else:
            found = box_points(path, draws, self.samples)
        # Rounding moves a convex combination out by an ulp; the box leaves balls other than that of linf by far more.
        every = torch.arange(len(lesson.x)).repeat_interleave(self.samples)
        centres = lesson.x.repeat_interleave(self.samples, 0)
        inside = lesson.ball.take(every).project(found.flatten(0, 1), centres, lesson.model.bounds)
        return inside.unflatten(0, found.shape[:2]).unbind(1)  # type: ignore[no-any-return]

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        each = {
            name: lesson.cross_entropy(outputs[name], self.smoothing_of(lesson, z)).mean() for name, z in parts.items()
        }
        return {name: value / len(each) for name, value in each.items()}

    def smoothing_of(self, lesson: Lesson, z: Tensor) -> float | Tensor:
        """The label smoothing of each point (N,): grows with its distance from the input, never above that at eps."""
        if self.smoothing == 0:
            return self.label_smoothing
        distance = lesson.ball.distance(z, lesson.x)
        eps = torch.as_tensor(lesson.ball.eps, dtype=distance.dtype, device=distance.device)
        share = distance / eps.clamp_min(torch.finfo(distance.dtype).tiny)
        return self.label_smoothing + self.smoothing * share.clamp_max(1)


def dirichlet(draws: Draws, samples: int, size: int, concentration: float) -> Tensor:
    """Weights (N, samples, size) ~ Dirichlet(concentration), float64, on the CPU: the same wherever the network lies.

    Gamma(a) = Gamma(a + 1) U^(1/a), the first by its inverse distribution function, in logarithms: for a small
    concentration all weights but one are too small to be written down.
    """
    u, v = draws.uniform(torch.empty(len(draws.ids), 2, samples, size, dtype=torch.double)).numpy().swapaxes(0, 1)
    gammas = np.maximum(gammaincinv(concentration + 1, u), np.finfo(float).tiny)
    return torch.from_numpy(np.log(gammas) + np.log1p(-v) / concentration).softmax(-1)


def hull_points(path: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_k w_k x_k``, (N, S, *S) from weights (N, S, K + 1).

    Vertex by vertex: no second copy of the path, and no product of matrices, which some devices round to 10 bits.
    """
    points = torch.zeros_like(path[0][:, None].expand(-1, weights.shape[1], *path[0].shape[1:]))
    for vertex, weight in zip(path, weights.to(points).unbind(-1), strict=True):
        points.addcmul_(weight.reshape(*weight.shape, *[1] * (vertex.ndim - 1)), vertex[:, None])
    return points


def segment_points(path: Sequence[Tensor], draws: Draws, samples: int) -> Tensor:
    """``x_0 + u (x_K - x_0)``, (N, S, *S), u uniform."""
    first, last = path[0][:, None], path[-1][:, None]
    share = draws.uniform(first.new_empty(len(first), samples))
    return first + share.reshape(*share.shape, *[1] * (first.ndim - 2)) * (last - first)


def box_points(path: Sequence[Tensor], draws: Draws, samples: int) -> Tensor:
    """Each coordinate uniform between its least and its greatest value on the path, (N, S, *S)."""
    low, high = reduce(torch.minimum, path)[:, None], reduce(torch.maximum, path)[:, None]
    return low + draws.uniform(low.expand(-1, samples, *low.shape[2:])) * (high - low)
