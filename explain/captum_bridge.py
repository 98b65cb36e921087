"""Between captum and a wrapped model: the module that captum sees, its classes, and cleaning up after them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError, near
from robustkit.core.model import Model, NoGradient
from robustkit.core.outputs import as_tensor
from robustkit.core.target import Target

OURS = ("self", "forward_func", "model", "device_ids", "inputs", "target", "additional_forward_args")
"""Arguments of captum's that the wrapper gives itself."""
OURS_TOO = ("return_convergence_delta", "return_input_shape", "show_progress", "verbose", "args", "kwargs")
ABSTRACT = ("Attribution", "GradientAttribution", "PerturbationAttribution", "LimeBase")


class Explained(nn.Module):
    """The explained number as captum takes it: points (P, *S) and the samples they belong to (P,), to (P,).

    Every pass is counted. The network is a part of it, for classes that look for its layers.
    """

    def __init__(self, model: Model, target: Target, net: nn.Module) -> None:
        super().__init__()
        self.net, self._model, self._target = net, model, target

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:
        value = self._target.take(sample)(as_tensor(self.net(x)))
        self._model.cost.forwards += len(x) * self._model.eot
        if torch.is_grad_enabled() and x.requires_grad:
            if not value.requires_grad:
                raise NoGradient("the network has no gradient", where="the network's forward")
            value.register_hook(self._counter(len(x)))
        return value

    def _counter(self, n: int) -> Callable[[Tensor], None]:
        def count(_: Tensor) -> None:
            self._model.cost.backwards += n * self._model.eot

        return count


def class_of(given: Any, where: str) -> type:
    """A class of captum that attributes inputs, from its name, itself or an instance."""
    captum = import_module("captum.attr")
    cls = getattr(captum, given, None) if isinstance(given, str) else given if isinstance(given, type) else type(given)
    if isinstance(cls, type) and attributes_inputs(cls):
        return cls
    found = [value for name in captum.__all__ if isinstance(value := getattr(captum, name), type)]
    known = [value.__name__ for value in found if attributes_inputs(value)]
    if isinstance(cls, type) and is_a(cls, "Attribution"):
        what, fix = f"{cls.__name__} of captum does not attribute inputs", f"Classes that do: {', '.join(known)}."
    elif isinstance(given, str):
        what, fix = f"captum.attr has no class {given!r}", near(given, known)
    else:
        what, fix = "this is no method of captum", "Give a class of captum.attr or an instance of one."
    raise UsageError(what, got="" if isinstance(given, str) else getattr(cls, "__name__", ""), where=where, fix=fix)


@cache
def attributes_inputs(cls: type) -> bool:
    """Whether a class attributes the inputs of a network: not neurons, nor layers but for Grad-CAM's."""
    own = hasattr(cls, "attribute") and "inputs" in inspect.signature(cls.attribute).parameters
    internal = is_a(cls, "InternalAttribution") and cls.__name__ != "LayerGradCam"
    return is_a(cls, "Attribution") and own and not internal and cls.__name__ not in ABSTRACT


def is_a(cls: type, *names: str) -> bool:
    """Whether a class is one of captum's by name, or derived from one."""
    return any(base.__name__ in names for base in cls.__mro__)


@cache
def parameters(function: Any) -> dict[str, Any]:
    """Options of a class's constructor or of a function, without those that the wrapper gives itself."""
    return {k: p for k, p in inspect.signature(function).parameters.items() if k not in (*OURS, *OURS_TOO)}


def rebound(attribution: Any, net: nn.Module) -> Any:
    """A copy of a method, and of those inside of it, on another network."""
    base = import_module("captum.attr").Attribution
    twin, old = copy.copy(attribution), attribution.forward_func
    for key, value in vars(attribution).items():
        if isinstance(value, base):
            setattr(twin, key, rebound(value, net))
        elif value is old:
            setattr(twin, key, net)
        elif isinstance(value, list):  # handles of hooks
            setattr(twin, key, list(value))
    return twin


@contextmanager
def clean(module: nn.Module) -> Iterator[None]:
    """Hooks and attributes that a method leaves on modules are taken off, also on error."""
    parts = list(module.modules())
    before = [{k: set(v) if _hooks(k, v) else None for k, v in vars(part).items()} for part in parts]
    try:
        yield
    finally:
        for part, kept in zip(parts, before, strict=True):
            for key, value in list(vars(part).items()):
                if key not in kept:
                    del vars(part)[key]
                elif _hooks(key, value):
                    for handle in set(value) - (kept[key] or set()):
                        del value[handle]


def _hooks(name: str, value: Any) -> bool:
    return "hooks" in name and isinstance(value, dict)
