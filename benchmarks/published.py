"""Published figures, computed again: ``python -m benchmarks.published FOLDER`` (or ROBUSTKIT_DATA=FOLDER).

The folder holds ``models/mnist_convex_adversarial/mnist.pth`` and ``mnist/mnist_70k.npz`` (Wong and Kolter 2018: clean
error 1.8 %, PGD error 4.1 % at l-infinity 0.1 over the 10,000 test digits) and ``imagenet_samples`` (250 photographs,
of which EfficientNet-Lite0 gets about 88 % right). What is missing is skipped, with the reason.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import robustkit as rk
from robustkit.zoo import read_state

console = Console()
TOLERANCE = 0.002


def convex_adversarial() -> nn.Module:
    """The network of https://github.com/locuslab/convex_adversarial, from its description."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def digits(folder: Path) -> None:
    """Clean and PGD error at l-infinity 0.1."""
    weights, data = folder / "models/mnist_convex_adversarial/mnist.pth", folder / "mnist/mnist_70k.npz"
    if not (weights.is_file() and data.is_file()):
        return console.print(f"skipped: {weights} or {data} is missing")
    net = convex_adversarial()
    net.load_state_dict(read_state(weights))
    result = rk.evaluate(
        rk.wrap(net, name="mnist_convex_adversarial"),
        rk.open_data(f"npz:{data}:X_test,y_test"),
        attacks=[rk.PGD(steps=40)],
        threat=rk.Linf(0.1),
        progress="rich",
    )
    for name, ours, published in (
        ("clean error", 1 - result.clean_accuracy, 0.018),
        ("PGD-40 error", 1 - result.robust_accuracy, 0.041),
    ):
        verdict = "as published" if abs(ours - published) <= TOLERANCE else "differs"
        console.print(f"{name}: {ours:.2%}, published {published:.1%}: {verdict}", highlight=False)


def photos(folder: Path) -> None:
    """Clean accuracy of EfficientNet-Lite0."""
    source = folder / "imagenet_samples"
    if not source.is_dir():
        return console.print(f"skipped: {source} is missing")
    model = rk.load("demo:efficientnet_lite0")
    data = rk.open_data(f"folder:{source}", preprocessing=model.preprocessing)
    right = 0
    with model.frozen(), torch.no_grad():
        for start in range(0, len(data), 25):
            x, y = data.take(range(start, min(start + 25, len(data))))
            right += int((model(x).argmax(1) == y).sum())
    console.print(f"EfficientNet-Lite0 on {len(data)} photographs: {right / len(data):.1%} right, about 88 % expected")


def main() -> None:
    """Both, from the folder on the command line or in ROBUSTKIT_DATA."""
    place = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ROBUSTKIT_DATA")
    if not place:
        raise SystemExit("give the folder of the networks and images: python -m benchmarks.published FOLDER")
    digits(Path(place))
    photos(Path(place))


if __name__ == "__main__":
    main()
