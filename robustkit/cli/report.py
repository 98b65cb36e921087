"""``robustkit report``: write the reports of a run again, from its ``results.json``."""

from typing import Annotated

import typer

from robustkit.cli.check import RUN

FILES = {"html": "report.html", "md": "report.md", "json": "results.json", "junit": "junit.xml"}


def report(
    run: RUN,
    formats: Annotated[str, typer.Option(
        "--format", metavar="html,md,json,junit",
        help="What to write: a self-contained page, Markdown for a pull request, JUnit's XML for a build server; json "
        "is what the run itself wrote.")] = "html,md,json,junit",
) -> None:
    """Write the reports of a run and print their paths."""
    from robustkit.report.write import write
    from robustkit.run.folder import read_results
    from robustkit.run.manifest import update_manifest

    wanted = formats_from(formats)
    read_results(run)
    again = tuple(name for name in wanted if name != "json")
    if again:
        write(run, again)
        update_manifest(run, [FILES[name] for name in again])
    for name in wanted:
        typer.echo(run / FILES[name])


def formats_from(text: str) -> list[str]:
    """The formats of a list such as ``html,md``.

    Raises:
        UsageError: an unknown one.
    """
    from robustkit.core.errors import UsageError, near

    names = list(dict.fromkeys(name for name in (part.strip().lower() for part in text.split(",")) if name))
    unknown = [name for name in names if name not in FILES]
    if unknown or not names:
        raise UsageError("unknown format", expected=", ".join(FILES), got=repr(unknown[0] if unknown else text),
                         where="--format", fix=near(unknown[0] if unknown else "", FILES))
    return names
