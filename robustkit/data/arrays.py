"""`npz:FILE`: arrays x and y of a NumPy file, never through pickle.

How x is read: (N, D) are vectors; (N, H, W) are gray images and become (N, 1, H, W); (N, H, W, C) with 1, 3 or 4
channels last, and not first, become (N, C, H, W); everything else is taken as channels first already.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.errors import UsageError, near
from robustkit.data.samples import Data, TensorData

KEYS = re.compile(r"^(?P<file>.+):(?P<x>\w+),(?P<y>\w+)$", re.DOTALL)
CHANNELS = (1, 3, 4)


def open_npz(text: str) -> Data:
    """Read FILE, or FILE:X,Y where the arrays have other names than x and y.

    Raises:
        UsageError: missing, not an npz file, damaged, without these arrays, with objects inside, or x and y that do
            not fit.
    """
    named = KEYS.match(text)
    path = Path(named["file"] if named else text)
    x, y = (_array(path, key) for key in ((named["x"], named["y"]) if named else ("x", "y")))
    return TensorData(channels_first(x), y, name=str(path))


def channels_first(x: NDArray[Any]) -> NDArray[Any]:
    """The rule above.

    >>> channels_first(np.zeros((5, 28, 28))).shape, channels_first(np.zeros((5, 32, 32, 3))).shape
    ((5, 1, 28, 28), (5, 3, 32, 32))
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        return np.ascontiguousarray(np.moveaxis(x, 3, 1))
    return x


def _array(path: Path, key: str) -> NDArray[Any]:
    try:
        with path.open("rb") as file:  # NumPy leaves a file that it opened itself open when the archive is damaged
            return _named(np.load(file, allow_pickle=False), key, path)
    except FileNotFoundError as error:
        raise UsageError("no such file", got=str(path), where="npz:FILE") from error
    except UsageError:
        raise
    except ValueError as error:  # NumPy's answer to objects and to files that are something else
        fix = "Save plain numbers with numpy.savez(FILE, x=..., y=...); pickled objects are never loaded."
        raise UsageError(
            "the file holds no plain numbers", got=str(error), where=f"{path}, array {key!r}", fix=fix
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            "the file cannot be read", expected="a whole npz file", got=str(error), where=str(path)
        ) from error


def _named(archive: object, key: str, path: Path) -> NDArray[Any]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UsageError("not an npz file", expected="an archive of x and y", got="a single array", where=str(path))
    with archive:
        if key not in archive.files:
            fix = f"Write npz:FILE:X,Y with their names. {near(key, archive.files)}"
            got = ", ".join(archive.files[:10]) or "no arrays"
            raise UsageError(f"no array {key!r} in the file", expected=key, got=got, where=str(path), fix=fix)
        array: NDArray[Any] = archive[key]
    return array
