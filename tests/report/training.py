"""A finished training, made up: twenty epochs whose best is not the last, and evaluations of both."""

import json
import math

SAMPLES, EPOCHS, BEST = 3000, 20, 13
THREAT = {"text": "linf:0.2", "norm": "linf", "eps": 0.2}


def make_epoch(k, epochs=EPOCHS, threat=THREAT):
    """Row of the k-th epoch, from 1 on: a loss that falls, and robust accuracy that turns down after the best."""
    share = k / epochs
    robust = 0.66 * (1 - math.exp(-4 * share)) - 0.12 * max(0.0, share - 0.65)
    clean, kl = 0.12 + 1.9 * math.exp(-6 * share), 0.1 + 0.5 * math.exp(-3 * share)
    attacked = {"adversarial": 0.1 + 0.75 * share} if threat else {}
    return {
        "epoch": k,
        "step": 24 * k,
        "lr": 0.05 * (1 + math.cos(math.pi * share)),
        "eps": threat and threat["eps"] * min(1.0, 4 * share),
        "loss": clean + kl if threat else clean,
        "terms": {"clean": clean, "kl": kl} if threat else {"cross-entropy": clean},
        "accuracy": {"clean": 0.99 - 0.7 * math.exp(-6 * share)} | attacked,
        "held_out": {"clean": 0.975 - 0.5 * math.exp(-7 * share), "robust": robust if threat else None},
        "seconds": 11.4,
        "forwards": (12 if threat else 1) * k * SAMPLES,
        "backwards": (11 if threat else 1) * k * SAMPLES,
    }


def make_evaluation(weights, **changes):
    """What ``robustkit evaluate`` found of the best or the last weights."""
    best = weights == "best"
    return {
        "weights": weights,
        "folder": f"evaluation-{weights}",
        "data": "demo:mnist",
        "unseen": True,
        "attack": "standard",
        "n": 1000,
        "clean_accuracy": 0.968 if best else 0.972,
        "robust_accuracy": 0.612 if best else 0.574,
        "interval": [0.581, 0.6423] if best else [0.5427, 0.6049],
        "valid": True,
        "refused": None,
        **changes,
    }


def refused(weights, reason="no gradient reaches the input: D1 failed", **changes):
    """An evaluation that the preflight turned away."""
    nothing = dict.fromkeys(("folder", "clean_accuracy", "robust_accuracy", "interval"))
    return make_evaluation(weights, **nothing, n=0, valid=False, refused=reason, **changes)


def unattacked(weights):
    """What is left of an evaluation without a threat: clean accuracy and its interval."""
    return make_evaluation(weights, folder=None, robust_accuracy=None, interval=[0.955, 0.978])


def make_results(epochs=EPOCHS, threat=THREAT):
    """``results.json``; without a threat that of plain training."""
    rows = [make_epoch(k, epochs, threat) for k in range(1, epochs + 1)]
    best = rows[min(BEST, epochs) - 1]
    return {
        "schema_version": "1.0",
        "kind": "training",
        "complete": True,
        "model": {
            "name": "cnn",
            "spec": "cnn",
            "classes": 10,
            "input_shape": [1, 28, 28],
            "parameters": 81434,
            "bounds": [0.0, 1.0],
            "mean": [0.1307],
            "std": [0.3081],
            "class_names": None,
            "task": "classification",
        },
        "data": {
            "name": "demo:mnist-train",
            "sha256": "b" * 64,
            "trained_on": SAMPLES,
            "held_out": 1000,
            "test": "demo:mnist",
        },
        "defense": {
            "text": "trades:beta=6" if threat else "erm",
            "name": "trades" if threat else "erm",
            "summary": "Clean loss, and how far the attacked output is from the clean one."
            if threat
            else "Training on clean inputs alone.",
            "paper": "https://arxiv.org/abs/1901.08573" if threat else "",
        },
        "threat": threat and dict(threat),
        "recipe": {
            "epochs": epochs,
            "batch_size": 128,
            "steps": 24 * epochs,
            "optimizer": "sgd",
            "lr": 0.1,
            "weight_decay": 0.0005,
            "momentum": 0.9,
            "schedule": "cosine",
            "warmup": 0.0,
            "ramp": 0.25,
            "ema": 0.995,
            "augment": "none",
            "precision": "float32",
            "seed": 0,
            "init": None,
        },
        "epochs": rows,
        "selection": {
            "attacks": ["pgd:steps=10", "pgd:loss=margin,steps=10"] if threat else [],
            "cost": {"forwards": 20_000 * epochs, "backwards": 19_000 * epochs},
        },
        "best": _weights("best", best),
        "last": _weights("last", rows[-1]),
        "overfitting": None,
        "evaluations": [(make_evaluation if threat else unattacked)(weights) for weights in ("best", "last")],
        "cost": {name: rows[-1][name] for name in ("forwards", "backwards")},
        "notes": [],
        "times": {
            "started": "2026-01-02T03:04:05.678+00:00",
            "finished": "2026-01-02T03:10:05+00:00",
            "seconds": 360.0,
            "last_session_seconds": 360.0,
            "stages": {"training": 308.0, "evaluation": 52.0},
            "peak_memory_bytes": 657829888,
        },
    }


def _weights(name, row):
    return {"epoch": row["epoch"], **row["held_out"], "file": f"{name}.safetensors", "sha256": name[0] * 64}


def make_training(path, results=None, *, threat=THREAT, **changes):
    """Write a finished run into a folder and return the folder; ``changes`` replace parts of the results."""
    path.mkdir(parents=True, exist_ok=True)
    results = {**(results or make_results(threat=threat)), **changes}
    write(path / "results.json", results)
    command = ["robustkit", "train", "demo:mnist-train", "--model", "cnn", "--defense", results["defense"]["text"]]
    command += ["--threat", threat["text"]] if threat else []
    versions = {"python": "3.11.7", "robustkit": "0.1.0", "torch": "2.9.0"}
    header = {"command": [*command, "--out", "a run"], "versions": versions, "platform": "Linux-6.1", "device": "cpu"}
    write(path / "run.json", {**header, "config_sha256": "c" * 64, "created": "2026-01-02T03:04:05.678+00:00"})
    (path / "config.yaml").write_text("model: cnn\ndefense: trades:beta=6\nseed: 0\n", encoding="utf-8")
    for evaluation in results["evaluations"]:
        if evaluation.get("folder") is not None:
            (path / evaluation["folder"]).mkdir(exist_ok=True)
            (path / evaluation["folder"] / "report.html").write_text("<!doctype html>", encoding="utf-8")
    return path


def write(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
