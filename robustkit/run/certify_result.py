"""The result of a certification in Python: figures, certificates, and the way to the files."""

from __future__ import annotations

import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustkit.core.certificate import Certificate
from robustkit.core.files import read_lines
from robustkit.core.types import Cost
from robustkit.run.certify_falsify import counterexample


class Certification:
    """What :func:`robustkit.certify` returns.

    Attributes:
        data: as in ``results.json``.
        path: folder of the run; a temporary one, gone with this object, where none was asked for.
    """

    def __init__(self, data: dict[str, Any], path: Path, *, temporary: bool = False) -> None:
        self.data, self.path = data, path
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    def __len__(self) -> int:
        """Samples certified."""
        return int(self.data["n"])

    @property
    def certified_accuracy(self) -> float:
        """Share of samples (pixels) with their label and a certificate: at the radius asked for, or at any."""
        return _number(self.data["certified_accuracy"])

    @property
    def abstained(self) -> float:
        """Share of samples (pixels) without a certificate at any radius."""
        return _number(self.data["abstained"])

    @property
    def curve(self) -> dict[float, float]:
        """Radius -> certified accuracy."""
        return {point["radius"]: point["certified_accuracy"] for point in self.data["curve"]}

    @property
    def valid(self) -> bool:
        """Whether no check and no attack says that the certificates mean nothing."""
        return bool(self.data["valid"])

    def certificate(self) -> Certificate:
        """The certificates of all samples, read from the folder, on the CPU."""
        return self._dense() if self.data["dense"] else self._flat()

    def report(self, path: str | Path) -> Path:
        """Write the page to a file and return its path."""
        from robustkit.report.certify import render

        target = Path(path)
        target.write_text(render(self.path), encoding="utf-8", errors="replace")
        return target

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return sorted(read_lines(self.path / f"{name}.jsonl"), key=lambda row: int(row["id"]))

    def _flat(self) -> Certificate:
        rows = self._rows("samples-certify")
        extras: dict[str, Tensor] = {
            name: torch.tensor([row[name] for row in rows]) for name in ("choice", "hits") if name in rows[0]
        }
        return self._built(
            rows,
            prediction=torch.tensor([row["prediction"] for row in rows]),
            radius=torch.tensor([row["radius"] for row in rows], dtype=torch.float64),
            certified=torch.tensor([row["certified"] for row in rows]),
            extras=extras,
            **self._attacked(rows),
        )

    def _attacked(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What an attack found: nothing where none was made."""
        from safetensors.torch import load_file

        if self.data["falsification"] is None:
            return {}
        attacked = {row["id"]: row for row in self._rows("samples-falsify")}
        stored = [load_file(file) for file in sorted((self.path / "falsify").glob("*.safetensors"))]
        inputs = {int(i): x for part in stored if part for i, x in zip(part["ids"], part["witness"], strict=True)}
        nothing = torch.full(self.data["model"]["input_shape"], torch.nan)
        ids = [row["id"] for row in rows]
        distances = [attacked[i]["distance"] if attacked[i]["found"] else torch.inf for i in ids]
        return {
            "falsified": torch.tensor([counterexample(attacked[i], self._asked) for i in ids]),
            "witness": torch.stack([inputs.get(i, nothing) for i in ids]),
            "witness_distance": torch.tensor(distances, dtype=torch.float64),
        }

    def _dense(self) -> Certificate:
        from safetensors.torch import load_file

        files = sorted((self.path / "certificates").glob("*.safetensors"), key=lambda file: int(file.stem))
        maps = [load_file(file) for file in files]
        whole = {name: torch.cat([one[name] for one in maps]) for name in ("prediction", "radius", "certified")}
        sure, radius = whole["certified"], whole["radius"].double()
        # radii are stored a little smaller: what is asked for is stored as a fact
        radius = torch.where(sure, radius.clamp_min(self._asked or 0.0), radius)
        return self._built(
            self._rows("samples-certify"), prediction=whole["prediction"].long(), radius=radius, certified=sure
        )

    @property
    def _asked(self) -> float | None:
        return self.data["property"]["radius"]  # type: ignore[no-any-return]

    def _built(self, rows: list[dict[str, Any]], **parts: Any) -> Certificate:
        return Certificate(
            method=self.data["method"]["name"],
            settings=self.data["method"]["options"],
            reasons=tuple(row["reason"] for row in rows),
            norm=self.data["property"]["norm"],
            arithmetic=self.data["arithmetic"],
            dimension=self.data["linf"]["dimension"],
            cost=Cost(**self.data["cost"]),
            n=torch.tensor([row["n"] for row in rows]),
            asked=self._asked,
            alpha=self.data["verifier"]["alpha"],
            notes=tuple(self.data["notes"]),
            **parts,
        )

    def _repr_html_(self) -> str:
        """A small fragment without any request: the headline and the curve."""
        from robustkit.report.certify import fragment

        return fragment(self.path)

    def __repr__(self) -> str:
        at = f" at {self.data['radius']:g}" if self._asked is not None else ""
        return (
            f"Certification({self.data['model']['name']} by {self.data['method']['label']}: certified accuracy "
            f"{self.certified_accuracy:.3f}{at} in {self.data['property']['norm']}, n = {len(self)})"
        )


def _number(share: float | None) -> float:
    """A share; NaN of nothing, such as no labelled pixel."""
    return math.nan if share is None else float(share)
