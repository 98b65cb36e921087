"""``robustkit explain``: maps of what in an image speaks for the model's answer, on one page."""

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
    Eot,
    Mean,
    ModelName,
    ProgressKind,
    Std,
    Weights,
    batch_size_from,
    list_from,
    stoppable,
)

WHAT = "What is explained"
TABLE_ROWS = 24
WIDE = 160


def explain(
    model: ModelName = None,
    images: Annotated[list[str] | None, typer.Argument(
        metavar="IMAGE...", help="Pictures (JPEG, PNG, WebP, BMP), or folders of them.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(
        metavar="DATA", rich_help_panel=WHAT,
        help="Samples of [bold]demo:NAME[/], [bold]folder:DIR[/], [bold]npz:FILE[/], [bold]hf:ID[/] or "
        "[bold]path.py:factory[/] instead of pictures.")] = None,
    from_run: Annotated[Path | None, typer.Option(
        metavar="RUN", rich_help_panel=WHAT,
        help="Samples that an evaluation broke, clean and adversarial side by side, with its model and data.")] = None,
    method: Annotated[list[str] | None, typer.Option(
        metavar="NAME[:k=v,...],...", rich_help_panel=WHAT,
        help="Methods and their options, e.g. [bold]smoothgrad:samples=20,xrai[/]; repeat it or use commas. See "
        "[bold]robustkit list explainers[/]. [dim]Default: smoothgrad[/]")] = None,
    target: Annotated[str | None, typer.Option(
        metavar="CLASS|predicted|label", rich_help_panel=WHAT,
        help="The class that is explained, by number or name. [dim]Default: predicted; with --from-run clean: the "
        "class predicted on the clean input, for both[/]")] = None,
    output: Annotated[str | None, typer.Option(
        metavar="logit|probability|margin", rich_help_panel=WHAT,
        help="What is explained of the class. [dim]Default: logit[/]")] = None,
    limit: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=WHAT,
        help="Only the first N. [dim]Default: 16 of a data set, 6 pairs of a run[/]")] = None,
    evaluate: Annotated[bool | None, typer.Option(
        "--evaluate/--no-evaluate", rich_help_panel=HOW,
        help="Also measure the maps beside controls: insertion, deletion, randomisation, sensitivity. Takes many times "
        "as long.")] = None,
    significant: Annotated[bool | None, typer.Option(
        "--significant/--no-significant", rich_help_panel=HOW,
        help="Leave pixels out of the pictures that are less than two standard errors away from 0.")] = None,
    seed: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=HOW, help="Of all random draws. [dim]Default: 0, or that of the run[/]")] = None,
    batch_size: Annotated[str | None, typer.Option(
        metavar="auto|N", rich_help_panel=HOW,
        help="Points in the network at a time; auto halves it when memory runs out. [dim]Default: auto[/]")] = None,
    device: Annotated[str | None, typer.Option(
        metavar="cpu|cuda|mps", rich_help_panel=HOW,
        help="Where to compute. [dim]Default: where the model is made[/]")] = None,
    eot: Eot = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    bounds: BoundsText = None,
    task: Annotated[str | None, typer.Option(
        metavar="classification|segmentation|regression", rich_help_panel=LOAD,
        help="What the outputs mean. [dim]Default: what the network is for[/]")] = None,
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", rich_help_panel=RUN,
        help="Folder of the run; the same command goes on there. [dim]Default: runs/DATE_explain-MODEL_N[/]")] = None,
    config: ConfigFile = None,
    progress: ProgressKind = None,
) -> None:
    """Show what in an image speaks for the answer of MODEL: heat maps, overlays, arrays, and one page of all.

    Examples:

    robustkit explain demo:efficientnet_lite0 cat.jpg --method smoothgrad,xrai,moreaugrad

    robustkit explain timm:resnet50 --data folder:val --limit 8 --method integrated:steps=100 --target label --evaluate

    robustkit explain --from-run runs/a --method smoothgrad:samples=100
    """
    options = {
        "model": model, "images": images or None, "data": data, "from_run": from_run, "methods": method or None,
        "target": target, "output": output, "limit": limit, "evaluate": evaluate, "significant": significant,
        "seed": seed, "batch_size": batch_size_from(batch_size), "device": device, "eot": eot, "weights": weights,
        "mean": list_from(mean), "std": list_from(std), "bounds": list_from(bounds), "task": task, "progress": progress,
    }
    _explain(config, options, out)


