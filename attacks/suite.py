"""AutoAttack's suites (https://arxiv.org/abs/2003.01690; l1: https://arxiv.org/abs/2103.01208).

``standard`` is the number that the field compares; ``plus`` adds restarts and losses; ``rand`` is for networks that are
random on purpose. Each sample leaves at the stage that breaks it. Cost of ``standard`` for a sample that stands, in
l-infinity and l2: 6,920 F + 1,900 B.
"""

from __future__ import annotations

from typing import ClassVar

from robustkit.core.attack import ATTACKS
from robustkit.core.options import method
from robustkit.core.suite import Suite

LINF_L2 = {
    "apgd-ce": "apgd:loss=ce",
    "apgd-t": "apgd:loss=dlr,targets=9",
    "fab-t": "fab:targets=9",
    "square": "square",
}
L1 = {
    "apgd-ce": "apgd:loss=ce,restarts=5",
    "apgd-t": "apgd:loss=dlr,targets=5",
    "fab-t": "fab:targets=9",
    "square": "square",
}


@ATTACKS.register("standard", paper="https://arxiv.org/abs/2003.01690")
@method
class Standard(Suite):
    """AutoAttack, standard: APGD-CE, APGD-T, FAB-T and Square, one after the other."""

    def composition(self, norm: str) -> dict[str, str]:
        return L1 if norm == "l1" else LINF_L2


@ATTACKS.register("plus", paper="https://arxiv.org/abs/2003.01690")
@method
class Plus(Suite):
    """AutoAttack, plus: restarts and untargeted variants besides those of ``standard``."""

    def composition(self, norm: str) -> dict[str, str]:
        return {
            "apgd-ce": "apgd:loss=ce,restarts=5",
            "apgd-dlr": "apgd:loss=dlr,restarts=5",
            "fab": "fab:restarts=5",
            "square": "square",
            "apgd-t": "apgd:loss=dlr,targets=9" if norm != "l1" else "apgd:loss=dlr,targets=5",
            "fab-t": "fab:targets=9",
        }


@ATTACKS.register("rand", paper="https://arxiv.org/abs/2003.01690")
@method
class Rand(Suite):
    """AutoAttack for random networks: APGD with CE and with DLR on the mean of 20 passes."""

    passes: ClassVar[int] = 20

    def composition(self, norm: str) -> dict[str, str]:
        return {"apgd-ce": "apgd:loss=ce", "apgd-dlr": "apgd:loss=dlr"}
