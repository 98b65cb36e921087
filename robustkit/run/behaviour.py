"""D2, D13 and D15: does the network answer alike twice, and what does its forward do besides?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.run.probe import Probe, row

SPREAD = 1e-4
"""Largest difference between two passes, relative to the largest logit, that is rounding."""
JUMP = 0.2
"""Change of the outputs within a hundredth of eps, relative to the largest logit, above which they are called jumpy."""


def modes(model: Model) -> Diagnostic:
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
