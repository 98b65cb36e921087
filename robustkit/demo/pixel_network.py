"""The small network that labels pixels, and the reader of its stored weights."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class PixelNet(nn.Module):
    """Two strides down, two back up with what was there before: (N, 3, H, W) in [0, 1] to logits (N, classes, H, W).

    Affine layers, ReLU and linear interpolation only; H and W are multiples of 4. 69,829 parameters for 5 classes.
    """

    def __init__(self, classes: int = 5, width: int = 12) -> None:
        super().__init__()
        self.full = nn.Conv2d(3, width, 3, padding=1)
        self.down2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down4 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.wide4 = nn.Conv2d(4 * width, 4 * width, 3, padding=2, dilation=2)
        self.wider4 = nn.Conv2d(4 * width, 4 * width, 3, padding=4, dilation=4)
        self.up2 = nn.Conv2d(6 * width, 2 * width, 3, padding=1)
        self.up1 = nn.Conv2d(3 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel."""
        full = self.full(x).relu()
        half = self.down2(full).relu()
        deep = self.wider4(self.wide4(self.down4(half).relu()).relu()).relu()
        half = self.up2(torch.cat([_doubled(deep), half], 1)).relu()
        logits: Tensor = self.head(self.up1(torch.cat([_doubled(half), full], 1)).relu())
        return logits


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def shapes_net() -> PixelNet:
    """The stored network `shapes-segmentation`, in eval mode, on the CPU."""
    net = PixelNet()
    with as_file(files("robustkit.demo").joinpath("shapes-segmentation.safetensors")) as path:
        net.load_state_dict(load_file(path))
    return net.eval()
