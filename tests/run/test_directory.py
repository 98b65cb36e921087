"""The run directory: whatever moment a process dies at, what it had finished is there and nothing else."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustkit.core import files
from robustkit.core.errors import Incomplete, UsageError
from robustkit.core.files import canonical_json, cut_torn_line, inside, json_line, read_lines, slug
from robustkit.run.config import load_config
from robustkit.run.directory import RunDirectory, read_results
from robustkit.run.folder import default_folder
from robustkit.run.manifest import check_manifest, update_manifest

HEADER = {"command": ["robustkit"], "model": {"sha256": "m" * 64}, "data": {"sha256": "d" * 64}}


def config(**changes):
    return load_config(None, {"model": "demo:a", "data": "demo:b", "attacks": ["pgd"], "threat": "linf:0.1", **changes})


def opened(path: Path, header=HEADER, **changes):
    return RunDirectory.open(path, config(**changes), header)


def rows(*ids):
    return [{"id": i, "loss": i / 3} for i in ids]


def test_a_new_run_and_the_same_again(tmp_path):
    path = tmp_path / "runs" / "a"
    with opened(path) as run:
        assert not run.resumed and not run.finished
        run.append_rows("samples-clean", rows(0, 1))
    with opened(path, max_minutes=5, fail_under=["robust_accuracy=0.1"]) as run:
        assert run.resumed and not run.finished
        assert run.rows("samples-clean") == rows(0, 1)
        header = run.read_json("run.json")
    assert header["model"] == HEADER["model"] and len(header["resumed"]) == 1
    assert header["schema_version"] == "1.0" and len(header["config_sha256"]) == 64


def test_other_options_are_refused_with_the_difference(tmp_path):
    opened(tmp_path).close()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"seed: 0 -> 1; contents of model: sha256 m{12} -> n{12}"):
        opened(tmp_path, {**HEADER, "model": {"sha256": "n" * 64}}, seed=1)
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
    opened(tmp_path).close()  # the refusal gave the lock back


def test_another_data_set_of_the_same_name_is_refused(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(UsageError, match="contents of data"):
        opened(tmp_path, {**HEADER, "data": {"sha256": "x" * 64}})


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"holds something else.*holiday\.jpg"):
        opened(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_path_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        opened(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot write"):
        opened(tmp_path / "file" / "run")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        opened(tmp_path)


def test_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"cannot write.*Permission denied.*--out"):
        opened(tmp_path)


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    code = ("import sys\nfrom pathlib import Path\nfrom robustkit.run.config import load_config\n"
            "from robustkit.run.directory import RunDirectory\n"
            f"config = load_config(None, {config().model_dump()!r})\n"
            "run = RunDirectory.open(Path(sys.argv[1]), config, {}); print('open', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match=f"another process.*process {other.pid} on .* since 2"):
            opened(tmp_path)
        other.kill()
        other.wait()
    with opened(tmp_path) as run:  # the system gave the lock of the dead process back
        assert run.resumed


def test_the_same_process_cannot_open_it_twice(tmp_path):
    with opened(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()}"):
        opened(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), garbage=st.binary(max_size=8))
def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path, cut, garbage):
    lines = [json_line({"id": i, "text": "é\n" * i}) for i in range(6)]
    whole = b"".join(lines)
    cut %= len(whole) + 1
    file = tmp_path / "x.jsonl"
    file.write_bytes(whole[:cut] + garbage.replace(b"\n", b""))
    cut_torn_line(file)
    kept = whole[:cut].count(b"\n")
    assert file.read_bytes() == b"".join(lines[:kept])
    assert [row["id"] for row in read_lines(file)] == list(range(kept))


def test_a_torn_chunk_is_done_again_without_doubles(tmp_path):
    with opened(tmp_path) as run:
        run.append_rows("s", rows(0, 1))
        run.append_rows("s", rows(2, 3))
    file = tmp_path / "s.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with opened(tmp_path) as run:
        assert run.chunk_done("s", [0, 1]) and not run.chunk_done("s", [2, 3])
        assert [row["id"] for row in run.rows("s")] == [0, 1, 2]
        run.append_rows("s", rows(2, 3))
        assert run.chunk_done("s", [2, 3])
    assert file.read_bytes() == whole


def test_a_line_that_was_never_written_to_disk(tmp_path):
    with opened(tmp_path) as run:
        run.append_rows("s", rows(0))
    with (tmp_path / "s.jsonl").open("ab") as stream:
        stream.write(b"\0" * 20 + b"\n")
    with opened(tmp_path) as run:
        assert run.rows("s") == rows(0)


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    with opened(tmp_path) as run:
        (tmp_path / "s.jsonl").write_bytes(b'{"id":0}\nxx\n{"id":1}\n')
        with pytest.raises(UsageError, match="damaged"):
            run.rows("s")


def test_a_chunk_needs_rows_and_tensors(tmp_path):
    with opened(tmp_path) as run:
        assert run.chunk_done("s", []) and not run.chunk_done("s", [], "adversarial/0-pgd/0.safetensors")
        run.append_rows("s", rows(0, 1))
        assert run.chunk_done("s", [1, 0]) and not run.chunk_done("s", [0, 1], "adversarial/0-pgd/0.safetensors")
        stored = {"ids": torch.tensor([1]), "adversarial": torch.rand(1, 3, 4, 4).permute(0, 1, 3, 2)}
        run.write_tensors("adversarial/0-pgd/0.safetensors", stored)
        assert run.chunk_done("s", [0, 1], "adversarial/0-pgd/0.safetensors")
        again = run.read_tensors("adversarial/0-pgd/0.safetensors")
    assert all(torch.equal(again[key], stored[key]) for key in stored)


def test_damaged_tensors_are_an_error(tmp_path):
    with opened(tmp_path) as run:
        (tmp_path / "x.safetensors").write_bytes(b"nonsense")
        for name in ("x.safetensors", "absent.safetensors"):
            with pytest.raises(UsageError, match="cannot read stored tensors"):
                run.read_tensors(name)


def test_lone_temporary_files_are_removed(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "adversarial").mkdir()
    lone = [tmp_path / ".results.json.77.tmp", tmp_path / "adversarial" / ".0.safetensors.77.tmp"]
    for file in lone:
        file.touch()
    opened(tmp_path).close()
    assert not any(file.exists() for file in lone)


def full(monkeypatch, name="fsync"):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, name, fail)


def test_a_full_disk_keeps_what_was_done(tmp_path, monkeypatch):
    with opened(tmp_path) as run:
        run.append_rows("s", rows(0, 1))
        run.write_json("x.json", {"a": 1})
        with monkeypatch.context() as patched:
            full(patched)
            for write in (lambda: run.append_rows("s", rows(2)), lambda: run.write_json("x.json", {"a": 2})):
                with pytest.raises(Incomplete, match=r"disk is full.*same command again"):
                    write()
        assert run.rows("s") == rows(0, 1) and not run.chunk_done("s", [2]) and run.read_json("x.json") == {"a": 1}
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_at_the_beginning(tmp_path, monkeypatch):
    full(monkeypatch)
    with pytest.raises(Incomplete, match="disk is full"):
        opened(tmp_path / "a")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_names_stay_inside(tmp_path, name):
    with opened(tmp_path) as run, pytest.raises(UsageError, match="leads out"):
        run.write_json(name, {})


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out"):
        inside(tmp_path / "root", "link/x")


@given(st.text(max_size=200))
def test_slugs_are_plain_file_names(text):
    name = slug(text)
    assert name and len(name) <= 81 and name.isascii() and not set(name) & set('/\\:*?"<>| \0')
    assert name not in (".", "..") and not name.startswith((".", "-")) and slug(name).rstrip("-") == name.rstrip("-")


@pytest.mark.parametrize("name", ["con", "NUL", "com1", "lpt9.txt"])
def test_names_windows_keeps_for_itself_are_changed(name):
    assert slug(name) != name


def test_json_is_canonical_and_knows_no_nan():
    value = {"b": (1, 2.5), "a": {"nan": float("nan"), "inf": float("inf"), "path": Path("x")}}
    text = canonical_json(value)
    assert text == canonical_json(dict(reversed(value.items())))
    assert text.endswith(b"\n") and json.loads(text) == {"a": {"nan": None, "inf": None, "path": "x"}, "b": [1, 2.5]}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_to_the_last_bit(number):
    assert json.loads(json_line({"x": number}))["x"] == number


def test_finished_means_that_the_manifest_is_about_these_results(tmp_path):
    with opened(tmp_path) as run:
        run.write_json("results.json", {"complete": False})
        run.write_manifest()
        assert not run.finished
        run.write_json("results.json", {"complete": True})
        assert not run.finished  # died before the reports and the manifest
        run.write_text("report.md", "# é\n")
        run.write_manifest()
        assert run.finished
    before = (tmp_path / "run.json").read_bytes()
    with opened(tmp_path) as run:
        assert run.finished and run.resumed
    assert (tmp_path / "run.json").read_bytes() == before and check_manifest(tmp_path) == []


def test_the_manifest_tells_what_was_changed(tmp_path):
    with opened(tmp_path) as run:
        run.append_rows("s", rows(0))
        run.append_rows("t", rows(0))
        run.write_text("report.md", "old")
        run.write_manifest()
        run.log("late", n=1)
    (tmp_path / "s.jsonl").write_bytes(b"{}\n")
    (tmp_path / "t.jsonl").unlink()
    (tmp_path / "new.txt").touch()
    (tmp_path / "report.md").write_text("new")
    update_manifest(tmp_path, ["report.md"])
    assert check_manifest(tmp_path) == ["new.txt: added", "s.jsonl: changed", "t.jsonl: missing"]


def test_without_a_manifest_nothing_can_be_checked(tmp_path):
    with pytest.raises(UsageError, match="no manifest"):
        check_manifest(tmp_path)


def test_events_are_logged_with_their_times(tmp_path):
    with opened(tmp_path) as run:
        run.log("started", device="cpu")
    (event,) = read_lines(tmp_path / "log.jsonl")
    assert event["event"] == "started" and event["device"] == "cpu" and event["time"].startswith("20")


def test_results_of_what_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="no run there"):
        read_results(tmp_path / "absent")
    opened(tmp_path).close()
    with pytest.raises(UsageError, match="no results yet"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read a file of the run"):
        read_results(tmp_path)


def test_new_folders_are_numbered_and_named(tmp_path):
    first = default_folder(tmp_path, config(model="timm:resnet50"))
    assert first.parent == tmp_path and first.name.endswith("_timm-resnet50_1") and not first.exists()
    first.mkdir()
    assert default_folder(tmp_path, config(model="timm:resnet50")).name.endswith("_timm-resnet50_2")
    assert default_folder(tmp_path, config(model="/a/b/../net.py:build")).name.endswith("_net.py-build_1")


def test_the_same_options_go_on_in_the_unfinished_folder(tmp_path):
    first = default_folder(tmp_path, config())
    opened(first).close()
    assert default_folder(tmp_path, config(max_minutes=3)) == first
    assert default_folder(tmp_path, config(seed=1)) != first
    with opened(first) as run:
        run.write_json("results.json", {"complete": True})
        run.write_manifest()
    assert default_folder(tmp_path, config()) != first
    (first / "config.yaml").write_text("seed: [")
    assert default_folder(tmp_path, config()) != first
