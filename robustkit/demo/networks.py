"""The small convolutional network behind the three digit models, and the reader of its stored weights."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class DigitNet(nn.Module):
    """Three strided convolutions and two linear layers with ReLU: (N, 1, 28, 28) in [0, 1] to logits (N, 10).

    Strides instead of pooling, and no batch statistics: every layer is affine or ReLU, so the same network can be
        attacked,
    smoothed, and bounded by any relaxation. 81,434 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """He-normal weights and zero biases, drawn from `generator` alone (torch's constructors read the global one)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def digit_net(name: str) -> DigitNet:
    """The stored network `mnist-robust`, `mnist-plain` or `mnist-smooth`, in eval mode, on the CPU."""
    net = DigitNet()
    with as_file(files("robustkit.demo").joinpath(f"{name}.safetensors")) as path:
        net.load_state_dict(load_file(path))
    return net.eval()
