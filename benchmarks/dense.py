"""What CosPGD costs beside PGD: ``python -m benchmarks.dense``; 20 steps, 21 classes, images of 240x180.

Time is the ratio of medians of alternating runs in one process, on one thread, in seconds of the processor, which other
load distorts least; memory the largest resident size above what stood before, each attack in a process of its own.
Bars: 1.05 and 1.10.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

import robustkit as rk
from benchmarks.peak import resident
from robustkit.core.model import Model
from robustkit.demo.pixel_network import PixelNet

console = Console()
STEPS, CLASSES, SIZE, BATCH = 20, 21, (180, 240), 2
BARS = {"time": 1.05, "memory": 1.10}
LOSSES = ("ce", "segpgd", "cospgd")


def lraspp() -> nn.Module:
    """A usual light network of 21 classes."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)["out"]
            return logits

    return Logits()


NETS = {"PixelNet": lambda: PixelNet(CLASSES, 16), "LRASPP MobileNetV3": lraspp}


def problem(net: str) -> tuple[Model, Tensor, Tensor]:
    """A network with random weights, noise, and the network's own answers as labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = rk.wrap(NETS[net]().eval(), task="segmentation")
        x = torch.rand(BATCH, 3, *SIZE)
    with model.frozen(), torch.no_grad():
        return model, x, model(x).argmax(1)


def attack(loss: str) -> rk.PGD:
    """PGD with one of the losses; everything else is equal."""
    return rk.PGD(threat=rk.Linf(0.03), steps=STEPS, step_size=0.01, loss=loss)


def seconds(net: str, rounds: int = 5) -> dict[str, list[float]]:
    """Processor seconds of each loss, in turns, after one warm-up."""
    model, x, y = problem(net)
    times: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for turn in range(rounds + 1):
        for loss in LOSSES if turn % 2 else reversed(LOSSES):
            began = time.process_time()
            attack(loss)(model, x, y)
            if turn:
                times[loss].append(time.process_time() - began)
    return times


def mebibytes(net: str, loss: str) -> float:
    """Peak memory of one attack, in a process of its own, whose large blocks go back to the system when freed.

    Without that glibc keeps some, by their history, and the same attack measures 60 to 85 MiB.
    """
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dense", net, loss], env=env, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def peak(net: str, loss: str) -> None:
    """One attack in this process; prints its peak above what stood before."""
    model, x, y = problem(net)
    attack("ce").with_threat(rk.Linf(0.03))(model, x[:1], y[:1])  # libraries and their workspaces are there
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    attack(loss)(model, x, y)
    sys.stdout.write(f"{resident('VmHWM') - before:.1f}")


def main() -> None:
    """Both ratios for both networks; with two arguments, the peak memory of one attack."""
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        return peak(*sys.argv[1:])
    for net in NETS:
        times = seconds(net)
        memory = {loss: statistics.median(mebibytes(net, loss) for _ in range(3)) for loss in LOSSES}
        for loss in LOSSES[1:]:
            paired = statistics.median(a / b for a, b in zip(times[loss], times["ce"], strict=True))
            ratio = statistics.median(times[loss]) / statistics.median(times["ce"])
            console.print(
                f"{net}, {loss}: time {ratio:.3f} of PGD (round by round {paired:.3f}; bar {BARS['time']}), "
                f"memory {memory[loss] / memory['ce']:.3f} (bar {BARS['memory']}); "
                f"{statistics.median(times['ce']):.2f} s, {memory['ce']:.0f} MiB",
                highlight=False,
            )


if __name__ == "__main__":
    main()
