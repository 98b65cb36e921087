"""The learning rate and the strength of the threat, as functions of the share of the steps that is done.

Nothing here keeps a state, so a training that was cut goes on with the same values. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from robustkit.core.errors import UsageError, near

START = 1 / 25
"""Where a rise of the rate begins, as a share of the peak (torch's OneCycleLR has the same): the first step learns."""
END = START / 1e4
"""Where one-cycle ends, as in OneCycleLR."""
WEAK = 0.1
"""Where a rise of eps begins, as a share of the threat's."""
RISE = {"one-cycle": 0.3, "cyclic": 0.4}
"""Share of the steps over which a schedule rises by itself; OneCycleLR's, and that of Wong et al.'s code."""


def rate(schedule: str, progress: float, warmup: float = 0.0) -> float:
    """The learning rate as a share of its peak.

    - constant: 1.
    - cosine: from 1 to 0 along half a cosine (Loshchilov and Hutter 2017).
    - one-cycle: up along half a cosine from 1/25 over the first 30 %, then down to 4e-6 (Smith and Topin 2018).
    - piecewise: 1, 0.1 from half of the steps on, 0.01 from three quarters on.
    - cyclic: up along a line over the first 40 %, down along another to 0 (Wong et al. 2020).
    - poly: (1 - progress)^2, as large batches use it (You et al. 2017).

    Args:
        schedule: one of these.
        progress: share of the steps that is done, from 0 to 1.
        warmup: share of the steps with a rising rate. A line from 1/25 leads up to 1, and the schedule runs over the
            rest; one-cycle and cyclic rise by themselves, over this share where it is more than 0.

    Raises:
        UsageError: unknown schedule.

    >>> [round(rate("cosine", p / 4), 3) for p in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    >>> rate("constant", 0.05, warmup=0.1), rate("cyclic", 0.4)
    (0.52, 1.0)
    """
    check_schedule(schedule)
    rise = warmup or RISE.get(schedule, 0.0)
    if progress < rise:
        share = progress / rise
        return START + (1 - START) * ((1 - math.cos(math.pi * share)) / 2 if schedule == "one-cycle" else share)
    return _FALLS[schedule]((progress - rise) / (1 - rise) if rise < 1 else 1.0)


def strength(ramp: float, progress: float) -> float:
    """The radius of the threat as a share of its full size: a line from 0.1 to 1 over the first ``ramp`` of the steps.

    Small networks that face the full radius from the first step stay at chance.

    >>> strength(0.0, 0.0), strength(0.5, 0.0), strength(0.5, 0.25), strength(0.5, 0.9)
    (1.0, 0.1, 0.55, 1.0)
    """
    return 1.0 if progress >= ramp else WEAK + (1 - WEAK) * progress / ramp


def check_schedule(name: str) -> None:
    """Whether there is such a schedule.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name not in SCHEDULES:
        raise UsageError(
            "unknown schedule",
            expected=f"one of {', '.join(SCHEDULES)}",
            got=repr(name),
            where="schedule",
            fix=near(name, SCHEDULES),
        )


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _piecewise(share: float) -> float:
    return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01


_FALLS: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": _cosine,
    "one-cycle": lambda share: END + (1 - END) * _cosine(share),
    "piecewise": _piecewise,
    "cyclic": lambda share: 1 - share,
    "poly": lambda share: (1 - share) ** 2,
}
"""What each does with the rate after its rise; the argument runs from 0 to 1."""

SCHEDULES = tuple(_FALLS)
