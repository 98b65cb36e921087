"""The folder is killed at every single system call that makes something durable, and goes on to the same bytes.

A child process works on a run and dies, without any clean-up, just before or just after its k-th call of fsync or
replace; its parent opens the folder, does what is not done, and compares every file with an undisturbed run.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
from robustkit.run.config import load_config
from robustkit.run.directory import RunDirectory
from robustkit.core.files import replace_file

CONFIG = load_config(None, {"model": "demo:a", "data": "demo:b", "attacks": ["pgd"], "threat": "linf:0.1"})
CHUNKS = [range(i, i + 3) for i in range(0, 12, 3)]


def work(path):
    with RunDirectory.open(path, CONFIG, {"model": {"sha256": "m"}}) as run:
        if run.finished:
            return
        for chunk in CHUNKS:
            tensors = f"adversarial/{chunk.start}.safetensors"
            if not run.chunk_done("samples", chunk, tensors):
                replace_file(run.file(tensors), bytes(chunk))  # as write_tensors does, without torch
                run.append_rows("samples", [{"id": i, "loss": i / 7} for i in chunk])
        total = sum(row["loss"] for row in run.rows("samples"))
        run.write_json("results.json", {"complete": True, "total": total})
        run.write_manifest()


def files(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def killed_at(point, path):
    count = 0

    def deadly(call):
        def wrapped(*arguments):
            nonlocal count
            count += 1
            if count == point:
                os._exit(9)
            call(*arguments)
            count += 1
            if count == point:
                os._exit(9)
        return wrapped

    child = os.fork()
    if child == 0:
        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        work(path)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


root = Path(sys.argv[1])
work(root / "whole")
wanted = files(root / "whole")
point = 1
while killed_at(point, root / str(point)):
    work(root / str(point))
    found = files(root / str(point))
    same = {"config.yaml", "samples.jsonl", "results.json", *(name for name in wanted if "adversarial" in name)}
    assert found.keys() == wanted.keys(), (point, found.keys() ^ wanted.keys())
    assert all(found[name] == wanted[name] for name in same), point
    point += 1
print(point - 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_point(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
