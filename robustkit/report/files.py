"""A run, read from its folder: what every report is made of. Nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.core.errors import Incomplete, UsageError
from robustkit.core.files import read_json, read_lines
from robustkit.report.text import a_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EVALUATION = "evaluation"
BEST = "evaluation-best"
"""The folder of the evaluation of a training's best weights, inside that of the training."""
MAJOR = "1"
"""Major version of ``results.json`` that the reports understand; minor versions only add keys."""

DENSE = ("original", "adversarial", "label", "before", "after")
"""What is stored of each image of a dense task."""
Row = dict[str, Any]
HEADER: dict[str, Any] = {
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}},
        "versions": {"type": "object"},
        "resumed": {"type": "array", "items": {"type": "object", "required": ["at"]}},
        "git": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["commit", "dirty"]}]},
    }
}
"""What the reports read of ``run.json``, where it is there."""


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind.

    Attributes:
        path: its folder.
        results: ``results.json``.
        run: ``run.json``: command, versions, hashes, history; empty if there is none.
        config_text: ``config.yaml`` as it stands; empty if there is none.
    """

    path: Path
    results: dict[str, Any]
    run: dict[str, Any]
    config_text: str
    _dense: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> RunFiles:
        """Read a run.

        Raises:
            UsageError: the folder holds no run, or its files cannot be read or are of another version.
            Incomplete: the run has no results yet.
        """
        folder = Path(path)
        results = _read_object(folder / "results.json")
        if results is None:
            if (folder / "config.yaml").is_file():
                raise Incomplete(
                    "the run has no results yet", where=str(folder), fix="Give its command again: it goes on."
                )
            raise UsageError(
                "no run there",
                expected="a folder that `robustkit evaluate`, `explain`, `train` or `certify` wrote",
                where=str(folder),
                fix="Its last line of output is the folder's path.",
            )
        version = str(results.get("schema_version"))
        if version.partition(".")[0] != MAJOR:
            raise UsageError(
                "results of another version",
                expected=f"schema {MAJOR}.x",
                got=version,
                where=str(folder),
                fix="Use the robustkit that wrote them: run.json names its version.",
            )
        return cls(folder, results, _read_object(folder / "run.json") or {}, _read_text(folder / "config.yaml"))

    def checked(self) -> RunFiles:
        """The same run, once its files have the shape that every report of an evaluation relies on.

        Raises:
            UsageError: another kind of run; something is missing in its files, or of another type; says where.
        """
        kind = self.kind
        if kind != EVALUATION:
            fix = "Name the folder of an evaluation."
            if (self.path / BEST / "results.json").is_file():
                fix = f"Name the evaluation of its best weights: {self.path / BEST}."
            raise UsageError(f"this run is {a_run(kind)}", expected=a_run(EVALUATION), where=str(self.path), fix=fix)
        for name, value, schema in (("results.json", self.results, load_schema()), ("run.json", self.run, HEADER)):
            got = misfit(value, schema)
            if got is not None:
                raise _damaged(self.path / name, got)
        return self

    @property
    def kind(self) -> str:
        """What sort of run it is."""
        return str(self.results.get("kind", EVALUATION))

    def of(self, kind: str, schema: Mapping[str, Any], command: str) -> RunFiles:
        """The same run, once its results have the shape of this kind, and ``run.json`` what reports read of it.

        Raises:
            UsageError: they have another one.
        """
        for name, value, wanted in (("results.json", self.results, schema), ("run.json", self.run, HEADER)):
            got = misfit(value, wanted)
            if got is not None:
                raise UsageError(
                    f"not the results of {a_run(kind)}" if value is self.results else "cannot read a file of the run",
                    got=got,
                    where=str(self.path / name),
                    fix=f"Give a folder that `{command}` wrote; if it did, the run is damaged: start it again.",
                )
        return self

    def clean_rows(self) -> list[Row]:
        """A row per sample, by id, without any attack: id, correct, label, prediction, confidence, margin."""
        return _read_rows(self.path / "samples-clean.jsonl", "correct")

    def attack_rows(self, k: int) -> list[Row]:
        """A row per attacked sample, by id, of the k-th attack: id, success, distance, loss, step, prediction ..."""
        files_of_k = sorted(self.path.glob(f"samples-{k}-*.jsonl"))
        return [row for file in files_of_k for row in _read_rows(file, "success")]

    def broken_by(self, k: int) -> set[int]:
        """Ids of the samples that the k-th attack broke."""
        return {row["id"] for row in self.attack_rows(k) if row["success"]}

    def images(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The gallery, in its order: id -> (original, adversarial), each (C, H, W) or another shape of one sample.

        Raises:
            UsageError: the file is damaged, or lacks an image that the results name.
        """
        file = self.path / "gallery.safetensors"
        tensors = _read_tensors(file) if self.results.get("gallery") else {}
        try:
            ids = [int(entry["id"]) for entry in self.results.get("gallery") or []]
            return {i: (tensors[f"original/{i}"], tensors[f"adversarial/{i}"]) for i in ids}
        except KeyError as error:
            raise _damaged(file, f"no {error}") from None

    def dense_images(self, i: int) -> dict[str, NDArray[Any]]:
        """Pictures of one image of a dense task: original, adversarial, label, before, after.

        Raises:
            UsageError: the file is damaged, or lacks the image.
        """
        file = self.path / "dense_gallery.safetensors"
        if not self._dense:
            self._dense.update(_read_tensors(file))
        try:
            return {name: self._dense[f"{name}/{i}"] for name in DENSE}
        except KeyError as error:
            raise _damaged(file, f"no {error}") from None

    def certified_images(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The gallery of a certification, by the names of its tensors, each (G, ...) in the order of the results.

        Raises:
            UsageError: the file is damaged, or lacks one of them or some of their entries.
        """
        file = self.path / "gallery.safetensors"
        tensors, wanted = _read_tensors(file), len(self.results["gallery"])
        for name in names:
            if name not in tensors or len(tensors[name]) != wanted:
                got = f"{len(tensors[name])} of {name!r}" if name in tensors else f"no {name!r}"
                raise _damaged(file, f"{got}, expected {wanted}")
        return {name: tensors[name] for name in names}


def misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Where a value does not fit a JSON Schema, and why; None where it fits. Unknown keys fit: minor versions add them.

    >>> misfit({"n": "1", "m": 2}, {"properties": {"n": {"type": "integer"}}, "additionalProperties": False})
    "'1' is not of type 'integer' in $.n"
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    faults = Draft202012Validator(schema).iter_errors(value)
    error = best_match(f for f in faults if f.validator != "additionalProperties")
    return None if error is None else f"{error.message[:200]} in {error.json_path}"


def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json``; the file ``results.schema.json`` is inside this package."""
    text = files("robustkit.report").joinpath("results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _read_object(file: Path) -> dict[str, Any] | None:
    found = read_json(file)
    if found is not None and not isinstance(found, dict):
        raise _damaged(file, f"a {type(found).__name__}, expected an object")
    return found


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error)) from None


def _read_rows(file: Path, verdict: str) -> list[Row]:
    """Rows by id, each with its verdict, true or false."""
    rows = read_lines(file)
    if not all(isinstance(row.get("id"), int) for row in rows):
        raise _damaged(file, "a row without an id")
    if not all(isinstance(row.get(verdict), bool) for row in rows):
        raise _damaged(file, f"a row without {verdict!r}")
    return sorted(rows, key=lambda row: int(row["id"]))


def _read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, got: str) -> UsageError:
    return UsageError(
        "cannot read a file of the run",
        got=got,
        where=str(file),
        fix="The run is damaged: start it again in another folder.",
    )
