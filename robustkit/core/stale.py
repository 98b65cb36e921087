"""Parameters as they were some steps ago, and a network that has them for a while.

They lie in the memory of the training under ``PREFIX/AGE/NAME``, and with it in its checkpoints; age 1 is the step
before. Parameters alone are kept: running statistics and other buffers have no history.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.model import Model

Memory = dict[str, Tensor]
_twins: WeakKeyDictionary[Model, dict[torch.device, Model]] = WeakKeyDictionary()


def oldest(memory: Memory, prefix: str, net: nn.Module) -> dict[str, Tensor]:
    """The oldest parameters that are kept, by name, where those of the network lie; none before the first step.

    Raises:
        UsageError: they are those of another network.
    """
    age = max((int(key.split("/")[1]) for key in memory if key.startswith(f"{prefix}/")), default=0)
    if age == 0:
        return {}
    head = f"{prefix}/{age}/"
    found = {key.removeprefix(head): value for key, value in memory.items() if key.startswith(head)}
    present = dict(net.named_parameters())
    if {name: value.shape for name, value in found.items()} != {name: p.shape for name, p in present.items()}:
        raise UsageError(
            "the state of the training belongs to another network",
            expected="the parameters that it has kept",
            where=prefix,
            fix="Give every training a TrainState of its own.",
        )
    return {name: found[name].to(p.device, p.dtype) for name, p in present.items()}


def keep(memory: Memory, prefix: str, net: nn.Module, ages: int) -> None:
    """Add the present parameters, as those of age 1 for the next step, and drop those above ``ages``."""
    for name, parameter in net.named_parameters():
        keys = [f"{prefix}/{age}/{name}" for age in range(1, ages + 1)]
        kept = [memory.pop(key) for key in keys if key in memory]
        memory.update(zip(keys, [parameter.detach().clone(), *kept], strict=False))


@contextmanager
def swapped(net: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The network with other parameters; none of its own is written to, and it has them back, also after an error."""
    own = {name: p.data for name, p in net.named_parameters() if name in values}
    try:
        for name, p in net.named_parameters():
            if name in values:
                p.data = values[name]
        yield
    finally:
        for name, p in net.named_parameters():
            if name in own:
                p.data = own[name]


def twin(model: Model, device: torch.device, values: Mapping[str, Tensor]) -> Model:
    """A private copy of a network on another device, with other parameters; made once for every model and device.

    Buffers and modes are those of the network as it is. Copies from one accelerator to another wait for nothing.
    """
    net = model.net
    copies = _twins.setdefault(model, {})
    names = [name for name, _ in net.named_parameters()]
    if device not in copies or [name for name, _ in copies[device].net.named_parameters()] != names:
        copies[device] = model.around(copy.deepcopy(net).to(device))
    found = copies[device]
    later = device.type != "cpu"  # which would read before the copy is there
    with torch.no_grad():
        for (name, theirs), mine in zip(net.named_parameters(), found.net.parameters(), strict=True):
            mine.copy_(values.get(name, theirs), non_blocking=later)
        for buffer, copied in zip(net.buffers(), found.net.buffers(), strict=True):
            copied.copy_(buffer, non_blocking=later)
    for original, layer in zip(net.modules(), found.net.modules(), strict=True):
        layer.training = original.training
    return found
