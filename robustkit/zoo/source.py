"""What every source of networks gives, and what they share.

Each source is a module that is imported when it is named: timm alone takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing
from robustkit.core.task import Task
from robustkit.core.types import Bounds
from robustkit.zoo.weights import load_into, read_state

Build = Callable[[int | None], nn.Module]


@dataclass(frozen=True)
class Source:
    """A network in eval mode and what its makers wrote down about it."""

    net: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] | None = None
    task: Task | str = "classification"
    bounds: Bounds | None = None


def built(build: Build, weights: Path | None) -> nn.Module:
    """The network with the file's weights, and with as many outputs as they have."""
    net = build(None)
    if weights is None:
        return net
    state = read_state(weights)
    classes = outputs_of(state, net)
    if classes not in (None, outputs_of(net.state_dict(), net)):
        net = build(classes)
    load_into(net, state, str(weights))
    return net


def outputs_of(state: dict[str, Tensor], net: nn.Module) -> int | None:
    """Rows of the network's last linear layer in `state`, whatever prefix the keys have there."""
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    last = f"{linear[-1]}.weight" if linear else ""
    rows = [len(value) for key, value in state.items() if last and (key == last or key.endswith(f".{last}"))]
    return rows[0] if rows else None


def fetched(call: Callable[[], Any], what: str, option: str = "--weights") -> Any:
    """What `call` loads through a library's own hub and cache; `option` is what names a file instead.

    Raises:
        UsageError: whatever went wrong in there.
    """
    try:
        return call()
    except Exception as error:  # errors of the hubs and of the network have no common type
        message = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise UsageError(
            f"{what} cannot be loaded",
            expected="weights in the local cache, or a connection to fetch them",
            got=message,
            where="model",
            fix=f"With {option} FILE nothing is fetched.",
        ) from error
