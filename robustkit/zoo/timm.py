"""`timm:NAME`, also `timm:hf-hub:ID` and `timm:local-dir:PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

from robustkit.core.errors import UsageError, near
from robustkit.core.preprocessing import read_preprocessing
from robustkit.demo.imagenet import class_names
from robustkit.zoo.source import Source, built, fetched

ELSEWHERE = ("hf-hub", "local-dir")  # timm's own prefixes for networks that are not in its registry


def find(name: str, weights: Path | None) -> Source:
    """A timm network; its weights come through timm's own cache and hub, or from the file."""
    if name.partition(":")[0] not in ELSEWHERE and not timm.is_model(name):
        raise UsageError(
            "unknown model",
            got=repr(f"timm:{name}"),
            where="model",
            fix=near(name.partition(".")[0], timm.list_models()),
        )

    def build(classes: int | None) -> nn.Module:
        more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        net: nn.Module = fetched(lambda: timm.create_model(name, pretrained=weights is None, **more), f"timm:{name}")
        return net

    net = built(build, weights)
    return Source(
        net.eval(),
        read_preprocessing(net),
        class_names() if getattr(net, "num_classes", None) == len(class_names()) else None,
    )
