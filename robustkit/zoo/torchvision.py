"""`torchvision:NAME`: classifiers and segmentation networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torchvision import models  # type: ignore[import-untyped]

from robustkit.core.errors import UsageError, near
from robustkit.core.preprocessing import Preprocessing, read_preprocessing
from robustkit.zoo.source import Source, built, fetched, outputs_of
from robustkit.zoo.weights import read_state


def find(name: str, weights: Path | None) -> Source:
    """A torchvision classifier or segmentation network with its default weights, or those of the file."""
    dense = name in (segmentation := models.list_models(module=models.segmentation))
    if not dense and name not in (classifiers := models.list_models(module=models)):
        fix = near(name, [*classifiers, *segmentation])
        raise UsageError("unknown model", got=repr(f"torchvision:{name}"), where="model", fix=fix)
    default = models.get_model_weights(name).DEFAULT
    options: dict[str, Any] = {"weights": default if weights is None else None}
    if (
        dense and weights is not None
    ):  # else torchvision fetches the backbone's weights, and leaves out the training head
        options["weights_backbone"] = None
        options |= {"aux_loss": True} if any("aux_classifier." in key for key in read_state(weights)) else {}

    def build(classes: int | None) -> nn.Module:
        more = options if classes is None else {**options, "num_classes": classes}
        net: nn.Module = fetched(lambda: models.get_model(name, **more), f"torchvision:{name}")
        return net

    net = built(build, weights)
    names = default.meta.get("categories")
    same = names is not None and (weights is None or dense or outputs_of(net.state_dict(), net) == len(names))
    return Source(
        net.eval(),
        read_preprocessing(default) or _segmentation(default),
        names if same else None,
        "segmentation" if dense else "classification",
    )


def _segmentation(weights: Any) -> Preprocessing | None:
    transforms = weights.transforms()
    if not hasattr(transforms, "mean"):
        return None
    return Preprocessing(tuple(transforms.mean), tuple(transforms.std), source="torchvision")
