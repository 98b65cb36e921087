"""What the verbs that start a run share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

HOW, RUN, LOAD = "How", "The run", "Loading the model"

ModelName = Annotated[str | None, typer.Argument(
    metavar="MODEL", help="[bold]demo:NAME[/], [bold]timm:NAME[/], [bold]torchvision:NAME[/], [bold]hf:ID[/], "
    "[bold]run:DIR[/] (of a training) or [bold]path.py:factory[/] (that runs the file's code).", show_default=False)]
Weights = Annotated[Path | None, typer.Option(
    metavar="FILE", rich_help_panel=LOAD,
    help="Weights: .safetensors, or .pt (only tensors are ever loaded, never code).")]
Mean = Annotated[str | None, typer.Option(
    metavar="M,M,M", rich_help_panel=LOAD,
    help="Mean per channel that the network expects, in units of the input: [bold]0.485,0.456,0.406[/].")]
Std = Annotated[str | None, typer.Option(
    metavar="S,S,S", rich_help_panel=LOAD, help="Standard deviation per channel, likewise.")]
BoundsText = Annotated[str | None, typer.Option(
    metavar="LOW,HIGH", rich_help_panel=LOAD, help="Range of valid inputs. [dim]Default: 0,1[/]")]
ConfigFile = Annotated[Path | None, typer.Option(
    metavar="FILE", rich_help_panel=RUN,
    help="Options from a YAML file, such as a run's config.yaml; the command line wins.")]
ProgressKind = Annotated[str | None, typer.Option(
    metavar="none|plain|rich", rich_help_panel=RUN,
    help="[dim]Default: rich on a terminal, else plain[/]")]
Eot = Annotated[int | None, typer.Option(
    metavar="N", rich_help_panel=HOW,
    help="The model is random on purpose: average it over N forward passes.")]


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into a message that says how to go on."""
    from robustkit.core.errors import Incomplete

    try:
        yield
    except KeyboardInterrupt:
        raise Incomplete("stopped; what was done is kept", where=str(folder),
                         fix=f"Give the same command again (with --out {folder}) to go on.") from None


def batch_size_from(text: str | None) -> str | int | None:
    """``auto`` as it is, numbers as numbers."""
    return int(text) if text and text.isdecimal() else text


def list_from(text: str | None) -> list[str] | None:
    """The parts of a list such as ``0.5,0.5``."""
    return None if text is None else [part.strip() for part in text.split(",")]
