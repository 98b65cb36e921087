"""Measure in the environment that has the peers, and print JSON: ``python -m benchmarks.measure``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.common import BARE, OURS, THREADS, Work, alternate, subjects, works

PEERS = ("torch", "torchattacks", "foolbox", "adversarial-robustness-toolbox")


def speed(work: Work) -> dict[str, Any]:
    """Median seconds of every subject, and the ratio that was asked for."""
    seconds = alternate(subjects(work), work.rounds)
    against = seconds.get(work.against)
    return {
        "title": work.title,
        "note": work.note,
        "seconds": seconds,
        "against": work.against,
        "ratio": None if against is None else seconds[OURS] / against,
        "bar": work.bar,
    }


def memory() -> dict[str, Any]:
    """Peak memory of one PGD above what stood before it, each subject in a process of its own; MiB."""
    found = {}
    for name in (OURS, BARE):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peak", name], capture_output=True, text=True, check=True
        )
        found[name] = float(done.stdout)
    return {"mebibytes": found, "ratio": found[OURS] / found[BARE], "bar": 1.1}


def versions() -> dict[str, str]:
    """Of what was measured."""
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Everything, as JSON on stdout."""
    torch.set_num_threads(THREADS)
    json.dump({"speed": [speed(work) for work in works()], "memory": memory(), "versions": versions()}, sys.stdout)


if __name__ == "__main__":
    main()
