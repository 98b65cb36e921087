"""SIGKILL at any moment, then the same command: the same results, byte for byte, apart from times."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 16

WORKER = """
import os, sys, time
import torch
torch.set_num_threads(1)
from torch import nn
import robustkit as rk
import robustkit.run.evaluate, robustkit.report.write, scipy.optimize, scipy.stats

g = torch.Generator().manual_seed(0)
centres = torch.rand(4, 1, 5, 5, generator=g)
y = torch.arange(40) % 4
x = (centres[y] + 0.5 * torch.randn(40, 1, 5, 5, generator=g)).clamp(0, 1)
net = nn.Sequential(nn.Flatten(), nn.Linear(25, 4))
with torch.no_grad():
    net[1].weight.copy_(centres.flatten(1) * 8)
    net[1].bias.copy_(-4 * centres.flatten(1).square().sum(1))

def work(out):
    attacks = [rk.FGSM(), rk.PGD(steps=5, restarts=2)]
    rk.evaluate(net, (x, y), attacks=attacks, threat=rk.Linf(0.1), batch_size=6, curve=True, out=out)

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


class Worker:
    """A process that has everything loaded and forks a child for each run."""

    def __init__(self, script: Path) -> None:
        script.write_text(WORKER, encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, out: Path, delay: float | None = None) -> tuple[int, float]:
        """Run into a folder, killed after ``delay`` seconds; wait status and seconds."""
        self.process.stdin.write(f"{out} {'-' if delay is None else delay}\n")
        self.process.stdin.flush()
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)


@pytest.fixture
def worker(tmp_path):
    made = Worker(tmp_path / "worker.py")
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=30)
    made.process.stdout.close()


def outcome(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """The results without their times, and every file of rows and tensors."""
    results = json.loads((folder / "results.json").read_text())
    del results["times"]
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name.startswith("samples-") or path.suffix == ".safetensors"
    }
    return results, files


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_and_continued_gives_the_same_bytes(worker, tmp_path):
    status, seconds = worker.run(tmp_path / "whole")
    assert status == 0
    expected = outcome(tmp_path / "whole")
    assert 0 < expected[0]["robust_accuracy"] < expected[0]["clean_accuracy"]
    draw, killed = random.Random(20), 0
    for i in range(KILLS):
        folder = tmp_path / f"run{i}"
        for _ in range(draw.choice([1, 1, 2])):
            status, _ = worker.run(folder, draw.uniform(0, 0.9 * seconds))
            killed += status == signal.SIGKILL
        status, _ = worker.run(folder)
        assert status == 0
        assert outcome(folder) == expected, f"run {i}"
        assert not list(folder.rglob("*.tmp"))
    assert killed >= KILLS // 2  # how many find their child alive depends on the machine; most do
