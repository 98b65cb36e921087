"""Checks before any attack: would the number mean anything?

Each check looks at a probe of the data and at the network and returns a finding; a fatal one refuses the evaluation and
names what is wrong and what to write instead. Nothing here changes the network or the data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import RobustkitError
from robustkit.core.model import Model
from robustkit.core.threat import Threat
from robustkit.run.alternatives import audit, audit_range
from robustkit.run.behaviour import State, independence, inner_optimisation, modes, repeated, stability
from robustkit.run.gradients import finite_outputs, gradients, outputs_are_logits
from robustkit.run.labels import audit_labels, label_range, mislabelled
from robustkit.run.probe import TITLES, Probe, first_line, row


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
    mode, before = modes(model), State.of(model.net)
    try:
        return _ordered([*_findings(model, x, y, threat, seed, before), mode])
    finally:
        before.restore()


def _findings(model: Model, x: Tensor, y: Tensor, threat: Threat, seed: int, before: State) -> list[Diagnostic]:
    """Most important first; stops at what makes the rest meaningless."""
    wrong = _unusable(x)
    if wrong is not None:
        return [wrong]
    outputs = _first_pass(model, x, seed)
    if isinstance(outputs, Diagnostic):
        return [outputs]
    wrong = finite_outputs(outputs)
    if wrong is not None:
        return [wrong]
    early = [audit_range(model, x, y), label_range(model, outputs, y)]
    stop = [finding for finding in early if finding is not None]
    return stop or list(_checks(Probe(model, x, y, outputs, threat, seed), before))


def _checks(probe: Probe, before: State) -> Iterator[Diagnostic]:
    passes = repeated(probe)
    apart = independence(probe, before, passes)
    if apart is not None:
        yield apart
    yield stability(probe, passes)
    yield outputs_are_logits(probe)
    yield gradients(probe)
    yield inner_optimisation(probe)
    yield from _accuracy(probe)


def _accuracy(probe: Probe) -> Iterator[Diagnostic]:
    """D14 and D16. Where both a class map and a preprocessing look wrong, what explains more is named."""
    feeding = audit(probe.model, probe.x, probe.y, probe.outputs)
    wrong = mislabelled(probe.model, probe.outputs, probe.y)
    if wrong is None:
        yield from (feeding, audit_labels(probe.model, probe.outputs, probe.y))
        return
    labels, mended = wrong
    if feeding.status == "FAIL" and (feeding.value or 0.0) + (labels.value or 0.0) > mended:
        yield feeding
    else:
        yield labels


def _ordered(rows: list[Diagnostic]) -> list[Diagnostic]:
    """One row for every id, the first found; what could not be looked at says so."""
    found = {finding.id: finding for finding in reversed(rows)}
    blame = [finding.id for finding in rows if finding.status == "FAIL"]
    if not {"D14", "D16"} <= set(found):  # the one stands for the other
        blame = [key for key in ("D14", "D16") if key in blame] + blame
    missing = f"could not be looked at before {(blame or ['the above'])[0]} is mended"
    return [found.get(key) or row(key, "NOT RUN", missing) for key in TITLES]


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


def _first_pass(model: Model, x: Tensor, seed: int) -> Tensor | Diagnostic:
    """The outputs, or why there are none. A network is somebody else's code: it may raise anything."""
    kept = x.clone()
    try:
        with model.frozen(seed), torch.no_grad():
            outputs = model(x)
    except Exception as error:
        return _does_not_run(model, kept, seed, error)
    if not torch.equal(x, kept):
        x.copy_(kept)
        return row(
            "D14",
            "FAIL",
            "the forward changes its input in place, so that every pass sees another input",
            remedy="Write x = x - mean instead of x -= mean, and no functions that end in an underscore on the input.",
        )
    return outputs


def _does_not_run(model: Model, x: Tensor, seed: int, error: Exception) -> Diagnostic:
    """D13 where the forward only lacks gradients, which are off for predictions; D14 for all else."""
    if "grad" in str(error) and _runs_with_gradients(model, x[:2], seed):
        return row(
            "D13",
            "FAIL",
            f"the forward computes gradients itself and fails where they are off: {first_line(error)}",
            value=1.0,
            threshold="0",
            remedy="Put the optimisation inside the forward under `with torch.enable_grad():`.",
        )
    remedy = "Check the shape, the layout (channels first) and the dtype of the inputs."
    if isinstance(error, RobustkitError):
        remedy = error.fix
    return row("D14", "FAIL", f"the network does not run on these inputs: {_told(error)}", remedy=remedy)


def _told(error: Exception) -> str:
    if not isinstance(error, RobustkitError):
        return first_line(error)
    facts = [f"expected {error.expected}" if error.expected else "", f"got {error.got}" if error.got else ""]
    return ": ".join(part for part in (error.what, ", ".join(filter(None, facts))) if part)


def _runs_with_gradients(model: Model, x: Tensor, seed: int) -> bool:
    try:
        with model.frozen(seed):
            model(x.clone().requires_grad_())
    except Exception:
        return False
    return True
