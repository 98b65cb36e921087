"""`standard` and APGD against torchattacks' AutoAttack: ``python -m benchmarks.suite [--samples 50] [--norm linf]``.

Time by alternating runs in one process, forwards and backwards a sample by counting what passes through the network.
The peer's parts get the published 100 steps (its own default of 10 is not AutoAttack), nine targets, 5,000 queries. Run
it with a Python that has torchattacks (``python -m benchmarks`` makes one in .bench-venv); without it only ours is
measured. The radius is 1e-5 unless said otherwise, so that every sample stands and goes through every stage.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import robustkit as rk
from benchmarks.common import OURS, THREADS, alternate
from robustkit.attacks import fab
from robustkit.attacks.apgd import APGD
from robustkit.attacks.suite import Standard
from robustkit.core import threat as threats
from robustkit.core.model import Model
from robustkit.core.threat import Threat

PEER = "torchattacks"
NORMS = {"linf": "Linf", "l2": "L2"}
TIME_BAR, PROJECTION_BAR, FORWARDS_BAR, BACKWARDS_BAR = 0.6, 0.1, 7000, 1900
WEAK_FORWARDS_BAR, WEAK_BACKWARDS_BAR = 5, 3
console = Console()


@dataclass
class Passes:
    """Samples that went forward and backward through a network."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counted(net: nn.Module) -> Iterator[Passes]:
    """Count what passes, whoever calls; a forward without gradient has no backward."""
    passes = Passes()

    def seen(_module: nn.Module, _inputs: object, outputs: Tensor) -> None:
        passes.forwards += len(outputs)
        if outputs.requires_grad:
            outputs.register_hook(lambda grad: setattr(passes, "backwards", passes.backwards + len(grad)))

    handle = net.register_forward_hook(seen)
    try:
        yield passes
    finally:
        handle.remove()


def peer(model: Model, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
    """torchattacks' AutoAttack at the published strength.

    Raises:
        ImportError: it is not installed.
    """
    import torchattacks

    attack = torchattacks.AutoAttack(
        model.module.eval(), norm=NORMS[threat.norm], eps=float(threat.eps), n_classes=10, seed=0
    )
    for part in attack._autoattack.attacks:
        if hasattr(part, "steps"):
            part.steps = 100
    return attack  # type: ignore[no-any-return]


@contextmanager
def clocked(places: dict[object, tuple[str, ...]]) -> Iterator[list[float]]:
    """Seconds spent in some functions of some modules while the block runs."""
    spent: list[float] = []
    old = {(module, name): getattr(module, name) for module, names in places.items() for name in names}

    def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object, **kwargs: object) -> Tensor:
            began = time.perf_counter()
            found = function(*args, **kwargs)
            spent.append(time.perf_counter() - began)
            return found

        return call

    for (module, name), function in old.items():
        setattr(module, name, timed(function))
    try:
        yield spent
    finally:
        for (module, name), function in old.items():
            setattr(module, name, function)


def standing(model: Model, x: Tensor, y: Tensor, threat: Threat, rounds: int) -> Iterator[tuple[str, ...]]:
    """`standard` where every sample stands: time, and passes a sample."""
    attack = Standard(threat=threat)
    runs: dict[str, Callable[[], object]] = {OURS: lambda: attack(model, x, y)}
    found = attack(model, x, y)
    yield ("forwards a sample, ours", f"{found.cost.forwards / len(x):.0f}", f"{FORWARDS_BAR}")
    yield ("backwards a sample, ours", f"{found.cost.backwards / len(x):.0f}", f"{BACKWARDS_BAR}")
    try:
        theirs = peer(model, threat)
    except (ImportError, KeyError):
        yield (f"time of {PEER}", "missing", "-")
        return
    runs[PEER] = lambda: theirs(x, y)
    with counted(model.module) as passes:
        theirs(x, y)
    yield (f"forwards a sample, {PEER}", f"{passes.forwards / len(x):.0f}", "-")
    yield (f"backwards a sample, {PEER}", f"{passes.backwards / len(x):.0f}", "-")
    seconds = alternate(runs, rounds)
    for name, value in seconds.items():
        yield (f"seconds, {name}", f"{value:.1f}", "-")
    yield (f"time, of {PEER}", f"{seconds[OURS] / seconds[PEER]:.2f}", f"{TIME_BAR}")


def projections(model: Model, x: Tensor, y: Tensor, eps: float) -> Iterator[tuple[str, ...]]:
    """Share of the time that FAB's projections take in l-infinity, and the l1 projection in APGD."""
    for title, text, threat, places in (
        ("fab-t in linf", "fab-t", rk.Linf(eps), {fab: ("step_to_hyperplane",)}),
        ("fab-t in l2", "fab-t", rk.L2(eps), {fab: ("step_to_hyperplane",)}),
        ("fab-t in l1", "fab-t", rk.L1(eps), {fab: ("step_to_hyperplane",)}),
        ("apgd-ce in l1", "apgd-ce", rk.L1(eps), {threats: ("project_l1_box",)}),
    ):
        with clocked(dict(places)) as spent:
            began = time.perf_counter()
            Standard(threat=threat, stages=text)(model, x, y)
            whole = time.perf_counter() - began
        assert spent, title
        yield (f"projections, share of {title}", f"{sum(spent) / whole:.3f}", f"{PROJECTION_BAR}")


def weak(model: Model, x: Tensor, y: Tensor) -> Iterator[tuple[str, ...]]:
    """APGD where nearly all break at the first step."""
    found = APGD(threat=rk.Linf(0.3))(model, x, y)
    share = float(found.success.float().mean())
    yield ("apgd, weak network: broken", f"{share:.3f}", "-")
    yield ("apgd, weak network: forwards a sample", f"{found.cost.forwards / len(x):.1f}", f"{WEAK_FORWARDS_BAR}")
    yield ("apgd, weak network: backwards a sample", f"{found.cost.backwards / len(x):.1f}", f"{WEAK_BACKWARDS_BAR}")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--samples", type=int, default=50, help="digits of demo:mnist")
    parser.add_argument("--norm", choices=sorted(NORMS), default="linf")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    x, _ = rk.open_data("demo:mnist").take(range(arguments.samples))
    robust, plain = rk.load("demo:mnist-robust"), rk.load("demo:mnist-plain")
    y = robust(x).argmax(1)
    table = Table("standard and apgd", "measured", "at most")
    wide, _ = rk.open_data("demo:mnist").take(range(500))
    for row in (
        *weak(plain, wide, plain(wide).argmax(1)),
        *projections(robust, x, y, 1e-5),
        *standing(robust, x, y, threats.THREATS[arguments.norm](1e-5), arguments.rounds),
    ):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
