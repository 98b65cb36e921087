"""Everything that is decided before the first step of a training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustkit.core.attack import Attack, check_inputs
from robustkit.core.augment import Augmentation, augmentation
from robustkit.core.batchnorm import batch_norms
from robustkit.core.defense import Defense, defense_from
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Classification
from robustkit.core.threat import Linf, Threat, threat_from
from robustkit.data import Data, open_data
from robustkit.data.batches import held_out, held_out_size
from robustkit.run.plan import build_attacks, check_weights
from robustkit.run.train_config import TrainConfig
from robustkit.run.train_optim import optimizer
from robustkit.zoo.blank import blank

DEFAULT_THREAT = Linf(8 / 255)
TRAIN_PART = {"demo:mnist": "demo:mnist-train"}
"""Data to judge on -> the data to train on instead: nothing is ever trained on the former."""
TEST_PART = {train: test for test, train in TRAIN_PART.items()}
EVALS = {"standard": ("standard",), "pgd": ("pgd:steps=50", "pgd:steps=50,loss=margin"), "none": ()}
"""What ``eval`` stands for, as attacks of an evaluation."""
RATES = {"sgd": 0.1, "momentum": 0.1, "nesterov": 0.1, "lars": 1.0}
"""Peak of the learning rate of an optimiser unless it is given; of all others 0.001."""
LOOK = 32
"""Samples that are looked at before a folder is begun, in which other options would be refused."""


@dataclass(frozen=True, eq=False)
class TrainPlan:
    """A network to be trained, data, a defense, and the options of the run.

    Attributes:
        model: a private copy; the user's network is touched when all is done.
        spec: how the network can be made again; ``python:NAME`` for one that came from Python.
        data, test: to train on; to evaluate on at the end, where there are any.
        notes: what was decided for the user, to be shown and stored.
    """

    model: Model
    spec: str
    data: Data
    test: Data | None
    defense: Defense
    threat: Threat | None
    config: TrainConfig
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.model)
        config = self.config
        if not any(p.requires_grad for p in self.model.net.parameters()):
            raise UsageError("the network has nothing to train", expected="parameters with gradients", where="model")
        self._check_labels()
        if self.test is not None and self.test.fingerprint() == self.data.fingerprint():
            raise UsageError(
                "test and training data are the same",
                got=self.data.name,
                where="test",
                fix="Leave test out, or give other data.",
            )
        x, _ = self.inputs(self.rows[0][:LOOK])
        check_inputs(x, self.model)
        self._check_fit(x, self._targets)
        if self.test is not None:
            self._check_fit(self.placed(*self.test.take([0]))[0], self.test.targets()[: config.eval_limit], "test")
        self.defense.check(self.model, x)
        if config.batch_size * self.defense.parts == 1 and batch_norms(self.model.net):
            raise UsageError(
                "batch normalisation needs more than one sample",
                expected="a batch of 2 or more",
                got="1",
                where="batch_size",
                fix="Give --batch-size 2 or more.",
            )
        optimizer(self.model.net, config.optimizer, lr=self.lr, weight_decay=config.weight_decay)
        _ = self.remarks  # now, while the weights are those that training begins with
        if self.augmentation is not None:
            self.augmentation(x[:1].cpu(), [0])
        for attack in (*self.selection, *self.evaluation):
            attack.check_task(self.model.task)
            attack.check_shape(tuple(x.shape[1:]))

    @cached_property
    def prepared(self) -> Model:
        """The network as the defense trains it: the same one, unless the defense makes another of it."""
        return self.defense.prepare(self.model)

    # -- the data ----------------------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Samples used, of which a part is held out."""
        return min(len(self.data), self.config.limit or len(self.data))

    @cached_property
    def rows(self) -> tuple[list[int], list[int]]:
        """Ids to train on, and ids held out to choose the best weights by."""
        count = self.config.holdout or held_out_size(self.n)
        if not 0 < count < self.n:
            raise UsageError(
                "too few samples to hold some out",
                expected=f"1 to {self.n - 1} of the {self.n} samples",
                got=str(count),
                where="holdout",
            )
        return held_out(self._targets, count, self.config.seed)

    @cached_property
    def _targets(self) -> Tensor:
        return self.data.targets()[: self.n]

    @property
    def batch(self) -> int:
        """Samples in a batch: never more than there are."""
        return min(self.config.batch_size, len(self.rows[0]))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch; a last one that is not full is left out, other samples each time."""
        return max(1, len(self.rows[0]) // self.batch)

    @property
    def epochs(self) -> int:
        """Passes over the data: fewer where the defense learns from each batch several times."""
        return max(1, round(self.config.epochs / self.defense.replays))

    @property
    def steps(self) -> int:
        """Steps of the optimiser in all."""
        return self.epochs * self.per_epoch * self.defense.replays

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and whether attacks can move the first samples at the weights that training begins with.

        Raises:
            UsageError: the defense attacks, and no differentiable path leads through the network.
        """
        if not self.defense.adversarial:
            return self.notes
        x, y = self.inputs(self.rows[0][:LOOK])
        with self.model.frozen(self.config.seed), self.model.metered(refund=True):
            grad = self.model.value_and_grad(x, LabelObjective(self.model.task, y))[1]
        still = int((grad.flatten(1) == 0).all(1).sum())
        if not still:
            return self.notes
        return (
            *self.notes,
            f"the network's gradient is exactly 0 at {still} of {len(x)} samples: attacks in training cannot move "
            "them. Look for round, sign or saturated outputs; a last layer that begins at zero is no fault",
        )

    def inputs(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x and y of some samples, where the network lies."""
        return self.placed(*self.data.take(ids))

    def placed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch, where the network lies."""
        return x.to(self.model.device, self.model.dtype), y.to(self.model.device)

    # -- the methods -------------------------------------------------------------------------------------------------

    @cached_property
    def augmentation(self) -> Augmentation | None:
        """What is done to inputs before the defense sees them."""
        return augmentation(self.config.augment, self.model.bounds)

    @cached_property
    def selection(self) -> tuple[Attack, ...]:
        """The attacks on the held-out part; none without a threat."""
        return build_attacks(self.config.select, self.threat) if self.threat else ()

    @cached_property
    def evaluation(self) -> tuple[Attack, ...]:
        """The attacks of the final evaluation."""
        chosen = EVALS[self.config.eval]
        return build_attacks(chosen, self.threat) if self.threat and chosen else ()

    @property
    def lr(self) -> float:
        """Peak of the learning rate."""
        return self.config.lr or RATES.get(self.config.optimizer.lower(), 1e-3)

    def _check_fit(self, x: Tensor, targets: Tensor, where: str = "") -> None:
        """Whether the network takes such inputs, and all labels are among its outputs."""
        try:
            self.model.task.check(torch.empty((1, *self.model.output_shape(x)), device="meta"), targets)
        except UsageError as error:
            if not where:
                raise
            raise UsageError(error.what, expected=error.expected, got=error.got, where=where, fix=error.fix) from error

    def _check_labels(self) -> None:
        if not isinstance(self.model.task, Classification):
            return
        found = self._targets.unique().tolist()
        if len(found) < 2:
            raise UsageError(
                "the data hold one class only",
                expected="two classes or more",
                got=f"class {found[0]} in all {self.n} samples",
                where=self.data.name,
                fix="Give more data, or a larger --limit.",
            )


def plan_of(config: TrainConfig) -> TrainPlan:
    """Load the data, make the network and the defense that a configuration names.

    Raises:
        UsageError: whatever of it cannot be used.
    """
    threat = threat_from(config.threat) if config.threat else None
    defense, threat, notes = inside(defense_from(config.defense), threat)
    name = TRAIN_PART.get(config.data, config.data)
    if name != config.data:
        notes = (*notes, f"{config.data} is kept to judge on: training on {name}")
    data = open_data(name, limit=config.limit)
    model = _network(config, data)
    if model.preprocessing is not None and model.preprocessing.size:
        data = open_data(name, preprocessing=model.preprocessing, limit=config.limit)
    spec = config.test or TEST_PART.get(name)
    test = open_data(spec, preprocessing=model.preprocessing) if spec else None
    return TrainPlan(model, config.model, data, test, defense, threat, config, notes)


def inside(defense: Defense, threat: Threat | None) -> tuple[Defense, Threat | None, tuple[str, ...]]:
    """The defense inside the threat, which is 8/255 where none is given and it attacks; and the note that says so."""
    notes: tuple[str, ...] = ()
    if threat is None and defense.adversarial:
        threat = DEFAULT_THREAT
        notes = (f"no threat given: {defense.name} trains inside {threat.text} (8/255)",)
    return (defense.with_threat(threat) if threat else defense), threat, notes


def copied(model: Model) -> Model:
    """The same network once more, with gradients and weights of its own.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        return model.around(copy.deepcopy(model.net))
    except Exception as error:  # whatever the parts of a network raise
        raise UsageError(
            "the network cannot be copied, so its training could not be undone",
            got=f"{type(error).__name__}: {error}".partition("\n")[0][:200],
            where="model",
            fix="Detach tensors that it keeps from earlier forwards; networks of torch.jit and of quantisation do not "
            "train.",
        ) from error


def _network(config: TrainConfig, data: Data) -> Model:
    x, _ = data.take([0])
    targets = data.targets()
    if targets.is_floating_point():
        classes = targets.shape[1] if targets.ndim > 3 else 1
    else:
        classes = max(len(data.classes or ()), int(targets.max()) + 1)
    model = blank(
        config.model,
        classes=classes,
        shape=tuple(x.shape[1:]),
        seed=config.seed,
        init=config.init,
        mean=config.mean,
        std=config.std,
        bounds=config.bounds,
        task=config.task,
        device=config.device,
    )
    model.class_names = model.class_names or data.classes
    return model
