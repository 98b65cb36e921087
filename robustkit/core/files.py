"""Writing files that a kill cannot spoil, canonical JSON, and names that stay inside their folder."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import Any

from robustkit.core.errors import Incomplete, UsageError

_SYNCED = ContextVar("synced", default=True)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def slug(text: str) -> str:
    """A file name made of any text: letters, digits, ``.``, ``_`` and ``-``; at most 80 characters.

    >>> slug("pgd:steps=40,step_size=2/255")
    'pgd-steps-40-step_size-2-255'
    >>> slug("../../etc/passwd")
    'etc-passwd'
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text).strip("-.")[:80].rstrip("-.")
    return f"{name}-" if _RESERVED.fullmatch(name) else name or "unnamed"


def inside(root: Path, name: str) -> Path:
    """``root / name``, if it lies inside ``root``.

    Raises:
        UsageError: it does not (an absolute name, ``..``, a link that leads out).
    """
    path = root / name
    if PurePath(name).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            "a file name leads out of the run's folder", got=repr(name), where=str(root), fix="Use a plain name."
        )
    return path


def plain(value: Any) -> Any:
    """The value in JSON's types: tuples become lists, paths text, and numbers JSON cannot hold (NaN, infinity) null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value


def canonical_json(value: Any) -> bytes:
    """Indented JSON with sorted keys and a newline at the end: equal values give equal bytes."""
    text = json.dumps(plain(value), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def json_line(value: Mapping[str, Any]) -> bytes:
    """One line of a JSON-lines file, keys in the order given."""
    text = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


@contextmanager
def unsynced() -> Iterator[None]:
    """Inside, files need not outlive a power cut: for folders that are gone with their process."""
    token = _SYNCED.set(False)
    try:
        yield
    finally:
        _SYNCED.reset(token)


def _sync(handle: int) -> None:
    if _SYNCED.get():
        os.fsync(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new one, also after a kill or a power cut.

    Raises:
        Incomplete: the disk is full, or the folder can no longer be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                _sync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def append_lines(path: Path, block: bytes) -> None:
    """Add whole lines to a file: one write, synced; on failure the file is cut back to what it was.

    Raises:
        Incomplete: the disk is full, or the folder can no longer be written.
    """
    with writing(path), path.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            if stream.write(block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            _sync(stream.fileno())
        except BaseException:
            with suppress(OSError):
                stream.truncate(before)
            raise


def cut_torn_line(path: Path) -> None:
    """Cut off a last line without its newline, or one that is no JSON: the process died while writing it."""
    with writing(path), path.open("r+b") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        last = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]
        if last and not _is_json(last):  # the file grew before its data reached the disk
            end -= len(last)
        if end < len(content):
            stream.truncate(end)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none.

    Raises:
        UsageError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if there is no file, and without a last line that was never finished.

    Raises:
        UsageError: a line is no JSON object.
    """
    try:
        whole = path.read_bytes().rpartition(b"\n")[0]
        rows = [json.loads(line) for line in whole.split(b"\n") if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not all(isinstance(row, dict) for row in rows):
        raise _damaged(path, ValueError("a line that is no object"))
    return rows


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(
        "cannot read a file of the run",
        expected="JSON",
        got=str(error),
        where=str(path),
        fix="The run is damaged: start it again in another folder.",
    )


@contextmanager
def writing(path: Path, *, begun: bool = True) -> Iterator[None]:
    """Turn errors of the file system into a message: before a run has begun a wrong path, afterwards an interruption.

    Raises:
        Incomplete: the disk is full, or anything else once the run has begun.
        UsageError: the path cannot be used.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Incomplete(
                "the disk is full",
                where=str(path),
                fix="What was done is kept: free some space and give the same command again.",
            ) from error
        kind = Incomplete if begun else UsageError
        raise kind(
            "cannot write",
            expected="a folder that can be written",
            got=error.strerror or str(error),
            where=str(path),
            fix="Check its permissions, or give another folder with --out.",
        ) from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    """Make the new name itself durable; not every system lets a folder be synced."""
    if os.name != "posix" or not _SYNCED.get():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
