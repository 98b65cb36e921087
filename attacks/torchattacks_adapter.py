"""Any class of torchattacks, with our verdict: ``torchattacks:PGD,steps=20`` (https://arxiv.org/abs/2010.01950).

eps, norm, n_classes and seed are handed over where the class takes them and they are not given; its default step sizes
are not scaled with eps. Units of its options: images in [0, 1], whatever the bounds of the model.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from robustkit.core.attack import ATTACKS
from robustkit.core.foreign import RADII, Foreign
from robustkit.core.options import method
from robustkit.core.seen import Case

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""Ours -> how torchattacks writes them."""


@ATTACKS.register("torchattacks", paper="https://arxiv.org/abs/2010.01950")
@method
class TorchAttacks(Foreign):
    """An attack of torchattacks, by the name of its class.

    >>> TorchAttacks(name="PGD", options={"steps": 20}).options["steps"]
    20
    """

    library: ClassVar[str] = "torchattacks"
    home: ClassVar[str] = "torchattacks"
    advice: ClassVar[str] = (
        "Install it in an environment of its own, for it pins an old requests: pip install '.[torchattacks]'"
    )

    name: str = Field(default="PGD", description="class of torchattacks; any other option is one of that class")

    def declared(self) -> tuple[str, ...]:
        if "norm" in self.options:
            return (str(self.options["norm"]).lower(),)
        said = re.search(r"Distance Measure\s*:(.*)", self.target_class().__doc__ or "")
        return tuple(name.lower() for name in re.findall(r"L(?:inf|\d)", said[1])) if said else ()

    def points(self, case: Case) -> Tensor:
        offers = dict.fromkeys(RADII, case.eps)
        attack = self.target_class()(
            case.net,
            **self.filled({**offers, "norm": NORMS[case.norm], "n_classes": case.classes, "seed": case.seed}),
        )
        if case.target is not None:
            attack.set_mode_targeted_by_label(quiet=True)
        found: Tensor = attack(case.x, case.labels)
        return found
