"""The page of a training: what its best weights are worth on unseen data, how they came about, and how to use them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robustkit.report import plots_training, text
from robustkit.report.files import RunFiles
from robustkit.report.templates import command_lines, environment, source, style

FOLDER = re.compile(r"\w[\w.-]*", re.ASCII)
"""A folder that a link may lead to: one inside the run."""
RECIPE = {
    "epochs": "epochs",
    "batch_size": "batch size",
    "steps": "steps",
    "optimizer": "optimiser",
    "lr": "learning rate",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "schedule": "schedule",
    "warmup": "warm-up",
    "ramp": "ramp of eps",
    "ema": "averaged weights",
    "grad_clip": "gradients cut at",
    "augment": "augmentation",
    "precision": "precision",
    "init": "first weights",
    "seed": "seed",
}
"""Key -> name, in the order of the page; keys of later versions follow under their own."""
SHARES = {"warmup", "ramp"}
"""Of the recipe: shares of all steps."""
Row = dict[str, Any]


def render(folder: str | Path) -> str:
    """The whole page of a run of ``robustkit train``.

    Raises:
        UsageError: the folder holds no such run, or its files are damaged.
        Incomplete: the run has no results yet.
    """
    return environment().get_template("train.html.j2").render(_context(opened(folder)))


def fragment(folder: str | Path) -> str:
    """The verdict, the weights and the curve of accuracy, for notebooks.

    Raises:
        UsageError, Incomplete: as :func:`render`.
    """
    return environment().get_template("train_fragment.html.j2").render(_context(opened(folder)))


def opened(folder: str | Path) -> RunFiles:
    """The run in a folder, once its results have the shape that the page relies on.

    Raises:
        UsageError: the folder holds no training, or its files are damaged.
        Incomplete: the run has no results yet.
    """
    return RunFiles.open(folder).of("training", load_schema(), "robustkit train")


@lru_cache(maxsize=1)
def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json`` of a training."""
    found: dict[str, Any] = json.loads(files("robustkit.report").joinpath("train.schema.json").read_text("utf-8"))
    return found


def _context(run: RunFiles) -> Row:
    r = run.results
    headline = _headline(r)
    return {
        "r": r,
        "run": run.run,
        "headline": headline,
        "stamps": list(_stamps(r, headline)),
        "weights": [_weights(run, name) for name in ("best", "last") if r[name] is not None],
        "measured": next((e for e in r["evaluations"] if e["refused"] is None), None),
        **_curves(r),
        "recipe": _recipe(r["recipe"]),
        "cost": _cost(r),
        "usage": _usage(run),
        "command": command_lines(run.run.get("command") or []),
        "config": run.config_text,
        "css": style(),
        "own_css": source("train.css"),
    }


def _headline(r: Row) -> Row:
    """The figures of the best weights that stand for the training, and of what they are.

    Those on unseen data come first, then those on the held-out part, from a whole evaluation or from the selection.
    ``source`` is ``unseen``, ``held-out``, ``selection`` or ``none``.
    """
    found = _evaluation(r, "best")
    if found is not None and found["refused"] is None:
        source = "unseen" if found["unseen"] else "held-out"
        return {**found, "source": source, "word": "", "void": not found["valid"]}
    best = r["best"]
    figures = {"clean_accuracy": best and best["clean"], "robust_accuracy": best and best["robust"]}
    known = best is not None and best["clean"] is not None
    return {
        **figures,
        "interval": None,
        "n": r["data"]["held_out"] if known else None,
        "data": "the held-out part",
        "attack": " and ".join(r["selection"]["attacks"]),
        "source": "selection" if known else "none",
        "word": "held-out part" if found is None else "held-out part; its evaluation was refused",
        "void": found is not None,  # refused
    }


def _evaluation(r: Row, weights: str) -> Row | None:
    return next((e for e in r["evaluations"] if e["weights"] == weights), None)


def _stamps(r: Row, headline: Row) -> Iterator[tuple[str, str]]:
    """(kind, text) of everything that limits the headline; kind is fail or warn."""
    for reason, whose in _troubles(r["evaluations"]).items():
        of = f"the {' and the '.join(whose)} weights"
        if reason is None:
            yield "fail", f"Invalid: a check says that the figures of {of} mean nothing."
        else:
            yield "fail", f"The evaluation of {of} was refused: {reason}"
    if r["overfitting"] is not None:
        yield "fail", _overfitting(r["overfitting"], r["best"])
    if not r["complete"]:
        done, wanted = len(r["epochs"]), r["recipe"]["epochs"]
        yield "warn", f"Incomplete: {done} of {wanted} epochs are done; the same command goes on."
    if headline["source"] in ("held-out", "selection"):
        yield "warn", _optimistic(headline, robust=headline["robust_accuracy"] is not None)


