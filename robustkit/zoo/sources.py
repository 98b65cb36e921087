"""Networks by kind of name. Each source gives a network in eval mode and what its makers wrote down about it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from robustkit import catalogue
from robustkit.core.errors import UsageError, near
from robustkit.core.preprocessing import Preprocessing, read_preprocessing
from robustkit.demo.digits import CLASSES
from robustkit.demo.efficientnet import efficientnet_lite0
from robustkit.demo.imagenet import class_names
from robustkit.demo.networks import digit_net
from robustkit.images import RESAMPLING
from robustkit.zoo.weights import load_into, read_state

Build = Callable[[int | None], nn.Module]


@dataclass(frozen=True)
class Source:
    """A network and what comes with it."""

    net: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] | None = None


def demo(name: str, weights: Path | None) -> Source:
    """One of the embedded networks; `weights` replace its own."""
    if f"demo:{name}" not in (known := [item.name for item in catalogue.DEMO_MODELS]):
        raise UsageError("unknown model", got=repr(f"demo:{name}"), where="model", fix=near(f"demo:{name}", known))
    imagenet = name == "efficientnet_lite0"
    net = efficientnet_lite0() if imagenet else digit_net(name)
    if weights is not None:
        load_into(net, read_state(weights), str(weights))
    return Source(net, read_preprocessing(net), class_names() if imagenet else CLASSES)


def from_timm(name: str, weights: Path | None) -> Source:
    """A timm network; its weights come through timm's own cache and hub, or from the file."""
    local = name.partition(":")[0] in ("hf-hub", "hf_hub", "local-dir")
    if not local and not timm.is_model(name):
        raise UsageError(
            "unknown model",
            got=repr(f"timm:{name}"),
            where="model",
            fix=near(name.partition(".")[0], timm.list_models()),
        )

    def build(classes: int | None) -> nn.Module:
        more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        net: nn.Module = _fetched(lambda: timm.create_model(name, pretrained=weights is None, **more), f"timm:{name}")
        return net

    net = _built(build, weights)
    return Source(net.eval(), read_preprocessing(net), _imagenet_names(getattr(net, "num_classes", None)))


def from_torchvision(name: str, weights: Path | None) -> Source:
    """A torchvision classifier or segmentation network with its default weights, or those of the file."""
    modules = (torchvision.models, torchvision.models.segmentation)
    if name not in (known := [model for module in modules for model in torchvision.models.list_models(module=module)]):
        raise UsageError("unknown model", got=repr(f"torchvision:{name}"), where="model", fix=near(name, known))
    default = torchvision.models.get_model_weights(name).DEFAULT
    more: dict[str, Any] = (
        {"weights_backbone": None} if name in torchvision.models.list_models(module=modules[1]) else {}
    )

    def build(classes: int | None) -> nn.Module:
        options = {**more, "weights": default if weights is None else None} | (
            {} if classes is None else {"num_classes": classes}
        )
        net: nn.Module = _fetched(lambda: torchvision.models.get_model(name, **options), f"torchvision:{name}")
        return net

    net = _built(build, weights)
    names = default.meta.get("categories")
    same = names is not None and (weights is None or _classes_of(net.state_dict(), net) == len(names))
    return Source(net.eval(), read_preprocessing(default) or _segmentation(default), names if same else None)


def from_hugging_face(name: str, weights: Path | None) -> Source:
    """An image classifier of the hub, its cache, or a local folder. Code that comes with it is not run."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            "hf: models need the package transformers",
            got="it is not installed",
            where=f"hf:{name}",
            fix="Run: pip install '.[hub]'",
        ) from error
    net: nn.Module = _fetched(lambda: library.AutoModelForImageClassification.from_pretrained(name), f"hf:{name}")
    processor = _fetched(lambda: library.AutoImageProcessor.from_pretrained(name), f"hf:{name}, image processor")
    if weights is not None:
        load_into(net, read_state(weights), str(weights))
    return Source(net.eval(), processor_preprocessing(processor), _names_of(net))


def processor_preprocessing(processor: Any) -> Preprocessing | None:
    """Mean, std, crop and interpolation of a Hugging Face image processor, as far as they are switched on."""
    found = read_preprocessing(processor)
    if found is None:
        return None
    if getattr(processor, "do_normalize", True) is False:
        found = replace(found, mean=(0.0,) * len(found.mean), std=(1.0,) * len(found.std))
    if found.size and getattr(processor, "do_center_crop", False) and (crop := getattr(processor, "crop_size", None)):
        height, width = int(crop["height"]), int(crop["width"])
        found = replace(found, size=(height, width), crop_pct=min(1.0, height / found.size[0]))
    if share := getattr(processor, "crop_pct", None):
        found = replace(found, crop_pct=float(share))
    names = {int(value): name for name, value in RESAMPLING.items()}
    kind = getattr(processor, "resample", None)
    return found if kind is None else replace(found, interpolation=names.get(int(kind), found.interpolation))


def _built(build: Build, weights: Path | None) -> nn.Module:
    """The network with the file's weights, and with as many outputs as they have."""
    net = build(None)
    if weights is None:
        return net
    state = read_state(weights)
    classes = _classes_of(state, net)
    if classes not in (None, _classes_of(net.state_dict(), net)):
        net = build(classes)
    load_into(net, state, str(weights))
    return net


def _classes_of(state: dict[str, Tensor], net: nn.Module) -> int | None:
    """Rows of the network's last linear layer in `state`, whatever prefix the keys have there."""
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    last = f"{linear[-1]}.weight" if linear else ""
    rows = [len(value) for key, value in state.items() if last and (key == last or key.endswith(f".{last}"))]
    return rows[0] if rows else None


def _fetched(call: Callable[[], Any], what: str) -> Any:
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws its first weights from the global generator
            return call()
    except Exception as error:  # errors of the hubs and of the network have no common type
        message = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise UsageError(
            f"{what} cannot be loaded",
            expected="weights in the local cache, or a connection to fetch them",
            got=message,
            where="model",
            fix="With --weights FILE nothing is fetched.",
        ) from error


def _segmentation(weights: Any) -> Preprocessing | None:
    transforms = weights.transforms()
    if not hasattr(transforms, "mean"):
        return None
    return Preprocessing(tuple(transforms.mean), tuple(transforms.std), source="torchvision")


def _imagenet_names(outputs: int | None) -> Sequence[str] | None:
    return class_names() if outputs == len(class_names()) else None


def _names_of(net: nn.Module) -> Sequence[str] | None:
    names = getattr(getattr(net, "config", None), "id2label", None) or {}
    return tuple(str(names[key]) for key in sorted(names, key=int)) or None
