"""DRS: two copies of a network, each trained on one noisy half of the pixels, for dual randomized smoothing.

Xia et al. (https://openreview.net/forum?id=C1sQBG6Sqp): the halves are those of :mod:`robustkit.certify.halves`.
``org`` is cross-entropy on one noisy view, ``sum_s CE(f_s(half_s(x + sigma e)), y)`` over both halves s.
``consistency`` takes m views and wants their answers to agree, with ``p`` the mean of their ``p_j``:

    sum_s mean_j CE_j + weight * (mean_j KL(p || p_j) + entropy * H(p)).

The halves share no weights and so no gradient: their sum trains each as if alone. One draw of noise serves both, which
see other pixels of it. The paper begins with a network that was trained on whole images.
Shapes: x (N, C, H, W); outputs of a view (N, 2, K) or (N, 2, K, H, W), left before right. Units: those of
``model.bounds``. Cost of a step: 2 forwards and backwards of the batch, 2 m with ``consistency``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.certify.halves import FILL, SIDES, Fill, SplitModel, check_images, keep
from robustkit.core.batchnorm import Forward, replaced
from robustkit.core.defense import DEFENSES, LossDefense
from robustkit.core.errors import UsageError
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.specs import Fraction
from robustkit.core.task import Classification, DenseClassification


@DEFENSES.register("drs", paper="https://openreview.net/forum?id=C1sQBG6Sqp")
@method
class DRS(LossDefense):
    """Training for dual smoothing: a network for each half of the image, on noisy inputs.

    The network becomes a :class:`SplitModel` of two copies; the one that was given stays as it is. One that is a
    SplitModel already is trained further, with its own fill.

    Raises, when stepped:
        UsageError: besides those of every defense: the network was not prepared; inputs that are no images; a task
            without classes.

    >>> DRS(sigma=0.5, recipe="consistency").text
    'drs:sigma=0.5,recipe=consistency'
    """

    sigma: Fraction = Field(default=0.25, gt=0, description="standard deviation of the noise, in units of the input")
    sigma_right: Fraction | None = Field(
        default=None, gt=0, description="noise of the right half, where it is not sigma"
    )
    recipe: Literal["org", "consistency"] = Field(
        default="org", description="org (cross-entropy of one noisy view) or consistency (of views that are to agree)"
    )
    views: int = Field(default=4, ge=1, description="m, noisy views of an input; of recipe=consistency")
    weight: float = Field(
        default=15.0, ge=0, allow_inf_nan=False, description="weight of the views' agreement; of recipe=consistency"
    )
    entropy: float = Field(
        default=0.05, ge=0, allow_inf_nan=False, description="weight of H(p) in the agreement; of recipe=consistency"
    )
    fill: Fill = Field(default="paper", description=FILL + "; a SplitModel has its own")
    shared: bool = Field(default=False, description="one network for both halves, instead of two")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the label that is given to all classes alike"
    )

    @property
    def parts(self) -> int:
        return 1 if self.recipe == "org" else self.views

    def prepare(self, model: Model) -> Model:
        if isinstance(model.net, SplitModel):
            return model
        return model.around(halved(model.net, self.fill, self.shared))

    def check(self, model: Model, x: Tensor) -> None:
        super().check(model, x)
        check_images(tuple(x.shape[1:]), self.name)
        if not isinstance(model.task, Classification | DenseClassification):
            raise UsageError(
                "the halves vote for classes",
                expected="task classification or segmentation",
                got=f"task {model.task.name}",
                where=self.name,
            )

    def craft(self, lesson: Lesson) -> Parts:
        size = self._size(lesson.x)
        draws = [lesson.draws, *(lesson.draws.child(f"view{number}") for number in range(1, self.parts))]
        return {f"noisy{number or ''}": lesson.x + size * draw.normal(lesson.x) for number, draw in enumerate(draws)}

    def forward(self, lesson: Lesson, parts: Parts) -> Mapping[str, Tensor]:
        """The logits of both halves for every view, (N, 2, K) or (N, 2, K, H, W); accuracy is that of the first."""
        net = lesson.model.net
        if not isinstance(net, SplitModel):
            raise UsageError(
                "the network has no halves yet",
                expected="a SplitModel",
                got=type(net).__name__,
                where="model",
                fix="Call model = defense.prepare(model) once, before the optimiser is made.",
            )
        with replaced([net], _apart):
            outputs = lesson.passed(parts, times=len(SIDES))
        first = next(iter(outputs.values()))
        lesson.judge(dict(zip(SIDES, first.unbind(1), strict=True)))
        return outputs

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        halves = torch.stack(list(outputs.values())).unbind(2)  # of each side (m, N, K, *P)
        terms: dict[str, Tensor] = {}
        for side, views in zip(SIDES, halves, strict=True):
            terms[side] = self._cross_entropy(lesson, views)
        if self.recipe == "org":
            return terms
        agree = torch.stack([disagreement(views, self.entropy) for views in halves])
        return {**terms, "consistency": self.weight * agree.sum()}

    def _cross_entropy(self, lesson: Lesson, views: Tensor) -> Tensor:
        return torch.stack([lesson.cross_entropy(logits, self.label_smoothing).mean() for logits in views]).mean()

    def _size(self, x: Tensor) -> Tensor | float:
        """Standard deviation of the noise: of all pixels, or of each, (H, W)."""
        if self.sigma_right is None:
            return self.sigma
        return torch.where(keep(x, "left"), self.sigma, self.sigma_right).to(x.dtype)


def halved(net: nn.Module, fill: Fill = "paper", shared: bool = False) -> SplitModel:
    """Two copies of a network, or one, for the halves of an image; in the mode that it is in.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        copies = [copy.deepcopy(net) for _ in range(1 if shared else 2)]
    except Exception as error:  # whatever the parts of a network raise
        raise UsageError(
            "the network cannot be copied, so there are no two for the halves",
            got=f"{type(error).__name__}: {error}".partition("\n")[0][:200],
            where="model",
            fix="Give a SplitModel of your own.",
        ) from error
    split = SplitModel(copies[0], copies[-1], fill)
    split.training = net.training
    return split


def disagreement(views: Tensor, entropy: float) -> Tensor:
    """Mean over samples (and pixels) of ``mean_j KL(p || p_j) + entropy * H(p)``, ``p = mean_j p_j``.

    Args:
        views: logits (m, N, K, *P).
        entropy: weight of H(p).
    """
    logs = views.log_softmax(2)
    mean = logs.logsumexp(0) - math.log(len(views))
    p = mean.exp()
    divergence = (p * (mean - logs.mean(0))).sum(1)
    return (divergence - entropy * (p * mean).sum(1)).mean()


def _apart(net: SplitModel) -> Forward:
    return lambda x: torch.stack(net.apart(x), 1)
