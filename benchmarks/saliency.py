"""Saliency maps here, in captum and in PAIR saliency: ``python -m benchmarks.saliency``.

EfficientNet-Lite0 at 224 x 224, all subjects in alternating runs of one process, memory in a process for each. Run it
with a Python that has the package ``saliency`` (``python -m benchmarks`` makes one in .bench-venv); peers that are not
installed are left out. Peers get what they document for speed: batches of the same size as ours where they take any.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

import robustkit as rk
from benchmarks.common import BARE, OURS, THREADS, Run, alternate
from benchmarks.peak import resident
from robustkit.core.gradients import default_batch
from robustkit.core.model import Model
from robustkit.explain.metrics import insertion_deletion

CAPTUM, PAIR = "captum", "PAIR"
console = Console(width=120)


@dataclass(frozen=True)
class Comparison:
    """One line of the table: who is timed, and the largest ratios that were asked for, by peer."""

    title: str
    runs: dict[str, Run]
    bars: Mapping[str, float]
    rounds: int = 3


@dataclass(frozen=True)
class Photos:
    """The network, photos and the classes that are explained."""

    model: Model
    x: Tensor
    y: Tensor = field(repr=False)

    @classmethod
    def load(cls, count: int) -> Photos:
        """``demo:photos`` and reflections of them."""
        model = rk.load("demo:efficientnet_lite0")
        x, _ = rk.open_data("demo:photos", preprocessing=model.preprocessing).take(range(4))
        x = torch.cat([x, x.flip(3), x.flip(2), x.flip(2, 3)])[:count]
        return cls(model, x, model(x).argmax(1))

    @property
    def net(self) -> torch.nn.Module:
        """The network as a peer takes it: from images in [0, 1] to logits, in evaluation mode."""
        return self.model.module.eval()


# -- SmoothGrad ------------------------------------------------------------------------------------------------------


def our_smoothgrad(photos: Photos) -> Tensor:
    """robustkit's, with its standard error."""
    return rk.SmoothGrad(samples=50)(photos.model, photos.x, photos.y).values


def bare_smoothgrad(photos: Photos, batch: int) -> Tensor:
    """The loop that a person writes, in batches: the network as it is."""
    x, y = photos.x, photos.y
    sigma, total, left = 0.15 * (x.max() - x.min()), torch.zeros_like(x), 50
    while left:
        size = min(batch, left)
        noisy = (x + sigma * torch.randn(size, *x.shape[1:])).requires_grad_()
        (grad,) = torch.autograd.grad(photos.net(noisy)[:, y[0]].sum(), noisy)
        total, left = total + grad.sum(0, keepdim=True), left - size
    return total / 50


def captum_smoothgrad(photos: Photos, batch: int) -> Run:
    """captum's NoiseTunnel over Saliency, signed, its noise as large as ours."""
    from captum.attr import NoiseTunnel, Saliency

    tunnel = NoiseTunnel(Saliency(photos.net))
    sigma = 0.15 * float(photos.x.max() - photos.x.min())
    return partial(
        tunnel.attribute,
        photos.x,
        target=photos.y,
        nt_type="smoothgrad",
        nt_samples=50,
        nt_samples_batch_size=batch,
        stdevs=sigma,
        abs=False,
    )


def pair_smoothgrad(photos: Photos) -> Run:
    """PAIR's smoothed gradient: it takes one image and one draw at a time."""
    from saliency.core import GradientSaliency

    image = photos.x[0].permute(1, 2, 0).numpy()
    smoothed = GradientSaliency().GetSmoothedMask
    return partial(smoothed, image, pair_gradients(photos), nsamples=50, stdev_spread=0.15, magnitude=False)


def pair_gradients(photos: Photos) -> Callable[..., dict[str, NDArray[Any]]]:
    """The network as PAIR calls it: arrays (N, H, W, C) in, gradients out."""
    from saliency.core import INPUT_OUTPUT_GRADIENTS

    def call(images: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, NDArray[Any]]:
        x = torch.as_tensor(images, dtype=torch.float32).permute(0, 3, 1, 2).requires_grad_()
        (grad,) = torch.autograd.grad(photos.net(x)[:, photos.y[0]].sum(), x)
        return {INPUT_OUTPUT_GRADIENTS: grad.permute(0, 2, 3, 1).numpy()}

    return call


# -- integrated gradients --------------------------------------------------------------------------------------------


