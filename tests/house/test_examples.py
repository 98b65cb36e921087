"""The examples run as they stand, and the commands of the demo are the ones that work."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "demo.py")
ARGUMENTS = {
    "compare_defenses": ("--only", "trades", "--budget", "3000", "--points", "10"),
    "compare_smoothing": ("--sigmas", "0.25", "--budget", "1000", "--points", "4"),
}


def run(*command: str, cwd: Path) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    assert run(str(script), *ARGUMENTS.get(script.stem, ()), cwd=tmp_path).strip()


def test_commands_of_the_demo(tmp_path):
    """The first of them on eight digits: the report and the figures that the demo's table reads are there."""
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    folder, arguments = next(iter(demo.RUNS.items()))
    run(
        "-m",
        "robustkit",
        *shlex.split(arguments),
        "--limit",
        "8",
        "--out",
        str(folder),
        "--progress",
        "none",
        cwd=tmp_path,
    )
    results = json.loads((tmp_path / folder / "results.json").read_text())
    assert results["complete"] and results["n"] == 8 and len(results["curve"]["points"]) >= 8
    assert (tmp_path / folder / "report.html").is_file()
