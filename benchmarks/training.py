"""What a step of training costs: ``python -m benchmarks.training [--rounds 15] [--steps 200] [--no-page]``.

Times are medians of alternating runs in one process, on the demo's digit network with a batch of 128; passes are
counted by hooks on the network, not by our own books; memory is the resident size of a process of its own. Writes
docs/benchmarks-training.md.
"""

from __future__ import annotations

import argparse
import copy
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import robustkit as rk
from benchmarks.common import BARE, OURS, alternate
from benchmarks.peak import resident
from benchmarks.suite import counted
from robustkit.core.defense import defense_from
from robustkit.core.heap import kept
from robustkit.core.lesson import TrainState
from robustkit.demo.networks import DigitNet, initialise

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks-training.md"
BATCH, STEPS, EPS, RATE = 128, 10, 0.2, 0.01
PGD_BAR, AMP_BAR, COPY_BAR, GROWTH_BAR = 1.08, 2.05, 1.15, 2.0
SETTLED = 50
"""Steps after which memory must have stopped growing."""
LAYERS, WIDTH = 32, 1024
console = Console(width=120)


@dataclass(frozen=True)
class Figure:
    """A line of the table."""

    title: str
    measured: str
    bar: str
    met: bool | None
    detail: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        verdict = "-" if self.met is None else "met" if self.met else "missed"
        return self.title, self.measured, self.bar, verdict, self.detail


def digit_net() -> nn.Module:
    """The network of the demo with fresh weights, in train mode."""
    net = DigitNet()
    initialise(net, torch.Generator().manual_seed(0))
    return net.train()


def batch() -> tuple[Tensor, Tensor]:
    """128 digits of demo:mnist-train."""
    return rk.open_data("demo:mnist-train").take(range(BATCH))


