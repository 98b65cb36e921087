"""``robustkit compare``: is one model more robust than another, or is it chance?"""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, on the same samples.", show_default=False)],
) -> None:
    """Compare two runs sample by sample: the difference in robust accuracy and McNemar's test."""
    from rich.console import Console

    from robustkit.report.compare import paired

    paired(run_a, run_b)
    Console()
