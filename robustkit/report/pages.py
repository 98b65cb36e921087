"""The documentation of the diagnostics, inside the report: what each tests, and what to do when it fails."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files

from markdown_it import MarkdownIt
from markupsafe import Markup

from robustkit.report.tables import page

LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def pages(diagnostics: Iterable[str]) -> dict[str, Markup]:
    """Id -> the page as HTML, for the diagnostics that have one.

    >>> "gradient" in pages(["D1"])["D1"]
    True
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    found = {key: _source(key) for key in diagnostics}
    return {key: Markup(parser.render(text)) for key, text in found.items() if text}  # ours, not a user's


def _source(diagnostic: str) -> str:
    """The page without its title, links as plain text; empty where the page is missing."""
    name = page(diagnostic).rpartition("/")[2]
    file = files("robustkit.report").joinpath("diagnostics", name)
    if not file.is_file():
        return ""
    _, _, body = file.read_text(encoding="utf-8").partition("\n")
    return LINK.sub(r"\1", body)
