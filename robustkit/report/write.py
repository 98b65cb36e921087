"""Write the reports of a run into its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robustkit.core.errors import UsageError, near
from robustkit.core.files import replace_file
from robustkit.report import junit, markdown
from robustkit.report.files import RunFiles
from robustkit.report.text import a_run


def _html(run: RunFiles) -> str:
    """The page; its plots need matplotlib, which takes a second to import."""
    from robustkit.report.html import render

    return render(run)


def _explanation(folder: Path) -> str:
    from robustkit.report.explain import render

    return render(folder)


def _training(folder: Path) -> str:
    from robustkit.report.train import render

    return render(folder)


def _certification(folder: Path) -> str:
    from robustkit.report.certify import render

    return render(folder)


RESULTS, PAGE = "results.json", "report.html"
FORMATS: dict[str, tuple[str, Callable[[RunFiles], str]]] = {
    "html": (PAGE, _html),
    "md": ("report.md", markdown.render),
    "junit": ("junit.xml", junit.render),
}
"""Format -> file and what renders it. ``json`` is what the run itself wrote, and is only named."""
PAGES: dict[str, Callable[[Path], str]] = {
    "explanation": _explanation,
    "training": _training,
    "certification": _certification,
}
"""Kinds of run whose only report is a page -> what renders it."""


def write(run_dir: str | Path, formats: Sequence[str] = tuple(FORMATS), *, summary: bool = False) -> dict[str, Path]:
    """Write reports, each in one step; format -> file, for each format asked for.

    Args:
        run_dir: folder of the run.
        formats: of html, md, json, junit.
        summary: also append the Markdown to the summary of the GitHub job that this is part of, if any.

    Raises:
        UsageError: unknown format; the folder holds no run, or one whose results are damaged.
        Incomplete: the run has no results yet; the disk is full.
    """
    for name in formats:
        if name != "json" and name not in FORMATS:
            raise UsageError(
                "unknown report format",
                expected=", ".join([*FORMATS, "json"]),
                got=repr(name),
                fix=near(name, [*FORMATS, "json"]),
            )
    run = RunFiles.open(run_dir).checked()
    written = {}
    for name in formats:
        written[name] = run.path / (RESULTS if name == "json" else _write(run, name))
    if summary:
        markdown.append_job_summary(markdown.render(run))
    return written


def write_page(run_dir: str | Path) -> Path:
    """Write the page of an explanation, a training or a certification and return its path; they have no other report.

    Raises:
        UsageError: the folder holds none of them, or one whose results are damaged.
        Incomplete: the run has no results yet; the disk is full.
    """
    folder = Path(run_dir)
    kind = RunFiles.open(folder).kind
    if kind not in PAGES:
        raise UsageError(
            f"this run is {a_run(kind)}", expected=" or ".join(map(a_run, PAGES)), where=str(folder), fix="Call write."
        )
    replace_file(folder / PAGE, PAGES[kind](folder).encode("utf-8", errors="replace"))
    return folder / PAGE


def _write(run: RunFiles, name: str) -> str:
    """Render one format and put it in its place; text that UTF-8 cannot hold (lone surrogates) becomes ``?``."""
    file, render = FORMATS[name]
    replace_file(run.path / file, render(run).encode("utf-8", errors="replace"))
    return file
