"""A process that has everything loaded, and forks a child for each run, to be killed at a moment of one's choice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import os, sys, time
for line in sys.stdin:
    out, delay = line.split()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(out)
            code = 0
        finally:
            os._exit(code)
    if delay != "-":
        time.sleep(float(delay))
        try:
            os.kill(child, 9)
        except ProcessLookupError:
            pass
    _, status = os.waitpid(child, 0)
    print(status, time.monotonic() - began, flush=True)
"""


@contextmanager
def forking(script: str) -> Iterator[Callable[..., tuple[int, float]]]:
    """``run(folder, delay)`` calls the script's ``work(folder)``, killed after so many seconds; wait status, seconds.

    The script must not compute before it is forked: threads do not survive that.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script + LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )

    def run(out: Path, delay: float | None = None) -> tuple[int, float]:
        process.stdin.write(f"{out} {'-' if delay is None else delay}\n")
        process.stdin.flush()
        status, seconds = process.stdout.readline().split()
        return int(status), float(seconds)

    yield run
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()
