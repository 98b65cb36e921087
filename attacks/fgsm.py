"""FGSM: one step as long as the ball allows (https://arxiv.org/abs/1412.6572, sec. 4).

The step maximises the linearised loss over the threat: in l-infinity ``eps * sign(g)``, in l2 ``eps * g / ||g||``, in
l1 the coordinates of largest ``|g|``, each up to its bound, until eps is spent.
Shapes: x, adv (N, *S). Units: those of ``model.bounds``. Cost: 1 forward and 1 backward, plus the verdict.
"""

from __future__ import annotations

from pydantic import Field

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.objective import Loss
from robustkit.core.options import method
from robustkit.core.search import Search


@ATTACKS.register("fgsm", paper="https://arxiv.org/abs/1412.6572")
@method
class FGSM(Attack):
    """Fast gradient sign method: one step as long as the ball allows.

    >>> FGSM(loss="dlr").loss
    'dlr'
    """

    loss: Loss = Field(default="ce", description="what is maximised: ce (cross-entropy), margin, or dlr")

    def perturb(self, search: Search) -> None:
        x = search.begin(0, random=False)
        x, grad = search.compact(x, search.gradient(x))
        if not search.done:
            search.score(search.advance(x, grad, search.threat.eps))
