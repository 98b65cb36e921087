"""What every iterative attack shares: which samples still stand, the best point of each, what it cost.

An attack asks for gradients and proposes points; the search records every verdict on the way, lets broken samples
leave the computation, and keeps the books. Inner steps run on the fast copy of the network, scores on the network
itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.objective import Functions, LabelObjective, Objective
from robustkit.core.threat import Eps, Threat
from robustkit.kernels.balls import per_sample

COMPACT_BELOW = 0.75
"""Broken samples leave when fewer than this share of the batch still stands: each leaving copies the batch once."""
CUDA_CHECK = 4
"""Gradients between two looks at how many still stand: on CUDA each look waits for the device."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What to attack: x (N, *S), the objective, the threat, randomness; where they are known a starting point, and the
    classes (N, K) of x from the likeliest down."""

    x: Tensor
    objective: Objective
    threat: Threat
    draws: Draws
    start: Tensor | None = None
    ranking: Tensor | None = None

    def take(self, index: Tensor) -> Problem:
        """The same for some of the samples."""
        return Problem(
            self.x[index],
            self.objective.take(index),
            self.threat.take(index),
            self.draws.take(index),
            None if self.start is None else self.start[index],
            None if self.ranking is None else self.ranking[index],
        )


class Search:
    """The state of an attack on a batch.

    Attributes:
        adversarial: (N, *S), the clean input where nothing was found.
        found: (N,) bool, as seen on the way.
        last: (N, *S), the last point scored; x before that.
        loss: (N,), largest objective seen.
        step: (N,), gradient steps taken before the first success; -1 where there is none.
        forwards, backwards: (N,), samples passed, in the count of each sample.
        exact: whether inner steps, too, run on the network itself.
    """

    def __init__(self, model: Model, problem: Problem, *, exact: bool = False) -> None:
        x = problem.x
        self.model, self.problem, self.exact = model, problem, exact
        self.active: Problem = problem
        self.taken, self._wide = 0, False
        self._inner = model if exact else model.fast(x)
        self.adversarial = x.clone()
        self.last = x.clone()
        self.found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.loss = x.new_full((len(x),), -torch.inf)
        self.step = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
        self.forwards = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.backwards = self.forwards.clone()
        self._activate(torch.arange(len(x), device=x.device))

    # -- what an attack calls ------------------------------------------------------------------------------------

    @property
    def x(self) -> Tensor:
        """The samples in the computation, (M, *S)."""
        return self.active.x

    @property
    def threat(self) -> Threat:
        """Their threat."""
        return self.active.threat

    @property
    def won(self) -> Tensor:
        """(N,) bool: samples of which nothing more is wanted."""
        return self.found

    @property
    def done(self) -> bool:
        """Nothing is left to attack."""
        return len(self.index) == 0

    def begin(self, restart: int, *, random: bool) -> Tensor:
        """Start over with the samples that still stand: from the given start, a random point, or x; (M, *S)."""
        self._flush()
        self._activate((~self.won).nonzero()[:, 0])
        self.taken, self._wide = 0, False
        if self.active.start is not None and restart == 0:
            return self.threat.project(self.active.start, self.x, self.model.bounds)
        if random:
            return self.threat.start(self.x, self.model.bounds, self.active.draws.again(restart))
        return self.x

    def gradient(self, adv: Tensor) -> Tensor:
        """The gradient of the objective at ``adv`` (M, *S); the verdicts on ``adv`` are recorded. One F, one B."""
        return self.value_and_grad(adv)[1]

    def value_and_grad(self, adv: Tensor) -> tuple[Tensor, Tensor]:
        """The objective (M,) and its gradient (M, *S) at ``adv``, recorded. One F, one B."""
        value, grad, outputs = self._inner.value_and_grad(adv, self.active.objective)
        self._seen(adv, value, outputs, backwards=1)
        return value, grad

    def jacobian(self, adv: Tensor, functions: Functions) -> tuple[Tensor, Tensor]:
        """Values (M, K) of several functions of the outputs and their gradients (M, K, *S), recorded. One F, K B."""
        values, grads, outputs = self._inner.jacobian(adv, functions)
        self._seen(adv, self.active.objective(outputs), outputs, backwards=values.shape[1])
        return values, grads

    def query(self, adv: Tensor) -> Tensor:
        """The objective (M,) at ``adv``, recorded; no gradient is asked for. One F."""
        outputs = self._inner(adv)
        value = self.active.objective(outputs)
        self._seen(adv, value, outputs, backwards=0)
        return value

    def at(self, progress: float) -> None:
        """Say which share of the steps is done, for objectives that change on the way."""
        self.active = replace(self.active, objective=self.active.objective.at(progress))

    def aim(self, classes: Tensor) -> None:
        """Steer the objective towards ``classes`` (M,) until the next start; any mistake still counts."""
        self.active = replace(self.active, objective=self.active.objective.aimed(classes))

    def ranking(self) -> Tensor:
        """The classes (M, K) of the clean inputs, likeliest first. One F where nobody has asked before."""
        if self.problem.ranking is None:
            outputs = self.model(self.problem.x)
            self.forwards += 1
            ranking = outputs.argsort(dim=1, descending=True, stable=True)
            self.problem = replace(self.problem, ranking=ranking)
            self.active = replace(self.active, ranking=ranking[self.index])
        found = self.active.ranking
        assert found is not None
        return found

    def rivals(self) -> Tensor:
        """The classes (M, K - 1) other than the label, likeliest first on the clean inputs."""
        ranking, objective = self.ranking(), self.active.objective
        assert isinstance(objective, LabelObjective)
        order = (ranking == objective.y[:, None]).long().argsort(dim=1, stable=True)
        return ranking.gather(1, order)[:, :-1]

    def widen(self, factor: float) -> None:
        """Search in a ball ``factor`` times as large; what is seen outside the threat is not recorded."""
        threat = self.problem.threat.take(self.index)
        self.active = replace(self.active, threat=threat.at(threat.eps * factor))
        self._wide = factor > 1

    def advance(self, adv: Tensor, grad: Tensor, size: Eps) -> Tensor:
        """One step of steepest ascent, back onto the threat set."""
        return self.threat.step(adv, self.x, grad, size, self.model.bounds)

    def score(self, adv: Tensor) -> None:
        """Record the verdicts of the network itself on ``adv`` (M, *S). One F."""
        if self.done:
            return
        outputs = self.model(adv)
        self.forwards[self.index] += 1
        self.last[self.index] = adv
        self._record(adv, self.active.objective(outputs), outputs)

    def compact(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Let broken samples leave, here and in the tensors of the attack, when enough are broken to pay for it."""
        if self.x.is_cuda and self.taken % CUDA_CHECK:
            return tensors
        standing = ~self._gone()
        if int(standing.sum()) >= COMPACT_BELOW * len(standing):
            return tensors
        keep = standing.nonzero()[:, 0]
        self._flush()
        self._activate(self.index[keep], self.active.take(keep))
        return tuple(tensor[keep] for tensor in tensors)

    def remaining(self) -> tuple[Tensor, Problem]:
        """The samples that still stand: where they are, and the problem they pose."""
        self._flush()
        index = (~self.won).nonzero()[:, 0]
        self._activate(index[:0])  # what comes next is another search's: nothing of this one may be written over it
        return index, self.problem.take(index)

    def absorb(self, index: Tensor, part: Search) -> None:
        """Take over what a search on the samples ``index`` found and what it spent."""
        won = part.won
        self.step[index] = torch.where(won, self.backwards[index] + part.step, -1)
        self.adversarial[index[won]] = part.adversarial[won]
        self.last[index], self.loss[index] = part.last, torch.fmax(self.loss[index], part.loss)
        self.found[index[won]] = True
        self.forwards[index] += part.forwards
        self.backwards[index] += part.backwards
        self._learn(index, part.problem.ranking)

    # -- books ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Bring the books of the whole batch up to date."""
        self._flush()

    def _learn(self, index: Tensor, ranking: Tensor | None) -> None:
        """Keep a ranking of the samples ``index``; of the others, which are broken, nobody asks again."""
        if ranking is not None and self.problem.ranking is None:
            whole = ranking.new_zeros((len(self.found), ranking.shape[1]))
            whole[index] = ranking
            self.problem = replace(self.problem, ranking=whole)

    def _activate(self, index: Tensor, active: Problem | None = None) -> None:
        self.index = index
        self.active = active if active is not None else self.problem.take(index)
        self._kept, self._best, self._when = self.active.x, self.loss[index], self.step[index]
        self._broken = torch.zeros_like(index, dtype=torch.bool)
        self._forwards = self._backwards = 0

    def _gone(self) -> Tensor:
        """(M,) bool: samples with which the attack has done."""
        return self._broken

    def _seen(self, adv: Tensor, value: Tensor, outputs: Tensor, *, backwards: int) -> None:
        self._record(adv, value, outputs)
        self._forwards += 1
        self._backwards += backwards
        self.taken += 1

    def _record(self, adv: Tensor, value: Tensor, outputs: Tensor) -> None:
        if self._wide:
            return
        reached = self.active.objective.reached(outputs)
        new = reached & ~self._broken
        if new.is_cuda or bool(new.any()):  # on the CPU a look costs less than the copies
            self._kept = torch.where(per_sample(new, adv), adv, self._kept)
            self._when = torch.where(new, self.taken, self._when)
        self._best = torch.where(self._broken, self._best, torch.fmax(self._best, value.to(self._best.dtype)))
        self._broken = self._broken | reached

    def _flush(self) -> None:
        index = self.index
        self.forwards[index] += self._forwards
        self.backwards[index] += self._backwards
        self._forwards = self._backwards = 0
        self.loss[index] = self._best
        self.step[index] = self._when
        broken = index[self._broken]
        self.found[broken] = True
        self.adversarial[broken] = self._kept[self._broken]
