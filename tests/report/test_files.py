"""Reading a run's folder, and what is said when it is none."""

import json
import subprocess
import sys

import numpy as np
import pytest

from robustkit.core.errors import Incomplete, UsageError
from robustkit.report.files import RunFiles


def test_what_a_run_left_behind(run_folder):
    run = RunFiles.open(str(run_folder))
    assert run.path == run_folder and run.results["n"] == 60 and run.run["command"][:2] == ["robustkit", "evaluate"]
    assert run.config_text == (run_folder / "config.yaml").read_text()
    clean, attacked = run.clean_rows(), run.attack_rows(1)
    assert [row["id"] for row in clean] == list(range(60))
    assert [row["id"] for row in attacked] == [row["id"] for row in clean if row["correct"]]
    assert run.broken_by(1) == {row["id"] for row in attacked if row["success"]}
    assert len(run.broken_by(0)) == run.results["attacks"][0]["broken"]


def test_rows_come_by_id_whatever_their_order_and_without_a_torn_one(run_folder):
    file = run_folder / "samples-clean.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(reversed(rows)) + '{"id":60,"cor')
    assert [row["id"] for row in RunFiles.open(run_folder).clean_rows()] == list(range(60))


def test_the_tenth_attack_is_not_the_first(run_folder):
    (run_folder / "samples-10-fgsm.jsonl").write_text('{"id":7,"success":true}\n')
    run = RunFiles.open(run_folder)
    assert (
        len(run.attack_rows(1)) > 1 and run.attack_rows(10) == [{"id": 7, "success": True}] and run.attack_rows(2) == []
    )


def test_the_gallery_in_its_order(run_folder):
    run = RunFiles.open(run_folder)
    images = run.images()
    assert list(images) == [entry["id"] for entry in run.results["gallery"]] and len(images) == 6
    for entry in run.results["gallery"]:
        original, adversarial = images[entry["id"]]
        assert original.shape == adversarial.shape == (1, 28, 28) and original.dtype == np.float32
        assert np.abs(adversarial - original).max() == pytest.approx(entry["linf"])


def test_a_run_without_pictures_has_none(made):
    run = made(gallery=[])
    (run / "gallery.safetensors").unlink()
    assert RunFiles.open(run).images() == {}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("results.json", b"{", "results.json"),
        ("results.json", b"[]", "expected an object"),
        ("results.json", b'{"n": 1}', "expected schema 1.x, got None"),
        ("results.json", b'{"schema_version": "2.0"}', "expected schema 1.x, got 2.0"),
        ("results.json", b'{"schema_version": "10.0"}', "got 10.0"),
        ("run.json", b"\xff\xfe", "run.json"),
        ("run.json", b"3", "expected an object"),
        ("config.yaml", b"\xff\xfe", "config.yaml"),
    ],
)
def test_damaged_files_are_named(run_folder, file, content, words):
    (run_folder / file).write_bytes(content)
    with pytest.raises(UsageError) as found:
        RunFiles.open(run_folder)
    assert words in str(found.value) and str(run_folder) in str(found.value)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("clean_accuracy",), "x", "in $.clean_accuracy"),
        (("interval",), [0.1], "in $.interval"),
        (("threat",), None, "in $.threat"),
        (("threat", "norm"), "l3", "in $.threat.norm"),
        (("attacks", 1), {}, "in $.attacks[1]"),
        (("diagnostics", 0, "id"), "x", "in $.diagnostics[0].id"),
        (("curve", "points", 0, "eps"), None, "in $.curve"),
        (("cost", "clean"), {"forwards": 1}, "'backwards' is a required property in $.cost.clean"),
        (("gates", 0, "passed"), 1, "1 is not of type 'boolean' in $.gates[0].passed"),
        (("times", "stages", "fgsm"), None, "in $.times.stages.fgsm"),
    ],
)
def test_damage_inside_the_results_is_named(run_folder, where, value, words):
    results = json.loads((run_folder / "results.json").read_text())
    part = results
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    (run_folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError) as found:
        RunFiles.open(run_folder).checked()
    assert words in str(found.value) and "results.json" in str(found.value)


@pytest.mark.parametrize(
    "header",
    [{"command": "rm"}, {"command": [1]}, {"versions": []}, {"resumed": [{}]}, {"git": {"commit": "a"}}],
)
def test_damage_inside_the_header_is_named(run_folder, header):
    (run_folder / "run.json").write_text(json.dumps(header))
    with pytest.raises(UsageError, match=r"run\.json"):
        RunFiles.open(run_folder).checked()


@pytest.mark.parametrize("content", [None, b"", b"\x08" + b"\0" * 30])
def test_a_damaged_gallery_is_named(run_folder, content):
    file = run_folder / "gallery.safetensors"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UsageError, match=r"gallery\.safetensors"):
        RunFiles.open(run_folder).images()


def test_a_gallery_that_lacks_an_image_is_named(run_folder):
    results = json.loads((run_folder / "results.json").read_text())
    results["gallery"][0]["id"] = 999
    (run_folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match="no 'original/999'"):
        RunFiles.open(run_folder).images()


@pytest.mark.parametrize("line", ['{"correct":true}', '{"id":"x"}', '{"id":1}', '{"id":1,"correct":null}', "[1]", "{"])
def test_damaged_rows_are_named(run_folder, line):
    (run_folder / "samples-clean.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match=r"samples-clean\.jsonl"):
        RunFiles.open(run_folder).clean_rows()


def test_a_later_minor_version_is_read(made):
    assert RunFiles.open(made(schema_version="1.7", something_new=3)).checked().results["something_new"] == 3


def test_a_folder_that_is_no_run(tmp_path, run_folder):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match="no run there"):
            RunFiles.open(path)
    (run_folder / "results.json").unlink()
    with pytest.raises(Incomplete, match="it goes on"):
        RunFiles.open(run_folder)


def test_reports_need_no_torch():
    modules = ["files", "write", "markdown", "junit", "compare", "tables"]
    code = f"import sys, {', '.join('robustkit.report.' + name for name in modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
