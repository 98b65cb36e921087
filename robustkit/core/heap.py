"""Keeps large blocks of memory in the process while a method works; see docs/adr/0009-kept-memory.md.

glibc maps blocks of some size anew for every tensor and gives them back when it is freed. The kernel then clears them
page by page, which takes a third of the time of a gradient on the CPU. Here they stay until the method is done.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

TRIM, THRESHOLD, MAPS = -1, -3, -4
"""Parameters of mallopt: free memory at the end of the heap to give back, size of a block of its own, how many."""
WITHIN = ((MAPS, 0), (TRIM, 2**31 - 1))
AFTER = ((MAPS, 65536), (THRESHOLD, 32 * 2**20), (TRIM, 64 * 2**20))
"""The limits to which glibc moves by itself in a process that frees large blocks."""

_lock = Lock()
_depth = 0


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory for the next tensor; given back on leaving. Does nothing where the C library is not glibc."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1 and (library := _glibc()):
            _set(library[0], WITHIN)


def _leave() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0 and (library := _glibc()):
            _set(library[0], AFTER)
            library[1](0)


def _set(mallopt: Callable[[int, int], int], values: tuple[tuple[int, int], ...]) -> None:
    for name, value in values:
        mallopt(name, value)


@cache
def _glibc() -> tuple[Callable[[int, int], int], Callable[[int], int]] | None:
    """mallopt and malloc_trim, where they are."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    try:
        return library.mallopt, library.malloc_trim
    except AttributeError:
        return None
