"""Everything that is decided before the first attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from robustkit.core.attack import ATTACKS, Attack
from robustkit.core.errors import UsageError
from robustkit.core.files import slug
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.registry import text_of
from robustkit.core.specs import MethodSpec
from robustkit.core.suite import Suite
from robustkit.core.task import Classification
from robustkit.core.threat import Threat
from robustkit.data import Data
from robustkit.run import dense
from robustkit.run.config import EvaluateConfig

PROBE, PROBE_LARGE = 128, 64
"""Samples on which the preflight looks at the data; fewer where one has more than 100,000 values."""
AUTO_VALUES = 2_500_000
"""Input values in a batch of ``--batch-size auto``: 16 photos of 224x224, or 512 digits, the most."""


@dataclass(frozen=True)
class Stage:
    """One attack of a run.

    Attributes:
        attack: inside the threat of the run.
        label: how results call it: the name, and the options that are not the defaults; ``suite/stage`` in a suite.
        suite: name of the suite that it is part of, or nothing.
        after: stages of that suite that come before: samples that they broke are not attacked again.
    """

    attack: Attack
    label: str
    suite: str = ""
    after: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """A model, data, attacks inside one threat, and the options of the run."""

    model: Model
    data: Data
    chosen: tuple[Attack, ...]
    threat: Threat
    config: EvaluateConfig
    surrogate: Model | None = None

    def __post_init__(self) -> None:
        check_weights(self.model)
        twice = {label for label in self.labels if self.labels.count(label) > 1}
        if not self.chosen or twice:
            raise UsageError("each attack must be given once", got=", ".join(sorted(twice)) or "none", where="attacks")
        for attack in self.attacks:  # a loss that the task does not have is refused now, not after the preflight
            attack.objective(self.model.task, torch.empty(0, dtype=torch.long), None)
        if self.n == 0:
            raise UsageError("the data set is empty", expected="at least one sample", got="0", where=self.data.name)
        shape = tuple(self.inputs([0])[0].shape[1:])
        for attack in self.attacks:
            attack.check_task(self.model.task)
            attack.check_shape(shape)

    @property
    def n(self) -> int:
        """Samples to evaluate."""
        return min(len(self.data), self.config.limit or len(self.data))

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The attacks to run, suites taken apart."""
        found: list[Stage] = []
        for attack in self.chosen:
            if not isinstance(attack, Suite):
                found.append(Stage(attack, label_of(attack)))
                continue
            name, first = ATTACKS.entry_of(attack).name, len(found)
            for stage, part in attack.parts(self.threat).items():
                found.append(Stage(part, f"{name}/{stage}", name, tuple(range(first, len(found)))))
        return tuple(found)

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The attack of every stage."""
        return tuple(stage.attack for stage in self.stages)

    @property
    def labels(self) -> tuple[str, ...]:
        """How results call the stages."""
        return tuple(stage.label for stage in self.stages)

    def stage(self, k: int) -> str:
        """Name of the files of attack ``k``."""
        return f"{k}-{slug(self.labels[k])}"

    @cached_property
    def batch(self) -> int:
        """Samples in a chunk; decided by the options and the shape of the inputs alone."""
        if self.config.batch_size != "auto":
            return int(self.config.batch_size)
        values = max(1, self.inputs([0])[0][0].numel())
        return max(1, min(512, 1 << int(math.log2(max(1, AUTO_VALUES / values)))))

    def chunks(self) -> list[range]:
        """The samples, in fixed runs."""
        return [range(i, min(i + self.batch, self.n)) for i in range(0, self.n, self.batch)]

    def inputs(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x and y of some samples, where the network lies."""
        x, y = self.data.take(ids)
        dtype = self.model.dtype if x.is_floating_point() else x.dtype
        return x.to(self.model.device, dtype), y.to(self.model.device)

    def probe_ids(self) -> list[int]:
        """Evenly spaced samples for the preflight."""
        count = min(PROBE_LARGE if self.inputs([0])[0][0].numel() > 100_000 else PROBE, self.n)
        return [i * self.n // count for i in range(count)]

    def targets(self, ids: Tensor, y: Tensor, least: Tensor) -> Tensor | None:
        """The class that a targeted attack wants, (N,); None for an untargeted one."""
        if self.config.targeted is None:
            return None
        classes = int(self.model.output_shape(self.inputs([0])[0])[0])
        if not isinstance(self.model.task, Classification):
            return dense.targets(self.model.task, self.config.targeted, classes, y, ids, self.config.seed)
        if self.config.targeted == "least-likely":
            return torch.where(least == y, (y + 1) % classes, least)
        if self.config.targeted == "next":
            return (y + 1) % classes
        draws = Draws(self.config.seed, ids.cpu(), "target").uniform(torch.empty(len(y), 1))[:, 0].to(y.device)
        return (y + 1 + (draws * (classes - 1)).long()) % classes


def check_weights(model: Model) -> None:
    """Whether there is anything to compute with.

    Raises:
        UsageError: the network lies on the meta device.
    """
    if model.device.type == "meta":
        raise UsageError(
            "the model has no weights",
            expected="weights on the CPU or an accelerator",
            got="the meta device",
            where=model.name,
            fix="Load its weights first: net.to_empty(device='cpu'), then load_state_dict.",
        )


def label_of(attack: Attack) -> str:
    """``pgd:steps=20``: the name, and the options that are not the defaults; all of an attack of another library."""
    return text_of(ATTACKS, attack)


def build_attacks(
    texts: Sequence[str | Attack], threat: Threat, stages: Sequence[str] | None = None
) -> tuple[Attack, ...]:
    """Attacks inside ``threat``, from their text forms or instances; ``stages`` cuts the suites among them.

    Raises:
        UsageError: unknown names or options; an instance that has another threat already; stages without a suite.
    """
    built = [_build(item) for item in texts]
    if stages and not any(isinstance(attack, Suite) for attack in built):
        raise UsageError(
            "stages are parts of a suite",
            expected="a suite among the attacks",
            got=", ".join(label_of(attack) for attack in built),
            where="stages",
            fix="Add --attack standard, or leave the stages out.",
        )
    return tuple(_inside(_cut(attack, stages), threat) for attack in built)


def _cut(attack: Attack, stages: Sequence[str] | None) -> Attack:
    return replace(attack, stages="+".join(stages)) if stages and isinstance(attack, Suite) else attack


def passes_of(attacks: Sequence[Attack]) -> int:
    """Forward passes that the attacks average: more than one where a suite is made for random networks."""
    return max((attack.passes for attack in attacks if isinstance(attack, Suite)), default=1)


def _build(item: str | Attack) -> Attack:
    if isinstance(item, Attack):
        return item
    if not isinstance(item, str):
        raise UsageError(
            "this is not an attack",
            expected="rk.PGD(...) or text such as pgd:steps=20",
            got=repr(item),
            where="attacks",
        )
    spec = MethodSpec.parse(item)
    built: Attack = ATTACKS.get(spec.name).build(spec.options)
    return built


def _inside(attack: Attack, threat: Threat) -> Attack:
    if attack.threat is not None and attack.threat != threat:
        raise UsageError(
            "an attack has another threat than the evaluation",
            expected=threat.text,
            got=attack.threat.text,
            where=label_of(attack),
            fix="Leave the threat out of the attack.",
        )
    return attack.with_threat(threat)
