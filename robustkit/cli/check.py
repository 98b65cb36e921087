"""``robustkit check``: hold the figures of a run against gates, for continuous integration."""

from pathlib import Path
from typing import Annotated

import typer

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


def check(
    run: RUN,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Exit 1 if a figure is below: [bold]robust_accuracy=0.45[/], "
                     "clean_accuracy, or the lower ends of their 95 % intervals, robust_accuracy_low and "
                     "clean_accuracy_low. Repeat it for several. By default the gates of the run itself."),
    ] = None,
) -> None:
    """Exit 1 if a figure of the run is below its gate, 3 if the run is incomplete, 4 if its result is invalid."""
    from rich.console import Console

    from robustkit.cli.outcome import exit_code, gate_line, verdict
    from robustkit.core.errors import UsageError
    from robustkit.report.files import RunFiles
    from robustkit.run.folder import read_results
    from robustkit.run.gates import judge

    results = read_results(run)
    try:
        texts = fail_under or [f"{gate['metric']}={gate['threshold']!r}" for gate in results["gates"]]
        if not texts:
            raise UsageError("nothing to check", expected="at least one gate", where="--fail-under",
                             fix="Write for example --fail-under robust_accuracy=0.45.")
        gates = judge(texts, results)
        lines, code = [*verdict(results), *map(gate_line, gates)], exit_code(results, gates)
    except (KeyError, TypeError, AttributeError, IndexError):
        RunFiles.open(run).checked()  # says where the results are damaged
        raise
    console = Console()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
