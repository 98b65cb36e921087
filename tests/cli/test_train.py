"""``robustkit train``: what reaches the engine, what is printed, what is refused."""

import inspect
import io
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

import robustkit as rk
from robustkit.cli.train import weights_table
from robustkit.core.errors import Incomplete
from robustkit.run.train_config import SELECTION, TrainConfig, load_train_config

BEST = {"epoch": 3, "clean": 0.9, "robust": 0.75, "file": "best.safetensors", "sha256": "0"}
JUDGED = {"weights": "best", "folder": "evaluation-best", "data": "demo:mnist", "unseen": True, "attack": "standard",
          "n": 100, "clean_accuracy": 0.95, "robust_accuracy": 0.8, "interval": [0.7, 0.875], "valid": True,
          "refused": None}
TRAIN = rk.train  # before the engine is stood in for
RESULTS = {"kind": "training", "best": BEST, "last": {**BEST, "epoch": 5, "robust": None}, "evaluations": [JUDGED]}


@pytest.fixture
def engine(monkeypatch):
    """Stands for the engine: remembers its calls, and returns or raises ``engine.answer``."""
    found = types.ModuleType("robustkit.run.train")
    found.calls, found.answer = [], RESULTS

    def run(config, out, *, command, progress):
        found.calls.append((config, out, command))
        if isinstance(found.answer, BaseException):
            raise found.answer
        return found.answer

    found.run = run
    monkeypatch.setitem(sys.modules, "robustkit.run.train", found)
    return found


def test_options_reach_the_engine(robustkit, engine, tmp_path):
    found = robustkit(
        "train", "npz:d.npz", "--model", "net.py:build", "--defense", "awp:gamma=0.01+trades:beta=1", "--threat",
        "linf:8/255", "--epochs", "3", "--batch-size", "64", "--optimizer", "adamw", "--lr", "1e-3",
        "--weight-decay", "0", "--momentum", "0.5", "--schedule", "cosine", "--warmup", "1/10", "--ramp", "0.3",
        "--ema", "0.99", "--grad-clip", "1", "--augment", "crop-flip", "--precision", "bfloat16", "--init", "w.pt",
        "--limit", "500", "--seed", "7", "--holdout", "50", "--select", "fgsm", "--select-every", "2",
        "--on-overfitting", "rollback", "--test", "folder:t", "--eval", "pgd", "--eval-limit", "20", "--device", "cpu",
        "--workers", "2", "--mean", "0.5", "--std", "0.25", "--bounds", "-1,1", "--task", "segmentation", "--out", "a",
        "--resume", "never", "--tensorboard", "--progress", "none")
    assert found.exit_code == 0, found.output
    ((config, out, command),) = engine.calls
    work = tmp_path / "work"
    assert out == Path("a") and command[0] == "robustkit"
    assert config.model_dump() == {
        "data": f"npz:{work / 'd.npz'}", "model": f"{work / 'net.py'}:build", "defense": "awp:gamma=0.01+trades:beta=1",
        "threat": "linf:8/255", "test": f"folder:{work / 't'}", "epochs": 3, "batch_size": 64, "optimizer": "adamw",
        "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.5, "schedule": "cosine", "warmup": 0.1, "ramp": 0.3,
        "ema": 0.99, "grad_clip": 1.0, "augment": "crop-flip", "precision": "bfloat16", "init": str(work / "w.pt"),
        "holdout": 50, "select": ("fgsm",), "select_every": 2, "on_overfitting": "rollback", "eval": "pgd",
        "eval_limit": 20, "limit": 500, "seed": 7, "mean": (0.5,), "std": (0.25,), "bounds": (-1.0, 1.0),
        "task": "segmentation", "device": "cpu", "workers": 2, "resume": "never", "tensorboard": True,
        "progress": "none"}


