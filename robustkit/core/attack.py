"""What every attack promises, kept in one place; the author of a method writes ``perturb``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.graded import search_for
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective, Loss
from robustkit.core.options import method
from robustkit.core.registry import Registry
from robustkit.core.search import Problem, Search
from robustkit.core.specs import NORMS
from robustkit.core.task import Task
from robustkit.core.threat import Linf, Threat
from robustkit.core.types import Cost
from robustkit.kernels.balls import per_sample

ATTACKS = Registry("robustkit.attacks")
DEFAULT_THREAT = Linf(8 / 255)
ROUNDING = 1e-6
"""How far, relative to their width, inputs may lie outside the bounds before that is an error and not rounding."""


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found.

    Attributes:
        adversarial: (N, *S), in threat and bounds; the clean input where the attack failed, and for tasks whose answers
            are wrong to a degree the worst point found, broken or not.
        success: (N,) bool, measured by the network itself on ``adversarial``.
        last: (N, *S), the last point tried: where a search in a larger ball may begin.
        distance: (N,), of ``adversarial``, in the norm of the threat.
        minimum: (N,), distance of the closest adversarial point found, which for a minimum-norm attack may lie outside
            the threat; inf where none was found.
        loss: (N,), the largest objective seen.
        first_success_step: (N,), gradient steps before the first success; -1 where there is none.
        forwards, backwards: (N,), passes spent on each sample.
        silent: (N,) bool, a point on the way was called adversarial but none could be returned.
        cost: passes in all.
    """

    adversarial: Tensor
    last: Tensor
    success: Tensor
    distance: Tensor
    minimum: Tensor
    loss: Tensor
    first_success_step: Tensor
    forwards: Tensor
    backwards: Tensor
    silent: Tensor
    cost: Cost


