"""Threat models: which perturbations count. A value, not a mode: it starts, steps, projects and measures.

All of them act inside the bounds of the model: the threat set of x is {x' in bounds: ||x' - x|| <= eps}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.specs import ThreatSpec
from robustkit.core.types import Bounds
from robustkit.kernels import balls
from robustkit.kernels.fill import fill_l1_box
from robustkit.kernels.l1 import project_l1_box

Eps = float | Tensor


@dataclass(frozen=True)
class Threat(ABC):
    """All x' within ``eps`` of x, in the units of the model's bounds.

    Attributes:
        eps: radius; a float, or a tensor (N,) with one radius per sample.

    Raises:
        UsageError: eps is negative, not finite, or a tensor that is not (N,).
    """

    eps: Eps
    norm: ClassVar[str]
    p: ClassVar[float]

    def __post_init__(self) -> None:
        eps = torch.as_tensor(self.eps, dtype=torch.double) if not isinstance(self.eps, Tensor) else self.eps
        if isinstance(self.eps, Tensor) and eps.ndim != 1:
            raise UsageError(
                "eps must be one number or one per sample",
                expected="a float or a tensor (N,)",
                got=f"a tensor of shape {tuple(eps.shape)}",
                where=type(self).__name__,
            )
        if eps.numel() and not bool(((eps >= 0) & eps.isfinite()).all()):
            raise UsageError("eps must be finite and >= 0", got=str(self.eps), where=type(self).__name__)

    @property
    def text(self) -> str:
        """The form that stands in files and on the command line, such as ``linf:0.2``."""
        return f"{self.norm}:{'per-sample' if isinstance(self.eps, Tensor) else format(self.eps, '.6g')}"

    @property
    def exact(self) -> str:
        """The same with every digit of eps, so that it is read back to an equal threat; of one eps alone."""
        return f"{self.norm}:{self.eps!r}"

    @abstractmethod
    def start(self, x: Tensor, bounds: Bounds, draws: Draws) -> Tensor:
        """A uniform point of the ball, cut to the bounds, (N, *S)."""

    @abstractmethod
    def step(self, adv: Tensor, x: Tensor, grad: Tensor, size: Eps, bounds: Bounds) -> Tensor:
        """From ``adv`` by ``size`` along the steepest ascent of ``grad`` in this norm, back onto the threat set."""

    @abstractmethod
    def project(self, adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """A point of the threat set for every point; points inside are returned unchanged."""

    @abstractmethod
    def everything(self, x: Tensor, bounds: Bounds) -> float:
        """The radius at which the ball around any x holds all of the bounds."""

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """(N,), in this norm."""
        return balls.norm(adv - x, self.p)

    def take(self, index: Tensor | slice) -> Threat:
        """The threat of some of the samples."""
        return self.at(self.eps[index]) if isinstance(self.eps, Tensor) else self

    def at(self, eps: Eps) -> Threat:
        """The same norm at another radius."""
        return replace(self, eps=eps)


@dataclass(frozen=True)
class Linf(Threat):
    """l-infinity ball: every pixel may move by eps.

    >>> Linf(8 / 255).text
    'linf:0.0313725'
    """

    norm = "linf"
    p = torch.inf

    def start(self, x: Tensor, bounds: Bounds, draws: Draws) -> Tensor:
        return self.project(x + balls.uniform_linf(self.eps, 2 * draws.uniform(x) - 1), x, bounds)

    def step(self, adv: Tensor, x: Tensor, grad: Tensor, size: Eps, bounds: Bounds) -> Tensor:
        return balls.step_linf(adv, x, grad, size, self.eps, bounds.low, bounds.high)

    def project(self, adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        return balls.project_linf_box(adv, x, self.eps, bounds.low, bounds.high)

    def everything(self, x: Tensor, bounds: Bounds) -> float:
        return bounds.width


@dataclass(frozen=True)
class L2(Threat):
    """l2 (Euclidean) ball."""

    norm = "l2"
    p = 2.0

    def start(self, x: Tensor, bounds: Bounds, draws: Draws) -> Tensor:
        point = balls.uniform_l2(self.eps, draws.normal(x), draws.child("radius").uniform(x[:, :1].flatten(1)[:, 0]))
        return self.project(x + point, x, bounds)

    def step(self, adv: Tensor, x: Tensor, grad: Tensor, size: Eps, bounds: Bounds) -> Tensor:
        return balls.step_l2(adv, x, grad, size, self.eps, bounds.low, bounds.high)

    def project(self, adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        return balls.project_l2_box(adv, x, self.eps, bounds.low, bounds.high)

    def everything(self, x: Tensor, bounds: Bounds) -> float:
        return float(bounds.width * x[0].numel() ** 0.5)


@dataclass(frozen=True)
class L1(Threat):
    """l1 ball: few pixels may move far.

    A step maximises the linearised loss over {||d||_1 <= size} inside the bounds exactly: coordinates are filled up
    to their bound in the order of their gradient, so that no budget is lost on pixels that cannot move.
    """

    norm = "l1"
    p = 1.0

    def start(self, x: Tensor, bounds: Bounds, draws: Draws) -> Tensor:
        point = balls.uniform_l1(
            self.eps,
            draws.uniform(x),
            draws.child("sign").uniform(x),
            draws.child("radius").uniform(x[:, :1].flatten(1)[:, 0]),
        )
        return self.project(x + point, x, bounds)

    def step(self, adv: Tensor, x: Tensor, grad: Tensor, size: Eps, bounds: Bounds) -> Tensor:
        return self.project(adv + fill_l1_box(grad, adv, size, bounds.low, bounds.high), x, bounds)

    def project(self, adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        return project_l1_box(adv, x, self.eps, bounds.low, bounds.high)

    def everything(self, x: Tensor, bounds: Bounds) -> float:
        return float(bounds.width * x[0].numel())


THREATS: dict[str, type[Threat]] = {cls.norm: cls for cls in (Linf, L2, L1)}


def threat_from(spec: Threat | ThreatSpec | str) -> Threat:
    """The threat that a text names; threats pass through.

    >>> threat_from("l2:0.5")
    L2(eps=0.5)

    Raises:
        UsageError: a text that names none, or something else.
    """
    if isinstance(spec, Threat):
        return spec
    if not isinstance(spec, ThreatSpec | str):
        raise UsageError(
            "this is not a threat", expected="rk.Linf(8/255) or text such as linf:8/255", got=repr(spec), where="threat"
        )
    spec = ThreatSpec.parse(spec) if isinstance(spec, str) else spec
    return THREATS[spec.norm](spec.eps)
