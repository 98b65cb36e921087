"""``robustkit show``: one method in full."""

from typing import Annotated, Any

import typer

FAMILIES = {
    "attack": "robustkit.core.attack", "defense": "robustkit.core.defense", "certifier": "robustkit.core.certifier",
    "explainer": "robustkit.core.explainer",
}
"""Kind of method -> the module with its registry, called ATTACKS, DEFENSES, CERTIFIERS, EXPLAINERS there."""


def show(
    kind: Annotated[str, typer.Argument(metavar="|".join(FAMILIES), help="Kind of method.", show_default=False)],
    name: Annotated[str, typer.Argument(
        metavar="NAME", help="Its name, e.g. [bold]pgd[/] or [bold]xrai[/].", show_default=False)],
) -> None:
    """Show the options, defaults, source and an example of a method."""
    from rich.console import Console
    from rich.markup import escape

    entry = entry_of(kind, name)
    console = Console()
    console.print(f"[bold]{escape(entry.name)}[/] (version {entry.version}): {escape(entry.summary)}", highlight=False)
    console.print(f"Source: {escape(entry.paper)}", highlight=False, soft_wrap=True)
    console.print(option_table(entry))
    console.print(f"Command line: {escape(example(entry))}", highlight=False, soft_wrap=True)
    console.print(f"Python:       {escape(python_example(entry))}", highlight=False, soft_wrap=True)


def entry_of(kind: str, name: str) -> Any:
    """The registry's entry (this imports the method, and so torch).

    Raises:
        UsageError: no such kind, no such name; near matches are named.
    """
    from importlib import import_module

    from robustkit.core.errors import UsageError, near

    if kind not in FAMILIES:
        raise UsageError("nothing of that kind to show", expected=", ".join(FAMILIES), got=repr(kind),
                         fix=near(kind, FAMILIES))
    return getattr(import_module(FAMILIES[kind]), f"{kind.upper()}S").get(name.lower())


def option_table(entry: Any) -> Any:
    """Option, type, default and meaning of each."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("option", "default", "type"):
        table.add_column(title, no_wrap=title == "option")
    table.add_column("meaning", overflow="fold")
    for option in entry.options():
        table.add_row(*map(escape, (option.name, default_text(option.default), option.type, option.help)))
    return table


def default_text(value: Any) -> str:
    """As one would write it on the command line.

    >>> default_text(None), default_text(True), default_text(40)
    ('null', 'true', '40')
    """
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def example(entry: Any) -> str:
    """A command that runs as it stands."""
    given = next((f":{o.name}={o.default}" for o in entry.options() if type(o.default) is int), "")
    given = next((f":{o.default}" for o in entry.options() if o.name == "name"), given)
    if entry.family == "explainer":
        what = "efficientnet_lite0 --data demo:photos" if entry.cls.pixels else "mnist-robust --data demo:mnist"
        return f"robustkit explain demo:{what} --limit 2 --method {entry.name}{given}"
    if entry.family == "certifier":
        return f"robustkit certify demo:mnist-smooth --data demo:mnist --limit 20 --method {entry.name}:n=2000"
    if entry.family == "defense":
        threat = " --threat linf:0.2" if entry.cls().adversarial else ""
        return f"robustkit train demo:mnist-train --model cnn --defense {entry.name}{threat} --epochs 5"
    if "segmentation" in getattr(entry.cls, "tasks", ()):
        return (f"robustkit evaluate demo:shapes-segmentation --data demo:shapes --attack {entry.name}{given} "
                "--threat linf:0.03 --limit 64")
    norm, eps = _radius(entry)
    return (f"robustkit evaluate demo:mnist-robust --data demo:mnist --attack {entry.name}{given} "
            f"--threat {norm.lower()}:{eps:g} --limit 100")


def python_example(entry: Any) -> str:
    """The same method in Python."""
    if entry.family == "explainer":
        given = next((f":{o.default}" for o in entry.options() if o.name == "name"), "")
        return f'rk.explain(model, x, "{entry.name}{given}").attribution().values'
    if entry.family == "certifier":
        return f"rk.certify(model, (x, y), rk.{entry.cls.__name__}(sigma=0.25, n=10_000)).certified_accuracy"
    if entry.family == "defense":
        threat = "threat=rk.Linf(8 / 255)" if entry.cls().adversarial else ""
        return f"rk.train(model, (x, y), defense=rk.{entry.cls.__name__}({threat}))"
    norm, eps = _radius(entry)
    if getattr(entry.cls, "free", False):  # classes of other libraries go by their text form
        given = next(o.default for o in entry.options() if o.name == "name")
        return f'rk.evaluate(model, (x, y), attacks=["{entry.name}:{given}"], threat=rk.{norm}({eps:g}))'
    return f"rk.{entry.cls.__name__}(threat=rk.{norm}({eps:g}))(model, x, y).adversarial"


def _radius(entry: Any) -> tuple[str, float]:
    """A norm in which the attack works, and a radius for digits."""
    return ("Linf", 0.2) if "linf" in getattr(entry.cls, "norms", ("linf",)) else ("L2", 2.0)
