"""SIGKILL at any moment, then the same command: the same results, byte for byte, apart from times."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.run.forks import forking

KILLS = 16

WORKER = """
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
"""


@pytest.fixture
def work():
    """``work(folder, delay)``: evaluate there, killed after so many seconds; wait status and seconds."""
    with forking(WORKER) as run:
        yield run


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
def test_killed_anywhere_and_continued_gives_the_same_bytes(work, tmp_path):
    status, seconds = work(tmp_path / "whole")
    assert status == 0
    expected = outcome(tmp_path / "whole")
    assert 0 < expected[0]["robust_accuracy"] < expected[0]["clean_accuracy"]
    draw, killed = random.Random(20), 0
    for i in range(KILLS):
        folder = tmp_path / f"run{i}"
        for _ in range(draw.choice([1, 1, 2])):
            status, _ = work(folder, draw.uniform(0, 0.9 * seconds))
            killed += status == signal.SIGKILL
        status, _ = work(folder)
        assert status == 0
        assert outcome(folder) == expected, f"run {i}"
        assert not list(folder.rglob("*.tmp"))
    assert killed >= KILLS // 2  # how many find their child alive depends on the machine; most do
