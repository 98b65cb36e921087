"""``robustkit evaluate``: the robust accuracy of a model on data under a threat, with the evidence."""

import sys
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

WHAT = "What is evaluated"


def evaluate(
    model: ModelName = None,
    data: Annotated[str | None, typer.Option(
        metavar="DATA", rich_help_panel=WHAT,
        help="[bold]demo:NAME[/], [bold]folder:DIR[/] (one folder per class), [bold]npz:FILE[/] (x and y), "
        "[bold]hf:ID[/] or [bold]path.py:factory[/].")] = None,
    attack: Annotated[list[str] | None, typer.Option(
        metavar="NAME[:k=v,...]", rich_help_panel=WHAT,
        help="An attack and its options, e.g. [bold]pgd:steps=20,restarts=2[/]. Repeat it: what counts is the worst "
        "case over all. See [bold]robustkit list attacks[/].")] = None,
    stages: Annotated[str | None, typer.Option(
        metavar="NAME,...", rich_help_panel=WHAT,
        help="Only these stages of a suite such as [bold]standard[/]: [bold]apgd-ce,apgd-t[/].")] = None,
    threat: Annotated[str | None, typer.Option(
        metavar="NORM:EPS", rich_help_panel=WHAT,
        help="What the attacker may change: [bold]linf:8/255[/], [bold]l2:0.5[/], [bold]l1:12[/], in units of the "
        "input.")] = None,
    eps_scale: Annotated[float | None, typer.Option(
        metavar="NUMBER", rich_help_panel=WHAT,
        help="Divide EPS by it: [bold]linf:8[/] with 255 is linf:8/255.")] = None,
    targeted: Annotated[str | None, typer.Option(
        metavar="random|least-likely|next", rich_help_panel=WHAT,
        help="Count only attacks that reach this class. Without it any mistake counts.")] = None,
    limit: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=WHAT, help="Only the first N samples: for testing, the report says so.")] = None,
    curve: Annotated[bool | None, typer.Option(
        "--curve/--no-curve", rich_help_panel=HOW,
        help="Also robust accuracy at 8 or more radii, down to chance.")] = None,
    surrogate: Annotated[str | None, typer.Option(
        metavar="MODEL", rich_help_panel=HOW,
        help="A second model whose adversarial inputs are tried on the first (diagnostic D5).")] = None,
    eot: Eot = None,
    seed: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=HOW, help="Of all random draws. [dim]Default: 0[/]")] = None,
    batch_size: Annotated[str | None, typer.Option(
        metavar="auto|N", rich_help_panel=HOW,
        help="Samples at a time; auto halves it when memory runs out. [dim]Default: auto[/]")] = None,
    device: Annotated[str | None, typer.Option(
        metavar="cpu|cuda|mps", rich_help_panel=HOW,
        help="Where to compute. [dim]Default: cuda if there is one[/]")] = None,
    force: Annotated[bool | None, typer.Option(
        "--force/--no-force", rich_help_panel=HOW,
        help="Go on where the preflight refuses; the report is stamped.")] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    bounds: BoundsText = None,
    task: Annotated[str | None, typer.Option(
        metavar="classification|segmentation|regression", rich_help_panel=LOAD,
        help="What the outputs mean. [dim]Default: classification[/]")] = None,
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", rich_help_panel=RUN,
        help="Folder of the run; the same command goes on there. [dim]Default: runs/DATE_MODEL_N[/]")] = None,
    config: ConfigFile = None,
    fail_under: Annotated[list[str] | None, typer.Option(
        metavar="METRIC=VALUE", rich_help_panel=RUN,
        help="Exit 1 if a figure is below, e.g. [bold]robust_accuracy=0.45[/]. Repeat it for several.")] = None,
    max_minutes: Annotated[float | None, typer.Option(
        metavar="M", rich_help_panel=RUN, help="Stop after M minutes with exit 3; the same command goes on.")] = None,
    progress: ProgressKind = None,
) -> None:
    """Measure the robust accuracy of MODEL: attack it, check that the number can be trusted, write a report.

    Examples:

    robustkit evaluate demo:mnist-robust --data demo:mnist --attack fgsm --attack pgd:steps=40 --threat linf:0.2

    robustkit evaluate timm:resnet50 --data folder:val --attack standard --threat linf:4/255 --limit 500

    robustkit evaluate --config runs/a/config.yaml --seed 1 --out runs/b
    """
    options = {
        "model": model, "data": data, "attacks": attack or None, "stages": list_from(stages), "threat": threat,
        "eps_scale": eps_scale, "targeted": targeted, "limit": limit, "curve": curve, "surrogate": surrogate,
        "eot": eot, "seed": seed, "batch_size": batch_size_from(batch_size), "device": device, "force": force,
        "weights": weights, "mean": list_from(mean), "std": list_from(std), "bounds": list_from(bounds), "task": task,
        "fail_under": fail_under or None, "max_minutes": max_minutes, "progress": progress,
    }
    _evaluate(config, options, out)


def _evaluate(file: Path | None, options: dict[str, Any], out: Path | None) -> None:
    from robustkit.cli.outcome import exit_code, print_results
    from robustkit.run.config import load_config
    from robustkit.run.folder import check_folder, default_folder
    from robustkit.run.gates import judge
    from robustkit.run.progress import NotesOnly, make_progress

    config = load_config(file, options)
    folder = out or default_folder(Path("runs"), config)
    check_folder(folder, config)  # before anything is loaded
    shown = NotesOnly() if config.progress == "none" else make_progress(config.progress)
    with shown as progress, stoppable(folder):
        from robustkit.run.evaluate import run

        results = run(config, folder, command=["robustkit", *sys.argv[1:]], progress=progress)
    gates = judge(config.fail_under, results)
    print_results(results, gates)
    if (folder / "report.html").is_file():
        typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(folder)
    raise typer.Exit(exit_code(results, gates))
