"""D2, D13, D15: does the network give one answer to one input, whatever else is in the batch, and stay as it is?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.run.probe import Probe, first_line, row

SPREAD = 1e-4
"""Largest difference between two passes of one batch, relative to the spread of the logits, that is rounding."""
NEIGHBOURS = 1e-2
"""The same between batches of another size: accelerators choose other algorithms for them."""
JUMP = 0.2
"""Change of the outputs within a hundredth of eps, relative to the largest logit, above which they are called jumpy."""


# -- D15 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class State:
    """Buffers and the versions of the weights, to tell whether a forward changes the network; lazy ones may appear."""

    net: nn.Module
    buffers: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, net: nn.Module) -> State:
        known = {name: b.detach().clone() for name, b in net.named_buffers() if not is_lazy(b)}
        versions = {n: p._version for n, p in net.named_parameters() if not (is_lazy(p) or p.is_inference())}
        return cls(net, known, versions)

    def changed(self) -> list[str]:
        """Names of floating-point buffers and weights that are no longer what they were."""
        now = {n: b for n, b in self.net.named_buffers() if n in self.buffers and b.is_floating_point()}
        moved = [n for n, b in now.items() if not _equal(b, self.buffers[n])]
        weights = {n: p for n, p in self.net.named_parameters() if n in self.versions}
        return moved + [n for n, p in weights.items() if p._version != self.versions[n]]

    def restore(self) -> None:
        """Put the buffers back."""
        with torch.no_grad():
            for name, buffer in self.net.named_buffers():
                kept = self.buffers.get(name)
                if kept is not None and kept.shape == buffer.shape and not _equal(buffer, kept):
                    buffer.copy_(kept)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def modes(model: Model) -> Diagnostic:
    """D15: what is in train mode is set to evaluation mode for the run, and restored."""
    training = [f"{n or 'the network'} ({type(m).__name__})" for n, m in model.net.named_modules() if m.training]
    threshold = "0 modules in train mode"
    if not training:
        return row("D15", "PASS", "all modules are in evaluation mode", value=0, threshold=threshold)
    if not any(m.training and _depends_on_mode(m) for m in model.net.modules()):
        text = f"{len(training)} modules were in train mode, none of a kind that behaves otherwise there"
        return row("D15", "PASS", text, value=0, threshold=threshold)
    shown = ", ".join(training[:3]) + (" ..." if len(training) > 3 else "")
    text = f"{len(training)} modules were in train mode ({shown}); they are in evaluation mode for this run"
    return row(
        "D15",
        "WARN",
        f"{text} and restored after it",
        value=len(training),
        threshold=threshold,
        remedy="Call net.eval() before wrapping.",
    )


def _depends_on_mode(module: nn.Module) -> bool:
    """Dropout and BatchNorm do; what neither torch nor this package defines may."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    return isinstance(module, kinds) or not type(module).__module__.startswith(("torch.nn.", "robustkit.core."))


def independence(probe: Probe, before: State, passes: Tensor) -> Diagnostic | None:
    """D15: an answer depends on other samples of the batch, or the forward changes the network; None where neither."""
    changed = before.changed()
    if changed:
        return row(
            "D15",
            "FAIL",
            f"the network changes itself while it predicts, in evaluation mode too: {', '.join(changed[:3])}",
            value=len(changed),
            threshold="0 weights or statistics changed",
            remedy="Look for train(), training=True or an update of weights inside the forward, and take it out.",
        )
    share = _company(probe)
    limit = max(probe.rounding(NEIGHBOURS), 3 * _distance(passes, probe))
    if share <= limit:
        return None
    seen = "do not exist" if share == float("inf") else f"move by {share:.2g} of the logits' spread"
    return row(
        "D15",
        "FAIL",
        f"answers depend on the other samples of the batch: without these they {seen}",
        value=share,
        threshold=f"<= {limit:.2g}",
        remedy="BatchNorm uses the batch's own statistics: call net.eval() on what a plain function hides, and look "
        "for track_running_stats=False, training=True or train() inside the forward.",
    )


def _company(probe: Probe) -> float:
    """How far the answers to one or two samples move when the rest of the batch is left out; infinite if it fails."""
    size = min(2, len(probe.x) - 1)
    if size == 0:
        return 0.0
    try:
        with probe.model.frozen(probe.seed), torch.no_grad():
            apart = probe.model(probe.x[:size])
    except Exception:  # BatchNorm refuses to take statistics of a single value
        return float("inf")
    return _distance(torch.stack([apart, probe.outputs[:size]]), probe)


