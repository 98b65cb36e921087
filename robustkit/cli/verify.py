"""``robustkit verify``: do not take the run's word for it."""

import typer

from robustkit.cli.check import RUN


def verify(run: RUN) -> None:
    """Load the stored adversarial inputs again and check every claim of the run; exit 4 if one does not hold.

    The model and the data are loaded from where the run's config.yaml says they are. Of an explanation or a
    training the files are checked, by their hashes.
    """
    from rich.console import Console

    from robustkit.cli.outcome import finding
    from robustkit.core.errors import Invalid
    from robustkit.run.folder import read_results
    from robustkit.run.verify import verify as check_claims

    read_results(run, kind=None)
    rows = check_claims(run)
    console = Console()
    for row in rows:
        console.print(finding(row.to_json()), highlight=False, soft_wrap=True)
    failed = sum(row.status == "FAIL" for row in rows)
    console.print(f"{len(rows)} claims checked, {failed} of them false", highlight=False)
    raise typer.Exit(Invalid.exit_code if failed else 0)
