"""What is installed here, read from metadata and files: nothing is imported, so `doctor` answers at once."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import shutil
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def version_of(name: str) -> Version | None:
    """The installed version of a distribution, or None; local parts such as +cpu stay."""
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def unmet_requirements(name: str) -> list[tuple[Requirement, Version | None]]:
    """What a distribution requires here and does not find, with the version found instead; extras do not count."""
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    needs = [Requirement(text) for text in texts]
    here = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    found = [(need, version_of(need.name)) for need in here]
    return [(need, got) for need, got in found if got is None or not need.specifier.contains(got, prereleases=True)]


def requirements_below(name: str) -> list[str]:
    """The installed distributions that a distribution leads to, itself first."""
    seen, waiting = {canonicalize_name(name)}, [name]
    for current in waiting:
        try:
            texts = metadata.requires(current) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, texts):
            key = canonicalize_name(need.name)
            if key not in seen and (need.marker is None or need.marker.evaluate({"extra": ""})):
                seen.add(key)
                waiting.append(need.name)
    return waiting


def nvidia_driver() -> str | None:
    """The NVIDIA driver's version, `found` where only its tool is there, or None."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "found" if shutil.which("nvidia-smi") else None
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return match.group() if match else "found"


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for, or None; read from its version file, since an import takes seconds."""
    try:
        source = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", source, re.MULTILINE)
    return match.group(1) if match else None
