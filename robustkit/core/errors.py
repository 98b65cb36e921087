"""Errors a person can act on: what went wrong, what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class RobustkitError(Exception):
    """Base of all errors that robustkit raises on purpose; the command line exits with ``exit_code``.

    >>> print(RobustkitError("bad eps", expected="a number >= 0", got="-1", where="--threat", fix="Write linf:8/255."))
    bad eps: expected a number >= 0, got -1 (--threat). Write linf:8/255.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, expected: str = "", got: str = "", where: str = "", fix: str = "") -> None:
        facts = ", ".join(part for part in (expected and f"expected {expected}", got and f"got {got}") if part)
        text = what + (f": {facts}" if facts else "") + (f" ({where})" if where else "")
        super().__init__(f"{text.rstrip('.')}. {fix}" if fix else text)
        self.what, self.expected, self.got, self.where, self.fix = what, expected, got, where, fix


class GateFailed(RobustkitError):
    """A figure is below the gate that was asked for."""

    exit_code = 1


class UsageError(RobustkitError, ValueError):
    """Input, options or files that cannot be used as they are."""


class Refused(RobustkitError):
    """The preflight found that the number would be wrong; ``--force`` goes on and stamps the report."""


class Incomplete(RobustkitError):
    """The run stopped early; what was done is kept and the same command goes on."""

    exit_code = 3


class Invalid(RobustkitError):
    """A stored claim does not hold when it is checked again."""

    exit_code = 4


def near(name: str, names: Iterable[str]) -> str:
    """A hint that names what was probably meant.

    >>> near("pdg", ["pgd", "fgsm"])
    'Did you mean pgd?'
    >>> near("zzz", ["pgd", "fgsm"])
    'Known: fgsm, pgd.'
    """
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."
