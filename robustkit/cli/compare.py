"""``robustkit compare``: is one model more robust than another, or is it chance?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from robustkit.report.compare import Comparison

SIGNIFICANT = 0.05


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(
        metavar="RUN_B", help="Folder of another, on the same data under the same threat.", show_default=False)],
) -> None:
    """Compare two runs sample by sample: the difference in robust accuracy and McNemar's test."""
    from rich.console import Console

    from robustkit.report.compare import paired

    console = Console()
    for line in lines(paired(run_a, run_b)):
        console.print(line, highlight=False, soft_wrap=True)


def lines(found: "Comparison") -> list[str]:
    """The comparison in words, as marked-up lines."""
    low, high = (100 * end for end in found.interval)
    robust_a, robust_b = found.both + found.only_a, found.both + found.only_b
    sure = "a difference beyond chance" if found.p < SIGNIFICANT else "may be chance"
    return [
        f"robust accuracy A {100 * robust_a / found.n:.1f} %, B {100 * robust_b / found.n:.1f} % on {found.n} samples",
        f"[bold]B - A: {100 * found.difference:+.1f} points (95 %: {low:+.1f} to {high:+.1f})[/]",
        f"robust in both {found.both}, only in A {found.only_a}, only in B {found.only_b}, in neither {found.neither}",
        f"McNemar's exact test: p = {found.p:.2g}, {sure}",
    ]
