"""ConAdv: adversarial inputs from parameters of some steps ago, so that attack and update need not wait for each other.

Liu et al. (https://arxiv.org/abs/2106.00221), a reconstruction: the paper's abstract says "stale parameters", and the
authors' code does not settle how old they are, since nothing in it makes the copies that its attack reads. With
theta_t the parameters before step t::

    x' = attack(x, y; theta_{max(0, t - tau)})                       one step in the ball
    L  = w_c CE(f(x; theta_t), y) + w_a CE(f(x'; theta_t), y)        the two normalised by layers of their own

tau = 0 is AdvProp-like training (the paper's DisAdv); w_c = 0 besides is FGSM training. The aim of the paper is clean
accuracy with batches of tens of thousands, not robustness.
Shapes: x, x' (N, *S). Units: those of ``model.bounds``. Cost of a step: steps + parts forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.aside import Pending, attack_aside, check_device
from robustkit.core.augment import Augmentation
from robustkit.core.batchnorm import batch_norms
from robustkit.core.defense import ATTACK_MODE, DEFENSES, STATISTICS, AdversarialDefense
from robustkit.core.lesson import Lesson, Mode, Parts, Statistics
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective, Objective
from robustkit.core.options import method
from robustkit.core.splitnorm import branch, branches, split, splittable
from robustkit.core.stale import keep, oldest
from robustkit.core.threat import Eps
from robustkit.kernels.noise import key_of

MEMORY = "concurrent"


@DEFENSES.register("concurrent", paper="https://arxiv.org/abs/2106.00221")
@method
class Concurrent(AdversarialDefense):
    """Concurrent adversarial learning: attacks on stale parameters, training on clean inputs, too (reconstruction).

    Parameters of the last ``tau`` steps lie in ``state.memory``; buffers are not kept. In the default mode the attack
    normalises by the batch, through the layers of the adversarial part, and no running statistics learn from it;
    ``attack_mode=eval`` attacks stale parameters with present running statistics. ``split`` gives every BatchNorm2d
    layers of its own for each part (:meth:`prepare`); networks without BatchNorm2d fall back to ``shared``.

    Raises, when stepped:
        UsageError: besides those of every defense: no such device; nothing that could overlap on it; images that
            cannot be augmented.

    >>> Concurrent(tau=2, clean_weight=0).parts
    1
    """

    logits: ClassVar[bool] = True
    steps: int = Field(default=1, ge=1, description="gradient steps of the attack, K")
    attack_mode: Mode = Field(default="train_frozen_stats", description=ATTACK_MODE)
    statistics: Statistics = Field(default="split", description=STATISTICS)
    label_smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="share of the label that is given to all classes alike"
    )
    tau: int = Field(default=1, ge=0, description="age of the attacked parameters, in steps")
    clean_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of clean inputs; weights are divided by their sum"
    )
    adversarial_weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="weight of adversarial inputs"
    )
    augmented: bool = Field(default=False, description="train on augmented inputs (TrivialAugment), too, weight 1")
    target: Literal["untargeted", "random"] = Field(
        default="untargeted", description="what the attack wants: away from the label, or to a random other class"
    )
    clean_start: float = Field(
        default=0.2, ge=0, le=1, description="share of attacks that begin at the input, the rest at a uniform point"
    )
    device: str = Field(
        default="same", description="where the attack runs: same, stream (of the same GPU), cuda:1 or another device"
    )

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each part of the batch, in its order; 1 in sum."""
        weights = {
            "clean": self.clean_weight,
            "adversarial": self.adversarial_weight,
            "augmented": float(self.augmented),
        }
        return {name: weight / sum(weights.values()) for name, weight in weights.items() if weight}

    @property
    def parts(self) -> int:
        return len(self.shares)

    @property
    def place(self) -> int:
        return list(self.shares).index("adversarial")

    @property
    def bn(self) -> Statistics:
        return "shared" if self.parts == 1 else self.statistics

    def prepare(self, model: Model) -> Model:
        return split(model, self.parts) if self.bn == "split" and splittable(model.net) else model

    def check(self, model: Model, x: Tensor) -> None:
        super().check(model, x)
        if self.device != "same":
            check_device(self.device, model, self.attack_mode, self.tau, self.name)

    # -- the attack ----------------------------------------------------------------------------------------------------

    def size(self, lesson: Lesson) -> Eps:
        return min(1.0, 2.5 / self.steps) * lesson.ball.eps if self.step_size is None else super().size(lesson)

    def start(self, lesson: Lesson) -> Tensor:
        uniform = super().start(lesson)
        chosen = lesson.draws.child("clean").uniform(lesson.x[:, :1].flatten(1)[:, 0]) < self.clean_start
        return torch.where(chosen.view(-1, *[1] * (lesson.x.ndim - 1)), lesson.x, uniform)

    def objective(self, lesson: Lesson) -> Objective:
        target = _other_class(lesson) if self.target == "random" else None
        return LabelObjective(lesson.model.task, lesson.y, target)

    def begin(self, lesson: Lesson) -> Pending:
        """Start the attack on the stale parameters; what is returned waits for it and gives x' (N, *S)."""
        net, memory = lesson.model.net, lesson.state.memory
        stale = oldest(memory, MEMORY, net) if self.tau else {}
        pending = attack_aside(lambda there: self.attack(there)[-1], lesson, stale, self.device)

        def finish() -> Tensor:
            found = pending()
            keep(memory, MEMORY, net, self.tau)  # the stale ones may go only when the attack has read them
            return found

        return finish

    # -- the loss ------------------------------------------------------------------------------------------------------

    def craft(self, lesson: Lesson) -> Parts:
        adversarial = self.begin(lesson)()
        return {name: adversarial if name == "adversarial" else self.plain(lesson, name) for name in self.shares}

    def plain(self, lesson: Lesson, name: str) -> Tensor:
        """The inputs of a part that needs no attack, (N, *S)."""
        return lesson.x if name == "clean" else _augmented(lesson)

    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        return {
            name: self.shares[name] * lesson.cross_entropy(outputs[name], self.label_smoothing).mean() for name in parts
        }

    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """As ever where the attack runs on the spot; else the other parts are learnt from while it runs.

        The parts then go through the network one by one, which gives the same gradients up to rounding, but only
        where none is normalised with another.
        """
        if self.device == "same" or not _apart(lesson):
            return super().learn(lesson)
        pending = self.begin(lesson)
        terms: dict[str, Tensor] = {}
        accuracy: dict[str, Tensor] = {}
        for name in sorted(self.shares, key=lambda name: name == "adversarial"):  # the last to be there
            inputs = pending() if name == "adversarial" else self.plain(lesson, name)
            with _alone(lesson, list(self.shares).index(name)):
                terms |= self.fit(lesson, {name: inputs})
            accuracy |= lesson.accuracy
        lesson.accuracy = accuracy
        return terms


def _apart(lesson: Lesson) -> bool:
    """Whether the parts of a batch know nothing of each other."""
    net = lesson.model.net
    return lesson.statistics == "clean" or branches(net) > 1 or not batch_norms(net)


def _alone(lesson: Lesson, place: int) -> Any:
    """A part is passed alone and yet normalised as in its place of the whole batch."""
    if lesson.statistics == "split":
        return branch(lesson.model.module, place)
    return lesson.unlearnt() if place else nullcontext()


def _other_class(lesson: Lesson) -> Tensor:
    """A uniform class (N,) other than the label."""
    classes = lesson.model.output_shape(lesson.x)[0]
    draw = lesson.draws.child("target").uniform(torch.empty(len(lesson.y), dtype=torch.double))
    return (lesson.y + 1 + (draw * (classes - 1)).long().to(lesson.y.device)) % classes


def _augmented(lesson: Lesson) -> Tensor:
    """Every input augmented by draws of its own, (N, *S), inside the bounds."""
    draws = lesson.draws
    keys = [key_of(draws.seed, sample, f"{draws.purpose}/augmented", draws.restart, 0) for sample in draws.ids.tolist()]
    return Augmentation("trivial", bounds=lesson.model.bounds)(lesson.x, keys)
