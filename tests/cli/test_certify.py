"""``robustkit certify``: what reaches the engine, what is printed, which exit code; the other verbs on its folder."""

import sys
import types
from pathlib import Path

import pytest

from robustkit.core.errors import Incomplete
from robustkit.run.certify_config import CertifyConfig
from tests.cli import toys

POINTS = [{"radius": r / 10, "certified_accuracy": 1 - r / 10, "certified": 1 - r / 20, "interval": [0, 1],
           "empirical": None} for r in range(11)]
RESULTS = {
    "kind": "certification", "complete": True, "valid": True, "forced": False, "n": 20,
    "data": {"size": 40, "limit": 20}, "dense": None, "property": {"norm": "l2", "radius": None},
    "verifier": {"mode": "radius", "text": "each is wrong with probability at most 0.001"},
    "clean_accuracy": 0.95, "clean_interval": [0.8, 0.99], "certified_accuracy": 0.9, "interval": [0.7, 0.95],
    "radius": 0.0, "abstained": 0.05, "outcomes": {"certified": 19, "falsified": 0, "unknown": 1},
    "average_certified_radius": 0.4321, "curve": POINTS, "reasons": [{"text": "abstained [x]", "count": 1}],
    "draws": {"median": 1000.0, "max": 1000, "total": 20000}, "nan_answers": {"count": 0, "share": 0.0},
    "falsification": None, "notes": ["mind the gap"],
}
ATTACK = {"attack": "pgd:steps=5", "tried": 19, "found": 7, "contradictions": 0}


@pytest.fixture
def engine(monkeypatch):
    """Stands for the engine: remembers its calls, and returns or raises ``engine.answer``."""
    found = types.ModuleType("robustkit.run.certify")
    found.calls, found.answer = [], RESULTS

    def run(config, out, *, command, progress):
        found.calls.append((config, out, command))
        if isinstance(found.answer, BaseException):
            raise found.answer
        return found.answer

    found.run = run
    monkeypatch.setitem(sys.modules, "robustkit.run.certify", found)
    return found


ARGUMENTS = ("certify", "demo:a", "--data", "demo:b", "--method", "smoothing:n=100")


def test_options_reach_the_engine(robustkit, engine):
    found = robustkit(*ARGUMENTS, "--limit", "5", "--seed", "7", "--batch-size", "16", "--out", "a/b", "--force",
                      "--falsify", "pgd: steps=3", "--device", "cpu", "--weights", "w.pt", "--mean", "127/255",
                      "--std", "0.5", "--bounds", "-1,1", "--task", "segmentation", "--progress", "none")
    assert found.exit_code == 0, found.output
    config, out, _ = engine.calls[0]
    assert out == Path("a/b") and isinstance(config, CertifyConfig)
    assert config.model_dump(mode="json") == {
        "model": "demo:a", "data": "demo:b", "method": "smoothing:n=100", "falsify": "pgd:steps=3", "limit": 5,
        "seed": 7, "batch_size": 16, "weights": f"{Path.cwd()}/w.pt", "mean": [127 / 255], "std": [0.5],
        "bounds": [-1.0, 1.0], "task": "segmentation", "force": True, "device": "cpu", "progress": "none",
    }


def test_what_is_printed(robustkit, engine):
    lines = robustkit(*ARGUMENTS).stdout.splitlines()
    assert lines[0].startswith("certified accuracy 90.0 % (70.0 to 95.0), without noise 95.0 %")
    assert "abstained on 5.0 % of the samples; 19 certified, 0 falsified, 1 unknown" in lines[1]
    assert lines[2] == "average certified radius 0.4321 (L2)"
    assert "limited to 20 of 40 samples: for testing, not a benchmark" in lines
    assert "unknown: 1 abstained [x]" in lines and "note mind the gap" in lines
    assert any(line.split() == ["1.000", "0.0", "%"] for line in lines), "the last point of the curve"
    assert Path(lines[-1]).parts[0] == "runs"


