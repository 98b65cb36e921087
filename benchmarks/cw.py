"""Carlini-Wagner on digits, here and in Foolbox: ``python -m benchmarks.cw [--samples 200]``.

Both take the same search steps, gradient steps, first weight and learning rate, in alternating runs of one process. Run
it with a Python that has Foolbox (``python -m benchmarks`` makes one in .bench-venv); without it only ours is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import robustkit as rk
from benchmarks.common import OURS, THREADS
from robustkit.attacks.cw import CW
from robustkit.core.model import Model

FOOLBOX = "Foolbox"
NETWORKS = ("demo:mnist-plain", "demo:mnist-robust")
SLOWEST, FARTHEST = 0.5, 1.02
"""The largest ratios that were asked for, of time and of the median distance."""
console = Console()


@dataclass(frozen=True)
class Found:
    """What a subject returned: the distance of every sample (N,), inf where it reports a failure, and black images."""

    distance: Tensor
    black: int

    @property
    def success(self) -> float:
        """Share of the samples, as reported."""
        return float(self.distance.isfinite().float().mean())

    @property
    def median(self) -> float:
        """Distance that half of the samples are within."""
        return float(self.distance.median())


Run = Callable[[], Found]


def ours(model: Model, x: Tensor, y: Tensor, search_steps: int, steps: int) -> Found:
    """robustkit's CW."""
    found = CW(search_steps=search_steps, steps=steps)(model, x, y)
    return Found(found.minimum, _black(found.adversarial, found.success))


def foolbox(model: Model, x: Tensor, y: Tensor, search_steps: int, steps: int) -> Found:
    """Foolbox's, with its defaults but for the steps.

    Raises:
        ImportError: it is not installed.
    """
    import foolbox as fb

    attack = fb.attacks.L2CarliniWagnerAttack(binary_search_steps=search_steps, steps=steps)
    _, adv, success = attack(fb.PyTorchModel(model.module.eval(), bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    return Found(torch.where(success, (adv - x).flatten(1).norm(dim=1), torch.inf), _black(adv, success))


def _black(adv: Tensor, success: Tensor) -> int:
    """Successes that are all black: what Foolbox returns for samples where it found nothing."""
    return int((success & (adv.flatten(1) == 0).all(1)).sum())


@dataclass(frozen=True)
class Times:
    """Median seconds by the clock on the wall and of the processor; the latter hardly depends on other load."""

    wall: float
    processor: float


def alternate(runs: dict[str, Run], rounds: int) -> tuple[dict[str, Times], dict[str, Found]]:
    """How long each takes, in turns, and what each found in the last turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    found = {}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            found[name] = run()
            times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {name: Times(*map(statistics.median, zip(*taken, strict=True))) for name, taken in times.items()}, found


def subjects(model: Model, x: Tensor, y: Tensor, search_steps: int, steps: int) -> dict[str, Run]:
    """Name -> what is timed, each warmed up on a few samples; peers that are not installed are left out."""
    runs: dict[str, Run] = {}
    for name, attack in ((OURS, ours), (FOOLBOX, foolbox)):
        try:
            attack(model, x[:4], y[:4], 1, 2)
        except ImportError:
            continue
        runs[name] = lambda attack=attack: attack(model, x, y, search_steps, steps)  # type: ignore[misc]
    return runs


def rows(name: str, times: dict[str, Times], found: dict[str, Found]) -> list[tuple[str, ...]]:
    """(network, subject, both times, median distance, success, black images) as text, and a line of ratios."""
    lines: list[tuple[str, ...]] = [
        (
            name,
            who,
            f"{times[who].wall:.1f}",
            f"{times[who].processor:.1f}",
            f"{what.median:.4f}",
            f"{what.success:.3f}",
            str(what.black),
        )
        for who, what in found.items()
    ]
    if FOOLBOX not in found:
        return [*lines, (name, f"{FOOLBOX}: missing", *["-"] * 5)]
    here, there = times[OURS], times[FOOLBOX]
    quicker = (_verdict(here.wall / there.wall, SLOWEST), _verdict(here.processor / there.processor, SLOWEST))
    nearer = _verdict(found[OURS].median / found[FOOLBOX].median, FARTHEST)
    return [*lines, (name, "ratio", *quicker, nearer, "", "")]


def _verdict(ratio: float, bar: float) -> str:
    return f"{ratio:.2f} (at most {bar:.2f}: {'met' if ratio <= bar else 'missed'})"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cw", description=__doc__)
    parser.add_argument("--samples", type=int, default=200, help="first digits of demo:mnist")
    parser.add_argument("--search-steps", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200, help="gradient steps in every search step")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turns")
    parser.add_argument("--network", nargs="+", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=THREADS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x, y = rk.open_data("demo:mnist").take(range(arguments.samples))
    table = Table("network", "subject", "seconds", "of the processor", "median l2", "success", "all-black successes")
    for name in arguments.network:
        runs = subjects(rk.load(name), x, y, arguments.search_steps, arguments.steps)
        for row in rows(name, *alternate(runs, arguments.rounds)):
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
