"""A finished run, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.errors import Incomplete, UsageError
from robustkit.run.files import read_json, read_lines

MAJOR = "1"
"""Major version of the results that this report understands."""


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind.

    Attributes:
        path: its folder.
        results: ``results.json``.
        run: ``run.json``: command, versions, hashes, history.
        config: text of ``config.yaml``.
    """

    path: Path
    results: Mapping[str, Any]
    run: Mapping[str, Any]
    config: str

    @classmethod
    def open(cls, path: str | Path) -> RunFiles:
        """Read a run.

        Raises:
            UsageError: the folder holds no run, or its files are damaged or of another version.
            Incomplete: the run has no results yet.
        """
        folder = Path(path)
        results = read_json(folder / "results.json")
        if results is None:
            if (folder / "config.yaml").is_file():
                raise Incomplete("the run has no results yet", where=str(folder), fix="Give its command again: it goes on.")
            raise UsageError("no run there", expected="a folder that `robustkit evaluate` wrote", where=str(folder))
        version = str(results.get("schema_version")) if isinstance(results, dict) else "none"
        if version.partition(".")[0] != MAJOR:
            raise UsageError("results of another version", expected=f"schema {MAJOR}.x", got=version, where=str(folder),
                             fix="Use the version of robustkit that wrote them: run.json names it.")
        config = folder / "config.yaml"
        return cls(folder, results, read_json(folder / "run.json") or {}, config.read_text(encoding="utf-8") if config.is_file() else "")

    def broken_by(self, k: int) -> set[int]:
        """Ids of the samples that attack ``k`` broke."""
        files = sorted(self.path.glob(f"samples-{k}-*.jsonl"))
        return {row["id"] for file in files for row in read_lines(file) if row["success"]}

    def right_when_clean(self) -> dict[int, bool]:
        """For each sample, whether it is right without any attack."""
        return {row["id"]: bool(row["correct"]) for row in read_lines(self.path / "samples-clean.jsonl")}

    def images(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The gallery: id -> (original, adversarial)."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = self.path / "gallery.safetensors"
        if not file.is_file():
            return {}
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UsageError("cannot read the gallery", got=str(error), where=str(file)) from None
        ids = sorted(int(name.partition("/")[2]) for name in tensors if name.startswith("original/"))
        return {i: (tensors[f"original/{i}"], tensors[f"adversarial/{i}"]) for i in ids}