def test_defaults_are_those_of_python(robustkit, engine):
    robustkit("train", "demo:mnist-train", "--model", "cnn", "--defense", "pgd-at")
    config = engine.calls[0][0]
    assert config.select == SELECTION
    for name, parameter in inspect.signature(TRAIN).parameters.items():
        if parameter.default is not parameter.empty and name not in ("eval", "out", "progress"):
            assert getattr(config, name) == parameter.default, name


def test_the_table_fits_a_terminal_of_80_columns_and_has_no_empty_part():
    whole = {**JUDGED, "clean_accuracy": 1.0, "robust_accuracy": 1.0, "interval": [0.98, 1.0]}
    best = {**BEST, "clean": 1.0, "robust": 1.0}
    judged = printed({**RESULTS, "best": best, "evaluations": [whole]}).splitlines()
    assert len(judged) == 4 and "[98.0 %, 100.0 %]" in judged[2]
    assert "evaluation" not in printed({**RESULTS, "evaluations": []})


def printed(results):
    """The table of the weights on a terminal of 80 columns."""
    text = io.StringIO()
    Console(file=text, width=80).print(weights_table(results))
    return text.getvalue()


def test_a_reason_that_both_weights_share_is_said_once(robustkit, engine):
    row = {**JUDGED, "refused": "accuracy at chance"}
    engine.answer = {**RESULTS, "evaluations": [row, {**row, "weights": "last"}]}
    found = robustkit("train", "d.py:d", "--model", "cnn", "--defense", "erm", "--out", "a")
    assert found.stdout.count("accuracy at chance") == 1 and "evaluation of best and last" in found.stdout


def test_figures_are_printed(robustkit, engine):
    found = robustkit("train", "demo:mnist-train", "--model", "cnn", "--defense", "erm", "--out", "a")
    assert found.exit_code == 0
    for text in ("90.0 %", "75.0 %", "95.0 %", "80.0 %", "[70.0 %, 87.5 %]", "run:a", "report: a/report.html"):
        assert text in found.stdout, text
    assert "optimistic" not in found.stdout
    engine.answer = {**RESULTS, "evaluations": [{**JUDGED, "unseen": False, "refused": "clean accuracy [at] chance"}]}
    found = robustkit("train", "demo:mnist-train", "--model", "cnn", "--defense", "erm", "--out", "a")
    assert "optimistic" in found.stdout and "clean accuracy [at] chance" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data given"),
        (("demo:mnist-train", "--defense", "erm"), "no model given"),
        (("demo:mnist-train", "--model", "cnn"), "no defense given"),
        (("demo:mnist-train", "--model", "cnn", "--defense", "erm", "--lr", "0"), "lr cannot be used"),
        (("demo:mnist-train", "--model", "cnn", "--defense", "erm", "--epochs", "0"), "epochs cannot be used"),
        (("demo:mnist-train", "--model", "cnn", "--defense", "erm", "--schedule", "sine"), "cosine"),
        (("demo:mnist-train", "--model", "cnn", "--defense", "erm", "--threat", "linf"), "a threat needs a radius"),
        (("demo:mnist-train", "--model", "cnn", "--defense", "erm", "--precision", "half"), "precision cannot be used"),
    ],
)
def test_bad_options_are_one_message(robustkit, engine, arguments, message):
    found = robustkit("train", *arguments)
    assert found.exit_code == 2 and message in found.stderr.replace("\n", " ") and "Traceback" not in found.stderr
    assert not engine.calls


def test_an_interruption_is_exit_3(robustkit, engine):
    engine.answer = Incomplete("stopped in epoch 2", fix="Give the same command again to go on.")
    found = robustkit("train", "demo:mnist-train", "--model", "cnn", "--defense", "erm", "--out", "a")
    assert found.exit_code == 3 and "same command" in found.stderr


def test_a_stored_configuration_is_read_back(tmp_path):
    from robustkit.run.options import dump_config

    config = load_train_config(None, {"data": "demo:mnist", "model": "cnn", "defense": "rat", "init": "w.safetensors"})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_train_config(tmp_path / "c.yaml", {}) == config
    assert TrainConfig.mark == "defense"
