"""D1 and D12: is there a gradient to follow, and do the outputs let it through?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import RobustkitError
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Classification
from robustkit.run.probe import Probe, row

ZERO_SHARE = 0.05
"""Largest share of samples without gradient that is not refused: a network of ReLUs has some dead spots."""


def outputs_are_logits(probe: Probe) -> Diagnostic:
    """D12: probabilities flatten the loss; saturated logits make the cross-entropy gradient exactly zero."""
    z = probe.outputs
    if not isinstance(probe.model.task, Classification):
        return row("D12", "NOT RUN", "only for classification")
    sums = z.double().sum(1)
    if bool((z >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        return row(
            "D12",
            "FAIL",
            "the outputs are probabilities: they lie in [0, 1] and sum to 1",
            value=1.0,
            threshold="0",
            remedy="Return logits: remove the final softmax, or wrap a function that returns what it is fed.",
        )
    right = probe.correct
    n = int(right.sum())
    share = _saturated(probe, right) if n else 0.0
    if share > 0:
        return row(
            "D12",
            "WARN",
            f"logits are saturated: for {share:.0%} of the samples the cross-entropy gradient is exactly 0",
            value=share,
            threshold="0",
            remedy="Attack the margin instead: --attack pgd:loss=margin, or loss=dlr.",
        )
    return row("D12", "PASS", "logits, not saturated", value=share, threshold="0")


def _saturated(probe: Probe, right: Tensor) -> float:
    """Share of right samples whose cross-entropy gradient is 0 while the margin's is not."""
    index = right.nonzero()[: probe.few, 0]
    try:
        ce, margin = (_gradient(probe, index, loss) for loss in ("ce", "margin"))
    except RobustkitError:
        return 0.0
    dead = (ce.flatten(1) == 0).all(1) & (margin.flatten(1) != 0).any(1)
    return float(dead.double().mean())


def gradients(probe: Probe) -> Diagnostic:
    """D1: the margin's gradient exists, is finite, and is not zero."""
    nothing = "gradient-based robust accuracy means nothing here"
    loss = "margin" if isinstance(probe.model.task, Classification) else "ce"
    index = torch.arange(min(probe.few, len(probe.x)), device=probe.x.device)
    remedy = "Make the forward differentiable (look for round, argmax, detach, numpy), or attack by queries."
    try:
        grad = _gradient(probe, index, loss).flatten(1)
    except RobustkitError as error:
        return row("D1", "FAIL", f"{nothing}: {error.what}", value=1.0, threshold=f"<= {ZERO_SHARE:g}", remedy=remedy)
    broken = float((~grad.isfinite().all(1)).double().mean())
    if broken:
        return row(
            "D1",
            "FAIL",
            f"{nothing}: {broken:.0%} of the samples have NaN or infinite gradients",
            value=broken,
            threshold="0",
            remedy="Look for sqrt or log of 0, 0/0, or overflow in the forward.",
        )
    zero = float((grad == 0).all(1).double().mean())
    if zero > ZERO_SHARE:
        return row(
            "D1",
            "FAIL",
            f"{nothing}: the gradient is exactly 0 for {zero:.0%} of the samples",
            value=zero,
            threshold=f"<= {ZERO_SHARE:g}",
            remedy=remedy,
        )
    if zero:
        return row(
            "D1",
            "WARN",
            f"the gradient is exactly 0 for {zero:.0%} of the samples",
            value=zero,
            threshold="0",
            remedy=remedy,
        )
    return row("D1", "PASS", "finite and not zero", value=zero, threshold=f"<= {ZERO_SHARE:g}")


def _gradient(probe: Probe, index: Tensor, loss: Any) -> Tensor:
    objective = LabelObjective(probe.model.task, probe.y[index], loss=loss)
    with probe.model.frozen(probe.seed):
        return probe.model.value_and_grad(probe.x[index], objective)[1]
