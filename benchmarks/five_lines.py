"""The code blocks of docs/peers.md, run as they stand: ``python -m benchmarks.five_lines`` writes that page's tables.

Every block runs in one environment with the peers, after the block that comes before all of them; the second table runs
the same code on data or a network with one mistake in it. A library that is missing is said to be missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "peers.md"
BLOCK = re.compile(r'^```python title="(?P<title>[^"]+)"\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
FIRST = "before all of them"
MISSING = "not measured"
ROUNDS, THREADS = 3, 1
Scope = dict[str, Any]


def blocks(text: str) -> dict[str, str]:
    """Title -> code of the blocks of the page."""
    return {match["title"]: match["code"] for match in BLOCK.finditer(text)}


class Softmax(nn.Module):
    """A network whose outputs are probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).softmax(1)


MISTAKES: dict[str, Callable[[Scope], Scope]] = {
    "values from 0 to 255": lambda s: {"x": s["x"] * 255},
    "normalised images": lambda s: {"x": (s["x"] - 0.1307) / 0.3081},
    "shifted labels": lambda s: {"y": (s["y"] + 1) % 10},
    "probabilities": lambda s: {"net": Softmax(s["net"]).eval()},
}
"""What is wrong -> what becomes of the scope."""


@dataclass(frozen=True)
class Ran:
    """What a block did: the line it printed or how it stopped, its seconds, and what it left behind."""

    said: str
    seconds: float
    left: str


def prepared(code: str, samples: int | None = None) -> Scope:
    """The scope in which the blocks run; the first ``samples`` alone where a number is given."""
    scope: Scope = {}
    exec(compile(code, "docs/peers.md", "exec"), scope)
    if samples:
        scope.update(x=scope["x"][:samples], y=scope["y"][:samples])
    return scope


def run(code: str, scope: Scope) -> Ran:
    """Run one block in a copy of the scope."""
    net, printed = scope["net"], io.StringIO()
    state = _state(net)
    began = time.perf_counter()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exec(compile(code, "docs/peers.md", "exec"), dict(scope))
            said = printed.getvalue().strip().splitlines()[-1]
        except ModuleNotFoundError as error:
            said = f"{MISSING}: {error.name} is not installed"
        except Exception as error:
            said = _stopped(error)
    seconds = time.perf_counter() - began
    after = _state(net)
    left = ", ".join(name for name, value in state.items() if value != after[name]) or "nothing"
    for parameter in net.parameters():  # the next block finds the network as this one did
        parameter.grad = None
    return Ran(said, seconds, left)


def _stopped(error: Exception) -> str:
    if "is not installed" in str(error):
        return f"{MISSING}: {str(error).partition(' is not')[0]} is not installed"
    first = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {first}" if first else f"{type(error).__name__}, without a message"


def _state(net: nn.Module) -> dict[str, object]:
    """What a library should not change, by the name under which the table says that it did."""
    return {
        "modes": [m.training for m in net.modules()],
        "gradients of parameters": [p.grad is not None for p in net.parameters()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "the global generator": (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]
            random.getstate(),
        ),
    }


def measure(text: str, rounds: int = ROUNDS, samples: int | None = None) -> dict[str, Any]:
    """Both tables as rows, from the text of the page."""
    code = blocks(text)
    scope = prepared(code.pop(FIRST), samples)
    ran = {title: [run(block, scope) for _ in range(rounds + 1)] for title, block in code.items()}
    figures = [
        [title, found[0].said, statistics.median(r.seconds for r in found[1:] or found), found[0].left]
        for title, found in ran.items()
    ]
    here = {title: block for title, block in code.items() if not ran[title][0].said.startswith(MISSING)}
    mistakes = {
        title: {name: run(block, {**scope, **change(scope)}).said for name, change in MISTAKES.items()}
        for title, block in here.items()
    }
    return {"figures": figures, "mistakes": mistakes}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Marker -> Markdown."""
    lines = ["| | prints | seconds | left behind |", "| --- | --- | --- | --- |"]
    for title, said, seconds, left in found["figures"]:
        last = "- | -" if said.startswith(MISSING) else f"{seconds:.2f} | {left}"
        lines.append(f"| {title} | {_cell(said)} | {last} |")
    wrong = ["| | " + " | ".join(MISTAKES) + " |", "| --- |" + " --- |" * len(MISTAKES)]
    wrong += [
        f"| {title} | " + " | ".join(_cell(said[name]) for name in MISTAKES) + " |"
        for title, said in found["mistakes"].items()
    ]
    stamp = f"Written on {found['date']}: {found['versions']}, {THREADS} thread, medians of {ROUNDS} runs."
    return {"figures": f"{stamp}\n\n" + "\n".join(lines), "mistakes": "\n".join(wrong)}


def _cell(text: str) -> str:
    """At most 150 characters, and nothing that ends a cell."""
    short = text if len(text) <= 150 else text[:147].rstrip() + "..."
    return short.replace("|", "\\|").replace("<", "&lt;")


def written(text: str, parts: dict[str, str]) -> str:
    """The page with what stands between its markers replaced."""
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)
    return text


def main() -> None:
    """Measure in the environment with the peers, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.five_lines", description=__doc__)
    parser.add_argument("--here", action="store_true", help="measure in this environment, and print JSON")
    if parser.parse_args().here:
        from benchmarks.measure import versions

        torch.set_num_threads(THREADS)
        found = measure(PAGE.read_text(encoding="utf-8"))
        found["versions"] = ", ".join(f"{name} {number}" for name, number in versions().items())
        found["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
        json.dump(found, sys.stdout)
        return
    from benchmarks.__main__ import PLACE, console, environment

    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONWARNINGS": "ignore"}
    command = [environment(PLACE), "-m", "benchmarks.five_lines", "--here"]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    page = written(PAGE.read_text(encoding="utf-8"), tables(json.loads(done.stdout.splitlines()[-1])))
    PAGE.write_text(page, encoding="utf-8")
    console.print(f"written: {PAGE.relative_to(ROOT)}", highlight=False)


if __name__ == "__main__":
    main()
