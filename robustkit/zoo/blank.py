"""Networks to be trained: `cnn`, `resnet8`, `timm:NAME`, `torchvision:NAME`, `path.py:factory`, or one to train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkit import catalogue
from robustkit.core.errors import UsageError, near
from robustkit.core.model import Model, wrap
from robustkit.core.preprocessing import Preprocessing, read_preprocessing
from robustkit.core.task import Classification, Task, task_from
from robustkit.core.types import Bounds
from robustkit.userfile import is_user_file
from robustkit.zoo.by_name import find_device, load
from robustkit.zoo.networks import ConvNet, ResNet8, drawn
from robustkit.zoo.source import fetched
from robustkit.zoo.weights import load_into, read_state, without_prefix

PRETRAINED = "pretrained"
TRAINED = ("demo", "hf", "run")
"""Forms of networks that have weights already, to be trained further."""


@dataclass(frozen=True)
class Wanted:
    """What a new network is built for."""

    classes: int
    shape: tuple[int, ...]
    seed: int
    pretrained: bool


Built = tuple[nn.Module, Preprocessing | None]


def blank(
    spec: str,
    *,
    classes: int,
    shape: Sequence[int],
    seed: int,
    init: str | Path | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    bounds: tuple[float, float] | Bounds | None = None,
    task: Task | str | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """The network that `spec` names, to be trained, wrapped; its weights are drawn from the seed alone.

    - cnn, resnet8: small networks for images of any size.
    - timm:NAME, torchvision:NAME: built for the number of classes and, with timm, of channels. Mean and std are those
      its makers wrote down. So is the size that pictures of a folder are brought to, except that smaller ones keep
      theirs when the network accepts it and starts from new weights.
    - path.py:factory: what that function of your file returns, as it is; the only form for dense tasks but demo:.
    - demo:NAME, hf:ID, run:DIR: with its weights, to be trained further.

    Args:
        spec: one of these.
        classes: outputs of the network.
        shape: of a sample, (C, H, W).
        seed: of the weights.
        init: a file of weights, or `pretrained` for the published ones of timm and torchvision. A last linear layer
            with another number of outputs is left as it was drawn.
        mean, std, bounds, task, device: as in :func:`robustkit.zoo.load`.

    Raises:
        UsageError: unknown network, weights that do not fit, samples or a task that the network is not for.
    """
    file = None if init is None or init == PRETRAINED else Path(init)
    wanted = Wanted(classes, tuple(shape), seed, init == PRETRAINED)
    kind, _, name = spec.partition(":")
    if is_user_file(spec) or kind in TRAINED:
        if wanted.pretrained:
            raise _no_pretrained(spec)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return load(spec, weights=file, mean=mean, std=std, bounds=bounds, task=task, device=device)
    place = None if device is None else find_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net, preprocessing = _builder(spec)(name or spec, wanted)
    _check_task(spec, task_from(task or "classification"))
    if file is not None:
        load_into(net, with_own_head(net, read_state(file)), str(file))
    return wrap(
        net.to(place),
        mean=mean,
        std=std,
        bounds=(0.0, 1.0) if bounds is None else bounds,
        preprocessing=preprocessing,
        name=spec,
    )


def _check_task(spec: str, task: Task) -> None:
    if not isinstance(task, Classification):
        raise UsageError(
            f"{spec} gives one answer for a whole picture",
            expected="a network for dense tasks",
            got=f"task {task.name}",
            where="model",
            fix="Train demo:shapes-segmentation, or a network of your own: path.py:factory.",
        )


def with_own_head(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored weights, but the network's own in the layers that give its classes where theirs give another number."""
    own = net.state_dict()
    found = dict(without_prefix(state, own))
    linear = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    classes = linear[list(linear)[-1]].out_features if linear else 0
    for name, layer in linear.items():
        theirs = found.get(f"{name}.weight")
        if layer.out_features == classes and theirs is not None and theirs.shape[1:] == layer.weight.shape[1:]:
            mine = own if len(theirs) != classes else found
            found |= {key: mine[key] for key in (f"{name}.weight", f"{name}.bias") if key in mine}
    return found


