"""What a run records of its surroundings: the model, the data, versions, the machine, the state of the code."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import robustkit
from robustkit.core.model import Model
from robustkit.core.task import Classification

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "safetensors")


class Named(Protocol):
    """What is recorded of data."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str: ...


def model_facts(model: Model, x: Tensor, classes: Sequence[str] | None) -> dict[str, Any]:
    """The model, as results and reports describe it.

    Args:
        model: the model.
        x: a batch, for the shapes of inputs and outputs.
        classes: names in the data, for models that know none.
    """
    shape = model.output_shape(x)
    names = model.class_names or classes
    return {
        "name": model.name,
        "task": model.task.name,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "outputs": shape[0] if isinstance(model.task, Classification) else list(shape),
        "class_names": list(names) if names else None,
        "mean": list(model.mean) if model.mean else None,
        "std": list(model.std) if model.std else None,
        "bounds": [model.bounds.low, model.bounds.high],
        "sha256": state_hash(model),
        "input_shape": list(x.shape[1:]),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "eot": model.eot,
    }


@lru_cache(maxsize=8)
def state_hash(model: Model) -> str:
    """Hash of the weights; a run holds them still."""
    return model.state_sha256()


def header(model: Model, data: Named, command: list[str]) -> dict[str, Any]:
    """What ``run.json`` holds besides the configuration."""
    return {
        "command": command,
        "versions": versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(model.device)
        if model.device.type == "cuda"
        else platform.processor() or "cpu",
        "git": git_state(),
        "model": {"name": model.name, "sha256": state_hash(model)},
        "data": {"name": data.name, "sha256": data.fingerprint()},
    }


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version(), "robustkit": robustkit.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the current folder and whether it has changes; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=5, check=True, cwd=Path.cwd()
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
