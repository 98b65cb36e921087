"""Small shared values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkit.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Bounds:
    """The valid range of inputs, in the units of the wrapped model.

    Raises:
        UsageError: ``low`` is not below ``high``.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(
                "bounds are empty", expected="low < high", got=f"({self.low}, {self.high})", where="bounds"
            )

    @property
    def width(self) -> float:
        return self.high - self.low

    def clamp(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


@dataclass(slots=True)
class Cost:
    """Samples passed forward and backward through the network (a batch of N counts N).

    >>> Cost(2, 1) + Cost(3, 3)
    Cost(forwards=5, backwards=4)
    """

    forwards: int = 0
    backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards)
