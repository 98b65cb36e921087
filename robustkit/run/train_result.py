"""The result of a training in Python: the trained model, figures, and the way to the files."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.core.errors import UsageError
from robustkit.core.model import Model

if TYPE_CHECKING:
    import pandas as pd


class Training:
    """What :func:`robustkit.train` returns.

    Attributes:
        data: everything, as in ``results.json``.
        path: folder of the run; a temporary one, gone with this object, where none was asked for.
        model: the model that was given, or what the defense has made of it, with the best weights, in eval mode.
    """

    def __init__(self, data: dict[str, Any], path: Path, model: Model, *, temporary: bool = False) -> None:
        self.data, self.path, self.model = data, path, model
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    @property
    def best(self) -> dict[str, Any]:
        """Epoch of the best weights, and their clean and robust accuracy on the part held out."""
        found: dict[str, Any] = self.data["best"]
        return found

    @property
    def last(self) -> dict[str, Any]:
        """The same of the last weights."""
        found: dict[str, Any] = self.data["last"]
        return found

    @property
    def evaluation(self) -> dict[str, Any]:
        """The final evaluation of the best weights.

        Raises:
            UsageError: there was none.
        """
        rows = [row for row in self.data["evaluations"] if row["weights"] == "best"]
        if not rows:
            raise UsageError(
                "the training ended without an evaluation", fix='Give eval="standard", or call rk.evaluate.'
            )
        found: dict[str, Any] = rows[0]
        return found

    def weights(self, which: str = "best") -> Path:
        """The file of the best or the last weights (safetensors).

        Raises:
            UsageError: neither best nor last.
        """
        if which not in ("best", "last"):
            raise UsageError("no such weights", expected="best or last", got=repr(which), where="weights")
        return self.path / str(self.data[which]["file"])

    def to_frame(self) -> pd.DataFrame:
        """One row per epoch: losses, accuracies, rates, cost.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("to_frame needs pandas", fix="Install it: pip install pandas.") from None
        from robustkit.run.train_log import flat

        return pd.DataFrame([flat(row) for row in self.data["epochs"]]).set_index("epoch")

    def report(self, path: str | Path) -> Path:
        """Write the page to a file and return its path."""
        from robustkit.report.train import render

        target = Path(path)
        target.write_text(render(self.path), encoding="utf-8", errors="replace")
        return target

    def _repr_html_(self) -> str:
        from robustkit.report.train import fragment

        return fragment(self.path)

    def __repr__(self) -> str:
        best, threat = self.best, self.data["threat"]
        robust = "" if best["robust"] is None else f", robust {best['robust']:.1%}"
        inside = f" at {threat['text']}" if threat else ""
        return (
            f"Training({self.data['model']['name']} by {self.data['defense']['text']}{inside}: best epoch "
            f"{best['epoch']} of {len(self.data['epochs'])}, held out: clean {best['clean']:.1%}{robust})"
        )
