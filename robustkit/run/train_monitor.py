"""How good the weights are on the part of the training data that is held out, and whether robustness has collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustkit.core.model import Model
from robustkit.core.types import Cost
from robustkit.run.train_plan import TrainPlan

AT_ONCE = 250
FALL = 0.2
"""Catastrophic overfitting: robust accuracy falls by more than this between two measurements."""


@dataclass(frozen=True)
class Measured:
    """Shares of the held-out samples that are right, and right under every attack; None without a threat."""

    clean: float
    robust: float | None
    cost: Cost

    @property
    def rank(self) -> tuple[float, float]:
        """What is compared to choose the best weights: robust accuracy first."""
        return (self.clean if self.robust is None else self.robust, self.clean)


def measure(plan: TrainPlan, model: Model) -> Measured:
    """Clean accuracy and the worst case over the fixed attacks, with the same draws every time.

    Samples that are wrong already, or broken by one attack, are not attacked by the next.
    """
    ids = plan.rows[1]
    right = standing = 0
    with model.metered(refund=True) as cost:
        for part in (ids[i : i + AT_ONCE] for i in range(0, len(ids), AT_ONCE)):
            clean, robust = _counts(plan, model, part)
            right, standing = right + clean, standing + robust
    return Measured(right / len(ids), standing / len(ids) if plan.selection else None, cost)


def _counts(plan: TrainPlan, model: Model, ids: Sequence[int]) -> tuple[int, int]:
    x, y = plan.inputs(ids)
    places = torch.tensor(ids)
    with model.frozen(plan.config.seed), torch.no_grad():
        left = (~model.task.failed(model(x), y)).nonzero()[:, 0]
    clean = len(left)
    for attack in plan.selection:
        if len(left):
            found = attack(model, x[left], y[left], ids=places[left.cpu()], seed=plan.config.seed)
            left = left[~found.success]
    return clean, len(left)


def collapse(before: Mapping[str, Any] | None, now: Measured) -> float | None:
    """By how much robust accuracy fell since the last measurement, where that is catastrophic overfitting.

    >>> collapse({"robust": 0.5}, Measured(0.9, 0.1, Cost()))
    0.4
    >>> collapse({"robust": 0.5}, Measured(0.9, 0.4, Cost())) is None
    True
    """
    if before is None or before["robust"] is None or now.robust is None:
        return None
    fall = float(before["robust"]) - now.robust
    return fall if fall > FALL else None
