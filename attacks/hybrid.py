"""How :func:`robustkit.attacks.direct_search.maximise` searches: its steps, radii and factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustkit.attacks.polling import Kind
from robustkit.attacks.trajectory import STEPS
from robustkit.core.errors import UsageError, near


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """How to search.

    Attributes:
        steps: what an iteration tries, in this order: any of attack, covering, search, poll.
        radius: of the first attack and the first poll, and of the ball that the covering step fills.
        attack_radii, poll_radii: smallest and largest; a search whose failing radii are smallest has ended.
        norm: in which an attack of radius r is the steepest step: linf moves all variables by r, l2 along the gradient
            by r; both changes from one to the other whenever an attack fails. Pulled back onto a constraint, a linf
            attack may end where it began; a l2 attack does so only at a stationary point.
        multipliers: of the radius; all the attacks that an iteration tries.
        corrections: steps back towards the constraints that an attack broke, each one evaluation; 0 for none.
        grow, nudge, shrink: of the attack radius after a gain of at least ``min_gain``, a smaller one, and none.
        min_gain: relative; below it direct search follows the attack.
        poll: ``n+1`` or ``2n`` directions.
        poll_factor: of the poll radius, up after a gain, down after a poll without.
        ordered: poll in the order of the slopes along the gradient, or along the last move where there is none.
        batch: points evaluated at once; the best of them counts. 1 stops at the first gain.

    Raises:
        UsageError: a value out of its range.
    """

    steps: tuple[str, ...] = STEPS
    radius: float = 0.1
    attack_radii: tuple[float, float] = (1e-6, 1.0)
    poll_radii: tuple[float, float] = (1e-6, 1.0)
    norm: Literal["linf", "l2", "both"] = "both"
    multipliers: tuple[float, ...] = (1.0,)
    corrections: int = 2
    grow: float = 1.3
    nudge: float = 1.1
    shrink: float = 1.3
    min_gain: float = 1e-3
    poll: Kind = "n+1"
    poll_factor: float = 2.0
    ordered: bool = True
    batch: int = 1

    def __post_init__(self) -> None:
        for step in self.steps:
            if step not in STEPS:
                raise UsageError("no such step", got=repr(step), where="steps", fix=near(step, STEPS))
        require(len(self.steps) > 0, "steps", "at least one step", self.steps)
        require(self.norm in ("linf", "l2", "both"), "norm", "linf, l2 or both", self.norm)
        require(self.poll in ("n+1", "2n"), "poll", "n+1 or 2n", self.poll)
        for name in ("attack_radii", "poll_radii"):
            low, high = getattr(self, name)
            require(0 < low <= high < float("inf"), name, "0 < smallest <= largest", (low, high))
        require(0 < self.radius < float("inf"), "radius", "a number > 0", self.radius)
        require(
            all(m > 0 for m in self.multipliers) and self.multipliers != (), "multipliers", "all > 0", self.multipliers
        )
        for name in ("grow", "nudge"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("shrink", "poll_factor"):
            require(getattr(self, name) > 1, name, "> 1", getattr(self, name))
        require(self.min_gain >= 0, "min_gain", ">= 0", self.min_gain)
        require(self.corrections >= 0, "corrections", ">= 0", self.corrections)
        require(self.batch >= 1, "batch", ">= 1", self.batch)


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise the UsageError that names an argument, unless the condition holds."""
    if not holds:
        raise UsageError(f"cannot search with this {name}", expected=expected, got=str(got), where=name)
