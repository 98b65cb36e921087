"""The result of an explanation in Python: figures, maps, and the way to the files."""

from __future__ import annotations

import shutil
import weakref
from html import escape
from pathlib import Path
from typing import Any

from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError, near
from robustkit.core.types import Bounds
from robustkit.run.explain_maps import read_maps


class Explanations:
    """What :func:`robustkit.explain` returns.

    Attributes:
        data: everything but the arrays, as in ``results.json``.
        path: folder of the run; a temporary one, gone with this object, where none was asked for.
    """

    def __init__(self, data: dict[str, Any], path: Path, *, temporary: bool = False) -> None:
        self.data, self.path = data, path
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    def __len__(self) -> int:
        """Inputs explained."""
        return len(self.data["images"])

    @property
    def labels(self) -> list[str]:
        """The methods, as results call them."""
        return [method["label"] for method in self.data["methods"]]

    def attribution(self, method: int | str = 0) -> Attribution:
        """The maps of one method, read from the folder, on the CPU.

        Args:
            method: its place in the list, its label, or its name where only one method has it.

        Raises:
            UsageError: no such method; inputs of different shapes, which are no batch.
        """
        k = self._place(method)
        about, model = self.data["methods"][k], self.data["model"]
        notes = [note for image in self.data["images"] for note in image["maps"][k]["notes"]]
        return read_maps(
            [self.path / image["maps"][k]["file"] for image in self.data["images"]],
            method=about["name"],
            settings=about["options"],
            output=self.data["output"],
            signed=about["signed"],
            notes=tuple(dict.fromkeys(notes)),
            bounds=Bounds(*model["bounds"]),
            class_names=tuple(model["class_names"]) if model["class_names"] else None,
        )

    @property
    def attributions(self) -> dict[str, Attribution]:
        """The maps of every method, by label."""
        return {label: self.attribution(k) for k, label in enumerate(self.labels)}

    def report(self, path: str | Path) -> Path:
        """Write the page to a file and return its path."""
        from robustkit.report.explain import render

        target = Path(path)
        target.write_text(render(self.path), encoding="utf-8", errors="replace")
        return target

    def _place(self, method: int | str) -> int:
        names = [about["name"] for about in self.data["methods"]]
        if isinstance(method, int) and 0 <= method < len(names):
            return method
        if method in self.labels:
            return self.labels.index(str(method))
        if names.count(str(method)) == 1:
            return names.index(str(method))
        raise UsageError(
            "no such method among these",
            expected=f"one of {', '.join(self.labels)}, or its place",
            got=repr(method),
            fix=near(str(method), self.labels) if isinstance(method, str) else "",
        )

    def _repr_html_(self) -> str:
        """A small fragment without any request: the overlays of the first images, and what each map is worth."""
        if any(image["picture"] is None for image in self.data["images"]):
            return f"<p>{escape(repr(self))}</p>"
        from robustkit.report.explain import fragment

        return fragment(self.path)

    def __repr__(self) -> str:
        return f"Explanations({self.data['model']['name']}: {len(self)} inputs by {', '.join(self.labels)})"
