"""The SHA-256 of every file of a run: what was claimed can be told from what was changed afterwards.

Runs inside a run (the evaluations of a training) have manifests of their own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from robustkit.core.errors import UsageError
from robustkit.core.files import canonical_json, read_json, replace_file

UNLISTED = {"manifest.json", "log.jsonl", "lock", "lock.json"}
"""Files left out: they change after the run is finished, or hold nothing that is claimed."""


def write_manifest(path: Path) -> None:
    """Write ``manifest.json`` of a run's folder: file name -> SHA-256. To be called last.

    Raises:
        Incomplete: the disk is full.
    """
    replace_file(path / "manifest.json", canonical_json(_hashes(path)))


def update_manifest(path: Path, names: list[str]) -> None:
    """Take files that were written again (a report) into the manifest, and leave what it says of the others.

    Raises:
        Incomplete: the disk is full.
    """
    known = read_json(path / "manifest.json")
    if isinstance(known, dict):
        known.update({name: _sha256(path / name) for name in names})
        replace_file(path / "manifest.json", canonical_json(known))


def check_manifest(path: Path) -> list[str]:
    """The files that differ from the manifest, as lines such as ``results.json: changed``.

    Raises:
        UsageError: there is no manifest.
    """
    known = read_json(path / "manifest.json")
    if not isinstance(known, dict):
        raise UsageError("the run has no manifest", where=str(path), fix="Only a finished run can be verified.")
    now = _hashes(path)
    differing = (name for name in sorted({*known, *now}) if known.get(name) != now.get(name))
    return [f"{name}: {_state(name in known, name in now)}" for name in differing]


def listed(path: Path, name: str) -> bool:
    """Whether the manifest holds this file as it is now."""
    known = read_json(path / "manifest.json")
    return isinstance(known, dict) and (path / name).is_file() and known.get(name) == _sha256(path / name)


def _state(known: bool, there: bool) -> str:
    return "changed" if known and there else "missing" if known else "added"


def _hashes(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    runs = {file.parent for file in files if file.name == "manifest.json"} - {path}
    files = [file for file in files if not runs & set(file.parents)]
    names = {file.relative_to(path).as_posix(): file for file in files}
    return {name: _sha256(file) for name, file in names.items() if name not in UNLISTED and not name.endswith(".tmp")}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
