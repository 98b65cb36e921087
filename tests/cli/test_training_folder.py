"""The verbs that only read, on the folder of a training."""

import pytest

from robustkit.core import files
from robustkit.run.manifest import write_manifest
from tests.report.conftest import make_run
from tests.report.training import make_training


@pytest.fixture
def folder(tmp_path, robustkit, monkeypatch):
    """A finished training in the working folder, as ``run``."""
    with files.unsynced():
        path = make_training(tmp_path / "work" / "run")
        (path / "report.html").write_text("old")
        write_manifest(path)
        yield path


def test_the_page_is_written_again_and_stays_in_the_manifest(robustkit, folder):
    found = robustkit("report", "run")
    assert found.exit_code == 0, found.output
    assert found.stdout.split() == ["run/report.html", "run/results.json"]
    assert "61.2 %" in (folder / "report.html").read_text(encoding="utf-8")
    assert robustkit("verify", "run").exit_code == 0
    wrong = robustkit("report", "run", "--format", "md")
    assert wrong.exit_code == 2 and "a training has no such report: expected html or json" in wrong.stderr


def test_changed_weights_are_found(robustkit, folder):
    (folder / "best.safetensors").write_bytes(b"others")
    assert robustkit("verify", "run").exit_code == 4


@pytest.mark.parametrize("verb", [("check", "run"), ("compare", "run", "run"), ("explain", "--from-run", "run")])
def test_verbs_of_evaluations_name_the_one_inside(robustkit, folder, verb):
    refused = robustkit(*verb)
    assert refused.exit_code == 2 and "this run is a training: expected an evaluation" in refused.stderr
    assert "evaluation-best" not in refused.stderr
    make_run(folder / "evaluation-best")
    said = robustkit(*verb).stderr
    assert "Name the evaluation of its best weights: " in said and "run/evaluation-best." in said
    assert robustkit("compare", "run/evaluation-best", "run/evaluation-best").exit_code == 0


def test_a_training_without_results_is_to_be_finished(robustkit, folder):
    (folder / "results.json").unlink()
    for verb in (("report", "run"), ("verify", "run"), ("check", "run")):
        refused = robustkit(*verb)
        assert refused.exit_code == 2 and "no results yet" in refused.stderr, verb


def test_results_that_are_no_training_are_named(robustkit, folder):
    (folder / "results.json").write_text('{"schema_version": "1.0", "kind": "training"}')
    refused = robustkit("report", "run")
    assert refused.exit_code == 2 and "not the results of a training" in refused.stderr
