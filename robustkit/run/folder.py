"""Looking at the folder of a run without working on it: what is there, and may a run of these options go there?

Nothing here writes, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from robustkit.core.errors import UsageError
from robustkit.core.files import read_json, slug, writing
from robustkit.report.files import BEST
from robustkit.report.text import a_run
from robustkit.run.manifest import UNLISTED, listed
from robustkit.run.options import RunConfig, config_digest, difference, load_options
from robustkit.run.yaml_file import read_yaml


def kind_of(results: Mapping[str, Any]) -> str:
    """The kind of run that results are of."""
    return str(results.get("kind", "evaluation"))


def read_results(path: Path, kind: str | None = "evaluation") -> dict[str, Any]:
    """The results of the run in a folder, which must be of this kind; of any where it is None.

    Raises:
        UsageError: no such folder, no results in it (yet), they are damaged, or of another kind.
    """
    results = read_json(path / "results.json")
    if isinstance(results, dict) and kind not in (None, kind_of(results)):
        fix = "Name another folder."
        if kind == "evaluation" and (path / BEST / "results.json").is_file():
            fix = f"Name the evaluation of its best weights: {path / BEST}."
        raise UsageError(f"this run is {a_run(kind_of(results))}", expected=a_run(str(kind)), where=str(path), fix=fix)
    if isinstance(results, dict):
        return results
    if not (path / "config.yaml").is_file():
        raise UsageError(
            "no run there",
            expected="a folder that `robustkit evaluate`, `explain`, `train` or `certify` wrote"
            if kind is None
            else f"the folder of {a_run(kind)}",
            where=str(path),
            fix="Its last line of output is the folder's path.",
        )
    raise UsageError("the run has no results yet", where=str(path), fix="Give its command again: it goes on.")


def default_folder(parent: Path, config: RunConfig) -> Path:
    """Where a run goes whose folder nobody named: on with an unfinished one of the same options, or a new one.

    A new one is the first free ``PARENT/DATE_MODEL_N``; the folder is not made.
    """
    name = slug(config.stem)
    for folder in sorted(parent.glob(f"*_{name}_*"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _unfinished(folder, config):
            return folder
    stem = f"{datetime.now().astimezone():%Y-%m-%d}_{name}"
    number = 1
    while (parent / f"{stem}_{number}").exists():
        number += 1
    return parent / f"{stem}_{number}"


def _unfinished(folder: Path, config: RunConfig) -> bool:
    """Whether the folder holds a run of these options that can go on; one that is damaged is not ours to judge."""
    try:
        stored = load_options(type(config), folder / "config.yaml", {})
        return config_digest(stored) == config_digest(config) and not finished(folder)
    except UsageError:
        return False


def finished(folder: Path) -> bool:
    """The results there are complete, and the manifest, which is written last, is about them.

    Raises:
        UsageError: the results or the manifest are damaged.
    """
    results = read_json(folder / "results.json")
    return bool(results and results.get("complete")) and listed(folder, "results.json")


def check_folder(path: Path, config: RunConfig, header: Mapping[str, Any] | None = None) -> None:
    """Whether a run of these options (and of the model and data in the header) may go there; writes nothing.

    Raises:
        UsageError: the path is a file, the folder holds something else, or a run that was started otherwise.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(
            "the path of the run is a file", expected="a folder", where=str(path), fix="Give another path with --out."
        )
    with writing(path, begun=False):
        names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")} if path.is_dir() else set()
    if "config.yaml" in names:
        _compare(path, config, header or {})
    elif names - UNLISTED:
        raise UsageError(
            "the folder holds something else",
            expected="an empty folder, a new one, or a run",
            got=", ".join(sorted(names - UNLISTED)[:3]),
            where=str(path),
            fix="Give another folder with --out.",
        )


def _compare(path: Path, config: RunConfig, header: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of other options, another model or other data."""
    stored = path / "config.yaml"
    found = read_yaml(stored)
    if isinstance(found, Mapping) and config.mark not in found:
        raise UsageError(
            "the folder holds a run of another kind",
            expected=a_run(config.kind),
            where=str(path),
            fix="Give another folder with --out.",
        )
    changes = difference(load_options(type(config), stored, {}), config)
    old = read_json(path / "run.json") or {}
    for part in ("model", "data"):
        before, now = (_fingerprint(source, part) for source in (old, header))
        if before and now and before != now:
            changes.append(f"contents of {part}: sha256 {before[:12]} -> {now[:12]}")
    if changes:
        raise UsageError(
            f"the run in {path} was started otherwise: {'; '.join(changes)}",
            fix="Give another folder with --out, or the old options to go on.",
        )


def _fingerprint(source: Mapping[str, Any], part: str) -> str | None:
    found = source.get(part)
    return found.get("sha256") if isinstance(found, Mapping) else None