def _troubles(evaluations: Sequence[Row]) -> dict[str | None, list[str]]:
    """Why evaluations were refused, or None where one is invalid -> the weights concerned."""
    found: dict[str | None, list[str]] = {}
    for e in evaluations:
        if e["refused"] is not None or not e["valid"]:
            found.setdefault(e["refused"], []).append(e["weights"])
    return found


def _overfitting(found: Row, best: Row | None) -> str:
    before, after = text.percent(found["before"]), text.percent(found["after"])
    then = f"The best weights are those of epoch {best['epoch']}." if best else ""
    if found["action"] == "rollback":
        then = "The training ended with the weights before it."
    return f"Catastrophic overfitting in epoch {found['epoch']}: robust accuracy fell from {before} to {after}. {then}"


def _optimistic(headline: Row, *, robust: bool) -> str:
    said = "The figures are those of the held-out part that also chose the weights: optimistic."
    if headline["source"] == "selection" and robust:
        said += f" They are by {headline['attack'] or 'a short attack'}, which is weaker than a whole evaluation."
    return said


def _weights(run: RunFiles, name: str) -> Row:
    """A line of the table of weights."""
    r = run.results
    found = _evaluation(r, name)
    folder = (found["folder"] if found else None) or ""
    link = f"{folder}/report.html"
    there = FOLDER.fullmatch(folder) is not None and (run.path / link).is_file()
    return {**r[name], "name": name, "evaluation": found, "link": link if there else None}


def _curves(r: Row) -> Row:
    """The plots, made of numbers and of names that matplotlib escapes, and by what the best epoch was chosen."""
    rows = r["epochs"]
    robust = any(row["held_out"] and row["held_out"]["robust"] is not None for row in rows)
    marks = {"best": r["best"], "overfitting": r["overfitting"]}
    drawn = {
        "accuracy": plots_training.accuracy(rows, **marks),
        "accuracy_narrow": plots_training.accuracy(rows, **marks, width=6.2),
        "loss": plots_training.loss(rows),
        "lr": plots_training.small(rows, "lr", "learning rate"),
        "eps": plots_training.small(rows, "eps", "eps"),
    }
    return {"chosen_by": "robust" if robust else "clean", **{k: v and Markup(v) for k, v in drawn.items()}}


def _recipe(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each part of the recipe."""
    names = {**RECIPE, **{key: key.replace("_", " ") for key in recipe}, **RECIPE}
    return [(names[key], _said(key, recipe[key])) for key in names if key in recipe]


def _said(key: str, value: Any) -> str:
    """A value of the recipe in words.

    >>> _said("ramp", 0.25), _said("lr", 0.1), _said("ema", None), _said("init", None)
    ('25 % of the steps', '0.1', 'no', 'drawn at random')
    """
    if value is None:
        return "drawn at random" if key == "init" else "no"
    if key in SHARES:
        return f"{100 * value:g} % of the steps" if value else "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "seed" or not isinstance(value, int | float):
        return str(value)
    return f"decay {value:g}" if key == "ema" else text.number(value)


def _cost(r: Row) -> list[Row]:
    """Passes of the steps and of the selection, in all and for each sample that is learnt from."""
    rows = [("training", r["cost"]), ("choosing the best weights", r["selection"]["cost"])]
    return [{"name": name, **cost, "gradients": gradients(cost)} for name, cost in rows]


def gradients(cost: Mapping[str, int]) -> float:
    """Passes in example-gradients: a forward and a backward together are one, a forward alone a third of it.

    >>> gradients({"forwards": 130, "backwards": 100})
    110.0
    """
    return cost["backwards"] + (cost["forwards"] - cost["backwards"]) / 3


def _usage(run: RunFiles) -> Row:
    """What to type to use the weights; a network that was given from Python has no name to load it by."""
    r, name = run.results, f"run:{run.path}"
    file = str(run.path / (r["best"] or {"file": "best.safetensors"})["file"])
    tensors = f"load_file({_quoted(file)})"
    start = "from safetensors.torch import load_file\n\n"
    if r["model"]["spec"].startswith("python:"):
        return {"by_name": False, "blocks": [f"{start}network.load_state_dict({tensors})"]}
    words = ["robustkit", "evaluate", name, "--data", r["data"]["test"] or "DATA", "--attack", "standard"]
    words += ["--threat", r["threat"]["text"] if r["threat"] else "NORM:EPS"]
    load = f"import robustkit as rk\n\nmodel = rk.load({_quoted(name)})"
    return {"by_name": True, "blocks": [command_lines(words), load, f"{start}tensors = {tensors}"]}


def _quoted(value: str) -> str:
    """Text as Python takes it, whatever it holds."""
    return json.dumps(value, ensure_ascii=not value.isprintable())
