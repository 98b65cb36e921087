"""What the verbs that start a run share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into a message that says how to go on."""
    from robustkit.core.errors import Incomplete

    try:
        yield
    except KeyboardInterrupt:
        raise Incomplete("stopped; what was done is kept", where=str(folder),
                         fix=f"Give the same command again (with --out {folder}) to go on.") from None


def batch_size_from(text: str | None) -> str | int | None:
    """``auto`` as it is, numbers as numbers."""
    return int(text) if text and text.isdecimal() else text


def list_from(text: str | None) -> list[str] | None:
    """The parts of a list such as ``0.5,0.5``."""
    return None if text is None else [part.strip() for part in text.split(",")]
