"""One step of training, seen by a defense: the batch, the network, where randomness and gradients come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.core.batchnorm import normalising
from robustkit.core.errors import UsageError
from robustkit.core.heap import kept
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.objective import Objective
from robustkit.core.outputs import as_tensor
from robustkit.core.splitnorm import branch
from robustkit.core.task import Classification
from robustkit.core.threat import Eps, Threat
from robustkit.core.types import Cost
from robustkit.kernels.noise import key_of

Mode = Literal["eval", "train", "train_frozen_stats"]
Statistics = Literal["shared", "clean", "split"]
Parts = Mapping[str, Tensor]


class Engine:
    """Where a network is trained: this process alone.

    Whoever trains in several processes overrides these four; no defense sees the difference. Attacks run on the
    network itself and never through the wrapper, so that their steps need no other process.
    """

    rank = 0
    world = 1

    def wrapper(self, model: Model) -> Callable[[Tensor], Any]:
        """What the training forward goes through; its gradients are those of all processes."""
        return model.module

    def backward(self, loss: Tensor) -> None:
        """Fill the gradients of the parameters."""
        loss.backward()

    def gather(self, values: Tensor) -> Tensor:
        """The values (N, ...) of all processes."""
        return values


@dataclass(eq=False)
class TrainState:
    """What a training keeps between its steps, beside the network and its optimiser.

    Attributes:
        seed: of all random draws; a draw depends on it, the step and the sample alone.
        step: steps done.
        total: steps in all, where that is known.
        strength: share of the radius that the threat has now, for trainings that begin with a small one.
        precision: in what the training forward computes; attacks always compute as the network does.
        memory: tensors that defenses carry from step to step, such as a perturbation; part of a checkpoint.
        engine: see :class:`Engine`.
        cost: samples passed forward and backward so far, those of attacks included.
    """

    seed: int = 0
    step: int = 0
    total: int | None = None
    strength: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    memory: dict[str, Tensor] = field(default_factory=dict)
    engine: Engine = field(default_factory=Engine)
    cost: Cost = field(default_factory=Cost)

    @property
    def progress(self) -> float:
        """Share of the steps that are done; 0 where their number is not known."""
        return self.step / self.total if self.total else 0.0


@dataclass(eq=False)
class Lesson:
    """The step at work.

    Attributes:
        model: the wrapped network, in train mode.
        x, y, ids: inputs (N, *S), labels, and sample ids (N,).
        state: of the training.
        purpose: the name of the defense, for messages.
        statistics: how parts of a batch are normalised: ``shared`` together, ``clean`` each by itself with running
            statistics of the first part alone, ``split`` by layers of their own (:mod:`robustkit.core.splitnorm`).
        accuracy: of the last training forward, by the name of the part.
    """

    model: Model
    x: Tensor
    y: Tensor
    ids: Tensor
    state: TrainState
    purpose: str
    threat: Threat | None = None
    statistics: Statistics = "shared"
    accuracy: dict[str, Tensor] = field(default_factory=dict)
    _learns: bool = True
    _rows: int = 0

    @property
    def draws(self) -> Draws:
        """Random numbers of this step, keyed by seed, step and sample; every defense draws the same ones."""
        return Draws(self.state.seed, self.ids.cpu(), "train", self.state.step)

    @property
    def ball(self) -> Threat:
        """The threat, at its present strength.

        Raises:
            UsageError: none was given.
        """
        if self.threat is None:
            raise UsageError(
                "the defense needs a threat",
                expected="what the attacker may change",
                where=self.purpose,
                fix="Give one, such as threat=rk.Linf(8/255), or --threat linf:8/255.",
            )
        return self.threat if self.state.strength == 1 else self.threat.at(self.threat.eps * self.state.strength)

    # -- attacks ---------------------------------------------------------------------------------------------------

    @contextmanager
    def attacking(self, mode: Mode = "eval", part: int = 1) -> Iterator[None]:
        """The network as an attack should see it, without gradients of the parameters; restored, also on error.

        ``eval`` uses running statistics, ``train`` those of the batch and lets the running ones learn from attacks,
        ``train_frozen_stats`` those of the batch alone. With ``split`` statistics inputs pass the layers of the part,
        by its place in the training batch, that they will be trained on as.
        """
        module = self.model.module
        modes = {m: m.training for m in module.modules()}
        wanted = {p: p.requires_grad for p in module.parameters()}
        frozen = normalising(module, [1], ()) if mode == "train_frozen_stats" else nullcontext()
        through = branch(module, part) if self.statistics == "split" else nullcontext()
        try:
            module.requires_grad_(False)
            if mode == "eval":
                module.eval()
            with through, frozen:
                yield
        finally:
            for m, training in modes.items():
                m.training = training
            for p, needs in wanted.items():
                p.requires_grad_(needs)

    def ascend(self, start: Tensor, objective: Objective, steps: int, size: Eps) -> Iterator[Tensor]:
        """The points of projected gradient ascent from ``start``, one after the other, without the start.

        To be used inside :meth:`attacking`. One F and one B a step; gradients are those of the inputs alone.
        """
        adv = start
        for _ in range(steps):
            grad = self.model.value_and_grad(adv, objective)[1]
            adv = self.ball.step(adv, self.x, grad, size, self.model.bounds)
            yield adv

    # -- the training forward ----------------------------------------------------------------------------------------

    def forward(self, parts: Parts) -> dict[str, Tensor]:
        """Outputs of every part (N, ...), of one forward over all of them, in the order given. One F a part."""
        found = self.passed(parts)
        self.judge(found)
        return found

    def passed(self, parts: Parts, times: int = 1) -> dict[str, Tensor]:
        """:meth:`forward` without a look at the answers; ``times`` F a part, where that many networks share the work.

        For defenses whose network answers in train steps otherwise than its task has it.
        """
        sizes = [len(part) for part in parts.values()]
        whole = torch.cat(list(parts.values()))
        with self._normalised(sizes), self._autocast():
            outputs = as_tensor(self.state.engine.wrapper(self.model)(whole))
        outputs = outputs.to(self.model.dtype)
        self._rows = len(whole) * self.model.eot * times
        self.model.cost.forwards += self._rows
        return dict(zip(parts, outputs.split(sizes), strict=True))

    def judge(self, answers: Mapping[str, Tensor]) -> None:
        """Set the accuracy, from outputs (N, ...) by name."""
        with torch.no_grad():
            failed = {
                name: self.model.task.failed(out, self.y) for name, out in answers.items() if len(out) == len(self.y)
            }
            self.accuracy = {name: 1 - wrong.to(self.model.dtype).mean() for name, wrong in failed.items()}

    def backward(self, loss: Tensor) -> None:
        """Gradients of the parameters, as part of the step's. One B a part of the last forward."""
        if not loss.requires_grad:
            raise UsageError(
                "the network cannot be trained: no differentiable path leads from its weights to its outputs",
                where="the network's forward",
                fix="Look for argmax, round, detach, no_grad or numpy inside.",
            )
        self.state.engine.backward(loss)
        self.model.cost.backwards += self._rows

    def forget(self) -> None:
        """Drop the gradients of the parameters."""
        for parameter in self.model.module.parameters():
            parameter.grad = None

    @contextmanager
    def unlearnt(self) -> Iterator[None]:
        """Training forwards inside leave the running statistics as they are."""
        before, self._learns = self._learns, False
        try:
            yield
        finally:
            self._learns = before

    def cross_entropy(self, outputs: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
        """The task's own loss of each sample, (N,); labels of classifiers may be smoothed, by one share or (N,)."""
        if isinstance(smoothing, float | int) and smoothing == 0:
            return self.model.task.loss(outputs, self.y)
        check_class_logits(self.model, f"{self.purpose}:label_smoothing")
        return smoothed_cross_entropy(outputs, self.y, smoothing)

    def _normalised(self, sizes: list[int]) -> Any:
        if self.statistics == "clean":
            return normalising(self.model.module, sizes, (0,) if self._learns else ())
        return nullcontext() if self._learns else normalising(self.model.module, [sum(sizes)], ())

    def _autocast(self) -> Any:
        if self.state.precision == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


def smoothed_cross_entropy(logits: Tensor, y: Tensor, smoothing: float | Tensor) -> Tensor:
    """Cross-entropy (N,) against labels that give a share ``smoothing`` to all classes alike, a number or (N,).

    >>> smoothed_cross_entropy(torch.zeros(1, 4), torch.tensor([0]), 0.1)
    tensor([1.3863])
    """
    logp = F.log_softmax(logits, 1)
    return -(1 - smoothing) * logp.gather(1, y[:, None])[:, 0] - smoothing * logp.mean(1)


@contextmanager
def randomness(state: TrainState, device: torch.device) -> Iterator[None]:
    """Dropout and its like draw by (seed, step, process) inside; the global generators are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), kept():
        torch.default_generator.manual_seed(key_of(state.seed, state.step, "train", state.engine.rank, 0))
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key_of(state.seed, state.step, "train", state.engine.rank, 1))
        yield


def check_class_logits(model: Model, name: str) -> None:
    """Whether the network gives one label a sample.

    Raises:
        UsageError: it does not.
    """
    if not isinstance(model.task, Classification):
        raise UsageError(
            "the defense compares class probabilities",
            expected="task classification",
            got=f"task {model.task.name}",
            where=name,
            fix="Use erm, noise, pgd-at, fgsm-rs, free, awp or amp, which take the loss of any task.",
        )
