"""A direction as an objective: how far the outputs move along it, whatever they mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.errors import UsageError


@dataclass(frozen=True, eq=False)
class DirectionObjective:
    """<u, outputs>, sample by sample; its gradient is the vector-Jacobian product J^T u.

    A cross-entropy with ``u`` in the place of the label follows J^T (u - mean(u)) instead: nothing at all for one
    output or for equal entries (https://arxiv.org/abs/2510.01461 defines the attack operator by the inner product).

    Attributes:
        u: (N, *O), a direction in the space of the outputs for every sample.

    Raises:
        UsageError: u is no floating-point batch, holds NaN or infinity, or (when called) has another shape than the
            outputs; classes to aim at, which a direction does not know.

    >>> objective = DirectionObjective(torch.tensor([[1.0, -2.0]]))
    >>> objective(torch.tensor([[3.0, 1.0]]))
    tensor([1.])
    """

    u: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.u, Tensor) or self.u.ndim < 2 or not self.u.is_floating_point():
            got = (
                f"{self.u.dtype} of shape {tuple(self.u.shape)}"
                if isinstance(self.u, Tensor)
                else type(self.u).__name__
            )
            raise UsageError(
                "a direction must be a batch of real vectors", expected="floats (N, outputs...)", got=got, where="u"
            )
        if not bool(self.u.isfinite().all()):
            raise UsageError("a direction holds NaN or infinity", where="u")

    def __call__(self, outputs: Tensor) -> Tensor:
        if outputs.shape != self.u.shape:
            raise UsageError(
                "direction and outputs have different shapes",
                expected=str(tuple(outputs.shape)),
                got=str(tuple(self.u.shape)),
                where="u",
                fix="Give one direction per sample, or one without the batch dimension for all.",
            )
        return (outputs * self.u.to(outputs)).flatten(1).sum(1)

    def reached(self, outputs: Tensor) -> Tensor:
        """Never: a direction has no end, so that no sample leaves a search early."""
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)

    def take(self, index: Tensor | slice) -> DirectionObjective:
        return DirectionObjective(self.u[index])

    def at(self, progress: float) -> DirectionObjective:
        """The same: a direction does not change on the way."""
        return self

    def aimed(self, classes: Tensor) -> DirectionObjective:
        raise UsageError(
            "a direction has no classes to aim at",
            where="aimed",
            fix="Make a direction of the classes: one_hot(target) - one_hot(label).",
        )
