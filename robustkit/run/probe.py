"""What the preflight looks at, and the form of what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import Model
from robustkit.core.threat import Threat

TITLES = {
    "D1": "gradients are usable",
    "D2": "predictions are stable",
    "D12": "outputs are logits",
    "D13": "no optimisation at inference",
    "D14": "preprocessing fits",
    "D15": "modules are in evaluation mode",
    "D16": "labels fit",
}
GRADIENT_VALUES = 8 * 3 * 224 * 224
"""Input values whose gradients are looked at: 8 photos, or 32 small images at the most."""


def row(
    key: str, status: Any, message: str, *, value: float | None = None, threshold: str = "", remedy: str = ""
) -> Diagnostic:
    """A finding of the preflight; its failures are fatal."""
    return Diagnostic(
        id=key,
        title=TITLES[key],
        status=status,
        value=value,
        threshold=threshold,
        message=message,
        remedy=remedy,
        invalidates=True,
    )


@dataclass(frozen=True, eq=False)
class Probe:
    """The network's answers to some clean samples."""

    model: Model
    x: Tensor
    y: Tensor
    outputs: Tensor
    threat: Threat
    seed: int

    @property
    def few(self) -> int:
        """Samples whose gradients are looked at."""
        return max(1, min(32, GRADIENT_VALUES // max(1, self.x[0].numel())))

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return ~self.model.task.failed(self.outputs, self.y)
