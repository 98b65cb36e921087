"""``report.md``: the figures for a pull request, a wiki, or the summary of a build."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustkit.core.errors import UsageError
from robustkit.report import tables
from robustkit.report.files import RunFiles
from robustkit.report.text import between, duration, memory, number, percent, stamps, verdict

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable in which GitHub names the file of a job's summary."""
CLASSES = 10
"""Classes, and pairs of the confusion, that are shown."""


def render(run: RunFiles) -> str:
    """The report as GitHub-flavoured Markdown; nothing from a model, its data or a path is taken for markup."""
    results = run.results
    parts = [
        "# Robustness report",
        f"**{escape(verdict(results))}**",
        *(f"> **{kind.upper()}:** {escape(text)}" for kind, text in stamps(results)),
        *_threat(results),
        *_attacks(results),
        *_dense(results),
        *_classes(results),
        *_checks(results),
        *_cost(results),
        *_again(run),
        *_coverage(results),
    ]
    return "\n\n".join(parts) + "\n"


def append_job_summary(text: str) -> bool:
    """Add Markdown to the summary of a GitHub job; says whether this is one.

    Raises:
        UsageError: the file that GitHub names cannot be written.
    """
    target = os.environ.get(SUMMARY)
    if not target:
        return False
    try:
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(text if text.endswith("\n") else text + "\n")
    except OSError as error:
        raise UsageError(
            "cannot write the job summary",
            got=error.strerror or str(error),
            where=f"{SUMMARY}={target}",
            fix=f"Unset {SUMMARY} outside of a GitHub job.",
        ) from None
    return True


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; what stands in a cell stays there."""
    return _lines(header, ([escape(cell) for cell in row] for row in rows))


def escape(text: str) -> str:
    r"""Text on one line that neither a reader of Markdown nor a spreadsheet takes for more than text.

    >>> print(escape("a|b <i> [c](d)"))
    a\|b &lt;i&gt; \[c\](d)
    >>> print(escape("=cmd()"))
    '=cmd()
    """
    visible = "".join(" " if _invisible(sign) else sign for sign in text)
    plain = " ".join(visible.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|~#!":
        plain = plain.replace(sign, "\\" + sign)
    for start, cut in (("://", ":\u200b//"), ("www.", "www\u200b."), ("@", "@\u200b")):  # no link, no mention
        plain = plain.replace(start, cut)
    return "'" + plain if plain[:1] in ("=", "+", "-", "@") else plain


def _invisible(sign: str) -> bool:
    """Control characters, line breaks, and what turns the direction of writing."""
    turns = unicodedata.bidirectional(sign) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return turns or unicodedata.category(sign) in ("Cc", "Zl", "Zp")


def fence(text: str) -> str:
    """A block of code that its content cannot close."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}\n{text}\n{marks}"


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _threat(r: Mapping[str, Any]) -> Iterator[str]:
    aim = f"targeted ({r['threat']['targeted']})" if r["threat"]["targeted"] else "any wrong answer"
    low, high = r["model"]["bounds"]
    yield "## Threat"
    yield table(
        ("", ""),
        [
            [
                "perturbation",
                f"{r['threat']['norm']} ball of radius {number(r['threat']['eps'])} ({r['threat']['text']})",
            ],
            ["inputs", f"in [{number(low)}, {number(high)}], of shape {r['model']['input_shape']}"],
            ["aim", aim],
            ["knowledge", ", ".join(dict.fromkeys(a["knowledge"] for a in r["attacks"])) or "none"],
            ["model", f"{r['model']['name']}, {number(r['model']['parameters'])} parameters"],
            ["data", f"{r['data']['name']}, {number(r['n'])} of {number(r['n_total'])} samples"],
        ],
    )


def _attacks(r: Mapping[str, Any]) -> Iterator[str]:
    yield "## Attacks"
    yield table(tables.ATTACK_COLUMNS, tables.attacks(r))
    yield f"Worst case over all, sample by sample: {percent(r['robust_accuracy'])} ({between(r['interval'])})."
    if r["curve"]:
        yield f"## Accuracy against eps\n\nBy {escape(r['curve']['attack'])}, from small balls to large ones."
        yield table(("eps", "robust accuracy", "95 % interval"), tables.curve(r))


def _dense(r: Mapping[str, Any]) -> Iterator[str]:
    if not r.get("dense"):
        return
    yield "## Metrics, each image at its worst point"
    yield table(*tables.dense(r))
    if r["dense"]["per_class"]:
        yield table(tables.IOU_COLUMNS, tables.class_iou(r))


def _classes(r: Mapping[str, Any]) -> Iterator[str]:
    if r["per_class"]:
        yield "## Weakest classes"
        yield table(tables.CLASS_COLUMNS, tables.classes(r, CLASSES))
    if r["confusion"]:
        yield "Where broken samples go:"
        yield table(tables.CONFUSION_COLUMNS, tables.confusion(r, CLASSES))


def _checks(r: Mapping[str, Any]) -> Iterator[str]:
    yield "## Diagnostics"
    yield _lines(
        ("", "check", "found", "value", "threshold"),
        (
            [
                d["status"],
                f"[{escape(d['id'])}]({tables.page(d['id'])}) {escape(d['title'])}",
                escape(tables.found(d)),
                escape(number(d["value"])),
                escape(d["threshold"]),
            ]
            for d in r["diagnostics"]
        ),
    )
    if r["gates"]:
        yield "## Gates"
        yield table(
            ("", "metric", "value", "at least"),
            (
                ["PASS" if g["passed"] else "FAIL", g["metric"], number(g["value"]), number(g["threshold"])]
                for g in r["gates"]
            ),
        )


def _cost(r: Mapping[str, Any]) -> Iterator[str]:
    yield "## Cost"
    yield table(tables.COST_COLUMNS, tables.cost(r))
    yield (
        f"{duration(r['times']['seconds'])} on {escape(r['model']['device'])}, "
        f"peak memory {memory(r['times']['peak_memory_bytes'])}. Passes are counted in samples."
    )


def _again(run: RunFiles) -> Iterator[str]:
    yield "## How to reproduce"
    yield fence(shlex.join(run.run.get("command") or []))
    facts = [
        ["versions", ", ".join(f"{name} {version}" for name, version in (run.run.get("versions") or {}).items())],
        ["model", run.results["model"]["sha256"]],
        ["data", run.results["data"]["sha256"]],
    ]
    git = run.run.get("git")
    if git:
        facts.append(["code", git["commit"] + (", with changes" if git["dirty"] else "")])
    yield table(("", ""), facts)
    if run.config_text:
        yield "<details><summary>config.yaml</summary>\n\n" + fence(run.config_text.rstrip()) + "\n\n</details>"


def _coverage(r: Mapping[str, Any]) -> Iterator[str]:
    yield "## What was assessed, and what was not"
    rows = [["assessed", a["what"], " ".join(a["atlas"]), " ".join(a["nist"])] for a in r["assessed"]]
    rows += [
        ["**not assessed**", f"{a['what']}: {a['why']}", " ".join(a["atlas"]), " ".join(a["nist"])]
        for a in r["not_assessed"]
    ]
    yield _lines(("", "what", "MITRE ATLAS", "NIST AI 100-2"), ([row[0], *map(escape, row[1:])] for row in rows))
    yield "Evidence and coverage: this report certifies nothing."
