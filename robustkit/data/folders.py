"""`folder:DIR`: pictures in one folder per class, or listed in DIR/labels.csv.

Which number a class has, first rule that applies:

1. DIR/labels.csv with the columns `file` and `index` (and `name`, `wnid` if wanted) lists every picture; folders mean
   nothing.
2. DIR/classes.txt (a folder name per line), classes.json (a list of them, or {"folder": index}) or classes.csv (columns
   `folder`, `index` and, if wanted, `name`).
3. All folders are WordNet identifiers of ImageNet (n01440764 ...): ImageNet's 0 to 999.
4. The folders' names in sorted order.

Samples are dealt out class by class, so that the first N are balanced. Without a size from the network's
preprocessing the pictures must all have one size. Links may not lead out of DIR.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing
from robustkit.data.classmap import class_map, read_rows, table_names, whole
from robustkit.data.samples import Data, dealt, inputs
from robustkit.images import SUFFIXES, channels_of, read_image, to_array

HASHED = 1_000  # files whose bytes go into the fingerprint; of the others name, size and label do


@dataclass(frozen=True)
class Picture:
    """A file, by its path from the folder, and its label."""

    file: str
    label: int


class FolderData(Data):
    """Pictures read when they are asked for; see the module's text for what becomes of them."""

    def __init__(
        self, root: Path, pictures: Sequence[Picture], classes: Sequence[str], preprocessing: Preprocessing | None
    ) -> None:
        self.name, self.classes = f"folder:{root}", tuple(classes)
        self._root, self._pictures, self._preprocessing = root, tuple(pictures), preprocessing
        if not pictures:
            raise UsageError(
                "no pictures found", expected=f"files ending in {', '.join(sorted(SUFFIXES))}", where=str(root)
            )
        self._mode = channels_of(read_image(root / pictures[0].file), preprocessing)

    def __len__(self) -> int:
        return len(self._pictures)

    def targets(self) -> Tensor:
        return torch.tensor([picture.label for picture in self._pictures], dtype=torch.int64)

    def take(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = [self._pictures[i] for i in ids]
        paths = [self._root / picture.file for picture in chosen]
        arrays = [to_array(read_image(path), self._mode, self._preprocessing, str(path)) for path in paths]
        for path, array in zip(paths, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise UsageError(
                    "the pictures have different sizes",
                    expected=f"{arrays[0].shape[2]} x {arrays[0].shape[1]} as the first",
                    got=f"{array.shape[2]} x {array.shape[1]}",
                    where=str(path),
                    fix="The network names no input size; resize them, or give open_data a Preprocessing with a size.",
                )
        x = torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(0, dtype=torch.uint8)
        return inputs(x, ids, self.name), torch.tensor([picture.label for picture in chosen], dtype=torch.int64)

    def picture_file(self, sample: int) -> Path:
        return self._root / self._pictures[sample].file

    def fingerprint(self) -> str:
        """A sha256 over every file's name, size and label, the bytes of the first 1,000, and how they are resized."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        p = self._preprocessing
        digest = hashlib.sha256(repr((self._mode, p and (p.size, p.crop_pct, p.interpolation))).encode())
        for place, picture in enumerate(self._pictures):
            path = self._root / picture.file
            digest.update(repr((picture.file, picture.label, path.stat().st_size)).encode())
            if place < HASHED:
                digest.update(path.read_bytes())
        return digest.hexdigest()


def open_folder(text: str, preprocessing: Preprocessing | None = None) -> Data:
    """The pictures of a folder.

    Raises:
        UsageError: no such folder, no pictures or class folders, a class map that does not fit, a path that leads
            outside.
    """
    root = Path(text)
    if not root.is_dir():
        raise UsageError("no such folder", expected="a folder of pictures", got=str(root), where="folder:DIR")
    table = root / "labels.csv"
    pictures, classes = _listed(table) if table.is_file() else _by_class(root)
    order = dealt([picture.label for picture in pictures])
    return FolderData(root, [pictures[i] for i in order], classes, preprocessing)


def inside(root: Path, relative: str, where: str) -> Path:
    """`relative` below `root`.

    Raises:
        UsageError: an absolute path, one with `..`, or a link that leads out.
    """
    path = root / relative
    if ".." in Path(relative).parts or not path.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            "the path leads out of the folder",
            expected=f"a file below {root}",
            got=repr(relative),
            where=where,
            fix="Copy the file into the folder, or name the folder that holds it.",
        )
    return path


def _listed(table: Path) -> tuple[list[Picture], Sequence[str]]:
    rows = read_rows(table, {"file", "index"})
    pictures = []
    for line, row in enumerate(rows, start=2):
        where = f"{table}:{line}"
        if not inside(table.parent, row["file"], where).is_file():
            raise UsageError("no such picture", got=row["file"], where=where)
        pictures.append(Picture(row["file"], whole(row["index"], where)))
    return pictures, table_names(rows)


def _by_class(root: Path) -> tuple[list[Picture], Sequence[str]]:
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UsageError(
            "no class folders found",
            expected="one folder per class, or labels.csv",
            got="none",
            where=str(root),
            fix="Put the pictures of a class into a folder with its name.",
        )
    numbers, classes = class_map(root, folders)
    return [Picture(file, numbers[folder]) for folder in folders for file in _files(root, folder)], classes


def _files(root: Path, folder: str) -> Iterator[str]:
    """The pictures below a class folder, sorted, as paths from the root."""
    inside(root, folder, str(root))
    for parent, below, names in os.walk(root / folder):
        below.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                relative = path.relative_to(root).as_posix()
                yield (
                    relative
                    if not path.is_symlink()
                    else inside(root, relative, str(root)).relative_to(root).as_posix()
                )