@method
class Attack(ABC):
    """The largest loss inside a threat, sample by sample.

    ``knowledge`` says what the attacker sees, ``norms`` in which norms the attack works, ``tasks`` for which tasks it
    is made (none: for all).

    Raises, when called:
        UsageError: x, y, target, ids or start do not fit the model or each other; NaN; x outside the bounds; a norm
            in which the attack does not work.
    """

    knowledge: ClassVar[Literal["white-box", "black-box"]] = "white-box"
    norms: ClassVar[tuple[str, ...]] = NORMS
    tasks: ClassVar[tuple[str, ...]] = ()
    threat: Threat | None = None
    loss: Loss = "ce"

    @final
    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        ids: Tensor | None = None,
        seed: int = 0,
        start: Tensor | None = None,
        ranking: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            model: from :func:`robustkit.wrap`.
            x: inputs (N, *S) inside the bounds of the model.
            y: labels (N,).
            target: labels to reach (N,); without them any mistake counts.
            ids: sample ids (N,) that key the random draws; 0 .. N-1 by default.
            seed: of the random draws.
            start: points (N, *S) to begin the first restart from.
            ranking: classes (N, K) of x from the likeliest down, where they are known: saves a forward of attacks that
                choose their targets by it.
        """
        ids = default_ids(len(x)) if ids is None else ids
        _check(model, x, y, target, ids, start)
        _check_ranking(ranking, x)
        self.check_threat(self.threat)
        self.check_task(model.task)
        self.check_shape(tuple(x.shape[1:]))
        x = x.detach()
        if len(x) == 0:
            return _nothing(x)
        problem = Problem(
            x,
            self.objective(model.task, y, target),
            self.inside(x, model),
            Draws(seed, ids.cpu(), self.purpose),
            start,
            ranking,
        )
        with model.frozen(seed), model.metered() as cost:
            search = self.searched(model, problem)
            found, silent = self._verify(model, problem, search)
        distance = problem.threat.distance(search.adversarial, x)
        inside = self.counts(distance, problem.threat)
        success = found & inside
        given = inside if problem.objective.graded else success
        return AttackResult(
            torch.where(per_sample(given, x), search.adversarial, x),
            search.last,
            success,
            torch.where(given, distance, 0),
            torch.where(found, distance, torch.inf),
            search.loss,
            torch.where(success, search.step, -1),
            search.forwards,
            search.backwards,
            silent,
            cost,
        )

    # -- what a method may change --------------------------------------------------------------------------------

    @abstractmethod
    def perturb(self, search: Search) -> None:
        """Propose points to the search until it is done or the budget of the method is spent."""

    @property
    def purpose(self) -> str:
        """What the random draws are for: two attacks of one purpose draw the same."""
        return ATTACKS.entry_of(self).name

    def objective(self, task: Task, y: Tensor, target: Tensor | None) -> LabelObjective:
        """What is maximised, and what counts as success."""
        return LabelObjective(task, y, target, self.loss)

    def inside(self, x: Tensor, model: Model) -> Threat:
        """The threat of these inputs."""
        return self.threat or DEFAULT_THREAT

    def counts(self, distance: Tensor, threat: Threat) -> Tensor:
        """(N,) bool: whether adversarial points at these distances are a success."""
        return torch.ones_like(distance, dtype=torch.bool)

    def check_threat(self, threat: Threat | None) -> None:
        """Whether the attack works in this norm.

        Raises:
            UsageError: it does not.
        """
        if threat is not None and threat.norm not in self.norms:
            raise UsageError(
                "the attack does not work in this norm",
                expected=" or ".join(self.norms),
                got=threat.text,
                where=ATTACKS.entry_of(self).name,
                fix="See `robustkit list attacks` for attacks in this norm.",
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:  # noqa: B027
        """Whether the attack can change inputs of this shape, without the batch; most take any.

        Raises:
            UsageError: it cannot.
        """

    def check_task(self, task: Task) -> None:
        """Whether the attack is made for such outputs.

        Raises:
            UsageError: it is not.
        """
        if self.tasks and task.name not in self.tasks:
            raise UsageError(
                "the attack is not made for this task",
                expected=" or ".join(self.tasks),
                got=task.name,
                where=ATTACKS.entry_of(self).name,
                fix="Use cospgd, segpgd, pgd or apgd on dense tasks, any other attack on classifiers.",
            )

    def searched(self, model: Model, problem: Problem, exact: bool = False) -> Search:
        """The books of a run of the attack; with ``exact`` also the inner steps are those of the network itself."""
        search = search_for(model, problem, exact=exact)
        self.perturb(search)
        search.finish()
        search.adversarial = problem.threat.project(search.adversarial, problem.x, model.bounds)
        return search

    # -- verification --------------------------------------------------------------------------------------------

    def _verify(self, model: Model, problem: Problem, search: Search) -> tuple[Tensor, Tensor]:
        """Success of what is returned, on the network itself, and what could not be confirmed.

        Where the fast copy and the network disagree (a margin of about 1e-6), the attack is run again on the network.
        """
        success = self._confirmed(model, problem, search)
        doubtful = (search.found & ~success).nonzero()[:, 0]
        if len(doubtful) == 0:
            return success, search.found & ~success
        part = problem.take(doubtful)
        again = self.searched(model, part, exact=True)
        success[doubtful] = self._confirmed(model, part, again)
        search.adversarial[doubtful] = again.adversarial
        search.step[doubtful] = again.step
        search.forwards[doubtful] += again.forwards
        search.backwards[doubtful] += again.backwards
        silent = torch.zeros_like(success)
        silent[doubtful] = again.found & ~success[doubtful]
        return success, silent

    @staticmethod
    def _confirmed(model: Model, problem: Problem, search: Search) -> Tensor:
        success = torch.zeros_like(search.found)
        index = search.found.nonzero()[:, 0]
        if len(index):
            success[index] = problem.objective.take(index).reached(model(search.adversarial[index]))
            search.forwards[index] += 1
        return success

    def with_threat(self, threat: Threat) -> Attack:
        """The same attack inside another threat.

        Raises:
            UsageError: the attack does not work in its norm.
        """
        self.check_threat(threat)
        return replace(self, threat=threat)


def _check(model: Model, x: Tensor, y: Tensor, target: Tensor | None, ids: Tensor, start: Tensor | None) -> None:
    if not isinstance(model, Model):
        raise UsageError(
            "attacks take a wrapped model",
            expected="a robustkit Model",
            got=type(model).__name__,
            where="model",
            fix="Wrap it once: model = robustkit.wrap(net, mean=..., std=...).",
        )
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise UsageError(
            "inputs must be a batch",
            expected="a tensor (N, ...)",
            got=f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__,
            where="x",
            fix="Add the batch dimension: x[None].",
        )
    for name, other in (("y", y), ("target", target), ("ids", ids), ("start", start)):
        if other is not None and len(other) != len(x):
            raise UsageError(
                f"x and {name} have different lengths", expected=f"{len(x)} samples", got=str(len(other)), where=name
            )
    if start is not None and start.shape != x.shape:
        raise UsageError(
            "start has another shape than x", expected=str(tuple(x.shape)), got=str(tuple(start.shape)), where="start"
        )
    model.check(x)
    if len(x) == 0:
        return
    check_inputs(x.detach(), model)
    shape = model.output_shape(x)
    for labels in (y, target):
        if labels is not None:
            model.task.check(torch.empty((1, *shape), device="meta"), labels)


def _check_ranking(ranking: Tensor | None, x: Tensor) -> None:
    if ranking is not None and (ranking.ndim != 2 or len(ranking) != len(x) or ranking.is_floating_point()):
        raise UsageError(
            "a ranking holds classes, likeliest first",
            expected=f"whole numbers of shape ({len(x)}, K)",
            got=f"{ranking.dtype} of shape {tuple(ranking.shape)}",
            where="ranking",
            fix="Leave it out, or give model(x).argsort(1, descending=True).",
        )


def check_inputs(x: Tensor, model: Model) -> None:
    """Inputs are finite and inside the bounds.

    Raises:
        UsageError: NaN, infinity, or outside.
    """
    low, high = float(x.min()), float(x.max())
    slack = ROUNDING * model.bounds.width
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        bad = (~x.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
        raise UsageError(
            "inputs hold NaN or infinity", got=f"{len(bad)} such samples, first at index {bad[0]}", where="x"
        )
    if low < model.bounds.low - slack or high > model.bounds.high + slack:
        raise UsageError(
            "inputs leave the bounds of the model",
            expected=f"values in [{model.bounds.low:g}, {model.bounds.high:g}]",
            got=f"[{low:.4g}, {high:.4g}]",
            where="x",
            fix="Do not normalise images yourself: give mean and std to wrap(). Divide 0-255 images by 255.",
        )


def _nothing(x: Tensor) -> AttackResult:
    none, never = x.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=x.device)
    count = torch.zeros(0, dtype=torch.long, device=x.device)
    return AttackResult(x, x, never, none, none, none, count, count, count, never, Cost())
