"""``robustkit train``: a robust network, with weights chosen on data it did not learn from, and judged on others."""

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
    ProgressKind,
    Std,
    list_from,
    stoppable,
)

WHAT, RECIPE, CHOICE = "What is trained", "Recipe", "Choosing and judging"


def train(
    data: Annotated[str | None, typer.Argument(
        metavar="DATA", help="[bold]demo:mnist-train[/], [bold]folder:DIR[/] (one folder per class), [bold]npz:FILE[/] "
        "(x and y), [bold]hf:ID[/] or [bold]path.py:factory[/]. A part of them is held out.",
        show_default=False)] = None,
    model: Annotated[str | None, typer.Option(
        metavar="MODEL", rich_help_panel=WHAT,
        help="[bold]cnn[/], [bold]resnet8[/], [bold]timm:NAME[/], [bold]torchvision:NAME[/] or "
        "[bold]path.py:factory[/]; [bold]demo:NAME[/] and others to train further. See [bold]robustkit list "
        "networks[/].")] = None,
    defense: Annotated[str | None, typer.Option(
        metavar="NAME[:k=v,...]", rich_help_panel=WHAT,
        help="E.g. [bold]pgd-at[/], [bold]trades:beta=6[/], [bold]awp+trades[/]. See [bold]robustkit list "
        "defenses[/].")] = None,
    threat: Annotated[str | None, typer.Option(
        metavar="NORM:EPS", rich_help_panel=WHAT,
        help="What the attacker may change: [bold]linf:8/255[/], [bold]l2:0.5[/], in units of the input. "
        "[dim]Default: linf:8/255 for defenses that attack[/]")] = None,
    epochs: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=RECIPE,
        help="Passes over the data; [bold]free[/] makes fewer, each with several steps a batch. "
        "[dim]Default: 20[/]")] = None,
    batch_size: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=RECIPE, help="Samples in a step. [dim]Default: 128[/]")] = None,
    optimizer: Annotated[str | None, typer.Option(
        metavar="NAME", rich_help_panel=RECIPE,
        help="[bold]sgd[/] (Nesterov), [bold]adamw[/], [bold]lars[/] or another of timm's. "
        "[dim]Default: sgd[/]")] = None,
    lr: Annotated[str | None, typer.Option(
        metavar="RATE", rich_help_panel=RECIPE,
        help="Peak of the learning rate. [dim]Default: 0.1 for sgd, 1 for lars, else 0.001[/]")] = None,
    weight_decay: Annotated[str | None, typer.Option(
        metavar="W", rich_help_panel=RECIPE,
        help="Not on biases and norms. [dim]Default: 0.0005[/]")] = None,
    momentum: Annotated[str | None, typer.Option(
        metavar="M", rich_help_panel=RECIPE, help="Of optimisers that have one. [dim]Default: 0.9[/]")] = None,
    schedule: Annotated[str | None, typer.Option(
        metavar="NAME", rich_help_panel=RECIPE,
        help="Of the rate: constant, cosine, one-cycle, piecewise, cyclic, poly. [dim]Default: one-cycle[/]")] = None,
    warmup: Annotated[str | None, typer.Option(
        metavar="SHARE", rich_help_panel=RECIPE,
        help="Share of the steps in which the rate rises linearly. [dim]Default: 0[/]")] = None,
    ramp: Annotated[str | None, typer.Option(
        metavar="SHARE", rich_help_panel=RECIPE,
        help="Share of the steps in which eps rises to that of the threat. [dim]Default: 0.2[/]")] = None,
    ema: Annotated[str | None, typer.Option(
        metavar="DECAY", rich_help_panel=RECIPE,
        help="Keep an average of the weights, e.g. [bold]0.995[/], and measure that. [dim]Default: none[/]")] = None,
    grad_clip: Annotated[str | None, typer.Option(
        metavar="NORM", rich_help_panel=RECIPE, help="Largest norm of the gradient. [dim]Default: none[/]")] = None,
    augment: Annotated[str | None, typer.Option(
        metavar="NAME", rich_help_panel=RECIPE,
        help="none, flip, crop, crop-flip, digits, trivial, randaugment. [dim]Default: none[/]")] = None,
    precision: Annotated[str | None, typer.Option(
        metavar="float32|bfloat16", rich_help_panel=RECIPE,
        help="Of the training forward; attacks stay in float32. [dim]Default: float32[/]")] = None,
    init: Annotated[str | None, typer.Option(
        metavar="FILE|pretrained", rich_help_panel=RECIPE,
        help="Weights to begin with: .safetensors, .pt with nothing but tensors, or the published ones.")] = None,
    limit: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=RECIPE, help="Only the first N samples: for trying out.")] = None,
    seed: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=RECIPE, help="Of all random draws. [dim]Default: 0[/]")] = None,
    holdout: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=CHOICE,
        help="Samples held out to choose the best weights by. [dim]Default: 10 %, or 1,000 where these are at most a "
        "quarter[/]")] = None,
    select: Annotated[list[str] | None, typer.Option(
        metavar="ATTACK", rich_help_panel=CHOICE,
        help="Attack on the held-out part; repeat it. [dim]Default: PGD-10 on cross-entropy and on the "
        "margin[/]")] = None,
    select_every: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=CHOICE, help="Epochs between two measurements. [dim]Default: 1[/]")] = None,
    on_overfitting: Annotated[str | None, typer.Option(
        metavar="warn|rollback", rich_help_panel=CHOICE,
        help="When robust accuracy falls by more than 20 points: say so, or end with the weights before. "
        "[dim]Default: warn[/]")] = None,
    test: Annotated[str | None, typer.Option(
        metavar="DATA", rich_help_panel=CHOICE,
        help="Data for the final evaluation. [dim]Default: demo:mnist for demo:mnist-train, else the held-out "
        "part[/]")] = None,
    eval: Annotated[str | None, typer.Option(
        metavar="standard|pgd|none", rich_help_panel=CHOICE,
        help="The final evaluation of the best and the last weights. [dim]Default: standard[/]")] = None,
    eval_limit: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=CHOICE, help="Samples of it. [dim]Default: all[/]")] = None,
    device: Annotated[str | None, typer.Option(
        metavar="cpu|cuda|mps", rich_help_panel=HOW,
        help="Where to compute. [dim]Default: cuda if there is one[/]")] = None,
    workers: Annotated[int | None, typer.Option(
        metavar="N", rich_help_panel=HOW, help="Processes that read data. [dim]Default: 0, this one[/]")] = None,
    mean: Mean = None,
    std: Std = None,
    bounds: BoundsText = None,
    task: Annotated[str | None, typer.Option(
        metavar="classification|segmentation|regression", rich_help_panel=LOAD,
        help="What the outputs mean. [dim]Default: classification[/]")] = None,
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", rich_help_panel=RUN,
        help="Folder of the run; the same command goes on there. "
        "[dim]Default: runs/DATE_train-..._N[/]")] = None,
    resume: Annotated[str | None, typer.Option(
        metavar="auto|never", rich_help_panel=RUN,
        help="Go on with a training that was begun in the folder, or refuse to. [dim]Default: auto[/]")] = None,
    tensorboard: Annotated[bool | None, typer.Option(
        "--tensorboard/--no-tensorboard", rich_help_panel=RUN, help="Also write events for TensorBoard.")] = None,
    config: ConfigFile = None,
    progress: ProgressKind = None,
) -> None:
    """Train a network that withstands attacks: weights are chosen on held-out data and judged on test data.

    Examples:

    robustkit train demo:mnist-train --model cnn --defense trades --threat linf:0.2 --epochs 20 --out runs/trades

    robustkit train folder:train --test folder:val --model timm:resnet18 --defense awp+pgd-at --augment crop-flip

    robustkit evaluate run:runs/trades --data demo:mnist --attack standard --threat linf:0.2
    """
    options = {
        "data": data, "model": model, "defense": defense, "threat": threat, "test": test, "epochs": epochs,
        "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "momentum": momentum,
        "schedule": schedule, "warmup": warmup, "ramp": ramp, "ema": ema, "grad_clip": grad_clip, "augment": augment,
        "precision": precision, "init": init, "holdout": holdout, "select": select or None,
        "select_every": select_every, "on_overfitting": on_overfitting, "eval": eval, "eval_limit": eval_limit,
        "limit": limit, "seed": seed, "mean": list_from(mean), "std": list_from(std), "bounds": list_from(bounds),
        "task": task, "device": device, "workers": workers, "resume": resume, "tensorboard": tensorboard,
        "progress": progress,
    }
    _train(config, options, out)


