"""Checks before any attack: would the number mean anything?

Each check looks at a probe of the data and at the network and returns a finding; a fatal one refuses the evaluation and
names what is wrong and what to write instead. Nothing here changes the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import RobustkitError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Classification
from robustkit.core.threat import Threat
from robustkit.run.alternatives import audit, audit_range
from robustkit.run.labels import audit_labels, label_range

TITLES = {
    "D1": "gradients are usable",
    "D2": "predictions are stable",
    "D12": "outputs are logits",
    "D13": "no optimisation at inference",
    "D14": "preprocessing fits",
    "D15": "modules are in evaluation mode",
    "D16": "labels fit",
}
ZERO_SHARE = 0.05
"""Largest share of samples without gradient that is not refused: a network of ReLUs has some dead spots."""
SPREAD = 1e-4
"""Largest difference between two passes, relative to the largest logit, that is rounding."""
JUMP = 0.2
"""Change of the outputs within a hundredth of eps, relative to the largest logit, above which they are called jumpy."""
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


def preflight(model: Model, x: Tensor, y: Tensor, *, threat: Threat, seed: int) -> list[Diagnostic]:
    """All checks on a probe of the data.

    Args:
        model: wrapped network.
        x, y: samples as the data source gives them, of any range, where the network lies.
        threat: of the evaluation.
        seed: of the random draws.

    Returns:
        A finding for each check, in the order of their ids; checks that could not run say why.
    """
    modes = _modes(model)
    wrong = _unusable(x)
    if wrong is None:
        with model.frozen(seed), torch.no_grad():
            try:
                outputs = model(x)
            except (RobustkitError, RuntimeError, ValueError, TypeError, IndexError) as error:
                wrong = row(
                    "D14",
                    "FAIL",
                    f"the network does not run on these inputs: {str(error).strip().splitlines()[0]}",
                    remedy="Check the shape, the layout (channels first) and the dtype of the inputs.",
                )
    if wrong is not None:
        return _ordered([wrong, modes])
    probe = Probe(model, x, y, outputs, threat, seed)
    early = [audit_range(probe.model, x, y), label_range(model, outputs, y)]
    stop = [finding for finding in early if finding is not None]
    if stop:
        return _ordered([*stop, modes])
    return _ordered([modes, *_checks(probe)])


def _checks(probe: Probe) -> Iterator[Diagnostic]:
    stable = stability(probe)
    yield stable
    yield outputs_are_logits(probe)
    yield gradients(probe)
    yield inner_optimisation(probe)
    yield audit(probe.model, probe.x, probe.y, probe.outputs)
    yield audit_labels(probe.model, probe.outputs, probe.y)


def _ordered(rows: list[Diagnostic]) -> list[Diagnostic]:
    """One row for every id; what could not be looked at says so."""
    found = {finding.id: finding for finding in reversed(rows)}
    blame = next((finding.id for finding in rows if finding.status == "FAIL"), "")
    return [found.get(key) or row(key, "NOT RUN", f"could not be looked at before {blame} is mended") for key in TITLES]


def _unusable(x: Tensor) -> Diagnostic | None:
    if not x.is_floating_point():
        return row("D14", "FAIL", f"inputs are {x.dtype}", remedy="Give floating-point images: x.float() / 255.")
    bad = int((~x.isfinite().flatten(1).all(1)).sum())
    if bad:
        return row(
            "D14",
            "FAIL",
            f"{bad} of {len(x)} samples hold NaN or infinity",
            value=bad / len(x),
            threshold="0",
            remedy="Remove or repair these samples.",
        )
    return None


def _modes(model: Model) -> Diagnostic:
    """D15: what is in train mode is set to evaluation mode for the run, and restored."""
    training = [f"{name or 'the network'} ({type(m).__name__})" for name, m in model.net.named_modules() if m.training]
    if not training:
        return row("D15", "PASS", "all modules are in evaluation mode", value=0, threshold="0 modules in train mode")
    matters = [m for m in model.net.modules() if m.training and _depends_on_mode(m)]
    if not matters:
        return row(
            "D15",
            "PASS",
            f"{len(training)} modules were in train mode, none of a kind that behaves otherwise there",
            value=0,
            threshold="0 modules in train mode",
        )
    shown = ", ".join(training[:3]) + (" ..." if len(training) > 3 else "")
    return row(
        "D15",
        "WARN",
        f"{len(training)} modules were in train mode ({shown}); they are in evaluation mode for this run "
        "and restored after it",
        value=len(training),
        threshold="0 modules in train mode",
        remedy="Call net.eval() before wrapping.",
    )


def _depends_on_mode(module: nn.Module) -> bool:
    """Dropout and BatchNorm do; what torch does not define may."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    return isinstance(module, kinds) or not type(module).__module__.startswith("torch.nn.")