def _builder(spec: str) -> Callable[[str, Wanted], Built]:
    kind, colon, name = spec.partition(":")
    builder = {"timm": _timm, "torchvision": _torchvision}.get(kind) if name else _SMALL.get(spec)
    if builder is None:
        known = [item.name for item in catalogue.NEW_MODELS if ":" not in item.name]
        hints = [*known, *(f"{form}:{spec}" for form in ("timm", "torchvision") if not colon)]
        raise UsageError(
            "unknown network to train",
            expected=f"one of {', '.join(item.name for item in catalogue.networks())}",
            got=repr(spec),
            where="model",
            fix=near(spec, hints),
        )
    return builder


def _cnn(name: str, wanted: Wanted) -> Built:
    channels, height, width = _image(name, wanted)
    return drawn(ConvNet((channels, height, width), wanted.classes), wanted.seed), None


def _resnet8(name: str, wanted: Wanted) -> Built:
    return drawn(ResNet8(_image(name, wanted)[0], wanted.classes), wanted.seed), None


_SMALL: dict[str, Callable[[str, Wanted], Built]] = {"cnn": _cnn, "resnet8": _resnet8}


def _image(name: str, wanted: Wanted) -> tuple[int, int, int]:
    if wanted.pretrained and name in _SMALL:
        raise _no_pretrained(name)
    if len(wanted.shape) != 3:
        raise UsageError(
            f"{name} is for images",
            expected="samples of shape (C, H, W)",
            got=f"({', '.join(map(str, wanted.shape))})",
            where="model",
            fix="For other inputs write your own network: path.py:factory.",
        )
    channels, height, width = wanted.shape
    return channels, height, width


def _timm(name: str, wanted: Wanted) -> Built:
    import timm

    from robustkit.zoo.timm import ELSEWHERE

    channels, *_ = _image(f"timm:{name}", wanted)
    if name.partition(":")[0] not in ELSEWHERE and not timm.is_model(name):
        fix = near(name.partition(".")[0], timm.list_models())
        raise UsageError("unknown network to train", got=repr(f"timm:{name}"), where="model", fix=fix)
    net: nn.Module = fetched(
        lambda: timm.create_model(name, pretrained=wanted.pretrained, num_classes=wanted.classes, in_chans=channels),
        f"timm:{name}",
        "--init",
    )
    found = read_preprocessing(net)
    config: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    fixed = wanted.pretrained or bool(config.get("fixed_input_size"))
    return net, found and _for_channels(found if fixed else _at_least(found, wanted), channels)


def _torchvision(name: str, wanted: Wanted) -> Built:
    from torchvision import models  # type: ignore[import-untyped]

    channels, *_ = _image(f"torchvision:{name}", wanted)
    if name not in (known := models.list_models(module=models)):
        dense = name in models.list_models(module=models.segmentation)
        fix = "For dense tasks use a network of your own: path.py:factory." if dense else near(name, known)
        raise UsageError("unknown network to train", got=repr(f"torchvision:{name}"), where="model", fix=fix)
    if channels != 3:
        raise UsageError(
            f"torchvision:{name} is for colour pictures",
            expected="3 channels",
            got=str(channels),
            where="model",
            fix=f"timm:{name} takes any number, if timm has it.",
        )
    net: nn.Module = models.get_model(name, weights=None, num_classes=wanted.classes)
    default = models.get_model_weights(name).DEFAULT
    if wanted.pretrained:
        state = fetched(
            lambda: default.get_state_dict(progress=False, check_hash=True), f"torchvision:{name}", "--init"
        )
        load_into(net, with_own_head(net, state), f"torchvision:{name}")
    found = read_preprocessing(default)
    return net, found and (found if wanted.pretrained else _at_least(found, wanted))


def _at_least(found: Preprocessing, wanted: Wanted) -> Preprocessing:
    """Without a size where samples are smaller than that: a network with new weights sees them as they are."""
    small = found.size is not None and max(wanted.shape[1:]) < min(found.size)
    return replace(found, size=None) if small else found


def _for_channels(found: Preprocessing, channels: int) -> Preprocessing:
    """Mean and std for another number of channels: the averages, as timm averages the first layer's weights."""
    if len(found.mean) in (1, channels):
        return found
    mean, std = (sum(values) / len(values) for values in (found.mean, found.std))
    return replace(found, mean=(mean,) * channels, std=(std,) * channels)


def _no_pretrained(spec: str) -> UsageError:
    return UsageError(
        f"{spec} has no published weights of its own to begin with",
        expected="a file, for networks other than timm: and torchvision:",
        got=PRETRAINED,
        where="init",
        fix="Leave --init out, or give --init FILE.",
    )
