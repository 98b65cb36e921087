"""Write the reports of a run into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustkit.core.errors import UsageError, near
from robustkit.report import html, junit, markdown
from robustkit.report.files import RunFiles
from robustkit.core.files import replace_file

FORMATS = {
    "html": ("report.html", html.render),
    "md": ("report.md", markdown.render),
    "junit": ("junit.xml", junit.render),
}


def write(path: Path, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, Path]:
    """Write reports, each in one step; format -> file.

    Raises:
        UsageError: unknown format; the folder holds no run.
        Incomplete: the run has no results yet; the disk is full.
    """
    run = RunFiles.open(path)
    written = {}
    for name in formats:
        if name not in FORMATS:
            raise UsageError("unknown report format", got=repr(name), fix=near(name, FORMATS))
        file, render = FORMATS[name]
        replace_file(run.path / file, render(run).encode("utf-8"))
        written[name] = run.path / file
    return written
