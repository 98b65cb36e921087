"""One process per run: a lock that the system gives back when its holder dies, and a note of who holds it."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from robustkit.core.errors import UsageError
from robustkit.core.files import canonical_json, replace_file, writing


class RunLock:
    """The lock of a folder: ``lock`` is what the system locks, ``lock.json`` says who holds it and since when."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._note = folder, folder / "lock.json"
        self._lock = FileLock(folder / "lock", timeout=0)

    def acquire(self) -> None:
        """Take it.

        Raises:
            UsageError: another process has it; the message names it.
            Incomplete: the disk is full.
        """
        with writing(self._folder, begun=False):
            try:
                self._lock.acquire()
            except Timeout:  # an OSError, too
                raise UsageError(
                    "another process works on this run",
                    got=self._holder(),
                    where=str(self._folder),
                    fix="Wait for it, or give another folder with --out.",
                ) from None
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        replace_file(self._note, canonical_json({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))

    def release(self) -> None:
        """Give it back; doing so twice does no harm."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._note.unlink()
            self._lock.release()

    def _holder(self) -> str:
        """Who holds it; the note is missing for a moment after the lock is taken."""
        try:
            note = json.loads(self._note.read_bytes())
            return f"process {note['pid']} on {note['host']}, since {note['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "a process that has just started"