def test_an_asked_radius_an_attack_and_decisions(robustkit, engine):
    curve = [{**point, "empirical": 0.97} for point in POINTS]
    engine.answer = {**RESULTS, "curve": curve, "falsification": ATTACK, "property": {"norm": "l2", "radius": 0.5}}
    said = robustkit(*ARGUMENTS).stdout
    assert "at L2 radius 0" in said and "under attack" in said and "97.0 %" in said
    assert "shown at 7 of 19 samples, 0 of them inside a certified radius" in said
    engine.answer = {**RESULTS, "verifier": {"mode": "decide", "text": ""}, "average_certified_radius": None}
    said = robustkit(*ARGUMENTS).stdout
    assert "radius " not in said.replace("radius 0.", "") and "average" not in said


def test_exit_codes(robustkit, engine):
    engine.answer = {**RESULTS, "valid": False, "falsification": {**ATTACK, "contradictions": 5}}
    found = robustkit(*ARGUMENTS)
    assert found.exit_code == 4 and "invalid" in found.stdout
    engine.answer = KeyboardInterrupt()
    found = robustkit(*ARGUMENTS, "--out", "a")
    assert found.exit_code == 3 and "with --out a" in found.output
    engine.answer = Incomplete("the disk is full")
    assert robustkit(*ARGUMENTS).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("certify", "demo:mnist-smooth", "--method", "smoothing"), "no data given"),
        (("certify", "--data", "demo:mnist", "--method", "smoothing"), "no model given"),
        (("certify", "demo:mnist-smooth", "--data", "demo:mnist"), "no method given"),
        ((*ARGUMENTS, "--limit", "0"), "limit cannot be used"),
        ((*ARGUMENTS, "--seed", "-1"), "seed cannot be used"),
        ((*ARGUMENTS, "--batch-size", "0"), "batch_size cannot be used"),
        ((*ARGUMENTS, "--std", "0.5"), "mean and std go together"),
    ],
)
def test_missing_and_wrong_options(robustkit, arguments, said):
    found = robustkit(*arguments)
    assert found.exit_code == 2 and said in found.stderr and "Traceback" not in found.output


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("smoothin", "Did you mean smoothing"),
        ("smoothing:sigma=0", "sigma"),
        ("smoothing:sigma=-1", "sigma"),
        ("smoothing:sigma=nan", "sigma"),
        ("smoothing:alpha=0", "alpha"),
        ("smoothing:alpha=1", "alpha"),
        ("smoothing:n=10", "n >= n0"),
        ("smoothing:n=0", "n"),
        ("smoothing:radius=-1", "radius"),
        ("smoothing:mode=decide", "a radius with mode=decide"),
        ("smoothing:mode=both", "'radius' or 'decide'"),
        ("smoothing:noise=1", "has no option 'noise'"),
        ("dual-smoothing:fill=other", "fill"),
        ("dual-smoothing:sigma_right=0", "sigma_right"),
    ],
)
def test_wrong_methods(robustkit, method, said):
    found = robustkit("certify", "demo:mnist-smooth", "--data", "demo:mnist", "--method", method)
    assert found.exit_code == 2 and said in found.stderr, found.output
    assert "Traceback" not in found.output and len(found.stderr.strip().splitlines()) <= 2


def test_a_whole_run(robustkit, tmp_path):
    """From files to a page, and what the other verbs say of the folder."""
    toys.build(tmp_path / "toys")
    command = ("certify", f"{tmp_path}/toys/nets.py:good", "--data", f"npz:{tmp_path}/toys/good.npz", "--method",
               "smoothing:sigma=0.1,n=200,n0=20", "--out", "run", "--limit", "6")
    found = robustkit(*command)
    assert found.exit_code == 0, found.output
    assert Path("run/report.html").is_file() and Path("run/results.json").is_file()
    assert "nothing to do" in robustkit(*command).output
    assert robustkit("verify", "run").exit_code == 0
    refused = robustkit("check", "run", "--fail-under", "robust_accuracy=0.1")
    assert refused.exit_code == 2 and "this run is a certification" in refused.output
    assert robustkit("show", "certifier", "smoothing").exit_code == 0
    assert "dual-smoothing" in robustkit("list", "certifiers").stdout
