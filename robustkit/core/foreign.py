"""Attacks of other libraries through our wrapper: the points are theirs; verdict, bounds, count and books are ours.

A library is handed :class:`Seen`, a module from images in [0, 1] to outputs, whatever the bounds of the model are, and
gives back one point for every sample. What it says about that point is not asked: the network is. A point counts where
it is adversarial and no farther than eps, wherever the search for it went.

Shapes: x, points (N, *S); y, target (N,). Units: those of ``model.bounds``, but for what the library sees: [0, 1].
"""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.errors import RobustkitError, UsageError, near
from robustkit.core.model import Model
from robustkit.core.nearest import Nearest
from robustkit.core.objective import LabelObjective
from robustkit.core.options import method
from robustkit.core.registry import options_of
from robustkit.core.search import Problem, Search
from robustkit.core.seen import ROUNDING, Case, Seen, private, returned, settled, spread
from robustkit.core.specs import MethodSpec, parse_fraction
from robustkit.core.threat import THREATS, Threat
from robustkit.kernels.balls import norm
from robustkit.kernels.noise import key_of

USED = 0.5
"""Share of eps that the points of a class which was given the radius reach, if it means to search the ball."""
RADII = ("eps", "max_epsilon")
"""How libraries call the radius."""


@method
class Foreign(Attack):
    """An attack of another library, by the name of its class; what else is given goes to that class.

    Where the class takes the radius, the norm, the number of classes or a seed, and they are not given, they are those
    of the threat, the network and the run. Its random draws depend on the batch.

    Raises, when called:
        UsageError: what :class:`Attack` raises; the library is not installed; it has no such class, or the class no
            such option; another norm than the threat's; points that leave the threat; a task other than
            classification; targets that the class cannot aim at; whatever the library raises.
    """

    foreign: ClassVar[bool] = True
    free: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    library: ClassVar[str]
    home: ClassVar[str]
    advice: ClassVar[str]

    name: str = Field(description="class of the library; any other option is one of that class")
    options: dict[str, Any] = Field(default_factory=dict)

    # -- what an adapter says --------------------------------------------------------------------------------------

    @abstractmethod
    def points(self, case: Case) -> Tensor:
        """What the library returns, (N, *S) in [0, 1]."""

    @abstractmethod
    def declared(self) -> tuple[str, ...]:
        """Norms in which the class works, where it says so; nothing where it does not."""

    @property
    def limited(self) -> bool:
        """Whether the class keeps to a radius that it is given; the others look for the nearest point."""
        return any(name in self.accepted() for name in RADII)

    def target_class(self) -> Any:
        """The class of the library.

        Raises:
            UsageError: no such class; the library is not installed.
        """
        return self.member(self.module(self.home), self.home)

    # -- what adapters use -----------------------------------------------------------------------------------------

    def module(self, name: str) -> Any:
        """A module of the library, imported when it is needed.

        Raises:
            UsageError: the library is not installed.
        """
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != self.home.partition(".")[0]:
                raise
            raise UsageError(f"{self.library} is not installed", where=self.text, fix=self.advice) from None

    def member(self, module: Any, where: str) -> Any:
        """The class ``name`` of a module."""
        found = getattr(module, self.name, None)
        if not isinstance(found, type):
            names = [name for name, value in vars(module).items() if isinstance(value, type)]
            raise UsageError(f"{where} has no class {self.name!r}", where=self.text, fix=near(self.name, names))
        return found

    def accepted(self) -> tuple[str, ...]:
        """Options of the class."""
        return tuple(inspect.signature(self.target_class()).parameters)

    @property
    def given(self) -> dict[str, Any]:
        """The options of the class that were given; text such as 8/255 as a number."""
        fraction = re.compile(r"[\d.]+/[\d.]+")
        return {k: parse_fraction(v, k) if fraction.fullmatch(str(v)) else v for k, v in self.options.items()}

    def filled(self, offers: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the class: those that were given, and of the offers those that it takes."""
        accepted = self.accepted()
        return {**{key: value for key, value in offers.items() if key in accepted}, **self.given}

    @property
    def text(self) -> str:
        """The text form, for messages."""
        return str(MethodSpec(ATTACKS.entry_of(self).name, options_of(self)))

    # -- checks ----------------------------------------------------------------------------------------------------

    def check_threat(self, threat: Threat | None) -> None:
        super().check_threat(threat)
        self._check_options()
        declared = self.declared() if threat is not None and self.limited else ()
        if threat is not None and declared and threat.norm not in declared:
            raise UsageError(
                f"{self.name} of {self.library} works in another norm than that of the threat",
                expected=f"a threat in {' or '.join(declared)}",
                got=threat.text,
                where=self.text,
                fix="Choose another class, or another threat.",
            )

    def _check_options(self) -> None:
        parameters = inspect.signature(self.target_class()).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for key in self.options:
            if key not in parameters:
                raise UsageError(
                    f"{self.name} of {self.library} has no option {key!r}", where=self.text, fix=near(key, parameters)
                )

    def _check_radius(self, search: Nearest, points: Tensor) -> None:
        """A class that was given a radius keeps to it and uses it: else its figure would mean nothing."""
        distance = search.threat.distance(points, search.x)
        if self.limited and (distance > 0).any():
            self._check_inside(search, points, distance)
            self._check_used(search, distance[~search.reached])

    def _check_used(self, search: Nearest, failed: Tensor) -> None:
        """Points that failed (K,) by distance: steps that were made for a smaller radius end far inside the threat."""
        farthest, eps = float(failed.max()) if len(failed) else 0.0, float(torch.as_tensor(search.threat.eps).max())
        if 0 < farthest < USED * eps:
            raise UsageError(
                f"{self.name} of {self.library} leaves most of the threat unsearched",
                expected=f"points up to {search.threat.text}",
                got=f"none that failed beyond {search.threat.norm}:{farthest:.4g}",
                where=self.text,
                fix="Its default steps are made for another radius: give longer ones, or more of them.",
            )

    def _check_inside(self, search: Nearest, points: Tensor, distance: Tensor) -> None:
        """In another norm most points lie outside the ball of the radius, or all of them in a much smaller one."""
        moved, outside = distance > 0, distance > search.threat.eps
        reach = {kind.norm: float(norm(points - search.x, kind.p).max()) for kind in THREATS.values()}
        said = f"{int(outside.sum())} of {int(moved.sum())} outside"
        if 2 * int(outside.sum()) <= int(moved.sum()):
            smaller = [] if self._says_norm() else self._smaller(search, reach)
            if not smaller:
                return
            said = f"points that keep to {' and '.join(smaller)} of the same radius, a much smaller ball"
        raise UsageError(
            f"{self.name} of {self.library} does not search in the threat",
            expected=f"points within {search.threat.text}",
            got=f"{said}; they fit in {', '.join(f'{name}:{size:.4g}' for name, size in reach.items())}",
            where=self.text,
            fix="It works in another norm, or was given another radius: choose the threat that its points fit in, or "
            "another class, or leave the radius out, which is then that of the threat.",
        )

    def _says_norm(self) -> bool:
        return bool(self.declared()) or "norm" in self.accepted()

    @staticmethod
    def _smaller(search: Nearest, reach: Mapping[str, float]) -> list[str]:
        """Norms of smaller balls of the same radius that hold every point; in one pixel alone all balls are one."""
        limit = float(torch.as_tensor(search.threat.eps).max()) * (1 + 10 * ROUNDING)
        kinds = [kind for kind in THREATS.values() if kind.p < search.threat.p] if search.x[0].numel() > 1 else []
        return [kind.norm for kind in kinds if reach[kind.norm] <= limit]

    # -- the run ---------------------------------------------------------------------------------------------------

    def counts(self, distance: Tensor, threat: Threat) -> Tensor:
        return distance <= threat.eps

    def searched(self, model: Model, problem: Problem, exact: bool = False) -> Search:
        search = Nearest(model, problem, exact=True)  # the library sees the network itself: no fast copy is made
        self.perturb(search)
        search.finish()
        return search

    @final
    def perturb(self, search: Search) -> None:
        assert isinstance(search, Nearest)
        case = self._case(search)
        points = self._run(search, case) if case.eps > 0 else case.x
        found = returned(points, case.x, search.x, search.model.bounds)
        found = settled(found, search.x, search.threat, search.model.bounds)
        search.score(found)
        self._check_radius(search, found)

    def _case(self, search: Nearest) -> Case:
        model, problem, x, objective = search.model, search.problem, search.x, search.problem.objective
        assert isinstance(objective, LabelObjective)
        return Case(
            Seen(model),
            ((x - model.bounds.low) / model.bounds.width).clamp(0, 1),
            objective.y,
            objective.target,
            problem.threat.norm,
            self._radius(problem.threat) / model.bounds.width,
            int(model.output_shape(x)[0]),
            key_of(problem.draws.seed, int(problem.draws.ids[0]), self.purpose, 0, 0) % 2**31,
        )

    def _radius(self, threat: Threat) -> float:
        eps = torch.as_tensor(threat.eps, dtype=torch.double)
        if float(eps.min()) != float(eps.max()):
            raise UsageError(
                "other libraries take one radius for all samples",
                expected="a number",
                got=f"{float(eps.min()):g} to {float(eps.max()):g}",
                where=self.text,
                fix="Attack the samples of each radius by themselves.",
            )
        return float(eps.max())

    def _run(self, search: Nearest, case: Case) -> Tensor:
        """The library's points; what they cost is spread evenly over the samples."""
        model = search.model
        with model.metered() as spent, model.frozen(case.seed), private(case.seed), torch.enable_grad():
            try:
                points = self.points(case)
            except RobustkitError:
                raise
            except Exception as error:
                raise self._refused(error) from error
        search.forwards += spread(spent.forwards // model.eot, case.y)
        search.backwards += spread(spent.backwards // model.eot, case.y)
        search.taken = spent.backwards // model.eot // len(case.y)
        return points

    def _refused(self, error: Exception) -> UsageError:
        first = str(error).strip().partition("\n")[0][:200]
        return UsageError(
            f"{self.name} of {self.library} stopped with an error",
            got=f"{type(error).__name__}: {first}".rstrip(": "),
            where=self.text,
            fix="Look at its options, and whether it takes such inputs, targets and this norm.",
        )
