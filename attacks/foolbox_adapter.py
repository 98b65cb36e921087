"""Any attack of Foolbox, with our verdict: ``foolbox:LinfPGD,steps=20`` or ``rk.from_foolbox(attack)``
(https://arxiv.org/abs/1707.04131, https://doi.org/10.21105/joss.02607).

Attacks at a fixed eps get that of the threat; the others look for the nearest point. Units of their options: images in
[0, 1], whatever the bounds of the model.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.foreign import Foreign
from robustkit.core.options import method
from robustkit.core.seen import Case

NORMS = {torch.inf: "linf", 2: "l2", 1: "l1", 0: "l0"}


@ATTACKS.register("foolbox", paper="https://doi.org/10.21105/joss.02607")
@method
class Foolbox(Foreign):
    """An attack of Foolbox, by the name of its class.

    >>> Foolbox(name="LinfPGD", options={"steps": 20}).options["steps"]
    20
    """

    library: ClassVar[str] = "Foolbox"
    home: ClassVar[str] = "foolbox.attacks"
    advice: ClassVar[str] = "Run: pip install '.[foolbox]'"

    name: str = Field(default="LinfPGD", description="class of foolbox.attacks; any other option is one of that class")
    instance: Any = None

    def target_class(self) -> Any:
        return super().target_class() if self.instance is None else type(self.instance)

    def declared(self) -> tuple[str, ...]:
        p = getattr(getattr(self._attack(), "distance", None), "p", None)
        return () if p is None else (NORMS.get(p, f"l{p}"),)

    @property
    def limited(self) -> bool:
        return issubclass(self.target_class(), self.module("foolbox.attacks.base").FixedEpsilonAttack)

    def points(self, case: Case) -> Tensor:
        foolbox = self.module("foolbox")
        wanted = foolbox.criteria.Misclassification(case.y)
        if case.target is not None:
            wanted = foolbox.criteria.TargetedMisclassification(case.target)
        model = foolbox.PyTorchModel(case.net, bounds=(0, 1), device=case.x.device)
        found: Tensor = self._attack()(model, case.x, wanted, epsilons=case.eps if self.limited else None)[1]
        return found

    def _attack(self) -> Any:
        return self.target_class()(**self.options) if self.instance is None else self.instance


def from_foolbox(attack: Any) -> Foolbox:
    """An attack of Foolbox as one of ours.

    Args:
        attack: an instance, such as ``foolbox.attacks.LinfPGD(steps=20)``. It is used as it is.

    Raises:
        UsageError: not an instance of a Foolbox attack.
    """
    if isinstance(attack, type) or not callable(attack) or not hasattr(attack, "repeat"):
        raise UsageError(
            "this is not an attack of Foolbox",
            expected="an instance such as foolbox.attacks.LinfPGD(steps=20)",
            got=getattr(attack, "__name__", type(attack).__name__),
            where="from_foolbox",
            fix="Call the class to make an instance." if isinstance(attack, type) else "",
        )
    return Foolbox(name=type(attack).__name__, options=_told(attack), instance=attack)


def _told(attack: Any) -> dict[str, Any]:
    """The options that an instance was made with, as far as it keeps them under their names and they are plain."""
    parameters = inspect.signature(type(attack)).parameters
    kept = {name: getattr(attack, name) for name in parameters if hasattr(attack, name)}
    plain = {name: value for name, value in kept.items() if isinstance(value, bool | int | float | str)}
    return {name: value for name, value in plain.items() if value != parameters[name].default}
