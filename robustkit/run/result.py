"""The result of an evaluation in Python: figures, evidence, and the way to the files."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


class Result:
    """What :func:`robustkit.evaluate` returns.

    Attributes:
        data: everything, as in ``results.json``.
        path: folder of the run; a temporary one, gone with this object, where none was asked for.
    """

    def __init__(self, data: dict[str, Any], path: Path, *, temporary: bool = False) -> None:
        self.data, self.path = data, path
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that are right without any attack."""
        return float(self.data["clean_accuracy"])

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that are right and that no attack broke."""
        return float(self.data["robust_accuracy"])

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the robust accuracy."""
        low, high = self.data["interval"]
        return float(low), float(high)

    @property
    def n(self) -> int:
        """Samples evaluated."""
        return int(self.data["n"])

    @property
    def complete(self) -> bool:
        """Every sample went through every attack."""
        return bool(self.data["complete"])

    @property
    def valid(self) -> bool:
        """No diagnostic says that the number means nothing."""
        return bool(self.data["valid"])

    @property
    def passed(self) -> bool:
        """Every gate of ``fail_under`` is met."""
        return all(gate["passed"] for gate in self.data["gates"])

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Tests of the number itself."""
        return [Diagnostic(**row) for row in self.data["diagnostics"]]

    def to_frame(self) -> pd.DataFrame:
        """One row per sample: label, clean prediction, and for each attack whether it broke it and how far it went.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("to_frame needs pandas", fix="Install it: pip install pandas.") from None
        frame = self._rows(pd, "samples-clean")
        frame["robust"] = frame["correct"]
        for k, attack in enumerate(self.data["attacks"]):
            rows = self._rows(pd, next(self.path.glob(f"samples-{k}-*.jsonl")).stem).reindex(frame.index)
            frame[f"{attack['label']} success"] = rows["success"].astype("boolean").fillna(False).astype(bool)
            frame[f"{attack['label']} distance"] = rows["distance"].astype(float)
            frame["robust"] &= ~frame[f"{attack['label']} success"]
        return frame

    def adversarial(self, attack: int | str = 0) -> tuple[Tensor, Tensor]:
        """Sample ids (M,) and adversarial inputs (M, *S) of the samples that an attack broke.

        Args:
            attack: its place in the list, or its label.
        """
        import torch
        from safetensors.torch import load_file

        labels = [row["label"] for row in self.data["attacks"]]
        if attack not in labels and not (isinstance(attack, int) and 0 <= attack < len(labels)):
            raise UsageError("no such attack in this run", expected=f"one of {labels}, or its place", got=repr(attack))
        k = attack if isinstance(attack, int) else labels.index(attack)
        parts = [load_file(file) for file in sorted((self.path / "adversarial").glob(f"{k}-*/*.safetensors"))]
        parts = [part for part in parts if len(part["ids"])]
        if not parts:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, *self.data["model"]["input_shape"])
        return torch.cat([part["ids"] for part in parts]), torch.cat([part["adversarial"] for part in parts])

    def report(self, path: str | Path) -> Path:
        """Write the HTML report to a file and return its path."""
        from robustkit.report.files import RunFiles
        from robustkit.report.html import render

        target = Path(path)
        target.write_text(render(RunFiles.open(self.path)), encoding="utf-8")
        return target

    def _rows(self, pd: Any, name: str) -> Any:
        rows = (self.path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        frame = pd.DataFrame([json.loads(row) for row in rows])
        return frame.set_index("id").sort_index() if len(frame) else pd.DataFrame(columns=["success", "distance"])

    def _repr_html_(self) -> str:
        from robustkit.report.html import fragment

        return fragment(self.data)

    def __repr__(self) -> str:
        low, high = self.interval
        broken = ", ".join(f"{a['label']} {a['robust_accuracy']:.1%}" for a in self.data["attacks"])
        marks = "" if self.valid else " INVALID"
        marks += "" if self.complete else " INCOMPLETE"
        return (
            f"Result({self.data['model']['name']} at {self.data['threat']['text']}: clean {self.clean_accuracy:.1%}, "
            f"robust {self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}], n={self.n}; {broken}{marks})"
        )
