"""``robustkit certify``: around which samples no input gets another class, with a curve over the distance."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from robustkit.cli.common import (
    HOW,
    LOAD,
    RUN,
    BoundsText,
    ConfigFile,
    Mean,
    ModelName,
    ProgressKind,
    Std,
    Weights,
    batch_size_from,
    list_from,
    stoppable,
)

WHAT = "What is certified"


def certify(
    model: ModelName = None,
    data: Annotated[str | None, typer.Option(
        metavar="DATA", rich_help_panel=WHAT,
        help="[bold]demo:NAME[/], [bold]folder:DIR[/], [bold]npz:FILE[/], [bold]hf:ID[/] or "
        "[bold]path.py:factory[/].")] = None,
    method: Annotated[str | None, typer.Option(
        metavar="NAME[:k=v,...]", rich_help_panel=WHAT,
        help="Method and its options, e.g. [bold]smoothing:sigma=0.25,n=10000[/] or "
        "[bold]smoothing:mode=decide,radius=0.25[/]. See [bold]robustkit list certifiers[/].")] = None,
    limit: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=WHAT, help="Only the first N samples. [dim]Default: all[/]")] = None,
    falsify: Annotated[str | None, typer.Option(
        metavar="ATTACK[:k=v,...]", rich_help_panel=HOW,
        help="Also attack the certified classifier, e.g. with [bold]pgd:steps=20[/]: how far from the truth may the "
        "radii be, and is one wrong? Exit 4 if more are wrong than alpha allows.")] = None,
    seed: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=HOW, help="Of all random draws. [dim]Default: 0[/]")] = None,
    batch_size: Annotated[str | None, typer.Option(
        metavar="auto|N", rich_help_panel=HOW,
        help="Noisy copies in the network at a time; auto halves it when memory runs out. Certificates do not depend "
        "on it. [dim]Default: auto[/]")] = None,
    device: Annotated[str | None, typer.Option(
        metavar="cpu|cuda|mps", rich_help_panel=HOW,
        help="Where to compute. [dim]Default: where the model is made[/]")] = None,
    force: Annotated[bool | None, typer.Option(
        "--force", rich_help_panel=HOW, help="Go on although the preflight refuses, and stamp the report.")] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    bounds: BoundsText = None,
    task: Annotated[str | None, typer.Option(
        metavar="classification|segmentation", rich_help_panel=LOAD,
        help="What the outputs mean. [dim]Default: what the network is for[/]")] = None,
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", rich_help_panel=RUN,
        help="Folder of the run; the same command goes on there. [dim]Default: runs/DATE_certify-MODEL_N[/]")] = None,
    config: ConfigFile = None,
    progress: ProgressKind = None,
) -> None:
    """Certify MODEL: show around which samples of DATA no input gets another class, and up to which distance.

    Examples:

    robustkit certify demo:mnist-smooth --data demo:mnist --method smoothing:sigma=0.25,n=10000 --limit 100

    robustkit certify demo:mnist-smooth --data demo:mnist --method dual-smoothing:sigma=0.25,mode=decide,radius=0.5

    robustkit certify demo:mnist-smooth --data demo:mnist --method smoothing:n=2000 --limit 50 --falsify pgd:steps=20
    """
    options = {
        "model": model, "data": data, "method": method, "limit": limit, "falsify": falsify, "seed": seed,
        "batch_size": batch_size_from(batch_size), "device": device, "force": force, "weights": weights,
        "mean": list_from(mean), "std": list_from(std), "bounds": list_from(bounds), "task": task,
        "progress": progress,
    }
    _certify(config, options, out)


def _certify(file: Path | None, options: dict[str, Any], out: Path | None) -> None:
    from robustkit.core.errors import Invalid
    from robustkit.run.certify_config import load_certify_config
    from robustkit.run.folder import check_folder, default_folder
    from robustkit.run.progress import NotesOnly, make_progress

    config = load_certify_config(file, options)
    folder = out or default_folder(Path("runs"), config)
    check_folder(folder, config)  # before anything is loaded
    shown = NotesOnly() if config.progress == "none" else make_progress(config.progress)
    with shown as progress, stoppable(folder):
        from robustkit.run.certify import run

        results = run(config, folder, command=["robustkit", *sys.argv[1:]], progress=progress)
    print_certificates(results)
    if (folder / "report.html").is_file():
        typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(folder)
    raise typer.Exit(0 if results["valid"] else Invalid.exit_code)


def print_certificates(results: Mapping[str, Any]) -> None:
    """Verdict, curve, what is unknown and why, the attack's word: on stdout."""
    from rich.console import Console

    console = Console()
    for line in verdict(results):
        console.print(line, highlight=False, soft_wrap=True)
    if results["verifier"]["mode"] != "decide" and len(results["curve"]) > 1:
        console.print(curve_table(results))
    for line in remarks(results):
        console.print(line, highlight=False, soft_wrap=True)


