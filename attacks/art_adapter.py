"""Any evasion attack of ART on PyTorch classifiers, with our verdict: ``art:ProjectedGradientDescentPyTorch`` or
``rk.from_art(cls, max_iter=20)`` (https://arxiv.org/abs/1807.01069).

eps and norm are those of the threat where the class takes them and they are not given; its default steps are not scaled
with eps. Units of its options: images in [0, 1], whatever the bounds of the model. ART computes in float32 on the CPU's
side, so that a copy there and back is part of every pass on an accelerator.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.foreign import RADII, Foreign
from robustkit.core.options import method
from robustkit.core.seen import Case

NORMS: dict[str, float] = {"linf": torch.inf, "l2": 2, "l1": 1}


@ATTACKS.register("art", paper="https://arxiv.org/abs/1807.01069")
@method
class ART(Foreign):
    """An evasion attack of the Adversarial Robustness Toolbox, by the name of its class.

    >>> ART(name="SquareAttack", options={"max_iter": 100}).options["max_iter"]
    100
    """

    library: ClassVar[str] = "ART"
    home: ClassVar[str] = "art.attacks.evasion"
    advice: ClassVar[str] = "Run: pip install '.[art]'"

    name: str = Field(
        default="ProjectedGradientDescentPyTorch",
        description="class of art.attacks.evasion; any other option is one of that class",
    )
    cls: Any = None

    def target_class(self) -> Any:
        return super().target_class() if self.cls is None else self.cls

    def declared(self) -> tuple[str, ...]:
        given = str(self.options.get("norm", "")).lower()
        return (given if given.startswith("l") else f"l{given}",) if given else ()

    def points(self, case: Case) -> Tensor:
        offers = {**dict.fromkeys(RADII, case.eps), "norm": NORMS[case.norm], "batch_size": len(case.x)}
        options = self.filled({**offers, "verbose": False, "targeted": case.target is not None})
        if options.get("targeted", False) != (case.target is not None):
            raise UsageError(
                f"{self.name} of ART cannot aim at a class, or only at one",
                expected=f"targeted={case.target is not None}",
                got=f"targeted={options.get('targeted', False)}",
                where=self.text,
            )
        attack = self.target_class()(self._classifier(case), **options)
        labels = nn.functional.one_hot(case.labels, case.classes).float()
        found = attack.generate(case.x.float().cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(found).to(case.x)

    def _classifier(self, case: Case) -> Any:
        return self.module("art.estimators.classification").PyTorchClassifier(
            case.net,
            nn.CrossEntropyLoss(),
            tuple(case.x.shape[1:]),
            case.classes,
            clip_values=(0.0, 1.0),
            device_type="cpu" if case.x.device.type == "cpu" else "gpu",
        )


def from_art(cls: type, **options: Any) -> ART:
    """An evasion attack of ART as one of ours: a class and its options, for an instance is bound to its classifier.

    Args:
        cls: such as ``art.attacks.evasion.ProjectedGradientDescentPyTorch``.
        options: of that class, without the estimator; checked against it when the attack meets a threat.

    Raises:
        UsageError: not a class of ART attacks.
    """
    if not isinstance(cls, type) or not hasattr(cls, "generate"):
        raise UsageError(
            "this is not a class of ART's attacks",
            expected="a class such as art.attacks.evasion.ProjectedGradientDescentPyTorch",
            got=getattr(cls, "__name__", type(cls).__name__),
            where="from_art",
            fix="Give the class and its options: from_art(ProjectedGradientDescentPyTorch, max_iter=20).",
        )
    return ART(name=cls.__name__, options=options, cls=cls)
