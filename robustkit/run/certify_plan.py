"""Everything that is decided before the first sample is certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from robustkit.certify.randomized import Randomized
from robustkit.certify.sampler import BLOCK, batch_for
from robustkit.core.attack import Attack
from robustkit.core.certifier import Certifier
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.task import Classification, DenseClassification
from robustkit.core.threat import L2, Threat
from robustkit.data import Data
from robustkit.run.certify_config import CertifyConfig
from robustkit.run.plan import PROBE, PROBE_LARGE, check_weights

VALUES, MOST = 20_000_000, 64
"""Values of the noisy copies of a chunk, and the most samples in it: what a kill can cost."""
COUNTS = 50_000_000
"""Counts that are held at once: 200 MB."""
QUEUE, LEAST = 2, 8
"""Samples whose decisions share batches, for each block of draws in a batch; and the least of them."""


@dataclass(frozen=True, eq=False)
class CertifyPlan:
    """A model, data, a certifier, and the options of the run."""

    model: Model
    data: Data
    certifier: Certifier
    config: CertifyConfig
    attack: Attack | None = None

    def __post_init__(self) -> None:
        check_weights(self.model)
        if self.n == 0:
            raise UsageError("the data set is empty", expected="at least one sample", got="0", where=self.data.name)
        if not isinstance(self.model.task, Classification | DenseClassification):
            raise UsageError(
                "certificates are about classes",
                expected="task classification or segmentation",
                got=f"task {self.model.task.name}",
                where="model",
            )
        x, _ = self.inputs([0])
        self.certifier.check(self.model, tuple(x.shape[1:]), self.outputs)

    @property
    def n(self) -> int:
        """Samples to certify."""
        return min(len(self.data), self.config.limit or len(self.data))

    @property
    def dense(self) -> bool:
        """Whether every pixel has a class."""
        return isinstance(self.model.task, DenseClassification)

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """Shape of the outputs of one sample."""
        return self.model.output_shape(self.inputs([0])[0], gradients=False)

    @property
    def asked(self) -> float | None:
        """The radius that is asked for, if one is."""
        return getattr(self.certifier, "radius", None)

    @property
    def threat(self) -> Threat:
        """What the preflight takes for a small change of the input: the noise."""
        return L2(float(getattr(self.certifier, "sigma", 0.25)))

    @property
    def batch(self) -> int | None:
        """Most samples in the network at once; None leaves it to the method."""
        return None if self.config.batch_size == "auto" else int(self.config.batch_size)

    @cached_property
    def chunks(self) -> tuple[range, ...]:
        """The samples in fixed runs, decided by the options and the shape of the inputs alone."""
        size = self._chunk()
        return tuple(range(i, min(i + size, self.n)) for i in range(0, self.n, size))

    def inputs(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x and y of some samples, where the network lies."""
        x, y = self.data.take(ids)
        dtype = self.model.dtype if x.is_floating_point() else x.dtype
        return x.to(self.model.device, dtype), y.to(self.model.device)

    def probe_ids(self) -> list[int]:
        """Evenly spaced samples for the preflight."""
        count = min(PROBE_LARGE if self.inputs([0])[0][0].numel() > 100_000 else PROBE, self.n)
        return [i * self.n // count for i in range(count)]

    def class_name(self, label: int) -> str:
        """The name of a class, or its number; of no class, that."""
        names = self.model.class_names or self.data.classes
        if label < 0:
            return "abstains"
        return names[label] if names and label < len(names) else str(label)

    def _chunk(self) -> int:
        if not isinstance(self.certifier, Randomized):
            return MOST
        values = self.inputs([0])[0][0].numel()
        if self.certifier.mode == "decide":
            return max(LEAST, QUEUE * batch_for(values) // BLOCK)
        parts, (classes, *places) = self.certifier.parts, self.outputs
        room = COUNTS // (parts * (classes + 1) * math.prod(places))
        return max(1, min(MOST, VALUES // (values * self.certifier.n * parts), room))
