"""The folder of a run: it survives SIGKILL at any moment, and the same command goes on where it was cut.

Three rules make it so. Files that are replaced (JSON, YAML, safetensors) are written beside their place, synced and
moved there in one step. Files that grow (JSON lines) get the rows of one chunk in one write, and a torn last line is
cut off when the folder is opened again. A chunk counts as done only when all its rows and its tensor file are there;
tensors are written before rows. A chunk that is not done is computed again whole.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from robustkit.core.errors import UsageError
from robustkit.core.files import (
    append_lines,
    canonical_json,
    cut_torn_line,
    inside,
    json_line,
    read_json,
    read_lines,
    replace_file,
    writing,
)
from robustkit.run.folder import check_folder, finished, read_results
from robustkit.run.lock import RunLock
from robustkit.run.manifest import write_manifest
from robustkit.run.options import RunConfig, config_digest, dump_config

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCHEMA_VERSION", "RunDirectory", "read_json", "read_results"]

SCHEMA_VERSION = "1.0"


class RunDirectory:
    """One run on disk, held by one process. Use it in a ``with``; leaving it gives the lock back.

    Attributes:
        path: the folder, absolute.
        config: the options of this process (those without effect may differ from the stored ones).
        resumed: the folder held a run before this process came.
    """

    def __init__(self, path: Path, config: RunConfig, lock: RunLock) -> None:
        self.path, self.config, self.resumed = path, config, False
        self._lock = lock
        self._ids: dict[str, set[int]] = {}

    @classmethod
    def open(cls, path: Path, config: RunConfig, header: Mapping[str, Any]) -> RunDirectory:
        """Create the folder, or go on with the run in it.

        ``header`` is what ``run.json`` records besides the configuration: "command", "versions", "platform",
        "device", "git", "model" and "data"; the "sha256" of the latter two must be those of the run found there.

        Raises:
            UsageError: the path is a file, cannot be written, holds something else, another process works on it
                (named), or the run in it has other options, another model or other data (the difference is shown).
            Incomplete: the disk is full.
        """
        path = Path(path).absolute()
        check_folder(path, config, header)
        _make_folder(path)
        lock = RunLock(path)
        lock.acquire()
        try:
            run = cls(path, config, lock)
            run._begin(header)
            return run
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def discard(self) -> None:
        """Remove what this process has begun and nothing was computed in, so that other options may go there.

        A folder that held a run before is left alone.
        """
        if not self.resumed:
            for entry in self.path.iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what the run consists of

    @property
    def finished(self) -> bool:
        """The results are complete and the manifest, which is written last, is about them."""
        return finished(self.path)

    def append_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of one chunk to ``NAME.jsonl``: one write, synced.

        Rows of the same ids that are there already are replaced. Numbers that JSON cannot hold (NaN, infinity)
        become null.

        Raises:
            Incomplete: the disk is full; what was there before stays.
        """
        file = self.file(f"{name}.jsonl")
        ids = self._known_ids(name)
        new = {row["id"] for row in rows if "id" in row}
        if new & ids:  # a chunk that was cut between its rows
            replace_file(file, b"".join(json_line(row) for row in read_lines(file) if row.get("id") not in new))
        append_lines(file, b"".join(json_line(row) for row in rows))
        ids |= new

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All complete rows of ``NAME.jsonl``, by id where they have one; none if there is no such file."""
        return sorted(read_lines(self.file(f"{name}.jsonl")), key=lambda row: row.get("id", -1))

    def chunk_done(self, name: str, ids: Iterable[int], tensors: str | None = None) -> bool:
        """Whether ``NAME.jsonl`` has a row for each of these ids, and the chunk's tensor file (if any) is there."""
        return self._known_ids(name).issuperset(ids) and (tensors is None or self.file(tensors).is_file())

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file in one step (``adversarial/0-pgd/00003.safetensors``); folders are made.

        Raises:
            Incomplete: the disk is full.
        """
        from safetensors.torch import save

        replace_file(self.file(name), save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file, on the CPU.

        Raises:
            UsageError: missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = self.file(name)
        try:
            return load(file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise UsageError(
                "cannot read stored tensors",
                got=str(error),
                where=str(file),
                fix="The run is damaged: start it again in another folder.",
            ) from None

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in one step; equal values give equal bytes."""
        replace_file(self.file(name), canonical_json(value))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; None if there is none."""
        return read_json(self.file(name))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file (a report) in one step, in UTF-8."""
        replace_file(self.file(name), text.encode("utf-8"))

    def log(self, event: str, **data: Any) -> None:
        """Add an event with its time to ``log.jsonl``."""
        append_lines(self.file("log.jsonl"), json_line({"time": _now(), "event": event, **data}))

    def file(self, name: str) -> Path:
        """The path of a file of this run.

        Raises:
            UsageError: the name leads out of the folder.
        """
        return inside(self.path, name)

    def write_manifest(self) -> None:
        """Record the SHA-256 of every file but the log and the lock; to be called last."""
        write_manifest(self.path)

    # -- opening

    def _begin(self, header: Mapping[str, Any]) -> None:
        for lone in self.path.rglob(".*.tmp"):
            lone.unlink()
        for file in self.path.glob("*.jsonl"):
            cut_torn_line(file)
        check_folder(self.path, self.config, header)  # again: now nobody else can change it
        if not self.file("config.yaml").is_file():
            replace_file(self.file("config.yaml"), dump_config(self.config).encode("utf-8"))
        self._write_header(header)

    def _write_header(self, header: Mapping[str, Any]) -> None:
        old = self.read_json("run.json")
        self.resumed = old is not None
        if old is None:
            found = {"schema_version": SCHEMA_VERSION, **header, "created": _now(), "resumed": []}
        else:
            found = {**old, "resumed": [*old["resumed"], {"at": _now(), "versions": header.get("versions")}]}
        if not self.finished:
            self.write_json("run.json", {**found, "config_sha256": config_digest(self.config)})

    def _known_ids(self, name: str) -> set[int]:
        if name not in self._ids:
            self._ids[name] = {row["id"] for row in self.rows(name) if "id" in row}
        return self._ids[name]


def _make_folder(path: Path) -> None:
    with writing(path, begun=False):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(path))


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
