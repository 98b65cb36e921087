"""How the network for drawn scenes was trained: `python -m robustkit.demo.train_shapes --out DIR` does it again.

Cross-entropy over the labelled pixels of 4,000 scenes that `demo:shapes` does not hold, each mirrored at random. All
draws come from one seeded generator: the same command on the same machine, torch version and thread count gives the
same bits.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from robustkit.demo.networks import initialise
from robustkit.demo.pixel_network import PixelNet
from robustkit.demo.shapes import TRAIN, VOID, scenes

log = logging.getLogger(__name__)
NAME = "shapes-segmentation"
BATCH, RATE, SEED = 32, 4e-3, 0


def train(epochs: int = 14, numbers: Sequence[int] = TRAIN) -> PixelNet:
    """The network: AdamW, one cycle of the learning rate, the last weights (no selection)."""
    generator = torch.Generator().manual_seed(SEED)
    images, labels = (torch.from_numpy(array) for array in scenes(numbers))
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights, which are then drawn again
        net = PixelNet()
    initialise(net, generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-4)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            x, y = mirrored(images[rows].float() / 255, labels[rows], generator)
            loss = F.cross_entropy(net(x), y, ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        log.info("epoch %d: loss %.4f", epoch + 1, loss.item())
    return net.eval()


def mirrored(
    x: Tensor, y: Tensor, generator: torch.Generator, sides: Sequence[int] = (-1, -2)
) -> tuple[Tensor, Tensor]:
    """Each scene turned over, along each of the sides, with probability one half."""
    for side in sides:
        turn = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(turn[:, None, None, None], x.flip(side), x)
        y = torch.where(turn[:, None, None], y.flip(side), y)
    return x, y


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the network and store it as DIR/shapes-segmentation.safetensors."""
    parser = argparse.ArgumentParser(prog="python -m robustkit.demo.train_shapes", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the safetensors file")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; part of what decides the bits")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(train(args.epochs).state_dict(), args.out / f"{NAME}.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
