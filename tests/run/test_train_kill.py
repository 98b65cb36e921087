"""SIGKILL at any moment of a training, then the same command: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.run.forks import forking

KILLS = 6

WORKER = """
import torch
torch.set_num_threads(1)
import robustkit as rk
import timm.optim, torch.optim.swa_utils, robustkit.run.train, robustkit.report.write
robustkit.report.write.write_page = lambda folder: folder  # its plots take longer than the training
from tests.run.training import short

def work(out):
    short("awp+trades:steps=1", epochs=3, ema=0.9, out=out)
"""


@pytest.fixture
def work():
    """``work(folder, delay)``: train there, killed after so many seconds; wait status and seconds."""
    with forking(WORKER) as run:
        yield run


def outcome(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """Results without times, and the bytes of the weights."""
    results = json.loads((folder / "results.json").read_text())
    del results["times"]
    for row in results["epochs"]:
        del row["seconds"]
    return results, {name: (folder / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_and_continued_gives_the_same_weights(work, tmp_path):
    status, seconds = work(tmp_path / "whole")
    assert status == 0
    expected = outcome(tmp_path / "whole")
    draw, killed = random.Random(7), 0
    for i in range(KILLS):
        folder = tmp_path / f"run{i}"
        for _ in range(draw.choice([1, 2])):
            status, _ = work(folder, draw.uniform(0.1, 0.95) * seconds)
            killed += status == signal.SIGKILL
        status, _ = work(folder)
        assert status == 0
        assert outcome(folder) == expected, f"run {i}"
        assert not list(folder.rglob("*.tmp")) and len(list((folder / "checkpoints").iterdir())) == 1
    assert killed >= KILLS // 2  # how many find their child alive depends on the machine; most do