def bare_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """PGD-AT as a person writes it, gradients of the attack for the inputs alone: K + 1 forwards and backwards."""
    net.eval()
    adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(adv), y, reduction="sum"), adv)
        adv = (x + (adv.detach() + 2.5 * EPS / STEPS * grad.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    net.train()
    optimizer.zero_grad()
    F.cross_entropy(net(adv), y).backward()
    optimizer.step()


def our_step(text: str, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One step of a defense, the optimiser's included; the network is a copy."""
    net = copy.deepcopy(net)
    defense = defense_from(text).with_threat(rk.Linf(EPS))
    model, optimizer, state = rk.wrap(net), torch.optim.SGD(net.parameters(), lr=RATE), TrainState()

    def step() -> None:
        defense.step(model, x, y, state)
        optimizer.step()

    return step


def times(rounds: int) -> list[Figure]:
    """PGD-AT against the bare loop, AMP against ordinary training."""
    net, (x, y) = digit_net(), batch()
    mine = copy.deepcopy(net)
    bare = partial(bare_step, mine, torch.optim.SGD(mine.parameters(), lr=RATE), x, y)
    with kept():  # around the whole loop, as the trainer has it; the bare loop gains by it, too
        pgd = alternate({OURS: our_step(f"pgd-at:steps={STEPS}", net, x, y), BARE: bare}, rounds)
        amp = alternate({name: our_step(name, net, x, y) for name in ("amp", "erm")}, 5 * rounds)
    found = []
    for title, seconds, ours, theirs, bar in (
        (f"`pgd-at` step, K = {STEPS}, batch {BATCH}", pgd, OURS, BARE, PGD_BAR),
        (f"`amp` step, N = 1, batch {BATCH}", amp, "amp", "erm", AMP_BAR),
    ):
        ratio = seconds[ours] / seconds[theirs]
        detail = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
        found.append(Figure(title, f"{ratio:.2f} of {theirs}", f"{bar:.2f}", ratio <= bar, detail))
    return found


def passes() -> list[Figure]:
    """Forwards and backwards of TRADES and of PGD-AT for each sample, as the network saw them."""
    net, (x, y) = digit_net(), batch()
    found = []
    for name, forwards, backwards in (("trades", STEPS + 3, STEPS + 2), ("pgd-at", STEPS + 1, STEPS + 1)):
        defense = defense_from(f"{name}:steps={STEPS}").with_threat(rk.Linf(EPS))
        model, state = rk.wrap(net), TrainState()
        defense.step(model, x, y, state)  # the first one also looks at the shape of the outputs
        with counted(net) as seen:
            said = defense.step(model, x, y, state).cost
        counts, books = (seen.forwards / BATCH, seen.backwards / BATCH), (said.forwards / BATCH, said.backwards / BATCH)
        measured, bar = f"{counts[0]:g} F, {counts[1]:g} B", f"{forwards} F, {backwards} B"
        met = counts[0] <= forwards and counts[1] <= backwards
        detail = "as our books say" if counts == books else f"our books say {books[0]:g} F, {books[1]:g} B"
        found.append(Figure(f"`{name}` step, K = {STEPS}, passes of a sample", measured, bar, met, detail))
    return found


def growth(text: str, steps: int) -> float:
    """MiB by which the process grows after the first steps."""
    net, (x, y) = digit_net(), batch()
    step = our_step(text, net, x, y)
    with kept():
        for number in range(steps):
            if number == min(SETTLED, steps // 2):
                before = resident("VmRSS")
            step()
        return resident("VmRSS") - before


def peak(text: str) -> float:
    """Peak memory of a step above what stood before it, of a network that is nearly all weights; MiB."""
    net = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)], nn.Linear(WIDTH, 10))
    step = our_step(text, net, torch.rand(4, WIDTH), torch.arange(4))
    step()  # workspaces, and the gradients, which stay
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the most so far begins anew
    step()
    return resident("VmHWM") - before


def apart(*arguments: str) -> float:
    """A figure that this module measures in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--alone", *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(steps: int) -> list[Figure]:
    """Growth over many steps, and what moving the weights takes."""
    found = []
    for text in ("pgd-at:steps=2", "trades:steps=2", "free", "awp+pgd-at:steps=2", "amp", "concurrent"):
        mebibytes = apart("growth", text, str(steps))
        title = f"`{text}`: growth from step {min(SETTLED, steps // 2)} to {steps}"
        met = mebibytes <= GROWTH_BAR
        found.append(Figure(title, f"{mebibytes:.1f} MiB", f"{GROWTH_BAR:.1f} MiB", met))
    weights = LAYERS * WIDTH**2 * 4 / 2**20
    for text, plain in (("awp+pgd-at", "pgd-at"), ("amp", "erm")):
        mebibytes, base = apart("peak", text), apart("peak", plain)
        copies = (mebibytes - base) / weights
        detail = f"{mebibytes:.0f} MiB, `{plain}` {base:.0f} MiB; the weights are {weights:.0f} MiB"
        found.append(
            Figure(f"`{text}`: copies of the weights", f"{copies:.2f}", f"{COPY_BAR:.2f}", copies <= COPY_BAR, detail)
        )
    return found


TEXT = """# Benchmarks of training

Written by `python -m benchmarks.training` on {date}: {machine}, CPU, {threads} threads, torch {torch}. Times are
medians of alternating runs in one process on an otherwise idle machine: other load distorts even the ratios.

{table}

The bare loop is PGD-AT as a person writes it in ten lines, its attack by `autograd.grad` of the inputs alone; it draws
its noise at once, checks nothing and counts nothing, so it is the limit. What ours takes beyond that are draws
[keyed by sample](randomness.md), checks of the batch, and the state that is put back. Passes are counted by hooks on
the network, after a first step that also looks at the shape of its outputs. Memory is the resident size of a process
of its own: the growth after the first steps, and the peak of one step of a network of {layers} layers that are {width}
wide; `amp` computes a difference of one tensor at a time on the way.

How well the defenses defend stands in [Which defenses hold](defenses/comparison.md).
"""


def page(figures: list[Figure]) -> str:
    """docs/benchmarks-training.md."""
    table = ["| work | measured | at most | | |", "| --- | --- | --- | --- | --- |"]
    table += ["| " + " | ".join(figure.row) + " |" for figure in figures]
    return TEXT.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        table="\n".join(table),
        layers=LAYERS,
        width=WIDTH,
    )


def main() -> None:
    """Measure, print the table, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="runs of each subject that is timed")
    parser.add_argument("--steps", type=int, default=200, help="steps over which memory is watched")
    parser.add_argument("--no-page", action="store_true", help="print the table only")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        what, text, *steps = given.alone
        sys.stdout.write(str(peak(text) if what == "peak" else growth(text, int(steps[0]))))
        return
    figures = [*times(given.rounds), *passes(), *memory(given.steps)]
    table = Table("work", "measured", "at most", "", "")
    for figure in figures:
        table.add_row(*figure.row)
    console.print(table)
    if not given.no_page:
        PAGE.write_text(page(figures), encoding="utf-8")
        console.print(f"written: {PAGE.relative_to(PAGE.parents[1])}", highlight=False)


if __name__ == "__main__":
    main()
