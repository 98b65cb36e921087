"""The search where an answer is wrong to a degree, as in segmentation: the worst point is kept, not the first bad one.

No sample leaves before the steps are spent, and every sample gets a point, broken or not: the metrics of a dense task
count all of them. Among points whose verdict is the same the one of the largest harm stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.model import Model
from robustkit.core.search import Problem, Search
from robustkit.kernels.balls import per_sample


class GradedSearch(Search):
    """A search that keeps the worst point of each sample.

    Attributes:
        harm: (N,), of ``adversarial``, as seen on the way; -inf before the first point.
    """

    def __init__(self, model: Model, problem: Problem, *, exact: bool = False) -> None:
        self.harm = problem.x.new_full((len(problem.x),), -torch.inf)
        super().__init__(model, problem, exact=exact)

    @property
    def won(self) -> Tensor:
        return torch.zeros_like(self.found)

    def absorb(self, index: Tensor, part: Search) -> None:
        assert isinstance(part, GradedSearch)
        better = _worse(part.found, part.harm, self.found[index], self.harm[index])
        first = (self.step[index] < 0) & (part.step >= 0)
        self.step[index] = torch.where(first, self.backwards[index] + part.step, self.step[index])
        chosen = index[better]
        self.adversarial[chosen], self.harm[chosen] = part.adversarial[better], part.harm[better]
        self.found[chosen] = part.found[better]
        self.last[index], self.loss[index] = part.last, torch.fmax(self.loss[index], part.loss)
        self.forwards[index] += part.forwards
        self.backwards[index] += part.backwards
        self._learn(index, part.problem.ranking)

    def _activate(self, index: Tensor, active: Problem | None = None) -> None:
        super()._activate(index, active)
        self._kept, self._harm, self._broken = self.adversarial[index], self.harm[index], self.found[index]

    def _gone(self) -> Tensor:
        return torch.zeros_like(self._broken)

    def _record(self, adv: Tensor, value: Tensor, outputs: Tensor) -> None:
        if self._wide:
            return
        reached = self.active.objective.reached(outputs)
        harm = self.active.objective.harm(outputs).to(self._harm.dtype)
        better = _worse(reached, harm, self._broken, self._harm)
        self._kept = torch.where(per_sample(better, adv), adv, self._kept)
        self._harm = torch.where(better, harm, self._harm)
        self._when = torch.where(reached & (self._when < 0), self.taken, self._when)
        self._broken = self._broken | reached
        self._best = torch.fmax(self._best, value.to(self._best.dtype))

    def _flush(self) -> None:
        super()._flush()
        self.adversarial[self.index], self.harm[self.index] = self._kept, self._harm


def _worse(reached: Tensor, harm: Tensor, before: Tensor, most: Tensor) -> Tensor:
    """(N,) bool: a point that breaks beats one that does not; of two alike the more harmful does."""
    return (reached & ~before) | ((reached == before) & (harm > most))


def search_for(model: Model, problem: Problem, *, exact: bool = False) -> Search:
    """The search that suits the objective."""
    return (GradedSearch if problem.objective.graded else Search)(model, problem, exact=exact)
