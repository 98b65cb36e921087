"""Attacks of other libraries through our wrapper: the points are theirs; verdict, bounds, count and books are ours.

A library is handed :class:`Seen`, a module from images in [0, 1] to outputs, whatever the bounds of the model are, and
gives back one point for every sample. What it says about that point is not asked: the network is. A point counts where
it is adversarial and no farther than eps, wherever the search for it went.

Shapes: x, points (N, *S); y, target (N,). Units: those of ``model.bounds``, but for what the library sees: [0, 1].
"""

from __future__ import annotations

import inspect
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.errors import RobustkitError, UsageError, near
from robustkit.core.model import Model
from robustkit.core.nearest import Nearest
from robustkit.core.objective import LabelObjective
from robustkit.core.options import method
from robustkit.core.registry import options_of
from robustkit.core.search import Problem, Search
from robustkit.core.specs import MethodSpec, parse_fraction
from robustkit.core.task import Classification
from robustkit.core.threat import THREATS, Threat
from robustkit.core.types import Bounds
from robustkit.kernels.balls import norm, per_sample
from robustkit.kernels.noise import key_of

ROUNDING = 1e-5
"""Points that lie outside the threat by no more than this, relative to eps, do so by rounding, and are put back."""
RADII = ("eps", "max_epsilon")
"""How libraries call the radius."""


class Seen(nn.Module):
    """A wrapped model as another library takes it: images in [0, 1] to outputs, every pass counted.

    Its own parameter is a place only: libraries ask for its device. The network is no part of it, so that nothing a
    library does to modules and parameters reaches the network.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model, self._bounds = model, model.bounds
        self.place = nn.Parameter(torch.zeros((), device=model.device, dtype=model.dtype), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._model(scaled(x.to(self.place), self._bounds))
        if outputs.requires_grad:
            outputs.register_hook(self._counter(len(x)))
        return outputs

    def _counter(self, n: int) -> Callable[[Tensor], None]:
        """Called with every gradient that passes the outputs of n samples."""

        def count(_: Tensor) -> None:
            self._model.cost.backwards += n * self._model.eot

        return count


@dataclass(frozen=True, eq=False)
class Case:
    """What a library is asked for.

    Attributes:
        net: the model.
        x, y, target: samples in [0, 1] (N, *S), labels (N,), classes to reach (N,) or None.
        norm, eps: of the threat, in the units of x.
        classes: outputs of the network.
        seed: for the library's draws, in 31 bits.
    """

    net: Seen
    x: Tensor
    y: Tensor
    target: Tensor | None
    norm: str
    eps: float
    classes: int
    seed: int

    @property
    def labels(self) -> Tensor:
        """The labels that a targeted or an untargeted attack is called with, (N,)."""
        return self.y if self.target is None else self.target


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

    def _check_inside(self, search: Nearest, points: Tensor) -> None:
        """A class that was given a radius keeps to it, or works in another norm: its figure would mean nothing."""
        distance = search.threat.distance(points, search.x)
        moved, outside = distance > 0, distance > search.threat.eps
        if not self.limited or not moved.any():
            return
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
        self._check_inside(search, found)

    def _case(self, search: Nearest) -> Case:
        model, problem, x, objective = search.model, search.problem, search.x, search.problem.objective
        if not isinstance(model.task, Classification) or not isinstance(objective, LabelObjective):
            raise UsageError(
                "attacks of other libraries are for classifiers",
                expected="task classification",
                got=f"task {model.task.name}",
                where=self.text,
            )
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


def scaled(x: Tensor, bounds: Bounds) -> Tensor:
    """From [0, 1] to the bounds; bit for bit the same where these are [0, 1]."""
    return x if (bounds.low, bounds.high) == (0, 1) else bounds.low + bounds.width * x


def returned(points: Tensor, given: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
    """Points of a library (N, *S) in the units and bounds of x, which lies at ``given`` in [0, 1].

    What was not moved is x itself, bit for bit; so is a sample with a value that is not finite.

    Raises:
        UsageError: another shape.
    """
    if points.shape != x.shape:
        raise UsageError(
            "the library returned another shape", expected=str(tuple(x.shape)), got=str(tuple(points.shape))
        )
    points = points.detach().to(given)
    found = bounds.clamp(torch.where(points == given, x, scaled(points, bounds)))
    return torch.where(per_sample(found.isfinite().flatten(1).all(1), x), found, x)


def settled(points: Tensor, x: Tensor, threat: Threat, bounds: Bounds) -> Tensor:
    """The points, those put back into the threat that lie outside by rounding only, (N, *S).

    A projection ends within a digit of eps, on either side; the last digits of the pixels are then stepped towards x.
    """
    digit = torch.finfo(x.dtype).eps * max(abs(bounds.low), abs(bounds.high))
    room = threat.eps * (1 + ROUNDING) + norm(torch.full_like(x, digit), threat.p)
    distance = threat.distance(points, x)
    outside = (distance > threat.eps) & (distance <= room)
    points = torch.where(per_sample(outside, x), threat.project(points, x, bounds), points)
    for _ in range(8):
        over = outside & (threat.distance(points, x) > threat.eps)
        if not over.any():
            break
        points = torch.where(per_sample(over, x), torch.nextafter(points, x), points)
    return points


def spread(total: int, like: Tensor) -> Tensor:
    """``total`` passes over N samples as evenly as whole numbers go, (N,); they sum to the total.

    >>> spread(7, torch.zeros(3))
    tensor([3, 2, 2])
    """
    n = len(like)
    return total // n + (torch.arange(n, device=like.device) < total % n).long()


@contextmanager
def private(seed: int) -> Iterator[None]:
    """Global generators of numpy and random for a library to read and seed; both are put back. torch's: ``frozen``."""
    ours, plain = np.random.get_state(), random.getstate()
    try:
        np.random.set_state(np.random.RandomState(seed).get_state())
        random.setstate(random.Random(seed).getstate())
        yield
    finally:
        np.random.set_state(ours)
        random.setstate(plain)
