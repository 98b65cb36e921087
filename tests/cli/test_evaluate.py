"""``robustkit evaluate``: what reaches the engine, what is printed, and the exit code. The engine is a stand-in."""

import sys
import types
from pathlib import Path

import pytest

from robustkit.core.errors import Incomplete, Refused
from tests.cli.figures import RESULTS

GOOD = ("evaluate", "demo:a", "--data", "demo:b", "--attack", "pgd:steps=3", "--attack", "fgsm", "--threat", "linf:0.2")


@pytest.fixture
def engine(monkeypatch):
    """Stands for the engine: remembers its calls, and returns or raises ``engine.answer``."""
    found = types.ModuleType("robustkit.run.evaluate")
    found.calls, found.answer = [], RESULTS

    def run(config, out, *, command, progress):
        found.calls.append((config, out, command))
        progress.start("pgd", 1)
        progress.note("noted")
        if isinstance(found.answer, BaseException):
            raise found.answer
        return found.answer

    found.run = run
    monkeypatch.setitem(sys.modules, "robustkit.run.evaluate", found)
    return found


def test_options_reach_the_engine(robustkit, engine, tmp_path):
    found = robustkit(*GOOD, "--limit", "5", "--seed", "7", "--batch-size", "16", "--out", "a/b", "--targeted", "next",
                      "--curve", "--force", "--fail-under", "robust_accuracy=0.5", "--device", "cpu", "--eot", "3",
                      "--max-minutes", "2.5", "--weights", "w.pt", "--mean", "127/255", "--std", "0.5",
                      "--bounds", "-1,1", "--task", "classification", "--surrogate", "demo:c", "--progress", "none",
                      "--stages", "apgd-ce, square")
    assert found.exit_code == 0, found.output
    ((config, out, command),) = engine.calls
    assert out == Path("a/b") and command[0] == "robustkit"
    assert config.model_dump() == {
        "model": "demo:a", "data": "demo:b", "attacks": ("pgd:steps=3", "fgsm"), "threat": "linf:0.2", "limit": 5,
        "seed": 7, "batch_size": 16, "weights": tmp_path / "work" / "w.pt", "mean": (127 / 255,), "std": (0.5,),
        "bounds": (-1.0, 1.0), "task": "classification", "surrogate": "demo:c", "targeted": "next", "curve": True,
        "force": True, "stages": ("apgd-ce", "square"), "fail_under": ("robust_accuracy=0.5",), "device": "cpu",
        "eot": 3, "max_minutes": 2.5,
        "progress": "none"}


def test_what_is_printed(robustkit, engine):
    found = robustkit(*GOOD, "--fail-under", "robust_accuracy=0.5", "--progress", "none")
    lines = found.stdout.splitlines()
    assert lines[0] == ("robust accuracy 60.0 % (26.0 to 88.0) under linf:0.2, clean 90.0 % (55.0 to 99.0), n = 10")
    assert any(line.split() == ["pgd", "60.0", "%", "4", "2", "2"] for line in lines)
    assert "WARN D8 iterative beats single-step: [odd]. More steps." in lines
    assert "PASS robust_accuracy 0.6000 >= 0.5" in lines and "diagnostics: 1 WARN" in lines
    assert lines[-1].startswith("runs/") and lines[-1].endswith("_demo-a_1")
    assert found.stderr == "noted\n"


@pytest.mark.parametrize(("changes", "gate", "code", "says"), [
    ({}, "0.6", 0, "PASS"), ({}, "0.61", 1, "FAIL"), ({"complete": False}, "0.61", 3, "incomplete"),
    ({"valid": False}, "0.61", 4, "invalid"), ({"forced": True}, "0.6", 0, "forced"),
    ({"complete": False, "robust_accuracy": None, "interval": None, "attacks": []}, "0.6", 3, "not measured"),
])
def test_exit_codes(robustkit, engine, changes, gate, code, says):
    engine.answer = {**RESULTS, **changes}
    found = robustkit(*GOOD, "--fail-under", f"robust_accuracy={gate}")
    assert found.exit_code == code and says in found.stdout


def test_ctrl_c_says_how_to_go_on(robustkit, engine):
    engine.answer = KeyboardInterrupt()
    found = robustkit(*GOOD, "--out", "here")
    assert found.exit_code == 3 and "what was done is kept" in found.stderr and "--out here" in found.stderr
    assert "Traceback" not in found.output


@pytest.mark.parametrize(("error", "code"), [(Refused("D1: no gradients"), 2), (Incomplete("the disk is full"), 3)])
def test_errors_of_the_engine(robustkit, engine, error, code):
    engine.answer = error
    found = robustkit(*GOOD)
    assert found.exit_code == code and f"Error: {error}" in found.stderr and found.stdout == ""


def test_a_configuration_file_and_what_overrides_it(robustkit, engine):
    lines = ("model: demo:x", "data: demo:y", "attacks: [pgd]", "threat: linf:0.1", "curve: true", "force: true")
    Path("run.yaml").write_text("\n".join(lines))
    assert robustkit("evaluate", "--config", "run.yaml", "--no-curve", "--attack", "fgsm").exit_code == 0
    ((config, _, _),) = engine.calls
    assert (config.model, config.attacks, config.curve, config.force) == ("demo:x", ("fgsm",), False, True)
