"""The end of a training: its best and its last weights, judged by an evaluation of their own."""

from __future__ import annotations

import copy
from typing import Any

import torch

from robustkit.core.errors import Refused
from robustkit.core.model import Model
from robustkit.core.splitnorm import merge
from robustkit.data import Data
from robustkit.data.samples import TensorData
from robustkit.run import evaluate
from robustkit.run.config import EvaluateConfig
from robustkit.run.directory import RunDirectory
from robustkit.run.engine import FORCE
from robustkit.run.interval import clopper_pearson
from robustkit.run.options import validated
from robustkit.run.plan import Plan
from robustkit.run.progress import NoProgress, Progress
from robustkit.run.session import timed
from robustkit.run.train_checkpoint import Position, load
from robustkit.run.train_plan import EVALS, TrainPlan
from robustkit.zoo import load as load_model

AT_ONCE = 250
Row = dict[str, Any]


def evaluate_weights(plan: TrainPlan, run: RunDirectory, position: Position, progress: Progress) -> list[Row]:
    """A row for the best and one for the last weights; none where no evaluation is wanted."""
    if plan.config.eval == "none" or position.best is None or position.last is None:
        return []
    data, unseen = plan.test, True
    if data is None:
        data, unseen = TensorData(*plan.data.take(plan.rows[1]), name=f"held out of {plan.data.name}"), False
    rows: list[Row] = []
    for which in ("best", "last"):
        if which == "last" and position.last["epoch"] == position.best["epoch"]:
            rows.append({**rows[0], "weights": "last"})
            continue
        with timed(run, "evaluation"):
            found = _judged(plan, run, which, data, progress)
        rows.append({"weights": which, "data": data.name, "unseen": unseen, "attack": plan.config.eval, **found})
    return rows


def trained(plan: TrainPlan, run: RunDirectory, which: str) -> Model:
    """A network of its own with stored weights, in eval mode; ``which`` is ``best`` or ``last``."""
    if not plan.spec.startswith("python:"):
        return load_model(f"run:{run.path}" + ("" if which == "best" else f":{which}"), device=plan.config.device)
    net = merge(copy.deepcopy(plan.prepared.net))
    load(net, run.read_tensors(f"{which}.safetensors"))
    model = plan.model.around(net.eval())
    model.name = f"{plan.model.name} ({which})"
    return model


def _judged(plan: TrainPlan, run: RunDirectory, which: str, data: Data, progress: Progress) -> Row:
    model = trained(plan, run, which)
    if plan.threat is None:
        return _clean(model, data, plan.config.eval_limit)
    folder = f"evaluation-{which}"
    options = {
        "model": f"run:{run.path}" + ("" if which == "best" else ":last"),
        "data": data.name if plan.test is not None else "python:held-out",
        "attacks": list(EVALS[plan.config.eval]),
        "threat": plan.threat.exact,
        "limit": plan.config.eval_limit,
        "seed": plan.config.seed,
    }
    config = validated(EvaluateConfig, options, "evaluation")
    judge = Plan(model, data, plan.evaluation, plan.threat, config)
    try:
        found = evaluate.journey(judge, run.file(folder), ["python"], Named(progress, which), reports=True)
    except Refused as error:
        by_name = not plan.spec.startswith("python:")
        anyway = f"robustkit evaluate {options['model']} --force" if by_name else "robustkit.evaluate(..., force=True)"
        refused = str(error).replace(f"({FORCE} goes on", f"({anyway} goes on")
        progress.note(f"the evaluation of the {which} weights was refused")
        return {**_nothing(), "folder": None, "refused": refused}
    keys = ("n", "clean_accuracy", "robust_accuracy", "interval", "valid")
    return {"folder": folder, "refused": None, **{key: found[key] for key in keys}}


def _clean(model: Model, data: Data, limit: int | None) -> Row:
    """Accuracy without any attack, with the interval of it: all that can be said without a threat."""
    n, right = min(len(data), limit or len(data)), 0
    with model.frozen(), torch.no_grad():
        for begin in range(0, n, AT_ONCE):
            x, y = data.take(range(begin, min(begin + AT_ONCE, n)))
            failed = model.task.failed(model(x.to(model.device, model.dtype)), y.to(model.device))
            right += int((~failed).sum())
    found = {"n": n, "clean_accuracy": right / n, "interval": list(clopper_pearson(right, n))}
    return {**_nothing(), "folder": None, "refused": None, "valid": True, **found}


def _nothing() -> Row:
    return {"n": 0, "clean_accuracy": None, "robust_accuracy": None, "interval": None, "valid": False}


class Named(NoProgress):
    """Another display, with the name of the weights before every stage."""

    def __init__(self, shown: Progress, name: str) -> None:
        self._shown, self._name = shown, name

    def start(self, stage: str, total: int) -> None:
        self._shown.start(f"{self._name}: {stage}", total)

    def advance(self, stage: str, n: int, robust_accuracy: float | None = None) -> None:
        self._shown.advance(f"{self._name}: {stage}", n, robust_accuracy)

    def status(self, stage: str, text: str) -> None:
        self._shown.status(f"{self._name}: {stage}", text)

    def note(self, text: str) -> None:
        self._shown.note(f"{self._name}: {text}")
