"""Every verb: what it prints, what it exits with, and that it is quick."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from robustkit.cli.guard import INTERNAL, guarded
from robustkit.core.errors import Incomplete, Invalid, UsageError
from robustkit.core.registry import Registry

VERBS = ("evaluate", "explain", "list", "show", "report", "check", "verify", "compare", "doctor")


@pytest.mark.parametrize("arguments", [
    ["--help"], ["list", "attacks"], ["list", "models"], ["list", "data"], ["evaluate", "--help"], ["evaluate"],
    ["list", "explainers"], ["explain", "--help"], ["explain"],
    ["check", "nowhere"], ["report", "nowhere"],
])
def test_torch_is_not_imported(arguments):
    code = ("import sys; from robustkit.cli.app import app\n"
            "try: app()\n"
            "finally: sys.stderr.write(f'torch: {\"torch\" in sys.modules}')")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("torch: False")


def test_help_answers_within_a_second():
    def seconds():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "robustkit", "--help"], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 1


def test_python_m_is_the_same(robustkit):
    command = [sys.executable, "-m", "robustkit", "list", "threats"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == robustkit("list", "threats").stdout.split()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(robustkit, verb):
    assert verb in robustkit("--help").stdout
    found = robustkit(verb, "--help")
    assert found.exit_code == 0 and "Usage:" in found.stdout


def test_evaluate_has_exactly_the_options_of_the_configuration(robustkit):
    from robustkit.cli.evaluate import evaluate
    from robustkit.run.config import EvaluateConfig

    options = set(evaluate.__annotations__) - {"return"}
    assert options - {"out", "config", "eps_scale", "attack"} == set(EvaluateConfig.model_fields) - {"attacks"}
    text = robustkit("evaluate", "--help").stdout
    assert all(f"--{option.replace('_', '-')}" in text for option in options - {"model"})


def test_the_version(robustkit):
    import robustkit as package

    assert robustkit("--version").stdout.strip() == package.__version__


def test_lists(robustkit):
    attacks = robustkit("list", "attacks").stdout
    assert all(name in attacks for name in Registry("robustkit.attacks").names())
    assert "demo:mnist-robust" in robustkit("list", "models").stdout
    assert "demo:mnist-train" in robustkit("list", "data").stdout
    assert all(norm in robustkit("list", "threats").stdout for norm in ("linf:EPS", "l2:EPS", "l1:EPS"))
    wrong = robustkit("list", "atacks")
    assert wrong.exit_code == 2 and "Did you mean attacks" in wrong.stderr


def test_show_an_attack(robustkit):
    text = robustkit("show", "attack", "PGD").stdout
    for part in ("step_size", "null", "https://arxiv.org/abs/1706.06083", "--attack pgd:steps=40", "rk.PGD("):
        assert part in text
    wrong = robustkit("show", "attack", "pdg")
    assert wrong.exit_code == 2 and "Did you mean pgd" in wrong.stderr
    assert "Known: attack" in robustkit("show", "zzz", "pgd").stderr


@pytest.mark.parametrize("name", Registry("robustkit.attacks").names())
def test_the_example_of_every_attack_is_a_command(robustkit, name):
    from robustkit.cli.show import entry_of, example
    from robustkit.core.specs import MethodSpec

    words = example(entry_of("attack", name)).split()
    spec = MethodSpec.parse(words[words.index("--attack") + 1])
    built = entry_of("attack", spec.name).build(spec.options)
    assert type(built) is entry_of("attack", name).cls and spec.name == name


@pytest.mark.parametrize(("changes", "gates", "code"), [
    ({}, ["robust_accuracy=0.6"], 0),
    ({}, ["robust_accuracy=0.61"], 1),
    ({}, ["robust_accuracy=0.5", "clean_accuracy=0.95"], 1),
    ({}, ["robust_accuracy_low=0.3"], 1),
    ({}, ["clean_accuracy_low=0.5"], 0),
    ({"complete": False}, ["robust_accuracy=0.1"], 3),
    ({"valid": False}, ["robust_accuracy=0.1"], 4),
    ({"robust_accuracy": None}, ["robust_accuracy=0"], 1),
    ({"gates": [{"metric": "robust_accuracy", "threshold": 0.7, "value": 0.6, "passed": False}]}, [], 1),
    ({}, [], 2),
    ({}, ["robust_acuracy=0.4"], 2),
    ({}, ["robust_accuracy=45"], 2),
])
def test_check(robustkit, stored, changes, gates, code):
    found = robustkit("check", stored(**changes), *[word for gate in gates for word in ("--fail-under", gate)])
    assert found.exit_code == code
    assert found.stdout.count(">=") == len(gates or changes.get("gates", ())) or code == 2


def test_check_says_what_it_found(robustkit, stored):
    found = robustkit("check", stored(limit=10, n_total=500), "--fail-under", "robust_accuracy=0.61").stdout
    assert "60.0 % (26.0 to 88.0)" in found and "FAIL robust_accuracy 0.6000 >= 0.61" in found
    assert "limited to 10 of 500" in found


@pytest.mark.parametrize("damage", [{"threat": {}}, {"robust_accuracy": "x"}, {"threat": None}, {"gates": 3}])
def test_check_of_damaged_results_is_one_message(robustkit, stored, damage):
    gates = () if "gates" in damage else ("--fail-under", "robust_accuracy=0.1")
    found = robustkit("check", stored(**damage), *gates)
    assert found.exit_code == 2 and "cannot read a file of the run" in found.stderr and "results.json" in found.stderr


def test_check_of_what_is_no_run(robustkit, tmp_path):
    found = robustkit("check", tmp_path / "nowhere", "--fail-under", "robust_accuracy=0.1")
    assert found.exit_code == 2 and "no run there" in found.stderr and found.stdout == ""


@pytest.mark.parametrize(("error", "code", "says"), [
    (UsageError("bad [bold]thing"), 2, "Error: bad [bold]thing"),
    (Incomplete("disk"), 3, "Error: disk"),
    (Invalid("claim"), 4, "Error: claim"),
    (KeyboardInterrupt(), 3, "Error: stopped"),
    (RuntimeError("oh"), INTERNAL, "internal error: RuntimeError: oh"),
])
def test_exceptions_become_one_message_and_a_code(error, code, says, monkeypatch):
    def fail() -> None:
        raise error

    app = typer.Typer()
    app.command()(guarded(fail))
    monkeypatch.delenv("ROBUSTKIT_DEBUG", raising=False)
    quiet = CliRunner().invoke(app)
    assert quiet.exit_code == code and says in quiet.stderr
    assert ("Traceback" in quiet.stderr) is (code == INTERNAL)
    monkeypatch.setenv("ROBUSTKIT_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(app).stderr


def test_a_reader_that_goes_away_is_no_fault():
    command = f"{sys.executable} -m robustkit list models | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert "internal error" not in done.stderr


def test_a_comparison_in_words(robustkit, monkeypatch):
    from robustkit.report import compare as report

    pairs = [(True, True)] * 5 + [(False, True)] * 9 + [(True, False)]
    monkeypatch.setattr(report, "paired", lambda a, b: report.count(pairs))
    text = robustkit("compare", "a", "b").stdout
    assert "robust accuracy A 40.0 %, B 93.3 % on 15 samples" in text and "B - A: +53.3 points" in text
    assert "robust in both 5, only in A 1, only in B 9, in neither 0" in text and "p = 0.021, a difference" in text


def test_compare_of_what_is_no_run(robustkit, stored, tmp_path):
    found = robustkit("compare", stored(), tmp_path / "nowhere")
    assert found.exit_code == 2 and "nowhere" in found.stderr


def test_reports_are_written_again_and_stay_in_the_manifest(robustkit, stored, monkeypatch):
    from robustkit.report import write as report
    from robustkit.run.manifest import check_manifest

    def write(path, formats):
        for name in formats:
            (path / report.FORMATS[name][0]).write_text("new")

    monkeypatch.setattr(report, "write", write)
    run = stored()
    found = robustkit("report", run, "--format", "md,json")
    assert found.exit_code == 0 and found.stdout.split() == [str(run / "report.md"), str(run / "results.json")]
    assert check_manifest(run) == []
    assert len(robustkit("report", run).stdout.split()) == 4
    wrong = robustkit("report", run, "--format", "pdf")
    assert wrong.exit_code == 2 and "unknown format" in wrong.stderr


def test_the_files_of_the_reports_are_called_the_same_everywhere():
    from robustkit.cli.report import FILES
    from robustkit.report.write import FORMATS

    assert {"json": "results.json"} | {name: file for name, (file, _) in FORMATS.items()} == FILES
