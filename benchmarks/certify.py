"""What smoothing costs: ``python -m benchmarks.certify [--rounds 5] [--n 1280] [--digits 200]``.

Times are medians of alternating runs in one process; the bare loop is ``no_grad`` over noise that was drawn before and
costs it nothing. The rate does not depend on n: each round takes ``--n`` draws. Decisions are compared with the fixed
design of the cap, sample by sample. Memory is the resident size of processes of their own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import robustkit as rk
from benchmarks.common import BARE, OURS, THREADS, alternate
from benchmarks.peak import resident
from robustkit.certify.confidence import lower, upper
from robustkit.core.heap import kept

RATE_BAR, SAMPLES_BAR = 0.93, 1 / 20
SIGMA, CAP, RADIUS = 0.25, 100_000, 0.25
console = Console(width=120)


def bare(net: Callable[[Tensor], Tensor], x: Tensor, pool: Tensor, n: int, batch: int) -> Tensor:
    """Counts of n noisy copies, as a person writes it; the noise is there already."""
    counts = torch.zeros(1000, dtype=torch.long)
    with torch.no_grad():
        for first in range(0, n, batch):
            size = min(batch, n - first)
            counts += torch.bincount(net(x + SIGMA * pool[:size]).argmax(1), minlength=1000)
    return counts


def kept_bare(net: Callable[[Tensor], Tensor], x: Tensor, pool: Tensor, n: int, batch: int) -> Tensor:
    """The same with freed memory kept in the process, as ours does."""
    with kept():
        return bare(net, x, pool, n, batch)


def rates(
    title: str, name: str, data: str, n: int, batch: int, rounds: int, *, dual: bool = False
) -> list[tuple[str, ...]]:
    """Copies a second of ours, as a share of the bare loop's."""
    model = rk.load(name)
    x, _ = rk.open_data(data, preprocessing=model.preprocessing).take([0])
    pool = torch.randn((batch, *x.shape[1:]), generator=torch.Generator().manual_seed(0))
    net = model.module.eval()
    found = []
    methods = [rk.Smoothing(sigma=SIGMA, n=n, n0=1), *([rk.DualSmoothing(sigma=SIGMA, n=n // 2, n0=1)] if dual else [])]
    for method in methods:
        subjects = {
            OURS: partial(method, model, x, batch=batch),
            BARE: partial(bare, net, x, pool, n, batch),
            "bare loop, memory kept": partial(kept_bare, net, x, pool, n, batch),
        }
        seconds = alternate(subjects, rounds)
        passed = method(model, x, batch=batch).cost.forwards  # a few more than n: the choice, and a look at the network
        per = {key: value / (passed if key == OURS else n) for key, value in seconds.items()}
        share = per[BARE] / per[OURS]
        kept_share = per["bare loop, memory kept"] / per[OURS]
        verdict = "-" if method.parts == 2 else "met" if share >= RATE_BAR else "missed"
        told = ", ".join(f"{key} {1000 * value:.3f} ms a copy" for key, value in per.items())
        bar = f">= {RATE_BAR}" if method.parts == 1 else "-"
        found.append((f"{method.text.partition(':')[0]}, {title}, n = {n:,}", f"{share:.2f}", bar, verdict,
                      f"{told}; against the loop with memory kept {kept_share:.2f}"))
    return found


def decisions(digits: int, n: int) -> list[tuple[str, ...]]:
    """Draws of decide on demo:mnist-smooth, and its verdicts beside those of a fixed design of n draws."""
    model = rk.load("demo:mnist-smooth")
    x, _ = rk.open_data("demo:mnist").take(range(digits))
    decide = rk.Smoothing(sigma=SIGMA, n=CAP, mode="decide", radius=RADIUS)
    found = decide(model, x)
    fixed = replace(decide, mode="radius", n=n)(model, x)
    median = float(found.n.double().median())
    hits = fixed.extras["hits"][:, 0].numpy()
    level = decide.level(RADIUS)
    inside = (lower(hits, n, decide.alpha) <= level) & (level <= upper(hits, n, decide.beta))
    differ = (found.certified != fixed.certified).numpy()
    rows = [
        (f"decide, R = {RADIUS}, {digits} digits: median draws", f"{median:,.0f}", f"<= {CAP * SAMPLES_BAR:,.0f}",
         "met" if median <= CAP * SAMPLES_BAR else "missed",
         f"mean {float(found.n.double().mean()):,.0f}, most {int(found.n.max()):,}, cap {CAP:,}; passes "
         f"{found.cost.forwards:,} against {fixed.cost.forwards:,}"),
        ("decide: other verdicts than the fixed design", f"{int(differ.sum())}", "only within its confidence width",
         "met" if not (differ & ~inside).any() else "missed",
         f"{int((differ & inside).sum())} within the width; certified {int(found.certified.sum())} by decide, "
         f"{int(fixed.certified.sum())} by n = {n:,}"),
    ]
    return rows


def memory() -> list[tuple[str, ...]]:
    """Most memory of a certification above what stood before it, for n and for ten times n."""
    found = {n: float(subprocess.run([sys.executable, "-m", "benchmarks.certify", "--peak", str(n)],
                                     capture_output=True, text=True, check=True).stdout) for n in (2_000, 20_000)}
    flat = found[20_000] - found[2_000]
    return [("memory, demo:mnist-smooth: growth from n = 2,000 to 20,000", f"{flat:+.1f} MiB", "flat",
             "met" if flat < 2 else "missed", ", ".join(f"n = {n:,}: {value:.1f} MiB" for n, value in found.items()))]


def peak(n: int) -> None:
    """One certification in this process; its most memory, printed."""
    torch.set_num_threads(THREADS)
    model = rk.load("demo:mnist-smooth")
    x, _ = rk.open_data("demo:mnist").take(range(4))
    method = rk.Smoothing(sigma=SIGMA, n=n)
    replace(method, n=1_000)(model, x)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    method(model, x)
    sys.stdout.write(f"{resident('VmHWM') - before:.1f}")


def main() -> None:
    """Everything, as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=1_280)
    parser.add_argument("--digits", type=int, default=200)
    parser.add_argument("--fixed", type=int, default=CAP, help="draws of the fixed design")
    parser.add_argument("--only", default="")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        return peak(given.peak)
    torch.set_num_threads(THREADS)
    parts: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "photos": partial(rates, "EfficientNet-Lite0, batch 64", "demo:efficientnet_lite0", "demo:photos", given.n, 64,
                          given.rounds),
        "digits": partial(rates, "demo:mnist-smooth, batch 512", "demo:mnist-smooth", "demo:mnist", 10_240, 512,
                          given.rounds, dual=True),
        "decide": partial(decisions, given.digits, given.fixed),
        "memory": memory,
    }
    table = Table("work", "measured", "bar", "", "detail", box=None, pad_edge=False)
    for name, part in parts.items():
        if given.only in name:
            for row in part():
                table.add_row(*row)
                console.print(" | ".join(row), highlight=False, soft_wrap=True)
    console.print(table)
    return None


if __name__ == "__main__":
    main()
