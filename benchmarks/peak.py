"""Peak memory of one subject on the photos, in MiB above what stood before: ``python -m benchmarks.peak robustkit``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.common import THREADS, subjects, works


def resident(key: str) -> float:
    """A field of this process's status, in MiB: VmRSS now, or VmHWM, the most so far."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1]) / 1024
    raise SystemExit("peak memory is read from /proc, which this system does not have")


def main() -> None:
    """One run of the subject named on the command line."""
    torch.set_num_threads(THREADS)
    work = works()[0]
    run = subjects(work)[sys.argv[1]]
    work.model(work.x[:1])  # libraries and their workspaces are there before the measurement begins
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the most so far begins anew
    run()
    sys.stdout.write(f"{resident('VmHWM') - before:.1f}")


if __name__ == "__main__":
    main()
