"""``python -m benchmarks``: make an environment with the peers, measure in it, and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import OURS, THREADS

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".bench-venv"
PAGE = ROOT / "docs" / "benchmarks.md"
PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "saliency")
console = Console()


def environment(place: Path) -> Path:
    """Python of an environment with robustkit and the peers; made when it is absent.

    torchattacks pins an old version of requests, so the peers live apart from everything else.
    """
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (place / ".installed").is_file():
        console.print(f"making {place.name} with {', '.join(PEERS)} (once)")
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[demo]", *PEERS], check=True)
        (place / ".installed").touch()
    return python


def measure(python: Path) -> dict[str, Any]:
    """The figures, from the environment's own Python."""
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, "-m", "benchmarks.measure"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """(work, measured, bar, verdict, seconds) as text."""
    lines = []
    for work in found["speed"]:
        seconds = ", ".join(f"{name} {value:.3g} s" for name, value in work["seconds"].items())
        lines.append((work["title"], *_verdict(work["ratio"], work["bar"], f"of {work['against']}"), seconds))
    mebibytes = ", ".join(f"{name} {value:.0f} MiB" for name, value in found["memory"]["mebibytes"].items())
    title = "peak memory of PGD-10, EfficientNet-Lite0, 16 photos"
    lines.append((title, *_verdict(found["memory"]["ratio"], found["memory"]["bar"], "of bare loop"), mebibytes))
    return lines


def _verdict(ratio: float | None, bar: float, against: str) -> tuple[str, str, str]:
    if ratio is None:
        return f"not measured: no {against.removeprefix('of ')}", f"{bar:.2f}", "-"
    return f"{ratio:.2f} {against}", f"{bar:.2f}", "met" if ratio <= bar else "missed"


def page(found: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    table = ["| work | robustkit takes | at most | | medians |", "| --- | --- | --- | --- | --- |"]
    table += ["| " + " | ".join(row) + " |" for row in rows(found)]
    notes = [f"- {work['title']}: {work['note']}." for work in found["speed"]]
    peers = [
        f"- {work['title']}: "
        + ", ".join(f"{work['seconds'][OURS] / s:.2f} of {n}" for n, s in work["seconds"].items() if n != OURS)
        for work in found["speed"]
    ]
    return TEXT.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"{platform.machine()}, {THREADS} threads",
        versions=versions,
        table="\n".join(table),
        notes="\n".join(notes),
        peers="\n".join(peers),
    )


TEXT = """# Benchmarks

Written by `make bench` on {date}: {machine}, {versions}. Every ratio is of medians of alternating runs in one process;
memory is the largest resident size above what stood before, each subject in a process of its own. Measure on an
otherwise idle machine: other load distorts even the ratios.

{table}

The bare loop is what a person writes in ten lines: forward, cross-entropy, gradient, step, projection. It drops
nothing, scores nothing and checks nothing, so it is the limit of any library that runs the network as it is. robustkit
is faster where folding BatchNorm into the convolutions and laying out memory channels-last pay
([decision 4](adr/0004-fast-copy.md)), and where samples that broke leave the computation.

Ours against each, by time:

{peers}

Conditions:

{notes}

All run the same number of steps from a random start. robustkit's time includes the verdicts on the network itself; the
peers return their last iterate and leave the verdict to you.
"""


def main() -> None:
    """Measure, print the table, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--no-page", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    found = measure(environment(PLACE))
    table = Table("work", "robustkit takes", "at most", "", "medians")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    if not arguments.no_page:
        PAGE.write_text(page(found), encoding="utf-8")
        console.print(f"written: {PAGE.relative_to(ROOT)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
