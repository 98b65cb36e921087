"""Templates of the pages, their style sheet, and how a command is shown in them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustkit.report import text
from robustkit.report.tables import median_of


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Every value is escaped; one that is missing is an error."""
    made = Environment(
        loader=PackageLoader("robustkit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        median_of=median_of,
        percent=text.percent,
        share=lambda value: "–" if value is None else text.percent(value),
        measure=text.measure,
        headline=text.headline,
        between=text.between,
        number=text.number,
        duration=text.duration,
        memory=text.memory,
    )
    return made


@lru_cache(maxsize=8)
def source(name: str) -> Markup:
    """A file of this package as it stands: ours, not a user's."""
    loader = environment().loader
    assert loader is not None
    return Markup(loader.get_source(environment(), name)[0])


def style() -> Markup:
    """The style sheet of every page."""
    return source("report.css")


def command_lines(argv: Sequence[str]) -> str:
    """A command to paste into a shell, an option a line.

    >>> print(command_lines(["robustkit", "evaluate", "m.py:net", "--limit", "8", "--out", "a run"]))
    robustkit evaluate m.py:net \\
      --limit 8 \\
      --out 'a run'
    """
    lines: list[list[str]] = [[]]
    for word in argv:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(map(shlex.join, lines))
