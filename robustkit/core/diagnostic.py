"""One finding about whether a number can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["PASS", "WARN", "FAIL", "NOT RUN"]


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """A test of the evaluation itself: what was measured, against which threshold, and what to do.

    ``invalidates`` marks a failure after which the robustness number means nothing (exit code 4, or a refusal
    before any attack).
    """

    id: str
    title: str
    status: Status
    value: float | None = None
    threshold: str = ""
    message: str = ""
    remedy: str = ""
    invalidates: bool = False

    @property
    def fatal(self) -> bool:
        return self.status == "FAIL" and self.invalidates

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
