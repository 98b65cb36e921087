"""PGD: projected gradient ascent (https://arxiv.org/abs/1706.06083, sec. 2.1).

``x <- project(x + alpha * steepest(g))`` from a uniform point of the ball, in l-infinity, l2 or l1. The first
adversarial point of every sample is kept, the last iterate is scored too, and samples that broke leave the computation.
Shapes: x, adv, grad (N, *S). Units: those of ``model.bounds``. Cost: ``restarts * steps`` forwards and backwards and
``restarts`` forwards for the last iterates, less what broken samples save.
"""

from __future__ import annotations

from pydantic import Field

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.objective import Loss
from robustkit.core.options import method
from robustkit.core.search import Search
from robustkit.core.specs import Fraction
from robustkit.core.threat import Eps, Threat

LOSSES = "what is maximised: ce (cross-entropy), margin, or dlr; cospgd or segpgd where pixels are labelled"


@ATTACKS.register("pgd", paper="https://arxiv.org/abs/1706.06083")
@method
class PGD(Attack):
    """Projected gradient descent: many small steps of steepest ascent inside the ball.

    >>> PGD(steps=20, step_size="2/255").step_size == 2 / 255
    True
    """

    steps: int = Field(default=40, ge=1, description="gradient steps a restart")
    step_size: Fraction | None = Field(
        default=None, gt=0, description="alpha, in units of the input; by default 2.5 * eps / steps"
    )
    restarts: int = Field(default=1, ge=1, description="random starts; samples that broke are not attacked again")
    random_start: bool = Field(
        default=True, description="begin at a uniform point of the ball; later restarts always do"
    )
    loss: Loss = Field(default="ce", description=LOSSES)

    def perturb(self, search: Search) -> None:
        for restart in range(self.restarts):
            adv = search.begin(restart, random=self.random_start or restart > 0)
            for step in range(self.steps):
                if search.done:
                    return
                search.at(step / self.steps)
                adv, grad = search.compact(adv, search.gradient(adv))
                adv = search.advance(adv, grad, self.size(search.threat))
            search.score(adv)

    def size(self, threat: Threat) -> Eps:
        """The length of a step, alpha."""
        return 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
