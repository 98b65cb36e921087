"""Robust accuracy by `standard`, where it is known or PGD bounds it: ``python -m benchmarks.autoattack FOLDER``.

The folder (or ROBUSTKIT_DATA) holds ``models/mnist_convex_adversarial/mnist.pth`` with ``mnist/mnist_70k.npz``, of
whose first 500 test digits the published AutoAttack leaves 95.6 % at l-infinity 0.1; and ``models/resnet20_cifar10``
with ``cifar10/lossless_subset.npz``, of whose 300 exact test images nothing is published: there `standard` must not
leave more than PGD with 100 steps and 5 restarts at 1/255. What is missing is skipped, with the reason.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import robustkit as rk
from benchmarks.published import convex_adversarial
from robustkit.zoo import read_state

PUBLISHED, WITHIN = 0.956, 0.002
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
console = Console()


class Block(nn.Module):
    """Two 3x3 convolutions; a shortcut that changes size takes every second pixel and pads channels with zeros."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.pad = stride, (outside - inside) // 2

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class ResNet20(nn.Module):
    """The CIFAR network of https://arxiv.org/abs/1512.03385, section 4.2, with three groups of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def digits(folder: Path) -> None:
    """The published figure."""
    weights, data = folder / "models/mnist_convex_adversarial/mnist.pth", folder / "mnist/mnist_70k.npz"
    if not (weights.is_file() and data.is_file()):
        return console.print(f"skipped: {weights} or {data} is missing")
    net = convex_adversarial()
    net.load_state_dict(read_state(weights))
    began = time.monotonic()
    result = rk.evaluate(
        rk.wrap(net, name="mnist_convex_adversarial"),
        rk.open_data(f"npz:{data}:X_test,y_test"),
        attacks=["standard"],
        threat=rk.Linf(0.1),
        limit=500,
        progress="plain",
    )
    left = result.robust_accuracy
    verdict = "equal" if left <= PUBLISHED + WITHIN else "ABOVE IT"
    console.print(f"standard on 500 digits at 0.1: {left:.1%}, AutoAttack {PUBLISHED:.1%}: {verdict}", highlight=False)
    tell(result, began)


def images(folder: Path) -> None:
    """`standard` against PGD with restarts."""
    found = sorted((folder / "models/resnet20_cifar10").glob("*.th"))
    data = folder / "cifar10/lossless_subset.npz"
    if not (found and data.is_file()):
        return console.print(f"skipped: resnet20_cifar10 or {data} is missing")
    net = ResNet20()
    state = read_state(found[0])
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    model = rk.wrap(net, mean=MEAN, std=STD, name="resnet20_cifar10")
    x, y = exact(data)
    for attack in ("pgd:steps=100,restarts=5", "standard"):
        began = time.monotonic()
        result = rk.evaluate(model, (x, y), attacks=[attack], threat=rk.Linf(1 / 255), progress="plain")
        console.print(f"{attack} on {len(x)} images at 1/255: clean {result.clean_accuracy:.1%}", highlight=False)
        tell(result, began)


def exact(path: Path) -> tuple[Tensor, Tensor]:
    """The test images whose pixels are exact."""
    with np.load(path, allow_pickle=False) as held:
        rows = np.isin(held["source"], ("eran", "sdp")) & (held["split"] == "test")
        x = torch.from_numpy(held["X"][rows]).float() / 255
        y = torch.from_numpy(held["y"][rows]).long()
    return (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2).contiguous()), y


def tell(result: rk.Result, began: float) -> None:
    """What each stage left, what it cost, and what was doubted."""
    for row in result.data["attacks"]:
        console.print(
            f"  {row['label']}: leaves {row['robust_accuracy']:.2%}, new {row['gain']}, "
            f"{row['forwards']} F + {row['backwards']} B",
            highlight=False,
        )
    doubts = [f"{d.id} {d.status}" for d in result.diagnostics if d.status in ("WARN", "FAIL")]
    console.print(f"  {time.monotonic() - began:.0f} s; {', '.join(doubts) or 'no doubts'}", highlight=False)


def main() -> None:
    """Both, from the folder on the command line or in ROBUSTKIT_DATA."""
    place = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ROBUSTKIT_DATA")
    if not place:
        raise SystemExit("give the folder of the networks and images: python -m benchmarks.autoattack FOLDER")
    digits(Path(place))
    images(Path(place))


if __name__ == "__main__":
    main()
