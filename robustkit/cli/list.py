"""``robustkit list``: what there is, by name."""

from collections.abc import Iterable
from typing import Annotated

import typer

FAMILIES = {
    "attacks": "robustkit.attacks", "defenses": "robustkit.defenses", "certifiers": "robustkit.certify",
    "explainers": "robustkit.explain",
}
KINDS = (*FAMILIES, "models", "networks", "data", "threats")
THREATS = (
    ("linf:EPS", "every value of the input may change by at most EPS, e.g. linf:8/255"),
    ("l2:EPS", "the Euclidean length of the whole change is at most EPS, e.g. l2:0.5"),
    ("l1:EPS", "the absolute changes of all values add up to at most EPS, e.g. l1:12"),
)


def list_names(
    kind: Annotated[str, typer.Argument(metavar="|".join(KINDS), help="What to list.", show_default=False)],
) -> None:
    """List attacks, defenses, certifiers, explainers (saliency methods), models, networks to train, data or threats."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, summary in rows_of(kind):
        table.add_row(escape(name), escape(summary))
    Console().print(table)


def rows_of(kind: str) -> Iterable[tuple[str, str]]:
    """Name and one line for everything of a kind; imports no torch.

    Raises:
        UsageError: no such kind.
    """
    from robustkit import catalogue
    from robustkit.core.errors import UsageError, near
    from robustkit.core.registry import Registry

    if kind in FAMILIES:
        return [(item.name, item.summary) for item in Registry(FAMILIES[kind]).catalogue().values()]
    listings = {"models": catalogue.models, "networks": catalogue.networks, "data": catalogue.data}
    if kind in listings:
        return [(item.name, item.summary) for item in listings[kind]()]
    if kind == "threats":
        return THREATS
    raise UsageError("nothing of that kind to list", expected=", ".join(KINDS), got=repr(kind), fix=near(kind, KINDS))