def our_integrated(photos: Photos) -> Tensor:
    """robustkit's, with its completeness residual."""
    return rk.IntegratedGradients(steps=50, baseline="black")(photos.model, photos.x, photos.y).values


def captum_integrated(photos: Photos, batch: int) -> Run:
    """captum's, of the same rule; without internal_batch_size 800 images would run at once."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(photos.net)
    return partial(method.attribute, photos.x, target=photos.y, n_steps=50, internal_batch_size=batch)


# -- the table -------------------------------------------------------------------------------------------------------


def comparisons() -> list[Comparison]:
    """What is timed."""
    one, many = Photos.load(1), Photos.load(16)
    batch = default_batch(one.x)
    smooth = {OURS: partial(our_smoothgrad, one), BARE: partial(bare_smoothgrad, one, batch)}
    integrated = {OURS: partial(our_integrated, many)}
    return [
        Comparison(
            "SmoothGrad-50, one photo",
            smooth | _there({CAPTUM: lambda: captum_smoothgrad(one, batch), PAIR: lambda: pair_smoothgrad(one)}),
            {CAPTUM: 0.30, PAIR: 0.30},
        ),
        Comparison(
            "integrated gradients, 50 steps, batch of 16",
            integrated | _there({CAPTUM: lambda: captum_integrated(many, batch)}),
            {CAPTUM: 0.45},
            rounds=1,
        ),
    ]


def _there(makers: Mapping[str, Callable[[], Run]]) -> dict[str, Run]:
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError:
            console.print(f"{name} is not installed")
    return found


def difference(dtype: torch.dtype) -> float:
    """Largest difference to captum's integrated gradients of the same rule, as a share of the largest value.

    Single precision turns some units that are close to a kink the other way, in another order of summation as well.
    """
    photos = Photos.load(1)
    model = rk.wrap(photos.model.module.eval().to(dtype))
    photos = Photos(model, photos.x.to(dtype), photos.y)
    theirs = captum_integrated(photos, default_batch(photos.x))()
    ours = our_integrated(photos)
    return float((ours - theirs).abs().max() / theirs.abs().max())  # type: ignore[operator, union-attr]


def forwards() -> dict[str, float]:
    """Forwards of insertion and deletion on both substrates for each of 8 maps of one photo."""
    photos = Photos.load(1)
    maps = {str(k): torch.rand(1, 224, 224, generator=torch.Generator().manual_seed(k)) for k in range(8)}
    with photos.model.metered() as cost:
        insertion_deletion(photos.model, photos.x, maps, photos.y)
    return {"forwards a method": cost.forwards / 8, "bar": 2 * 224}


def peaks() -> dict[str, float]:
    """MiB above the model's, each subject in a process of its own."""
    found = {}
    for name in (OURS, CAPTUM):
        command = [sys.executable, "-m", "benchmarks.saliency", "--peak", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def peak(name: str) -> float:
    """Peak memory of one subject's integrated gradients above what stood before, in MiB."""
    photos = Photos.load(16)
    batch = default_batch(photos.x)
    run = partial(our_integrated, photos) if name == OURS else captum_integrated(photos, batch)
    fast = photos.model.fast(photos.x)
    (fast if name == OURS else photos.model)(photos.x[:1])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    run()
    return resident("VmHWM") - before


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saliency", description=__doc__)
    parser.add_argument("--peak", choices=(OURS, CAPTUM), help="only the peak memory of one subject, in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.peak:
        sys.stdout.write(f"{peak(arguments.peak):.1f}")
        return
    table = Table("work", "seconds", "ours of each (at most)")
    for work in comparisons():
        seconds = alternate(work.runs, work.rounds)
        ratios = [f"{seconds[OURS] / s:.2f} of {n}" + _bar(work.bars.get(n)) for n, s in seconds.items() if n != OURS]
        table.add_row(work.title, ", ".join(f"{n} {s:.2f}" for n, s in seconds.items()), ", ".join(ratios))
    memory = peaks()
    shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in memory.items())
    table.add_row("integrated gradients, peak memory", shown, f"{memory[OURS] / memory[CAPTUM]:.2f} of captum (0.25)")
    console.print(table)
    for dtype in (torch.float32, torch.float64):
        console.print(f"integrated gradients against captum, same rule, {dtype}: {difference(dtype):.1e} of the most")
    console.print(f"insertion and deletion of 8 maps: {forwards()}")


def _bar(bar: float | None) -> str:
    return "" if bar is None else f" ({bar:.2f})"


if __name__ == "__main__":
    sys.exit(main())
