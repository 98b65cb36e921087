"""What the checks before the attacks share: a probe of the data, the network's answers to it, and their findings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic, Status
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
    key: str, status: Status, message: str, *, value: float | None = None, threshold: str = "", remedy: str = ""
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


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


@dataclass(frozen=True, eq=False)
class Probe:
    """The network's answers (N, ...) to some clean samples (N, *S)."""

    model: Model
    x: Tensor
    y: Tensor
    outputs: Tensor
    threat: Threat
    seed: int

    @property
    def few(self) -> int:
        """Samples at which more than one pass, or a gradient, is taken."""
        return max(1, min(32, len(self.x), GRADIENT_VALUES // max(1, self.x[0].numel())))

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return ~self.model.task.failed(self.outputs, self.y)

    @property
    def scale(self) -> Tensor:
        """How far apart the outputs of a sample lie, the largest over the probe; a common offset counts for nothing."""
        finite = torch.where(self.outputs.isfinite(), self.outputs, self.outputs.new_zeros(())).flatten(1).double()
        spread = finite.amax(1) - finite.amin(1) if self.outputs.flatten(1).shape[1] > 1 else finite.abs().amax(1)
        return spread.max().clamp_min(1e-12)

    def rounding(self, least: float) -> float:
        """``least``, or more where the network computes in few digits."""
        return max(least, 4 * torch.finfo(self.outputs.dtype).eps)
