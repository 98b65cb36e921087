"""The published schema of ``results.json``: a valid schema, true of made-up runs and of real ones."""

import copy
import json

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

import robustkit as rk
from robustkit.report.files import load_schema

SCHEMA = load_schema()
NAMED = {"clean_accuracy", "robust_accuracy", "interval", "n", "threat", "complete", "schema_version", "valid"}


def faults(results):
    found = Draft202012Validator(SCHEMA).iter_errors(results)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}"[:300] for error in found]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A small evaluation with everything in it: ``real(limit=16)`` -> results."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 4, 4, generator=draws)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 16, generator=draws))
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
        y = net(x).argmax(1)

    def evaluate(name, **options):
        folder = tmp_path_factory.mktemp("real") / name
        rk.evaluate(net.eval(), (x, y), attacks=["fgsm", "pgd:steps=5"], threat="linf:0.1", out=folder, **options)
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))

    return evaluate


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(SCHEMA["required"]) >= NAMED and SCHEMA["additionalProperties"] is False
    assert set(SCHEMA["properties"]) - set(SCHEMA["required"]) == {"dense"}  # what came after 1.0


def test_every_reference_leads_somewhere_and_every_definition_is_used():
    text = json.dumps(SCHEMA)
    assert all(f'"#/$defs/{name}"' in text for name in SCHEMA["$defs"])
    assert {part.split('"')[0] for part in text.split("#/$defs/")[1:]} == set(SCHEMA["$defs"])


def test_a_made_up_run_fits(run_folder):
    assert faults(json.loads((run_folder / "results.json").read_text())) == []


def test_a_real_run_fits(real):
    results = real("whole", curve=True, fail_under=["robust_accuracy=0.1"])
    assert faults(results) == []
    assert results["complete"] and results["curve"] and results["gates"] and set(results) == set(SCHEMA["properties"])


def test_a_limited_and_an_unfinished_run_fit(real):
    assert faults(real("limited", limit=16, targeted="random")) == []
    unfinished = real("unfinished", max_minutes=1e-9)
    assert not unfinished["complete"] and unfinished["robust_accuracy"] is None and faults(unfinished) == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("robust_accuracy",), 61.0),
        (("robust_accuracy",), "0.6"),
        (("interval",), [0.1]),
        (("interval",), [0.1, 1.2]),
        (("schema_version",), "2.0"),
        (("n",), -1),
        (("n",), 1.5),
        (("complete",), "yes"),
        (("kind",), "training"),
        (("threat", "norm"), "l3"),
        (("threat", "eps"), -0.1),
        (("model", "sha256"), "abc"),
        (("surprise",), 1),
        (("attacks", 0, "broken"), None),
        (("diagnostics", 0, "status"), "MAYBE"),
        (("diagnostics", 0, "id"), "1"),
        (("curve", "points", 0, "eps"), None),
        (("cost", "clean"), None),
        (("gates", 0, "passed"), None),
        (("not_assessed", 0, "why"), None),
        (("times", "stages", "clean"), -1),
        (("gallery", 0, "clean_top", 0, "p"), 2),
    ],
)
def test_what_is_wrong_does_not_fit(run_folder, where, value):
    results = copy.deepcopy(json.loads((run_folder / "results.json").read_text()))
    part = results
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    assert len(faults(results)) >= 1


@pytest.mark.parametrize("key", sorted(SCHEMA["required"]))
def test_every_key_is_needed(run_folder, key):
    results = json.loads((run_folder / "results.json").read_text())
    del results[key]
    assert len(faults(results)) == 1


def test_a_dense_task_fits(tmp_path):
    net = nn.Conv2d(1, 3, 3, padding=1).eval()
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = (x, net(x).argmax(1))
    rk.evaluate(rk.wrap(net, task="segmentation"), data, attacks=["fgsm"], threat="linf:0.01", out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert faults(results) == [] and results["per_class"] == [] and results["model"]["outputs"] == [3, 4, 4]
    assert "## Attacks" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
