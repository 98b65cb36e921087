"""Small networks for training from the first weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.demo.networks import initialise


class ConvNet(nn.Module):
    """The demo's DigitNet for images of any size: (N, C, H, W) to logits (N, classes).

    Three strided convolutions and two linear layers with ReLU, and no batch statistics. For (1, 28, 28) and ten
    classes the weights of ``demo:mnist-robust`` fit.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *size = shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        height, width = (-(-edge // 8) for edge in size)
        hidden = max(48, classes)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * height * width, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, as in ResNet; a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = stride == 1 and before == width
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet8(nn.Module):
    """ResNet-8 for small images (He et al. 2016, section 4.2, n = 1): (N, C, H, W) to logits (N, classes).

    One block at each of the widths 16, 32 and 64. 78,042 parameters for (3, 32, 32) and ten classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        inner = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(inner, 1).flatten(1))
        return logits


def drawn(net: nn.Module, seed: int) -> nn.Module:
    """The network with He-normal weights and zero biases that depend on the seed alone."""
    initialise(net, torch.Generator().manual_seed(seed))
    return net
