"""The command line, run inside the test's own process, and made-up runs for the verbs that only read."""

import json

import pytest
from typer.testing import CliRunner

from robustkit.cli.app import app
from robustkit.run.config import load_config
from robustkit.run.directory import RunDirectory
from tests.cli.figures import RESULTS


@pytest.fixture
def robustkit(monkeypatch, tmp_path):
    """``robustkit("list", "attacks")``: the result, with exit_code, stdout and stderr; started in an empty folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("ROBUSTKIT_DEBUG", raising=False)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def stored(tmp_path):
    """A function that stores a finished run with some results changed, and returns its folder."""

    def store(name="run", **changes):
        options = {"model": "demo:a", "data": "demo:b", "attacks": ["fgsm", "pgd"], "threat": "linf:0.2"}
        config = load_config(None, options)
        with RunDirectory.open(tmp_path / name, config, {}) as run:
            run.write_json("results.json", json.loads(json.dumps({**RESULTS, **changes})))
            run.write_manifest()
        return tmp_path / name

    return store
