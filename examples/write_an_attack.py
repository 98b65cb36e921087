"""A new attack is one class: say how to propose points, and the search keeps every promise."""

from pydantic import Field

import robustkit as rk
from robustkit.core.attack import ATTACKS
from robustkit.core.options import method
from robustkit.core.search import Search


@ATTACKS.register("momentum", paper="https://arxiv.org/abs/1710.06081")
@method
class Momentum(rk.Attack):
    """MI-FGSM: gradient sign steps along an accumulated, l1-normalised gradient."""

    steps: int = Field(default=10, ge=1, description="gradient steps")
    decay: float = Field(default=1.0, ge=0, description="decay of the accumulated gradient (the paper's mu)")

    def perturb(self, search: Search) -> None:
        adv = search.begin(0, random=False)
        velocity = adv * 0
        for _ in range(self.steps):
            if search.done:
                return
            grad = search.gradient(adv)
            velocity = self.decay * velocity + grad / grad.abs().flatten(1).sum(1).clamp_min(1e-12).view(-1, 1, 1, 1)
            adv, velocity = search.compact(adv, velocity)
            adv = search.advance(adv, velocity, search.threat.eps / self.steps)
        search.score(adv)


model = rk.load("demo:mnist-plain")
data = rk.open_data("demo:mnist")
result = rk.evaluate(model, data, attacks=[Momentum(), rk.PGD(steps=10)], threat=rk.Linf(0.1), limit=100)
print(result)
