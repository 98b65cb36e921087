"""Checks before any attack: would the number mean anything?

Each check looks at a probe of the data and at the network and returns a finding; a fatal one refuses the evaluation and
names what is wrong and what to write instead. Nothing here changes the network.
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
from robustkit.run.behaviour import inner_optimisation, modes, stability
from robustkit.run.gradients import gradients, outputs_are_logits
from robustkit.run.labels import audit_labels, label_range
from robustkit.run.probe import TITLES, Probe, row


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
    mode = modes(model)
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
        return _ordered([wrong, mode])
    probe = Probe(model, x, y, outputs, threat, seed)
    early = [audit_range(probe.model, x, y), label_range(model, outputs, y)]
    stop = [finding for finding in early if finding is not None]
    if stop:
        return _ordered([*stop, mode])
    return _ordered([mode, *_checks(probe)])


def _checks(probe: Probe) -> Iterator[Diagnostic]:
    yield stability(probe)
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