def verdict(results: Mapping[str, Any]) -> list[str]:
    """The number, with which probability, and what limits it, as marked-up lines."""
    from rich.markup import escape

    from robustkit.cli.outcome import share

    norm, what = results["property"]["norm"].upper(), "pixels" if results["dense"] else "samples"
    at = f" at {norm} radius {results['radius']:g}" if results["property"]["radius"] is not None else ""
    found = [
        f"[bold]certified accuracy {share(results['certified_accuracy'], results['interval'])}[/]{at}, without noise "
        f"{share(results['clean_accuracy'], results['clean_interval'])}, n = {results['n']}",
        f"abstained on {share(results['abstained'])} of the {what}; "
        + ", ".join(f"{count} {name}" for name, count in results["outcomes"].items()),
    ]
    if results["average_certified_radius"] is not None:
        found.append(f"average certified radius {results['average_certified_radius']:.4f} ({norm})")
    if results["verifier"]["text"]:
        found.append(escape(results["verifier"]["text"]))
    if results["data"]["limit"] and results["n"] < results["data"]["size"]:
        limited = f"limited to {results['n']} of {results['data']['size']} samples: for testing, not a benchmark"
        found.append(f"[yellow]{limited}[/]")
    if results["forced"]:
        found.append("[bold red]forced: the preflight refused; see the diagnostics[/]")
    return found


def curve_table(results: Mapping[str, Any]) -> Any:
    """Certified accuracy at about eight radii up to the largest that is of use."""
    from rich.table import Table

    from robustkit.cli.outcome import share

    points = results["curve"]
    attacked = any(point["empirical"] is not None for point in points)
    used = [point for point in points if point["certified"] > 0] or points[:1]
    step = max(1, (len(used) - 1) // 8)
    chosen = [*used[:-1:step], used[-1]]
    table = Table(box=None, pad_edge=False)
    for title in ("radius", "certified accuracy", *(["under attack"] if attacked else [])):
        table.add_column(title, justify="right")
    for point in chosen:
        row = [f"{point['radius']:.3f}", share(point["certified_accuracy"])]
        table.add_row(*row, *([share(point["empirical"])] if attacked else []))
    return table


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Draws, why samples are unknown, notes, and whether an attack contradicts, as marked-up lines."""
    from rich.markup import escape

    found = [f"unknown: {entry['count']} {escape(entry['text'])}" for entry in results["reasons"]]
    draws = results["draws"]
    if draws:
        most = f"median {draws['median']:,.0f}, most {draws['max']:,}, all {draws['total']:,}"
        found.append(f"draws for a sample: {most}")
    if results["nan_answers"]["count"]:
        found.append(f"[yellow]NaN answers: {results['nan_answers']['count']:,}, counted for no class[/]")
    attack = results["falsification"]
    if attack:
        found.append(
            f"attack {escape(attack['attack'])}: a class other than the certified one shown at {attack['found']} of "
            f"{attack['tried']} samples, {attack['contradictions']} of them inside a certified radius"
        )
    if not results["valid"]:
        found.append("[bold red]invalid: certificates are contradicted more often than alpha allows, or were forced[/]")
    return found + [f"[yellow]note[/] {escape(note)}" for note in results["notes"]]
