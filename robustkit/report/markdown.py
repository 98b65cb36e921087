"""``report.md``: the figures for a pull request, a wiki, or the summary of a build."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from robustkit.report.files import RunFiles
from robustkit.report.text import between, duration, number, percent, stamps, verdict

SUMMARY = "GITHUB_STEP_SUMMARY"


def render(run: RunFiles) -> str:
    """The report as Markdown."""
    r = run.results
    marks = [f"> **{text}**" for _, text in stamps(r)]
    attacks = [
        (a["label"], percent(a["robust_accuracy"]), between(a["interval"]), number(a["broken"]), number(a["gain"]), number(a["forwards"]))
        for a in r["attacks"]
    ]
    checks = [(d["status"], d["id"], d["title"], f"{d['message']} {d['remedy']}".strip()) for d in r["diagnostics"]]
    gates = [(g["metric"], number(g["threshold"]), number(g["value"]), "passed" if g["passed"] else "failed") for g in r["gates"]]
    parts = [
        "# Robustness report",
        escape(verdict(r)),
        *marks,
        "## Attacks",
        table(("attack", "robust accuracy", "95 % interval", "broken", "new", "forwards"), attacks),
        *(["## Gates", table(("metric", "threshold", "value", ""), gates)] if gates else []),
        "## Diagnostics",
        table(("", "check", "what", "found"), checks),
        "## Cost",
        f"{number(r['cost']['forwards'])} forwards and {number(r['cost']['backwards'])} backwards in {duration(r['times']['seconds'])}.",
        "## Not assessed",
        "\n".join(f"- {escape(item['what'])}: {escape(item['why'])}" for item in r["not_assessed"]),
        "## Again",
        fence(" ".join(run.run.get("command", []))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what stands in a cell stays there."""
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


def escape(text: str) -> str:
    """Text that no reader of Markdown or of a spreadsheet takes for more.

    >>> escape("a|b <i> =1")
    'a\\\\|b &lt;i&gt; =1'
    >>> escape("=cmd()")
    "'=cmd()"
    """
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|":
        plain = plain.replace(sign, "\\" + sign)
    return "'" + plain if plain[:1] in "=+-@" else plain


def fence(text: str) -> str:
    """A block of code that its content cannot close."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}\n{text}\n{marks}"


def append_job_summary(text: str) -> None:
    """Add the report to the summary of a GitHub job, if this is one."""
    target = os.environ.get(SUMMARY)
    if target:
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(text)
