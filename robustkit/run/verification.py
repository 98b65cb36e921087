"""D17: does every stored adversarial input still hold?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Classification, DenseClassification, Graded
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

HARM = 0.01
"""How far the harm of a dense answer, measured again, may lie from what was recorded: a share of the pixels, or of the
mean squared error. Rounding turns single pixels."""


class Batch(NamedTuple):
    """Stored inputs beside their clean ones; ``harm`` (N,) as recorded, where answers are wrong to a degree."""

    ids: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None
    adversarial: Tensor
    harm: Tensor | None = None


def verification(model: Model, stored: Iterable[Batch], threat: Threat) -> Diagnostic:
    """Every stored input is inside ball and bounds and still fools the network, alone and in a batch; how many survive
    rounding to 8 bits is told beside it. A margin that rounding can turn counts as holding. In dense tasks what holds
    is the harm that was recorded."""
    total = outside = failed = survive = 0
    for _, x, y, target, adversarial, harm in (Batch(*batch) for batch in stored):
        objective = LabelObjective(model.task, y, target)
        total += len(x)
        outside += int(_outside(model, threat, x, adversarial).sum())
        with model.frozen(), torch.no_grad():
            first = [
                _holds(objective.take(slice(i, i + 1)), model(adversarial[i : i + 1]), _part(harm, slice(i, i + 1)))
                for i in range(min(len(x), ALONE))
            ]
            together = _holds(objective, model(adversarial), harm)
            survive += int(_survives(objective, model(_rounded(adversarial, model)), harm).sum())
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


def _part(harm: Tensor | None, index: slice) -> Tensor | None:
    return None if harm is None else harm[index]


def _survives(objective: LabelObjective, outputs: Tensor, harm: Tensor | None) -> Tensor:
    """(N,) bool: still reached; in dense tasks at least nine tenths of the harm."""
    if harm is None or not isinstance(objective.task, Graded):
        return objective.reached(outputs)
    return objective.task.harm(outputs, objective.y) >= SURVIVES * harm


def _holds(objective: LabelObjective, outputs: Tensor, harm: Tensor | None) -> Tensor:
    """(N,) bool: reached, or so close that rounding decides; in dense tasks as harmful as recorded."""
    if harm is not None and isinstance(objective.task, Graded):
        again = objective.task.harm(outputs, objective.y)
        room = HARM if isinstance(objective.task, DenseClassification) else HARM * harm
        return (again - harm).abs() <= room
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