def _train(file: Path | None, options: dict[str, Any], out: Path | None) -> None:
    from robustkit.run.folder import check_folder, default_folder
    from robustkit.run.progress import NotesOnly, make_progress
    from robustkit.run.train_config import load_train_config

    config = load_train_config(file, options)
    folder = out or default_folder(Path("runs"), config)
    check_folder(folder, config)  # before anything is loaded
    shown = NotesOnly() if config.progress == "none" else make_progress(config.progress)
    with shown as progress, stoppable(folder):
        from robustkit.run.train import run

        results = run(config, folder, command=["robustkit", *sys.argv[1:]], progress=progress)
    print_training(results, folder)


def print_training(results: Mapping[str, Any], folder: Path) -> None:
    """Best beside last, the final evaluation, and how to go on: on stdout."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    console.print(weights_table(results))
    refused: dict[str, list[str]] = {}
    for row in results["evaluations"]:
        if row["refused"]:
            refused.setdefault(row["refused"], []).append(row["weights"])
    for reason, whose in refused.items():
        console.print(f"[yellow]refused[/] the evaluation of {' and '.join(whose)}: {escape(reason)}", highlight=False,
                      soft_wrap=True)
    if results["evaluations"] and not results["evaluations"][0]["unseen"]:
        console.print("[yellow]note[/] evaluated on the held-out part, which also chose the weights: optimistic. Give "
                      "--test DATA for an honest number.", highlight=False, soft_wrap=True)
    typer.echo(f"weights: {folder / 'best.safetensors'} (load them as run:{folder})")
    typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(folder)


def weights_table(results: Mapping[str, Any]) -> Any:
    """A row for the best weights and one for the last: held-out figures, and those of the final evaluation."""
    from rich.table import Table

    judged = {row["weights"]: row for row in results["evaluations"]}
    table = Table(box=None, pad_edge=False)
    attack = next(iter(judged.values()))["attack"] if judged else ""
    titles = ["\nweights", "\nepoch", "held out\nclean", "\nrobust"]
    titles += ["evaluation\nclean", f"{attack}\nrobust", "\n95 %"] if judged else []
    for title in titles:
        table.add_column(title, justify="left" if title == titles[0] else "right", no_wrap=True)
    for which in ("best", "last"):
        found, row = results[which], judged.get(which, {})
        low, high = row.get("interval") or (None, None)
        span = "" if low is None else f"[{percent(low)}, {percent(high)}]"
        figures = (found["clean"], found["robust"], row.get("clean_accuracy"), row.get("robust_accuracy"))
        cells = (which, str(found["epoch"]), *map(percent, figures), span.replace("[", r"\["))
        table.add_row(*cells[: len(titles)])
    return table


def percent(value: float | None) -> str:
    """In percent.

    >>> percent(0.875), percent(None)
    ('87.5 %', '')
    """
    return "" if value is None else f"{100 * value:.1f} %"
