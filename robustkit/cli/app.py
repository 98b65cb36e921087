"""The command line: ``robustkit VERB``. Verbs import what they need when they run, so that help is instant."""

from typing import Annotated

import typer

import robustkit
from robustkit.cli.certify import certify
from robustkit.cli.check import check
from robustkit.cli.compare import compare
from robustkit.cli.doctor import doctor
from robustkit.cli.evaluate import evaluate
from robustkit.cli.explain import explain
from robustkit.cli.guard import guarded
from robustkit.cli.list import list_names
from robustkit.cli.report import report
from robustkit.cli.show import show
from robustkit.cli.train import train
from robustkit.cli.verify import verify

EXIT_CODES = (
    "Exit codes: 0 passed, 1 a gate failed, 2 usage, configuration or a refused evaluation, 3 incomplete (the same "
    "command goes on), 4 invalid result, 70 a fault of robustkit itself."
)

app = typer.Typer(
    name="robustkit", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(robustkit.__version__)
        raise typer.Exit


@app.callback()
def robustness(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Adversarial robustness of PyTorch models, with numbers that can be trusted.

    Begin with: [bold]robustkit evaluate demo:mnist-robust --data demo:mnist --attack pgd:steps=20 --threat linf:0.2[/],
    [bold]robustkit train demo:mnist-train --model cnn --defense trades --threat linf:0.2[/]
    or [bold]robustkit explain demo:efficientnet_lite0 cat.jpg[/]
    """


EVALUATING, READING, LOOKING = "Evaluate, train and explain", "Runs", "Look up"
app.command("evaluate", rich_help_panel=EVALUATING)(guarded(evaluate))
app.command("train", rich_help_panel=EVALUATING)(guarded(train))
app.command("certify", rich_help_panel=EVALUATING)(guarded(certify))
app.command("explain", rich_help_panel=EVALUATING)(guarded(explain))
app.command("report", rich_help_panel=READING)(guarded(report))
app.command("check", rich_help_panel=READING)(guarded(check))
app.command("verify", rich_help_panel=READING)(guarded(verify))
app.command("compare", rich_help_panel=READING)(guarded(compare))
app.command("list", rich_help_panel=LOOKING)(guarded(list_names))
app.command("show", rich_help_panel=LOOKING)(guarded(show))
app.command("doctor", rich_help_panel=LOOKING)(guarded(doctor))
