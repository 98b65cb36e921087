"""What the terminal says about results, and the exit code they deserve. Reads the dict of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustkit.core.errors import GateFailed, Incomplete, Invalid
from robustkit.report.text import measure

STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "NOT RUN": "dim"}


def exit_code(results: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> int:
    """3 if the run is incomplete, 4 if its number is invalid, 1 if a gate failed, else 0."""
    if not results["complete"]:
        return Incomplete.exit_code
    if not results["valid"]:
        return Invalid.exit_code
    return 0 if all(gate["passed"] for gate in gates) else GateFailed.exit_code


def print_results(results: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> None:
    """Verdict, attacks, what the diagnostics found, gates: on stdout."""
    console = Console()
    for line in verdict(results):
        console.print(line, highlight=False, soft_wrap=True)
    if results["attacks"]:
        console.print(attack_table(results["attacks"]))
    findings = [row for row in results["diagnostics"] if row["status"] in ("WARN", "FAIL")]
    for line in [tally(results["diagnostics"]), *map(finding, findings), *map(gate_line, gates)]:
        console.print(line, highlight=False, soft_wrap=True)


def verdict(results: Mapping[str, Any]) -> list[str]:
    """The number and all that limits it, as marked-up lines."""
    threat = escape(results["threat"]["text"])
    lines = [
        f"[bold]robust accuracy {share(results['robust_accuracy'], results['interval'])}[/] under {threat}, "
        f"clean {share(results['clean_accuracy'], results['clean_interval'])}, n = {results['n']}"
    ]
    if results.get("dense"):
        held = lines[0].replace("robust accuracy", "images that hold", 1)
        lines = [*(metric_line(metric) for metric in results["dense"]["metrics"]), held]
    if results["limit"] and results["n"] < results["n_total"]:
        limited = f"limited to {results['n']} of {results['n_total']} samples: for testing, not a benchmark"
        lines.append(f"[yellow]{limited}[/]")
    if results["forced"]:
        lines.append("[bold red]forced: the preflight refused this evaluation; see the diagnostics[/]")
    if not results["complete"]:
        lines.append("[bold red]incomplete: the same command goes on[/]")
    elif not results["valid"]:
        lines.append("[bold red]invalid: a diagnostic says that this number means nothing[/]")
    return lines


def metric_line(metric: Mapping[str, Any]) -> str:
    """A metric of a dense task: in the worst case, without attack, and after each attack alone."""
    worst, clean, *alone = (measure(metric, v) for v in (metric["robust"], metric["clean"], *metric["attacks"]))
    return f"[bold]{metric['name']} {worst}[/] in the worst case, {clean} without attack (alone: {', '.join(alone)})"


def attack_table(attacks: Sequence[Mapping[str, Any]]) -> Table:
    """A row per attack: its own figure, and how many samples it broke that none before it had."""
    table = Table(box=None, pad_edge=False)
    table.add_column("attack", overflow="fold")
    for title in ("robust accuracy", "broken", "new", "only it"):
        table.add_column(title, justify="right")
    for row in attacks:
        counts = ("–" if row[key] is None else str(row[key]) for key in ("broken", "gain", "alone"))
        table.add_row(escape(row["label"]), share(row["robust_accuracy"]), *counts)
    return table


def tally(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many diagnostics ended how.

    >>> tally([{"status": "PASS"}, {"status": "WARN"}, {"status": "PASS"}])
    'diagnostics: 2 PASS, 1 WARN'
    """
    counts = {status: sum(row["status"] == status for row in rows) for status in STYLES}
    return "diagnostics: " + (", ".join(f"{n} {status}" for status, n in counts.items() if n) or "none")


def finding(row: Mapping[str, Any]) -> str:
    """One diagnostic as a marked-up line."""
    remedy = f". [dim]{escape(row['remedy'])}[/]" if row["remedy"] else ""
    status = f"[{STYLES[row['status']]}]{row['status']}[/]"
    return f"{status} {row['id']} {escape(row['title'])}: {escape(row['message'].rstrip('.'))}{remedy}"


def gate_line(gate: Mapping[str, Any]) -> str:
    """One gate as a marked-up line."""
    status = "PASS" if gate["passed"] else "FAIL"
    value = "not measured" if gate["value"] is None else f"{gate['value']:.4f}"
    return f"[{STYLES[status]}]{status}[/] {gate['metric']} {value} >= {gate['threshold']:g}"


def share(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A share in percent, with its 95 % interval.

    >>> share(0.61, [0.5, 0.7])
    '61.0 % (50.0 to 70.0)'
    """
    if value is None:
        return "not measured"
    return f"{100 * value:.1f} %" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")
