"""Suites: attacks in a row, each of which sees only the samples that still stand."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, final

from pydantic import Field

from robustkit.core.attack import ATTACKS, DEFAULT_THREAT, Attack
from robustkit.core.errors import UsageError, near
from robustkit.core.model import Model
from robustkit.core.nearest import MinimumNorm
from robustkit.core.objective import LabelObjective
from robustkit.core.options import method
from robustkit.core.search import Problem, Search
from robustkit.core.specs import MethodSpec
from robustkit.core.threat import Threat


@method
class Suite(Attack):
    """Several attacks as one: a sample is broken when any of them breaks it.

    Every stage begins from the clean input. An evaluation runs each stage as an attack of its own, with rows, resume
    and gain of its own; called from Python the suite gives the same verdicts in one result.
    """

    passes: ClassVar[int] = 1
    stages: str = Field(default="", description="only these stages, in this order, such as apgd-ce+square; empty: all")

    @abstractmethod
    def composition(self, norm: str) -> dict[str, str]:
        """Stage -> attack in text form, in the order of running, for a norm."""

    def parts(self, threat: Threat) -> dict[str, Attack]:
        """The chosen stages as attacks inside ``threat``.

        Raises:
            UsageError: an unknown stage, or one that is named twice.
        """
        known = self.composition(threat.norm)
        chosen = [name.strip() for name in self.stages.split("+")] if self.stages else list(known)
        for name in chosen:
            if name not in known or chosen.count(name) > 1:
                raise UsageError(
                    f"{ATTACKS.entry_of(self).name} cannot run the stage {name!r}",
                    expected=f"stages among {', '.join(known)}, each once",
                    got=self.stages,
                    where="stages",
                    fix=near(name, known),
                )
        return {name: _build(known[name], threat) for name in chosen}

    def check_threat(self, threat: Threat | None) -> None:
        super().check_threat(threat)
        self.parts(threat or DEFAULT_THREAT)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        for part in self.parts(self.threat or DEFAULT_THREAT).values():
            part.check_shape(shape)

    @final
    def perturb(self, search: Search) -> None:
        for part in self.parts(search.problem.threat).values():
            index, problem = search.remaining()
            if len(index) == 0:
                return
            search.absorb(index, _run(part, search.model, problem, search.exact))


def _build(text: str, threat: Threat) -> Attack:
    spec = MethodSpec.parse(text)
    attack: Attack = ATTACKS.get(spec.name).build(spec.options)
    if isinstance(attack, MinimumNorm):
        attack = replace(attack, stop_inside=True)
    return attack.with_threat(threat)


def _run(part: Attack, model: Model, problem: Problem, exact: bool) -> Search:
    """The stage on what still stands, with the draws and the loss that it has when it is called alone."""
    objective = problem.objective
    assert isinstance(objective, LabelObjective)
    own = part.objective(objective.task, objective.y, objective.target)
    draws = replace(problem.draws, purpose=part.purpose)
    return part.searched(model, replace(problem, objective=own, draws=draws), exact)
