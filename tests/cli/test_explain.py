"""``robustkit explain``: what reaches the engine, what is printed, what is refused; the other verbs on its folder."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from robustkit.core import files
from robustkit.core.errors import Incomplete
from robustkit.core.registry import Registry
from robustkit.run.explain_config import ExplainConfig, load_explain_config
from robustkit.run.options import config_digest, dump_config
from tests.cli import toys


def cell(method, **changes):
    return {"method": method, "file": "a.npz", "heat": None, "overlay": None, "min": 0.0, "max": 1.0, "residual": None,
            "relative_residual": None, "relative_error": None, "fixed_point_residual": None, "notes": [],
            "similarity": None, "evaluation": None, **changes}


ROW = {"insertion_mean": 0.5, "deletion_mean": 0.25, "max_sensitivity": None, "randomisation": 0.125}
RESULTS = {
    "kind": "explanation", "output": "logit", "methods": [{"label": "smoothgrad:samples=9"}, {"label": "xrai"}],
    "times": {"stages": {"smoothgrad:samples=9": 3.0, "xrai": 1.0}},
    "images": [{"name": "[a].jpg", "variant": None, "target_name": "cat", "value": 1.5,
                "maps": [cell(0, relative_error=0.25), cell(1, relative_residual=0.081, notes=["mind the gap"])]}],
    "evaluation": {"rows": [{"name": "xrai", "control": False, **ROW}, {"name": "random", "control": True, **ROW}],
                   "notes": ["not measured"]},
}


@pytest.fixture
def engine(monkeypatch):
    """Stands for the engine: remembers its calls, and returns or raises ``engine.answer``."""
    found = types.ModuleType("robustkit.run.explain")
    found.calls, found.answer = [], RESULTS

    def run(config, out, *, command, progress):
        found.calls.append((config, out, command))
        progress.note("noted")
        if isinstance(found.answer, BaseException):
            raise found.answer
        return found.answer

    found.run = run
    monkeypatch.setitem(sys.modules, "robustkit.run.explain", found)
    return found


def test_options_reach_the_engine(robustkit, engine, tmp_path):
    found = robustkit("explain", "demo:a", "x.jpg", "y", "--method", "smoothgrad:samples=9,antithetic=true,xrai",
                      "--method", "captum:Occlusion,stride=4", "--target", "tabby cat", "--output", "margin",
                      "--limit", "5", "--seed", "7", "--batch-size", "16", "--out", "a/b", "--evaluate",
                      "--significant", "--device", "cpu", "--eot", "3", "--weights", "w.pt", "--mean", "127/255",
                      "--std", "0.5", "--bounds", "-1,1", "--task", "segmentation", "--progress", "none")
    assert found.exit_code == 0, found.output
    ((config, out, command),) = engine.calls
    work = tmp_path / "work"
    assert out == Path("a/b") and command[0] == "robustkit"
    assert config.model_dump() == {
        "model": "demo:a", "images": (str(work / "x.jpg"), str(work / "y")), "data": None, "from_run": None,
        "methods": ("smoothgrad:samples=9,antithetic=true", "xrai", "captum:Occlusion,stride=4"),
        "target": "tabby cat", "output": "margin", "evaluate": True, "significant": True, "limit": 5, "seed": 7,
        "batch_size": 16, "weights": work / "w.pt", "mean": (127 / 255,), "std": (0.5,), "bounds": (-1.0, 1.0),
        "task": "segmentation", "device": "cpu", "eot": 3, "progress": "none"}


def test_explain_has_exactly_the_options_of_the_configuration(robustkit):
    from robustkit.cli.explain import explain

    options = set(explain.__annotations__) - {"return"}
    assert options - {"out", "config", "method"} == set(ExplainConfig.model_fields) - {"methods"}
    text = robustkit("explain", "--help").stdout
    assert all(f"--{option.replace('_', '-')}" in text for option in options - {"model", "images"})


def test_defaults(robustkit, engine):
    assert robustkit("explain", "demo:a", "--data", "demo:b").exit_code == 0
    assert robustkit("explain", "demo:a", "x.jpg").exit_code == 0
    samples, pictures = (config for config, _, _ in engine.calls)
    assert (samples.methods, samples.target, samples.limit, samples.seed) == (("smoothgrad",), "predicted", 16, 0)
    assert pictures.limit is None


def test_what_is_printed(robustkit, engine):
    found = robustkit("explain", "demo:a", "x.jpg", "--progress", "none")
    lines = [" ".join(line.split()) for line in found.stdout.splitlines()]
    assert lines[0] == "image class logit method residual error seconds"
    assert lines[1:3] == ["[a].jpg cat 1.5 smoothgrad:samples=9 25.0 % 3.00", "xrai 8.1 % 1.00"]
    assert lines[3:7] == ["note xrai: mind the gap", "note not measured",
                          "xrai: insertion 0.500, deletion 0.250, randomised 0.125",
                          "control random: insertion 0.500, deletion 0.250, randomised 0.125"]
    assert lines[-1].startswith("runs/") and lines[-1].endswith("_explain-demo-a_1") and found.stderr == "noted\n"


def test_ctrl_c_and_a_full_disk(robustkit, engine):
    engine.answer = KeyboardInterrupt()
    found = robustkit("explain", "demo:a", "x.jpg", "--out", "here")
    assert found.exit_code == 3 and "what was done is kept" in found.stderr and "--out here" in found.stderr
    engine.answer = Incomplete("the disk is full")
    assert robustkit("explain", "demo:a", "x.jpg").exit_code == 3


def test_the_stored_configuration_reads_back(tmp_path):
    first = load_explain_config(None, {"model": "demo:a", "images": ["x.jpg"], "methods": ["a:b=1,c"], "target": "3"})
    (tmp_path / "config.yaml").write_text(dump_config(first))
    again = load_explain_config(tmp_path / "config.yaml", {})
    assert again == first and config_digest(again) == config_digest(first)
    assert load_explain_config(tmp_path / "config.yaml", {"seed": 4}).seed == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("explained")
    toys.build(path)
    return path


GOOD = ("explain", "nets.py:good", "--data", "npz:good.npz", "--limit", "2", "--method", "gradient",
        "--progress", "none")


@pytest.mark.parametrize(("arguments", "says"), [
    ((), "no model given"),
    (("nets.py:good",), "nothing to explain"),
    (("nets.py:good", "good.npz"), "not a picture"),
    (("nets.py:good", "no_pictures"), "no pictures found"),
    (("nets.py:good", "bomb"), "too large"),
    (("nets.py:good", "a.jpg", "--data", "npz:good.npz"), "more than one thing"),
    (("nets.py:good", "a.jpg", "--target", "label"), "pictures have no label"),
    (("--from-run", "nowhere"), "no run there"),
    (("--from-run", "nowhere", "--task", "regression"), "task comes from the run"),
    ((*GOOD[1:], "--target", "9"), r"0 \.\. 3"),
    ((*GOOD[1:], "--target", "cat"), "names of the classes are not known"),
    ((*GOOD[1:], "--method", "xra"), "Did you mean xrai"),
    ((*GOOD[1:], "--method", "smoothgrad:samples=0"), "greater than 0"),
    ((*GOOD[1:], "--method", "gradient"), "once"),
    ((*GOOD[1:], "--output", "loss"), "logit, probability or margin"),
    ((*GOOD[1:], "--mean", "0.5"), "mean and std"),
    ((*GOOD[1:], "--bounds", "1,0"), "low < high"),
    ((*GOOD[1:], "--seed", "-1"), "seed"),
    ((*GOOD[1:], "--out", "holiday"), "holds something else"),
    (("nets.py:is_detached", *GOOD[2:]), "gradient needs the gradient"),
    (("nets.py:returns_nan", *GOOD[2:]), "NaN|finite"),
    (("nets.py:wants_color", *GOOD[2:]), "channel"),
    (("nets.py:good", "--data", "npz:normalised.npz", "--method", "gradient"), "bounds"),
], ids=lambda value: " ".join(value[:6]) if isinstance(value, tuple) else None)
def test_bad_input(robustkit, folder, monkeypatch, arguments, says):
    monkeypatch.chdir(folder)
    with files.unsynced():
        found = robustkit("explain", *arguments)
    message = " ".join(found.stderr.split())
    assert found.exit_code == 2, (found.exit_code, found.stderr, found.exception)
    assert "Traceback" not in found.output and re.search(says, message), message


def test_the_other_verbs_on_an_explanation(robustkit, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with files.unsynced():
        found = robustkit(*GOOD, "--out", "maps")
        assert found.exit_code == 0, found.output
        assert found.stdout.splitlines()[-2:] == ["report: maps/report.html", "maps"]
        before = Path("maps/report.html").read_bytes()
        assert robustkit("report", "maps").stdout.split() == ["maps/report.html", "maps/results.json"]
    assert Path("maps/report.html").read_bytes() == before
    assert "html or json" in robustkit("report", "maps", "--format", "md").stderr
    assert robustkit("verify", "maps").exit_code == 0
    for verb in (("check", "maps"), ("compare", "maps", "maps"), ("explain", "--from-run", "maps")):
        refused = robustkit(*verb)
        assert refused.exit_code == 2 and "this run is an explanation" in refused.stderr
    Path("maps/results.json").write_text(json.dumps({**json.loads(Path("maps/results.json").read_text()), "seed": 1}))
    assert robustkit("verify", "maps").exit_code == 4


def test_a_map_of_nothing_is_noted(robustkit, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with files.unsynced():
        found = robustkit("explain", "nets.py:has_no_gradient", *GOOD[2:], "--out", "nothing")
    assert found.exit_code == 0 and "note gradient: the map is zero everywhere" in found.stdout


def test_list_and_show_explainers(robustkit):
    listed = robustkit("list", "explainers").stdout
    assert all(name in listed for name in Registry("robustkit.explain").names())
    text = robustkit("show", "explainer", "smoothgrad").stdout
    for part in ("int or auto", "logit, probability, margin", "https://arxiv.org/abs/1706.03825",
                 "robustkit explain demo:mnist-robust --data demo:mnist --limit 2 --method smoothgrad:samples=50",
                 'rk.explain(model, x, "smoothgrad")'):
        assert part in text
    assert "Did you mean smoothgrad" in robustkit("show", "explainer", "smothgrad").stderr
