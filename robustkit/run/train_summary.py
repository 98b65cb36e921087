"""``results.json`` of a training: a function of its plan, its position and its evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustkit.certify.halves import SplitModel
from robustkit.core.defense import DEFENSES
from robustkit.core.files import inside
from robustkit.core.task import task_text
from robustkit.run.directory import SCHEMA_VERSION, RunDirectory
from robustkit.run.train_checkpoint import Position
from robustkit.run.train_plan import TrainPlan
from robustkit.zoo.run import origin, split_of

Row = dict[str, Any]
TAKEN = (
    *("optimizer", "weight_decay", "momentum", "schedule", "warmup", "ramp", "ema", "grad_clip"),
    *("augment", "precision", "limit", "seed"),
)
"""Options that stand in the recipe as they were given."""


def summarise(plan: TrainPlan, run: RunDirectory, position: Position, evaluations: Sequence[Row]) -> Row:
    """Everything but the times."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": plan.config.kind,
        "complete": True,
        "model": model_facts(plan),
        "data": _data(plan),
        "defense": _defense(plan),
        "threat": _threat(plan),
        "recipe": _recipe(plan),
        "epochs": position.epochs,
        "selection": {"attacks": list(plan.config.select) if plan.selection else [], "cost": position.spent},
        "best": _weights(run.path, "best.safetensors", position.best),
        "last": _weights(run.path, "last.safetensors", position.last),
        "overfitting": position.overfitting,
        "evaluations": list(evaluations),
        "cost": position.cost,
        "notes": list(plan.remarks),
    }


def model_facts(plan: TrainPlan) -> Row:
    """The network, as results and reports describe it."""
    model, (x, _) = plan.prepared, plan.inputs(plan.rows[0][:1])
    outputs = model.output_shape(x)
    return {
        "name": model.name,
        "spec": plan.spec,
        "task": model.task.name,
        "classes": outputs[0],
        "input_shape": list(x.shape[1:]),
        "parameters": sum(p.numel() for name, p in model.net.named_parameters() if ".aux_bn." not in f".{name}"),
        "bounds": [model.bounds.low, model.bounds.high],
        "mean": list(model.mean) if model.mean else None,
        "std": list(model.std) if model.std else None,
        "class_names": list(model.class_names) if model.class_names else None,
    }


def model_file(plan: TrainPlan) -> Row:
    """``model.json``: what ``run:DIR`` needs to make the network again."""
    facts = model_facts(plan)
    kept = {key: facts[key] for key in ("classes", "mean", "std", "bounds", "class_names")}
    weights = {name: f"{name}.safetensors" for name in ("best", "last")}
    again = {"spec": origin(plan.spec), "task": task_text(plan.model.task), "shape": facts["input_shape"]}
    return {**kept, **again, "split": _split(plan), "weights": weights}


def _split(plan: TrainPlan) -> Row | None:
    """How the network of that name was made a SplitModel, by this training or by the one that it goes on from."""
    net = plan.prepared.net
    if not isinstance(net, SplitModel):
        return None
    if isinstance(plan.model.net, SplitModel):
        return split_of(plan.spec)
    return {"fill": net.fill, "shared": net.left is net.right}


def _data(plan: TrainPlan) -> Row:
    return {
        "name": plan.data.name,
        "sha256": plan.data.fingerprint(),
        "trained_on": len(plan.rows[0]),
        "held_out": len(plan.rows[1]),
        "test": plan.test.name if plan.test else None,
    }


def _defense(plan: TrainPlan) -> Row:
    entry = DEFENSES.entry_of(plan.defense)
    return {"text": plan.defense.text, "name": entry.name, "summary": entry.summary, "paper": entry.paper}


def _threat(plan: TrainPlan) -> Row | None:
    threat = plan.threat
    return None if threat is None else {"text": threat.text, "norm": threat.norm, "eps": float(threat.eps)}


def _recipe(plan: TrainPlan) -> Row:
    config = plan.config
    return {
        "epochs": plan.epochs,
        "batch_size": plan.batch,
        "steps": plan.steps,
        "lr": plan.lr,
        "init": "as given" if plan.spec.startswith("python:") else config.init,
        **{key: getattr(config, key) for key in TAKEN},
    }


def _weights(folder: Path, name: str, record: Row | None) -> Row | None:
    if record is None:
        return None
    return {**record, "file": name, "sha256": hashlib.sha256(inside(folder, name).read_bytes()).hexdigest()}
