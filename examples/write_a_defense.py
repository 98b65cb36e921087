"""A new defense is one class: say which inputs are learnt from and by what loss, and train with it."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

import robustkit as rk
from robustkit.core.defense import AdversarialDefense
from robustkit.core.lesson import Lesson, Parts
from robustkit.core.options import method


@rk.DEFENSES.register("pairing", paper="https://arxiv.org/abs/1803.06373")
@method
class Pairing(AdversarialDefense):
    """Adversarial logit pairing: clean and adversarial inputs are learnt, and their logits pulled together."""

    logits: ClassVar[bool] = True
    weight: float = Field(default=0.1, ge=0, description="of the squared distance between the logits")

    @property
    def parts(self) -> int:
        return 2

    def craft(self, lesson: Lesson) -> Parts:
        return {"clean": lesson.x, "adversarial": self.attack(lesson)[-1]}

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        clean, adversarial = outputs["clean"], outputs["adversarial"]
        return {
            "clean": lesson.cross_entropy(clean).mean() / 2,
            "adversarial": lesson.cross_entropy(adversarial).mean() / 2,
            "pairing": self.weight * (clean - adversarial).square().sum(1).mean(),
        }


model = rk.load("demo:mnist-plain")
x, y = rk.open_data("demo:mnist-train").take(range(1000))
unseen = rk.open_data("demo:mnist").take(range(100))
attack = rk.PGD(threat=rk.Linf(0.1), steps=10)
print(f"before: {1 - attack(model, *unseen).success.float().mean():.1%} of the test digits withstand PGD-10")

defense, state = Pairing(threat=rk.Linf(0.1), steps=3), rk.TrainState(seed=0)
optimizer = torch.optim.SGD(model.net.parameters(), lr=0.002, momentum=0.9)
model.net.train()
for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(50):
    step = defense.step(model, x[rows], y[rows], state, ids=rows)
    optimizer.step()
model.net.eval()
print(f"the loss at the end: {', '.join(f'{name} {float(term):.2f}' for name, term in step.terms.items())}")
print(f"after:  {1 - attack(model, *unseen).success.float().mean():.1%}")