def _explain(file: Path | None, options: dict[str, Any], out: Path | None) -> None:
    from robustkit.run.explain_config import load_explain_config
    from robustkit.run.folder import check_folder, default_folder
    from robustkit.run.progress import NotesOnly, make_progress

    config = load_explain_config(file, options)
    folder = out or default_folder(Path("runs"), config)
    check_folder(folder, config)  # before anything is loaded
    shown = NotesOnly() if config.progress == "none" else make_progress(config.progress)
    with shown as progress, stoppable(folder):
        from robustkit.run.explain import run

        results = run(config, folder, command=["robustkit", *sys.argv[1:]], progress=progress)
    print_maps(results)
    if (folder / "report.html").is_file():
        typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(folder)


def print_maps(results: Mapping[str, Any]) -> None:
    """A row for each map, notes, and what the measures say: on stdout."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # a file has room for whole names
    console.print(map_table(results))
    rest = len(results["images"]) - TABLE_ROWS // len(results["methods"])
    if rest > 0:
        console.print(f"[dim]{rest} more images are in the report[/]", highlight=False)
    for note in notes(results):
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    for line in verdicts(results["evaluation"]):
        console.print(escape(line), highlight=False, soft_wrap=True)


def map_table(results: Mapping[str, Any]) -> Any:
    """Image, class, value, method, what the map is worth, and the method's seconds for an image, on average."""
    from rich.markup import escape
    from rich.table import Table

    methods, stages = results["methods"], results["times"]["stages"]
    rows = []
    for image in results["images"][:max(1, TABLE_ROWS // len(methods))]:
        for cell in image["maps"]:
            label = methods[cell["method"]]["label"]
            named = f"{image['name']} ({image['variant']})" if image["variant"] else image["name"]
            first = (escape(named), escape(image["target_name"]), f"{image['value']:.3g}")
            alike = f"{cell['similarity']['spearman']:.2f}" if cell["similarity"] else ""
            seconds = stages.get(label, 0.0) / len(results["images"])
            rows.append((*(("", "", "") if cell["method"] else first), escape(label), _share(cell["relative_residual"]),
                         _share(cell["relative_error"]), alike, f"{seconds:.2f}"))
    table = Table(box=None, pad_edge=False)
    titles = ("image", "class", results["output"], "method", "residual", "error", "like clean", "seconds")
    used = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    for title in (titles[i] for i in used):
        table.add_column(title, justify="left" if title in ("image", "class", "method") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def notes(results: Mapping[str, Any]) -> list[str]:
    """What readers must know, each once."""
    of_maps = [f"{results['methods'][cell['method']]['label']}: {note}"
               for image in results["images"] for cell in image["maps"] for note in cell["notes"]]
    of_measures = (results["evaluation"] or {}).get("notes", [])
    return list(dict.fromkeys([*of_maps, *of_measures]))


def verdicts(evaluation: Mapping[str, Any] | None) -> list[str]:
    """A line for each method and control: means over the images."""
    return [] if evaluation is None else [_verdict(row) for row in evaluation["rows"]]


def _verdict(row: Mapping[str, Any]) -> str:
    figures = {"insertion": "insertion_mean", "deletion": "deletion_mean", "max-sensitivity": "max_sensitivity",
               "randomised": "randomisation"}
    found = [f"{name} {row[key]:.3f}" for name, key in figures.items() if row.get(key) is not None]
    return f"{'control ' if row['control'] else ''}{row['name']}: {', '.join(found)}"


def _share(value: float | None) -> str:
    """In percent.

    >>> _share(0.0312), _share(None)
    ('3.1 %', '')
    """
    return "" if value is None else f"{100 * value:.1f} %"
