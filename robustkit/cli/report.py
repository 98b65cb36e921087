"""``robustkit report``: write the reports of a run again, from its ``results.json``."""

from typing import Annotated

import typer

from robustkit.cli.check import RUN

FILES = {"html": "report.html", "md": "report.md", "json": "results.json", "junit": "junit.xml"}
PAGE = ("html", "json")
"""What an explanation, a training or a certification has of them."""


def report(
    run: RUN,
    formats: Annotated[str | None, typer.Option(
        "--format", metavar="html,md,json,junit",
        help="What to write: a self-contained page, Markdown for a pull request, JUnit's XML for a build server; json "
        "is what the run itself wrote. Explanations, trainings and certifications have html and json. "
        "[dim]Default: all[/]")] = None,
) -> None:
    """Write the reports of a run and print their paths."""
    from robustkit.report.write import PAGES, write, write_page
    from robustkit.run.folder import kind_of, read_results
    from robustkit.run.manifest import update_manifest

    wanted = list(FILES) if formats is None else formats_from(formats)
    kind = kind_of(read_results(run, kind=None))
    if kind in PAGES:
        wanted = _of_a_page(wanted, kind, asked=formats is not None)
        again = [name for name in wanted if name != "json"]
        if again:
            write_page(run)
    else:
        again = [name for name in wanted if name != "json"]
        if again:
            write(run, again)
    if again:
        update_manifest(run, [FILES[name] for name in again])
    for name in wanted:
        typer.echo(run / FILES[name])


def _of_a_page(names: list[str], kind: str, *, asked: bool) -> list[str]:
    """The formats that a run has whose only report is a page.

    Raises:
        UsageError: another one was asked for.
    """
    from robustkit.core.errors import UsageError
    from robustkit.report.text import a_run

    others = [name for name in names if name not in PAGE]
    if others and asked:
        raise UsageError(f"{a_run(kind)} has no such report", expected=" or ".join(PAGE), got=others[0],
                         where="--format", fix="Its page, report.html, holds all.")
    return [name for name in names if name in PAGE]


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
