"""What a process notes of itself while it works on a run: how long stages took, and how much fits into memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch

from robustkit.core.model import Model
from robustkit.run.directory import RunDirectory

MEMORY = "batch.json"


@contextmanager
def timed(run: RunDirectory, stage: str, **facts: Any) -> Iterator[None]:
    """Log how long what is inside took, once it is done."""
    began = time.monotonic()
    yield
    run.log("chunk", stage=stage, seconds=time.monotonic() - began, **facts)


def times(run: RunDirectory, began: float) -> dict[str, Any]:
    """When and how long; the only part of the results that differs between two identical runs."""
    stages: dict[str, float] = {}
    for event in run.rows("log"):
        if event["event"] == "chunk":
            stages[event["stage"]] = stages.get(event["stage"], 0.0) + event["seconds"]
    finished = time.time()
    return {
        "started": (run.read_json("run.json") or {}).get("created"),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds"),
        "seconds": sum(stages.values()),
        "last_session_seconds": finished - began,
        "stages": stages,
        "peak_memory_bytes": _peak_memory(),
    }


def recall_memory(model: Model, run: RunDirectory) -> None:
    """Pass no more samples at once than fitted into memory before."""
    model.chunk = (run.read_json(MEMORY) or {}).get("chunk", model.chunk)


def remember_memory(model: Model, run: RunDirectory) -> None:
    """How many samples fit into memory, once it has run out."""
    if model.chunk is not None and run.read_json(MEMORY) != {"chunk": model.chunk}:
        run.write_json(MEMORY, {"chunk": model.chunk})


def _peak_memory() -> int | None:
    """Most memory held by this process (on CUDA by tensors), in bytes; None where the system does not tell."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
        import sys
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
