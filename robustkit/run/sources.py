"""Paths inside model and data sources: ``folder:DIR``, ``npz:FILE``, ``run:DIR``, ``path.py:factory``, ``hf:./DIR``."""

from __future__ import annotations

import os
from pathlib import Path


def absolute_source(text: str, folder: Path) -> str:
    """The source with its path, if it has one, taken from ``folder``; names that are no paths stay as they are.

    >>> absolute_source("npz:digits.npz", Path("/data"))
    'npz:/data/digits.npz'
    >>> absolute_source("timm:resnet50", Path("/data"))
    'timm:resnet50'
    """
    scheme, _, rest = text.partition(":")
    if rest and (scheme in ("folder", "npz", "run") or (scheme == "hf" and rest.startswith("."))):
        return f"{scheme}:{absolute_path(rest, folder)}"
    file, colon, factory = text.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{absolute_path(file, folder)}:{factory}"
    return text


def absolute_path(text: str, folder: Path) -> str:
    """The path taken from ``folder``, with ``~`` and ``..`` resolved by name; blank text stays as it is."""
    return os.path.normpath(folder / Path(text).expanduser()) if text.strip() else text
