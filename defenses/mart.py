"""MART: adversarial training that looks harder at what is misclassified (https://openreview.net/forum?id=rklOg6EFwS).

``min E [BCE(f(x'), y) + lam * KL(p(x) || p(x')) * (1 - p_y(x))]`` with the boosted cross-entropy
``BCE = CE(f(x'), y) - log(1 - max_{k != y} p_k(x'))`` (eq. 7 to 11), x' from an attack on the cross-entropy.
Gradients pass through p(x) and through the weight 1 - p_y(x), as in the authors' code.
Shapes: x, x' (N, *S). Units: those of ``model.bounds``; losses in nats. Cost of a step: K + 2 forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustkit.core.defense import DEFENSES, AdversarialDefense
from robustkit.core.divergence import kl
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.options import method
from robustkit.core.starts import START, Start, start_of

FLOOR = 1e-12
"""What the authors' code adds inside logarithms."""
WEIGHT = 1.0000001
"""What it takes p_y(x) from, instead of 1."""


@DEFENSES.register("mart", paper="https://openreview.net/forum?id=rklOg6EFwS")
@method
class MART(AdversarialDefense):
    """MART: a boosted cross-entropy of adversarial inputs, plus the change of the answer where the label is in doubt.

    >>> MART(lam=6, guard=1.0001).text
    'mart:lam=6.0,guard=1.0001'
    """

    logits: ClassVar[bool] = True
    lam: float = Field(default=5.0, ge=0, description="weight of the divergence")
    guard: float | None = Field(
        default=None,
        ge=1,
        description="the logarithms of the authors' code, -log(guard - p), which gave 1.0001; exact ones by default",
    )
    random_start: Start = Field(default="uniform", description=START)

    @property
    def parts(self) -> int:
        return 2

    def start(self, lesson: Lesson) -> Tensor:
        return start_of(lesson, self.random_start)

    def craft(self, lesson: Lesson) -> Parts:
        return {"clean": lesson.x, "adversarial": self.attack(lesson)[-1]}

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        clean, adversarial, y = outputs["clean"], outputs["adversarial"], lesson.y
        weighted = doubtful_kl(clean, adversarial, y) if self.guard is None else guarded_kl(clean, adversarial, y)
        wrong = rival(adversarial, y) if self.guard is None else guarded_rival(adversarial, y, self.guard)
        return {
            "adversarial": lesson.cross_entropy(adversarial, self.label_smoothing).mean(),
            "margin": wrong.mean(),
            "kl": self.lam * weighted.mean(),
        }


def rival(logits: Tensor, y: Tensor) -> Tensor:
    """-log(1 - p_j), (N,), of the likeliest class j that is not ``y``; exact, with a gradient, also where p_j is 1.

    The probability of all other classes is not taken from 1: with r the logsumexp of their logits it is
    sigmoid(r - z_j).

    >>> rival(torch.tensor([[0.0, 200.0, 0.0]]), torch.tensor([0]))
    tensor([199.3069])
    """
    j = _likeliest_other(logits, y)
    rest = logits.scatter(1, j, -torch.inf).logsumexp(1)
    return -F.logsigmoid(rest - logits.gather(1, j)[:, 0])


def guarded_rival(logits: Tensor, y: Tensor, guard: float) -> Tensor:
    """-log(guard - p_j + 1e-12), (N,): 9.2 nats at most with a guard of 1.0001."""
    p = logits.softmax(1).gather(1, _likeliest_other(logits, y))[:, 0]
    return -(guard - p + FLOOR).log()


def doubtful_kl(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """KL(p(x) || p(x')) * (1 - p_y(x)), (N,)."""
    right = F.log_softmax(clean, 1).gather(1, y[:, None])[:, 0]
    return kl(clean, adversarial) * -torch.expm1(right)


def guarded_kl(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """The same, (N,), with 1e-12 in the logarithm of p(x') and a weight of 1.0000001 - p_y(x)."""
    p, q = clean.softmax(1), adversarial.softmax(1)
    apart = (p * (F.log_softmax(clean, 1) - (q + FLOOR).log())).sum(1)
    return apart * (WEIGHT - p.gather(1, y[:, None])[:, 0])


def _likeliest_other(logits: Tensor, y: Tensor) -> Tensor:
    """(N, 1)."""
    return logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