def stability(probe: Probe) -> Diagnostic:
    """D2: the same input gives the same output, and a much smaller step than eps does not make the loss jump."""
    model, x = probe.model, probe.x
    with model.frozen(probe.seed + 1), torch.no_grad():
        passes = torch.stack([model(x) for _ in range(3)]).double()
    scale = passes.abs().max().clamp_min(1e-12)
    spread = float((passes.amax(0) - passes.amin(0)).max() / scale)
    if spread > SPREAD:
        if model.eot == 1:
            return row(
                "D2",
                "FAIL",
                f"the network is random: three passes of the same inputs differ by {spread:.2g} of the largest logit",
                value=spread,
                threshold=f"<= {SPREAD:g}",
                remedy="Evaluate the mean of several passes: --eot 20, in Python "
                "wrap(net, eot=20); or remove what draws random numbers in forward.",
            )
        return row(
            "D2",
            "WARN",
            f"the network is random; the mean of {model.eot} passes still varies by {spread:.2g} of the largest logit",
            value=spread,
            threshold=f"<= {SPREAD:g}",
            remedy="More passes (--eot) make the figure steadier.",
        )
    jump = _jump(probe)
    if jump > JUMP:
        return row(
            "D2",
            "WARN",
            f"within a hundredth of eps the outputs change by {jump:.0%}: gradients may mislead here",
            value=jump,
            threshold=f"<= {JUMP:g}",
            remedy="Add an attack that needs no gradients, and more restarts.",
        )
    return row(
        "D2",
        "PASS",
        "equal inputs give equal outputs, and small steps small changes",
        value=spread,
        threshold=f"<= {SPREAD:g}",
    )


def _jump(probe: Probe) -> float:
    """Largest change of the outputs in a ball of a hundredth of eps, relative to the largest; of the median sample."""
    model, threat = probe.model, probe.threat
    if not isinstance(threat.eps, float | int) or threat.eps == 0:
        return 0.0
    small = threat.at(threat.eps / 100)
    with model.frozen(probe.seed), torch.no_grad():
        draws = Draws(probe.seed, default_ids(len(probe.x)), "preflight")
        moved = torch.stack([model(small.start(probe.x, model.bounds, draws.again(i))) for i in range(3)])
    change = (moved - probe.outputs).flatten(2).abs().amax((0, 2)) / probe.outputs.flatten(1).abs().amax(1).clamp_min(
        1e-12
    )
    return float(change.double().median())


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


def inner_optimisation(probe: Probe) -> Diagnostic:
    """D13: a defense that optimises inside its forward needs attacks made for it."""
    with _counted() as calls, probe.model.frozen(probe.seed), torch.enable_grad():
        try:
            probe.model.module(probe.x[:2].detach().requires_grad_())
        except RuntimeError as error:
            return row("D13", "NOT RUN", f"the forward fails with gradients on: {str(error).splitlines()[0]}")
    if calls:
        return row(
            "D13",
            "WARN",
            f"the forward computes gradients itself ({len(calls)} calls of autograd)",
            value=len(calls),
            threshold="0",
            remedy="Such defenses break under attacks that know them; see the docs page of this diagnostic.",
        )
    return row("D13", "PASS", "the forward computes no gradients of its own", value=0, threshold="0")


@contextmanager
def _counted() -> Iterator[list[str]]:
    """The names of autograd calls made inside; the functions are put back, also on error."""
    calls: list[str] = []
    homes: list[tuple[Any, str]] = [(torch.autograd, "grad"), (torch.autograd, "backward"), (Tensor, "backward")]
    saved = [(home, name, getattr(home, name)) for home, name in homes]

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    try:
        for home, name, function in saved:
            setattr(home, name, counting(name, function))
        yield calls
    finally:
        for home, name, function in saved:
            setattr(home, name, function)
