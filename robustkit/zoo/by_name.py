"""From text to a wrapped model: `demo:`, `timm:`, `torchvision:`, `hf:`, `run:`, `path.py:factory`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from robustkit import catalogue
from robustkit.core.errors import UsageError, near
from robustkit.core.model import Model, wrap
from robustkit.core.task import Task
from robustkit.core.types import Bounds
from robustkit.userfile import call_factory, is_user_file
from robustkit.zoo.source import Source
from robustkit.zoo.weights import load_into, read_state

SOURCES = ("demo", "timm", "torchvision", "hf", "run")  # modules here, each with find(name, weights) -> Source | Model


def load(
    spec: str,
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    bounds: tuple[float, float] | Bounds | None = None,
    task: Task | str | None = None,
    device: str | torch.device | None = None,
    eot: int = 1,
) -> Model:
    """The model that `spec` names, wrapped.

    Args:
        spec: one of the forms above; `robustkit list models` shows them. `path.py:factory` runs the code of that file.
        weights: a .safetensors, .pt or .pth file instead of the published weights; nothing is fetched then, except by
            `hf:`.
        mean, std: per channel; by default those the network's makers wrote down.
        bounds: valid range of inputs before normalisation; by default (0, 1), or that of the training for `run:`.
        task: by default what the network is for; classification where that is not known.
        device: where to put the network; by default where it was made.
        eot: passes averaged for networks that are random by design.

    Raises:
        UsageError: an unknown form or name, weights that do not fit, an exception in the user's file, a missing extra.
    """
    place = None if device is None else find_device(device)
    file = None if weights is None else Path(weights)
    if is_user_file(spec):
        made = _from_user(spec, file)
    else:
        kind, _, name = spec.partition(":")
        if kind not in SOURCES or not name:
            raise _unknown(spec)
        with torch.random.fork_rng(devices=[]):  # a new network draws its first weights from the global generator
            made = import_module(f"robustkit.zoo.{kind}").find(name, file)
    if isinstance(made, Model):
        return _as_wrapped(made, spec, place, given=(mean, std, bounds, task, None if eot == 1 else eot))
    net, source = (made.net, made) if isinstance(made, Source) else (made, Source(nn.Identity()))
    if place is not None and isinstance(net, nn.Module):
        net.to(place)
    return wrap(
        net,
        mean=mean,
        std=std,
        bounds=bounds or source.bounds or (0.0, 1.0),
        task=task or source.task,
        preprocessing=source.preprocessing,
        eot=eot,
        name=spec,
        class_names=source.class_names,
    )


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: no such device in this machine or this build of torch.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        message = str(error).partition("\n")[0][:200]
        raise UsageError(
            "no such device here", expected="cpu, cuda, cuda:N or mps", got=f"{device!r}: {message}", where="device"
        ) from error
    return place


def _from_user(spec: str, weights: Path | None) -> Source | Model | Callable[..., object]:
    made = call_factory(spec)
    if not callable(made):
        raise UsageError(
            "the factory returned no model",
            expected="a torch.nn.Module, a function of a batch, or a wrapped model",
            got=type(made).__name__,
            where=spec,
        )
    if weights is not None:
        net = made.net if isinstance(made, Model) else made
        if not isinstance(net, nn.Module):
            raise UsageError(
                "only a torch.nn.Module can be given weights",
                got=type(made).__name__,
                where=spec,
                fix="Leave --weights out, or load them in the factory.",
            )
        load_into(net, read_state(weights), str(weights))
    made_net: Source | Model | Callable[..., object] = made
    return made_net


def _as_wrapped(model: Model, spec: str, place: torch.device | None, given: Sequence[object]) -> Model:
    if any(value is not None for value in given):
        raise UsageError(
            "the factory returned a model that is already wrapped",
            where=spec,
            got="mean, std, bounds, task or eot as well",
            fix="Set them in wrap(...) in that file, or let the factory return the network itself.",
        )
    if place is not None:
        model.module.to(place)
    return model


def _unknown(spec: str) -> UsageError:
    forms = ", ".join(item.name for item in catalogue.models())
    return UsageError("unknown model", expected=f"one of {forms}", got=repr(spec), where="model", fix=_hint(spec))


def _hint(spec: str) -> str:
    demos = [item.name for item in catalogue.DEMO_MODELS]
    if Path(spec).suffix in (".pt", ".pth", ".safetensors"):
        return "A weights file needs its architecture: timm:NAME --weights FILE, or path.py:factory --weights FILE."
    return near(spec, [*demos, *(f"{kind}:{spec}" for kind in ("timm", "torchvision") if ":" not in spec)])
