"""Which number and name each class folder has: classes.txt, .json or .csv, ImageNet's identifiers, or sorted order."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustkit.core.errors import UsageError, near
from robustkit.demo.imagenet import class_names, wnids

Numbers = dict[str, int]


def class_map(root: Path, folders: Sequence[str]) -> tuple[Numbers, Sequence[str]]:
    """The number of every folder, and the classes' names by number.

    Raises:
        UsageError: a class file that cannot be read, or that lacks one of the folders.
    """
    for name, read in (("classes.txt", _text), ("classes.json", _json), ("classes.csv", _csv)):
        if (root / name).is_file():
            numbers, names = read(root / name)
            missing = [folder for folder in folders if folder not in numbers]
            if missing:
                raise UsageError(
                    "a class folder is not in the class map",
                    expected=f"a line for each of {len(folders)} folders",
                    got=f"none for {missing[0]!r}",
                    where=str(root / name),
                    fix=near(missing[0], numbers),
                )
            return numbers, names
    imagenet = {wnid: number for number, wnid in enumerate(wnids())}
    if all(folder in imagenet for folder in folders):
        return imagenet, class_names()
    return {folder: number for number, folder in enumerate(folders)}, folders


def read_rows(path: Path, needed: set[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        UsageError: not readable, or without one of the needed columns or their values.
    """
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        lacking = needed - set(reader.fieldnames or ())
        if lacking:
            raise UsageError(
                "a column is missing",
                expected=", ".join(sorted(needed)),
                got=", ".join(reader.fieldnames or ()) or "no header",
                where=str(path),
            )
        rows = list(reader)
    for line, row in enumerate(rows, start=2):
        if any(not row[column] for column in needed):
            raise UsageError(
                "a value is missing", expected=", ".join(sorted(needed)), got=str(row), where=f"{path}:{line}"
            )
    return rows


def whole(text: object, where: str) -> int:
    """A class number from 0.

    Raises:
        UsageError: anything else.
    """
    try:
        number = int(str(text))
    except ValueError:
        number = -1
    if number < 0 or isinstance(text, bool):
        raise UsageError("not a class number", expected="a whole number from 0", got=repr(text), where=where)
    return number


def table_names(rows: Sequence[Mapping[str, str]]) -> Sequence[str]:
    """Names by number from labels.csv: ImageNet's where all rows are, else the column `name`, else numbers."""
    imagenet = {wnid: number for number, wnid in enumerate(wnids())}
    if rows and all(imagenet.get(row.get("wnid") or "") == int(row["index"]) for row in rows):
        return class_names()
    return by_number({int(row["index"]): row.get("name") or row["index"] for row in rows})


def by_number(names: Mapping[int, str]) -> Sequence[str]:
    """Names as a tuple; a number without one is its own name.

    >>> by_number({2: "cat", 0: "dog"})
    ('dog', '1', 'cat')
    """
    return tuple(names.get(number, str(number)) for number in range(max(names, default=-1) + 1))


def _text(path: Path) -> tuple[Numbers, Sequence[str]]:
    with _reading(path):
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return _listed([line for line in lines if line], path)


def _json(path: Path) -> tuple[Numbers, Sequence[str]]:
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, list):
        return _listed([str(name) for name in content], path)
    if not isinstance(content, dict) or not content:
        raise UsageError(
            "not a class map",
            expected='a list of folder names or {"folder": index}',
            got=type(content).__name__,
            where=str(path),
        )
    numbers = {folder: whole(number, f"{path}, {folder!r}") for folder, number in content.items()}
    return numbers, by_number({number: folder for folder, number in numbers.items()})


def _csv(path: Path) -> tuple[Numbers, Sequence[str]]:
    rows = read_rows(path, {"folder", "index"})
    numbers = {row["folder"]: whole(row["index"], f"{path}:{line}") for line, row in enumerate(rows, start=2)}
    return numbers, by_number({numbers[row["folder"]]: row.get("name") or row["folder"] for row in rows})


def _listed(folders: Sequence[str], path: Path) -> tuple[Numbers, Sequence[str]]:
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise UsageError("a class is listed twice", got=repr(twice[0]), where=str(path))
    return {folder: number for number, folder in enumerate(folders)}, tuple(folders)


class _reading:
    """Turns what reading text can raise into one UsageError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | csv.Error | RecursionError) and not isinstance(error, UsageError):
            raise UsageError(
                "the file cannot be read", expected="UTF-8 text", got=str(error), where=str(self._path)
            ) from error
