"""One tensor out of whatever a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustkit.core.errors import UsageError

KEYS = ("logits", "out", "prediction", "output")


def as_tensor(outputs: Any) -> Tensor:
    """The logits: a tensor, an object with ``.logits``, a mapping, or the first of a tuple.

    Raises:
        UsageError: nothing of the kind is there.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, Mapping):
        found = next((outputs[key] for key in KEYS if key in outputs), None)
    if found is None and isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    got = f"a mapping with keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
    raise UsageError(
        "the network returned no logits",
        expected="a tensor, .logits, a dict with 'logits' or 'out', or a tuple",
        got=got,
        where="the network's forward",
        fix="Wrap a function that returns the logits: wrap(lambda x: net(x)...).",
    )
