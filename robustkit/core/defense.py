"""What every defense promises, kept in one place; the author of a method writes ``craft`` and ``loss``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import check_inputs
from robustkit.core.batchnorm import batch_norms
from robustkit.core.errors import UsageError
from robustkit.core.keyed import default_ids
from robustkit.core.lesson import Lesson, Mode, Parts, Statistics, TrainState, check_class_logits, randomness
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective, Objective
from robustkit.core.options import method
from robustkit.core.registry import Registry, text_of
from robustkit.core.specs import NORMS, Fraction, MethodSpec
from robustkit.core.splitnorm import check_branches, split
from robustkit.core.threat import Eps, Threat
from robustkit.core.types import Cost

DEFENSES = Registry("robustkit.defenses", "defense")
STATISTICS = (
    "how clean and adversarial inputs are batch-normalised: shared (together), clean (each by itself, running "
    "statistics of the clean ones alone) or split (layers of their own for what is not clean)"
)
ATTACK_MODE = (
    "the network while it is attacked: eval (running statistics), train (those of the batch, which are learnt) or "
    "train_frozen_stats (those of the batch, not learnt)"
)


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of training found; the gradients lie in the parameters.

    Attributes:
        loss: the number whose gradient was taken, (), detached.
        terms: what it is the sum of, by name.
        accuracy: share of the batch that the network got right on its way, by the part of the batch.
        cost: samples passed forward and backward.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    accuracy: dict[str, Tensor]
    cost: Cost

    def __float__(self) -> float:
        return float(self.loss)

    def __format__(self, form: str) -> str:
        return format(float(self), form) if form else str(self)


@method
class Defense(ABC):
    """One step of training that makes a network harder to fool.

    ``adversarial`` says whether the defense attacks, and so needs a threat; ``logits`` whether it compares class
    probabilities, and so takes classifiers alone; ``replays`` how often each batch is learnt from.

    Raises, when stepped:
        UsageError: the batch does not fit the network; NaN; inputs outside the bounds; the network is in eval mode;
            no threat, or one without limits; a single sample for batch normalisation.
    """

    adversarial: ClassVar[bool] = False
    logits: ClassVar[bool] = False
    norms: ClassVar[tuple[str, ...]] = NORMS
    threat: Threat | None = None

    @final
    def step(
        self, model: Model, x: Tensor, y: Tensor, state: TrainState | None = None, *, ids: Tensor | None = None
    ) -> Step:
        """Set the gradients of the parameters; the optimiser's step is the caller's.

        Args:
            model: from :func:`robustkit.wrap`, its network in train mode.
            x: inputs (N, *S) inside the bounds of the model.
            y: labels (N,), or what the task compares with.
            state: of the training; the same one for every step, which it counts.
            ids: sample ids (N,) that key the random draws; 0 .. N-1 by default.
        """
        state = TrainState() if state is None else state
        ids = default_ids(len(x)) if ids is None else ids
        self.check_batch(model, x, y)
        if len(ids) != len(x):
            raise UsageError(
                "x and ids have different lengths", expected=f"{len(x)} ids", got=str(len(ids)), where="ids"
            )
        lesson = Lesson(model, x.detach(), y, ids, state, self.name, self.threat, self.bn)
        lesson.forget()
        with randomness(state, model.device), model.metered() as cost:
            terms = self.learn(lesson)
        state.step += 1
        state.cost = state.cost + cost
        found = {name: term.detach() for name, term in terms.items()}
        return Step(torch.stack(list(found.values())).sum(), found, lesson.accuracy, cost)

    # -- what a method says of itself --------------------------------------------------------------------------------

    @abstractmethod
    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        """Fill the gradients; the terms of the loss by name, whose sum it is."""

    @property
    def name(self) -> str:
        """As it is registered."""
        return DEFENSES.entry_of(self).name

    @property
    def bn(self) -> Statistics:
        """How the parts of a batch are normalised."""
        return "shared"

    @property
    def replays(self) -> int:
        """Steps that are made with every batch, one after the other."""
        return 1

    @property
    def parts(self) -> int:
        """Parts that a batch has in the training forward."""
        return 1

    def prepare(self, model: Model) -> Model:
        """The network as the defense trains it: most leave it alone; called once, before the first step."""
        return model

    def with_threat(self, threat: Threat | None) -> Defense:
        """The same defense inside another threat."""
        return replace(self, threat=threat)

    @property
    def text(self) -> str:
        """The form of configurations and the command line, such as ``trades:beta=1``."""
        return text_of(DEFENSES, self)

    # -- checks --------------------------------------------------------------------------------------------------------

    def check(self, model: Model, x: Tensor) -> None:
        """Whether the network and inputs like these can be trained so; costs no forward.

        Raises:
            UsageError: they cannot.
        """
        if self.logits:
            check_class_logits(model, self.name)
        if not self.adversarial:
            return
        threat = Lesson(model, x, x, default_ids(len(x)), TrainState(), self.name, self.threat).ball
        if threat.norm not in self.norms:
            raise UsageError(
                "the defense does not work in this norm",
                expected=" or ".join(self.norms),
                got=threat.text,
                where=self.name,
            )
        if bool((torch.as_tensor(threat.eps) >= threat.everything(x, model.bounds)).all()):
            raise UsageError(
                "the threat allows every input: no label could hold",
                expected=f"eps below {threat.everything(x, model.bounds):g}, in units of the inputs",
                got=threat.text,
                where="threat",
                fix="Divide radii of 0-255 images by 255: linf:8/255.",
            )

    def check_batch(self, model: Model, x: Tensor, y: Tensor) -> None:
        """Whether this batch can be learnt from.

        Raises:
            UsageError: it cannot.
        """
        if not isinstance(model, Model):
            raise UsageError(
                "defenses take a wrapped model",
                expected="a robustkit Model",
                got=type(model).__name__,
                where="model",
                fix="Wrap it once: model = robustkit.wrap(net, mean=..., std=...).",
            )
        model.check(x)
        if x.ndim < 2 or len(x) == 0 or len(y) != len(x):
            raise UsageError(
                "x and y are no batch",
                expected="inputs (N, ...) with N labels, N > 0",
                got=f"{tuple(x.shape)} and {tuple(y.shape)}",
                where="x, y",
            )
        check_inputs(x.detach(), model)
        self.check(model, x)
        model.task.check(torch.empty((1, *model.output_shape(x)), device="meta"), y)
        if not any(layer.training for layer in model.net.modules()):
            raise UsageError(
                "the network is in eval mode", expected="train mode", where="model", fix="Call model.net.train() first."
            )
        check_branches(model.net, self.parts if self.bn == "split" else 1)
        together = self.parts if self.bn == "shared" else 1
        if len(x) * together == 1 and any(layer.training for layer in batch_norms(model.net)):
            raise UsageError(
                "batch normalisation needs more than one sample",
                expected="a batch of 2 or more",
                got="1",
                where="batch size",
                fix="Give a larger batch, or put the normalising layers into eval mode.",
            )


@method
class LossDefense(Defense):
    """A defense that is a loss: inputs are made at the present weights, and all of them are passed once."""

    @abstractmethod
    def craft(self, lesson: Lesson) -> Parts:
        """The parts of the training batch by name, (N, *S) each, such as clean and adversarial inputs."""

    def forward(self, lesson: Lesson, parts: Parts) -> Mapping[str, Tensor]:
        """What :meth:`loss` gets of every part: the outputs of the network, (N, ...)."""
        return lesson.forward(parts)

    @abstractmethod
    def loss(self, lesson: Lesson, outputs: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
        """The terms of the loss by name, () each, from the outputs of every part."""

    def learn(self, lesson: Lesson) -> Mapping[str, Tensor]:
        return self.fit(lesson, self.craft(lesson))

    @final
    def fit(self, lesson: Lesson, parts: Parts) -> Mapping[str, Tensor]:
        """One forward over all parts, and one backward of the loss: what weight defenses do several times."""
        terms = self.loss(lesson, self.forward(lesson, parts), parts)
        lesson.backward(torch.stack(list(terms.values())).sum())
        return terms


@method
class AdversarialDefense(LossDefense):
    """A loss on adversarial inputs, found by projected gradient ascent at the present weights."""

    adversarial: ClassVar[bool] = True
    steps: int = Field(default=10, ge=1, description="gradient steps of the attack, K")
    step_size: Fraction | None = Field(
        default=None, gt=0, description="alpha, in units of the input; by default 2.5 * eps / steps"
    )
    attack_mode: Mode = Field(default="eval", description=ATTACK_MODE)
    statistics: Statistics = Field(default="shared", description=STATISTICS)
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the label that is given to all classes alike"
    )

    @property
    def bn(self) -> Statistics:
        return self.statistics

    @property
    def place(self) -> int:
        """Where in the training batch the attacked inputs stand: after the clean ones, unless a method says otherwise.

        With ``split`` statistics the attack, too, sees the layers of that part, as the auxiliary ones of AdvProp.
        """
        return 1

    def prepare(self, model: Model) -> Model:
        if self.statistics != "split":
            return model
        return split(model, self.parts)

    def attack(self, lesson: Lesson) -> list[Tensor]:
        """The path of the attack: its start, then the point after every step; the last is what is trained on."""
        with lesson.attacking(self.attack_mode, self.place):
            objective = self.objective(lesson)
            start = self.start(lesson)
            return [start, *lesson.ascend(start, objective, self.steps, self.size(lesson))]

    def objective(self, lesson: Lesson) -> Objective:
        """What the attack maximises; cross-entropy (the task's loss) unless a method says otherwise."""
        return LabelObjective(lesson.model.task, lesson.y)

    def start(self, lesson: Lesson) -> Tensor:
        """Where the attack begins: a uniform point of the ball."""
        return lesson.ball.start(lesson.x, lesson.model.bounds, lesson.draws)

    def size(self, lesson: Lesson) -> Eps:
        """The length of a step."""
        strength = lesson.state.strength
        return 2.5 * lesson.ball.eps / self.steps if self.step_size is None else self.step_size * strength


def defense_from(value: Defense | str) -> Defense:
    """The defense that a text stands for; defenses pass through.

    Weight defenses are written before what they wrap: ``awp:gamma=0.005+trades:beta=6``.

    Raises:
        UsageError: unknown name or option; two losses; a weight defense around what is no loss.
    """
    if isinstance(value, Defense):
        return value
    if not isinstance(value, str):
        raise UsageError(
            "this is not a defense",
            expected="rk.TRADES(...) or text such as trades:beta=6",
            got=repr(value),
            where="defense",
        )
    *outer, last = split_defenses(value)
    spec = MethodSpec.parse(last)
    found: Defense = DEFENSES.get(spec.name).build(spec.options)
    for text in reversed(outer):
        spec = MethodSpec.parse(text)
        entry = DEFENSES.get(spec.name)
        if "around" not in getattr(entry.cls, "__dataclass_fields__", {}):
            raise UsageError(
                f"{spec.name} is a loss and wraps no other defense",
                expected="a weight defense (awp, amp) before the +",
                got=repr(value),
                where="defense",
                fix=f"Write for example awp+{spec.name}.",
            )
        if not isinstance(found, LossDefense):
            raise UsageError(
                f"{spec.name} wraps a loss, and {found.name} is none",
                expected="a defense such as pgd-at or trades after the +",
                got=repr(value),
                where="defense",
            )
        built: Any = entry.build(spec.options)
        found = replace(built, around=found)
    return found


def split_defenses(text: str) -> list[str]:
    """The defenses of a composition, the outermost first.

    >>> split_defenses("awp:gamma=1e-2+trades:beta=6")
    ['awp:gamma=1e-2', 'trades:beta=6']
    """
    pieces: list[str] = []
    for piece in text.split("+"):
        if pieces and not piece[:1].isalpha():  # 1e+3
            pieces[-1] += f"+{piece}"
        else:
            pieces.append(piece)
    return pieces
