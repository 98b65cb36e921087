"""mIoU against steps on CamVid, as in the figures of the CosPGD paper: ``python -m benchmarks.camvid FOLDER``.

FOLDER (or ROBUSTKIT_DATA) holds ``camvid/train_240x180.zip`` and ``camvid/val_240x180.zip``. A small network is trained
here in a few minutes on the images at half the size: its figures are those of a small network trained here, and not of
any published one. All attacks take the same steps from the same random starts, alpha 0.01 at l-infinity 0.03.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

import robustkit as rk
from robustkit.attacks.pgd import PGD
from robustkit.core.model import Model
from robustkit.core.task import DenseClassification
from robustkit.core.threat import Linf
from robustkit.demo.networks import initialise
from robustkit.demo.pixel_network import PixelNet
from robustkit.demo.train_shapes import mirrored
from robustkit.run import dense

console = Console()
CLASSES, VOID = 11, 11
SIZE = (120, 88)  # width, height
EPS, ALPHA = 0.03, 0.01
LOSSES = {"PGD": "ce", "SegPGD": "segpgd", "CosPGD": "cospgd"}
FEW = (3, 5)
Counts = np.ndarray[Any, np.dtype[np.float64]]


def read(file: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 88, 120) in [0, 1] and labels (N, 88, 120), 11 where a pixel has none."""
    images, labels = [], []
    with zipfile.ZipFile(file) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith("images/") and n.endswith(".jpg")):
            mask = name.replace("images/", "labels/").replace(".jpg", ".png")
            with Image.open(io.BytesIO(archive.read(name))) as image:
                images.append(np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BOX)))
            with Image.open(io.BytesIO(archive.read(mask))) as image:
                labels.append(np.asarray(image.resize(SIZE, Image.Resampling.NEAREST)))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(), torch.from_numpy(np.stack(labels)).long()


def train(x: Tensor, y: Tensor, epochs: int, batch: int = 8, rate: float = 3e-3) -> PixelNet:
    """The demo's network, a little wider; classes weigh by the root of how rare they are."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        net = PixelNet(CLASSES, 16)
    initialise(net, generator)
    weight = torch.bincount(y[y != VOID], minlength=CLASSES).double().rsqrt()
    weight = (weight / weight.mean()).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            images, labels = mirrored(x[rows], y[rows], generator, sides=(-1,))
            loss = F.cross_entropy(net(images), labels, weight, ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 5 == 0:
            console.print(f"epoch {epoch + 1}: loss {loss.item():.3f}", highlight=False)
    return net.eval()


def network(folder: Path, epochs: int, weights: Path | None) -> PixelNet:
    """The trained network, from the file where there is one already."""
    if weights is not None and weights.is_file():
        net = PixelNet(CLASSES, 16)
        net.load_state_dict(load_file(weights))
        return net.eval()
    net = train(*read(folder / "camvid/train_240x180.zip"), epochs)
    if weights is not None:
        save_file(net.state_dict(), weights)
    return net


def counts(model: Model, x: Tensor, y: Tensor) -> Counts:
    """Pixels of each class in label and answer, in the label, in the answer: (N, classes, 3)."""
    with model.frozen(), torch.no_grad():
        rows = dense.describe(model.task, model(x), y)
    table = np.zeros((len(x), CLASSES, 3))
    for i, row in enumerate(rows):
        for c, *found in row["classes"]:
            table[i, c] = found
    return table


def miou(table: Counts) -> float:
    """Over the pixels of all images, mean of the classes that occur; of counts (..., N, classes, 3)."""
    both, label, said = np.moveaxis(table.sum(0), -1, 0)
    union = label + said - both
    return float((both[union > 0] / union[union > 0]).mean())


def difference(first: Counts, second: Counts, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the difference in mIoU, by resampling the images in pairs."""
    draw = np.random.RandomState(0)
    chosen = [draw.randint(0, len(first), len(first)) for _ in range(draws)]
    values = [miou(first[rows]) - miou(second[rows]) for rows in chosen]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def attacked(model: Model, x: Tensor, y: Tensor, loss: str, steps: int) -> tuple[Counts, Counts]:
    """Counts at the worst point of each image, and at the last iterate, as the paper measures."""
    attack = PGD(threat=Linf(EPS), steps=steps, step_size=ALPHA, loss=loss)
    worst, last = [], []
    for start in range(0, len(x), 8):
        part = slice(start, start + 8)
        found = attack(model, x[part], y[part], ids=torch.arange(len(x))[part])
        worst.append(counts(model, found.adversarial, y[part]))
        last.append(counts(model, found.last, y[part]))
    return np.concatenate(worst), np.concatenate(last)


def table_of(found: dict[int, dict[str, tuple[Counts, Counts]]], which: int, title: str) -> Table:
    """mIoU by steps, a column for each attack."""
    shown = Table("steps", *LOSSES, title=title)
    for steps, by_name in found.items():
        shown.add_row(str(steps), *(f"{100 * miou(pair[which]):.2f} %" for pair in by_name.values()))
    return shown


def verdicts(found: dict[int, dict[str, tuple[Counts, Counts]]]) -> list[str]:
    """Whether CosPGD leaves less than each other at few steps: the 95 % interval of the difference decides."""
    lines = []
    for steps in (s for s in found if s in FEW):
        for other in ("PGD", "SegPGD"):
            ours, theirs = found[steps]["CosPGD"][1], found[steps][other][1]
            low, high = difference(ours, theirs)
            said = "stronger than" if high < 0 else "weaker than" if low > 0 else "not told apart from"
            gap = 100 * (miou(ours) - miou(theirs))
            lines.append(
                f"{steps} steps, last iterate: CosPGD is {said} {other} here: {gap:+.2f} points of mIoU "
                f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, attack, print the tables and the verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid", description=main.__doc__)
    parser.add_argument("folder", nargs="?", default=os.environ.get("ROBUSTKIT_DATA"))
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 20, 40])
    parser.add_argument("--images", type=int, default=101, help="of the validation images")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="keep the trained network here, or take it from here")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(arguments)
    if not args.folder:
        parser.error("give the folder that holds camvid/, or set ROBUSTKIT_DATA")
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    net = network(Path(args.folder), args.epochs, args.weights)
    x, y = (t[: args.images] for t in read(Path(args.folder) / "camvid/val_240x180.zip"))
    model = rk.wrap(net, task=DenseClassification(ignore_index=VOID), name="PixelNet, trained here")
    clean = counts(model, x, y)
    console.print(
        f"small network trained here for {args.epochs} epochs at {SIZE[0]}x{SIZE[1]} "
        f"({time.perf_counter() - began:.0f} s): mIoU {100 * miou(clean):.1f} % on {len(x)} images",
        highlight=False,
    )
    found = {s: {n: attacked(model, x, y, loss, s) for n, loss in LOSSES.items()} for s in args.steps}
    console.print(table_of(found, 1, f"mIoU at the last iterate, Linf {EPS}"))
    console.print(table_of(found, 0, "mIoU at the worst point of each image"))
    for line in verdicts(found):
        console.print(line, highlight=False)
    if args.json:
        figures = {s: {n: [miou(t) for t in pair] for n, pair in by.items()} for s, by in found.items()}
        args.json.write_text(json.dumps({"clean": miou(clean), "steps": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