def _distance(passes: Tensor, probe: Probe) -> float:
    """Largest difference between passes (P, N, ...), relative to the spread of the outputs."""
    numbers = passes.double().nan_to_num()
    return float((numbers.amax(0) - numbers.amin(0)).max() / probe.scale)


# -- D2 --------------------------------------------------------------------------------------------------------------


def repeated(probe: Probe) -> Tensor:
    """The outputs of three passes of the same inputs, (3, M, ...)."""
    with probe.model.frozen(probe.seed + 1), torch.no_grad():
        return torch.stack([probe.model(probe.x[: probe.few]) for _ in range(3)])


def stability(probe: Probe, passes: Tensor) -> Diagnostic:
    """D2: the same input gives the same output, and a much smaller step than eps does not make the loss jump."""
    limit = probe.rounding(SPREAD)
    spread, threshold = _distance(passes, probe), f"<= {limit:g}, equal predictions"
    turned = float(_turned(passes, probe).double().mean())
    if spread > limit or turned:
        return _random(probe.model.eot, spread, turned, threshold)
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
    text = "equal inputs give equal outputs, and small steps small changes"
    return row("D2", "PASS", text, value=spread, threshold=threshold)


def _turned(passes: Tensor, probe: Probe) -> Tensor:
    """(N,) bool: samples whose verdict is not the same in all passes (P, N, ...)."""
    verdicts = torch.stack([probe.model.task.failed(outputs, probe.y[: passes.shape[1]]) for outputs in passes])
    return verdicts.any(0) & ~verdicts.all(0)


def _random(eot: int, spread: float, turned: float, threshold: str) -> Diagnostic:
    seen = f"by {spread:.2g} of the logits' spread, and {turned:.0%} of the verdicts turn"
    if eot == 1:
        return row(
            "D2",
            "FAIL",
            f"the network is random: three passes of the same inputs differ {seen}",
            value=spread,
            threshold=threshold,
            remedy="Evaluate the mean of several passes: --eot 20, in Python wrap(net, eot=20); or remove what draws "
            "random numbers in forward.",
        )
    return row(
        "D2",
        "WARN",
        f"the network is random; the mean of {eot} passes still varies {seen}",
        value=spread,
        threshold=threshold,
        remedy="More passes (--eot) make the figure steadier.",
    )


def _jump(probe: Probe) -> float:
    """Largest change of the outputs in a ball of a hundredth of eps, relative to the largest; of the median sample."""
    model, threat, x = probe.model, probe.threat, probe.x[: probe.few]
    if not isinstance(threat.eps, float | int) or threat.eps == 0:
        return 0.0
    small = threat.at(threat.eps / 100)
    draws = Draws(probe.seed, default_ids(len(x)), "preflight")
    with model.frozen(probe.seed), torch.no_grad():
        moved = torch.stack([model(small.start(x, model.bounds, draws.again(i))) for i in range(3)])
    here = probe.outputs[: len(x)].nan_to_num().double()
    change = (moved.nan_to_num().double() - here).flatten(2).abs().amax((0, 2))
    return float((change / here.flatten(1).abs().amax(1).clamp_min(1e-12)).median())


# -- D13 -------------------------------------------------------------------------------------------------------------


def inner_optimisation(probe: Probe) -> Diagnostic:
    """D13: a defense that optimises inside its forward needs attacks made for it."""
    with counted() as calls, probe.model.frozen(probe.seed), torch.enable_grad():
        try:
            probe.model.module(probe.x[:2].detach().clone().requires_grad_())
        except Exception as error:
            return row("D13", "NOT RUN", f"the forward fails with gradients on: {first_line(error)}")
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
def counted() -> Iterator[list[str]]:
    """The names of autograd calls made inside; the functions are put back, also on error.

    What is counted is the one entry that all of them share (``from torch.autograd import grad`` keeps another name
    for the public function); torch versions without it are counted by the public names.
    """
    homes: list[tuple[Any, str]] = [(torch.autograd, "_engine_run_backward")]
    if not hasattr(*homes[0]):
        homes = [(torch.autograd, "grad"), (torch.autograd, "backward"), (Tensor, "backward")]
    saved = [(home, name, getattr(home, name)) for home, name in homes]
    calls: list[str] = []

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
