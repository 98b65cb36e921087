"""D1 and D12: do the outputs give a loss that can be climbed?"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import RobustkitError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.objective import LabelObjective, Loss
from robustkit.core.task import Classification
from robustkit.run.probe import Probe, first_line, row

ZERO_SHARE = 0.05
"""Largest share of samples without gradient that is not refused: a network of ReLUs has some dead spots."""
NOTHING = "gradient-based robust accuracy means nothing here"
DIFFERENTIABLE = "Make the forward differentiable (look for round, argmax, detach, numpy), or attack by queries."


def finite_outputs(outputs: Tensor) -> Diagnostic | None:
    """Outputs that no loss can be taken of; None where there are none. A logit of -inf (a masked class) is one."""
    if not outputs.is_floating_point():
        text = f"{NOTHING}: the network returns {outputs.dtype}, not real numbers"
        return row("D1", "FAIL", text, value=1.0, threshold="floating point", remedy=DIFFERENTIABLE)
    bad = (outputs.isnan() | (outputs == torch.inf)).flatten(1).any(1)
    if not bad.any():
        return None
    share = float(bad.double().mean())
    return row(
        "D12",
        "FAIL",
        f"the outputs of {int(bad.sum())} of {len(bad)} clean samples hold NaN or infinity",
        value=share,
        threshold="0",
        remedy="Look for broken weights, a division by 0, the log of 0, or overflow in half precision.",
    )


def outputs_are_logits(probe: Probe) -> Diagnostic:
    """D12: probabilities flatten the loss; saturated logits make the cross-entropy gradient exactly zero."""
    z = probe.outputs
    if not isinstance(probe.model.task, Classification):
        return row("D12", "NOT RUN", "only for classification")
    slack = max(1e-3, torch.finfo(z.dtype).eps)
    if bool((z >= 0).all()) and bool(((z.double().sum(1) - 1).abs() < slack).all()):
        return row(
            "D12",
            "FAIL",
            "the outputs are probabilities: they lie in [0, 1] and sum to 1",
            value=1.0,
            threshold="0",
            remedy="Return logits: remove the final softmax, or wrap a function that returns what it is fed.",
        )
    share = _saturated(probe)
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


def _saturated(probe: Probe) -> float:
    """Share of right samples whose cross-entropy gradient is 0 while the margin's is not."""
    index = probe.correct.nonzero()[: probe.few, 0]
    if len(index) == 0:
        return 0.0
    try:
        ce, margin = (_gradient(probe, index, loss) for loss in ("ce", "margin"))
    except Exception:  # D1 tells what is wrong
        return 0.0
    dead = (ce.flatten(1) == 0).all(1) & (margin.flatten(1) != 0).any(1)
    return float(dead.double().mean())


def gradients(probe: Probe) -> Diagnostic:
    """D1: the margin's gradient exists, is finite, and is not zero."""
    index = torch.arange(probe.few, device=probe.x.device)
    limit = f"<= {ZERO_SHARE:g}"
    try:
        grad = _gradient(probe, index, "margin" if isinstance(probe.model.task, Classification) else "ce").flatten(1)
    except Exception as error:
        what = error.what if isinstance(error, RobustkitError) else first_line(error)
        return row("D1", "FAIL", f"{NOTHING}: {what}", value=1.0, threshold=limit, remedy=DIFFERENTIABLE)
    broken = float((~grad.isfinite().all(1)).double().mean())
    if broken:
        return row(
            "D1",
            "FAIL",
            f"{NOTHING}: {broken:.0%} of the samples have NaN or infinite gradients",
            value=broken,
            threshold="0",
            remedy="Look for sqrt or log of 0, 0/0, or overflow in the forward.",
        )
    zero = float((grad == 0).all(1).double().mean())
    text = f"the gradient is exactly 0 for {zero:.0%} of the samples"
    if zero > ZERO_SHARE:
        return row("D1", "FAIL", f"{NOTHING}: {text}", value=zero, threshold=limit, remedy=DIFFERENTIABLE)
    if zero:
        return row("D1", "WARN", text, value=zero, threshold="0", remedy=DIFFERENTIABLE)
    return row("D1", "PASS", "finite and not zero", value=zero, threshold=limit)


def _gradient(probe: Probe, index: Tensor, loss: Loss) -> Tensor:
    """The gradient at some samples; for tasks that are no classification beside them, since a fit has none itself."""
    model, x = probe.model, probe.x[index]
    if not isinstance(model.task, Classification):
        x = probe.threat.start(x, model.bounds, Draws(probe.seed, default_ids(len(x)), "preflight"))
    objective = LabelObjective(model.task, probe.y[index], loss=loss)
    with model.frozen(probe.seed):
        return model.value_and_grad(x, objective)[1]
