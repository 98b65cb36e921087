"""Kullback-Leibler divergence between answers of a network: what TRADES and its relatives weigh, and attack.

``KL(p || q) = sum_k p_k (log p_k - log q_k)`` of class probabilities, taken from logits by log-softmax, so that
confident answers neither overflow nor lose their gradient. Shapes: logits (N, C), values (N,). Unit: nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.nn import functional as F

from robustkit.core.objective import LabelObjective


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of the probabilities that two sets of logits (N, C) stand for, (N,); differentiable in both.

    >>> kl(Tensor([[0.0, 0.0]]), Tensor([[0.0, 100.0]]))
    tensor([49.3069])
    """
    return F.kl_div(F.log_softmax(q, 1), F.log_softmax(p, 1), reduction="none", log_target=True).sum(1)


@dataclass(frozen=True, eq=False)
class Divergence(LabelObjective):
    """Away from the answers that the network gave elsewhere: an attack that uses no label.

    Attributes:
        answers: logits (N, C) at the clean inputs, constants of the attack.
    """

    answers: Tensor = field(kw_only=True)

    def __call__(self, outputs: Tensor) -> Tensor:
        return kl(self.answers, outputs)

    def take(self, index: Tensor | slice) -> Divergence:
        return replace(self, y=self.y[index], answers=self.answers[index])
