"""D17: does every stored adversarial input still hold?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Classification
from robustkit.core.threat import Threat

TITLE = "stored inputs verify"
ROOM = 1e-6
"""Slack of stored distances, relative to eps; to it comes the rounding of every value, half a digit of its type."""
TIE = 1e-5
"""Margins below this are too small to call: batch sizes alone move logits by about 1e-6."""
ALONE = 8
"""Inputs of each batch that are also tried one by one."""
SURVIVES = 0.9
"""Share of the stored inputs that should survive rounding to 8 bits."""

Batch = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
"""ids, clean inputs, labels, targets, adversarial inputs."""


def verification(model: Model, stored: Iterable[Batch], threat: Threat) -> Diagnostic:
    """Every stored input is inside ball and bounds and still fools the network, alone and in a batch; how many survive
    rounding to 8 bits is told beside it. A margin that rounding can turn counts as holding."""
    total = outside = failed = survive = 0
    for _, x, y, target, adversarial in stored:
        objective = LabelObjective(model.task, y, target)
        total += len(x)
        outside += int(_outside(model, threat, x, adversarial).sum())
        with model.frozen(), torch.no_grad():
            first = [
                _holds(objective.take(slice(i, i + 1)), model(adversarial[i : i + 1]))
                for i in range(min(len(x), ALONE))
            ]
            together = _holds(objective, model(adversarial))
            survive += int(objective.reached(model(_rounded(adversarial, model))).sum())
        alone = torch.cat([*first, together[len(first) :]])
        failed += int((~(together & alone)).sum())
    return _verified(total, outside, failed, survive, random=model.eot > 1)


def _outside(model: Model, threat: Threat, x: Tensor, adversarial: Tensor) -> Tensor:
    """(N,) bool: outside ball or bounds by more than the rounding of the numbers that are stored."""
    digit = torch.finfo(adversarial.dtype).eps
    room = digit / 2 * max(abs(model.bounds.low), abs(model.bounds.high))
    limit = threat.eps * (1 + max(ROOM, 2 * digit)) + room * _terms(threat, x)
    low, high = adversarial.flatten(1).amin(1), adversarial.flatten(1).amax(1)
    far = threat.distance(adversarial.double(), x.double()) > limit
    return far | (low < model.bounds.low - room) | (high > model.bounds.high + room)


def _holds(objective: LabelObjective, outputs: Tensor) -> Tensor:
    """(N,) bool: reached, or so close that rounding decides."""
    if not isinstance(objective.task, Classification):
        return objective.reached(outputs)
    return replace(objective, loss="margin")(outputs) > -TIE


def _verified(total: int, outside: int, failed: int, survive: int, *, random: bool) -> Diagnostic:
    if total == 0:
        return _row("NOT RUN", "no adversarial input is stored: nothing was broken")
    if outside or (failed and not random):
        return _row(
            "FAIL",
            f"of {total} stored inputs {outside} lie outside ball or bounds and {failed} do not fool the network",
            value=float(outside + failed),
            threshold="0",
            remedy="The run or the network has changed: evaluate again.",
        )
    if failed:
        return _row(
            "WARN",
            f"of {total} stored inputs {failed} do not fool another draw of this random network",
            value=float(failed),
            threshold="0",
            remedy="More passes (--eot) make verdicts steadier.",
        )
    share = survive / total
    text = (
        f"all {total} stored inputs lie in ball and bounds and fool the network; "
        f"{share:.0%} still do after rounding to 8 bits"
    )
    if share < SURVIVES:
        return _row(
            "WARN",
            text,
            value=share,
            threshold=f">= {SURVIVES:.0%} after rounding",
            remedy="Saved as 8-bit pictures these examples lose their effect; keep the safetensors.",
        )
    return _row("PASS", text, value=share, threshold=f">= {SURVIVES:.0%} after rounding")


def _terms(threat: Threat, x: Tensor) -> float:
    """How rounding of single pixels adds up in this norm."""
    d = x[0].numel()
    return {"linf": 1.0, "l2": float(d**0.5), "l1": float(d)}[threat.norm]


def _rounded(x: Tensor, model: Model) -> Tensor:
    low, width = model.bounds.low, model.bounds.width
    return ((x - low) / width * 255).round() / 255 * width + low


def _row(status: Any, message: str, *, value: float | None = None, threshold: str = "", remedy: str = "") -> Diagnostic:
    return Diagnostic(
        id="D17",
        title=TITLE,
        status=status,
        value=value,
        threshold=threshold,
        message=message,
        remedy=remedy,
        invalidates=status == "FAIL",
    )
