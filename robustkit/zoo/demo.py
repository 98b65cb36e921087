"""`demo:NAME`: the networks that come with robustkit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robustkit import catalogue
from robustkit.core.errors import UsageError, near
from robustkit.core.preprocessing import read_preprocessing
from robustkit.demo.digits import CLASSES
from robustkit.demo.networks import digit_net
from robustkit.zoo.source import Source
from robustkit.zoo.weights import load_into, read_state


def find(name: str, weights: Path | None) -> Source:
    """One of the embedded networks; `weights` replace its own."""
    if f"demo:{name}" not in (known := [item.name for item in catalogue.DEMO_MODELS]):
        raise UsageError("unknown model", got=repr(f"demo:{name}"), where="model", fix=near(f"demo:{name}", known))
    source = _OTHERS[name]() if name in _OTHERS else Source(digit_net(name), class_names=CLASSES)
    if weights is not None:
        load_into(source.net, read_state(weights), str(weights))
    return source


def _shapes() -> Source:
    from robustkit.demo.pixel_network import shapes_net
    from robustkit.demo.shapes import CLASSES as SHAPES

    return Source(shapes_net(), class_names=SHAPES, task="segmentation")


def _imagenet() -> Source:
    from robustkit.demo.efficientnet import efficientnet_lite0  # imports timm
    from robustkit.demo.imagenet import class_names

    net = efficientnet_lite0()
    return Source(net, read_preprocessing(net), class_names())


_OTHERS: dict[str, Callable[[], Source]] = {"efficientnet_lite0": _imagenet, "shapes-segmentation": _shapes}
