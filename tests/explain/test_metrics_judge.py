"""All measures in one call: the form of the results, the sharing of forwards, and controls that cannot know."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.explain.gradient import Gradient, InputTimesGradient
from robustkit.explain.metrics import CONTROLS, evaluate_maps, insertion_deletion, max_sensitivity, overview, randomise
from robustkit.explain.metrics.judge import TEXTS
from robustkit.explain.smoothgrad import SmoothGrad


def problem(n: int = 2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 4))
    return wrap(net), torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))


EXPLAINERS = {"gradient": Gradient(), "smooth": SmoothGrad(samples=3)}


def judged(model, x, ids, **options):
    maps = {label: e(model, x, 1, ids=ids, seed=2) for label, e in EXPLAINERS.items()}
    options = {"steps": 6, "stages": 2, "samples": 3, **options}
    return maps, evaluate_maps(model, x, EXPLAINERS, maps, ids=ids, seed=2, **options)


def test_holds_what_each_measure_says_alone():
    model, x = problem()
    ids = torch.tensor([6, 3])
    seen = []
    maps, found = judged(model, x, ids, progress=lambda *a: seen.append(a))
    assert list(found.maps) == list(EXPLAINERS) and list(found.controls) == list(CONTROLS)
    stages = randomise(model, x, EXPLAINERS, maps, ids=ids, seed=2, stages=2)
    for label, explainer in EXPLAINERS.items():
        rated = {label: maps[label].values.abs().sum(1)}
        curves = insertion_deletion(model, x, rated, maps[label].target, steps=6)[label]
        moved = max_sensitivity(model, x, explainer, maps[label], ids=ids, seed=2, samples=3).value
        for i, evaluation in enumerate(found.maps[label]):
            assert set(evaluation) == {"insertion", "deletion", "max_sensitivity", "randomisation"}
            for ground in ("mean", "blur"):
                assert evaluation["insertion"][ground] == pytest.approx(
                    float(curves.insertion_auc[ground][i]), abs=1e-6
                )
                assert evaluation["deletion"][ground] == pytest.approx(float(curves.deletion_auc[ground][i]), abs=1e-6)
            assert evaluation["max_sensitivity"] == pytest.approx(float(moved[i]), abs=1e-6)
            alike = stages[label].spearman[i].tolist()
            assert evaluation["randomisation"]["spearman"] == pytest.approx(alike, abs=1e-6)
            assert evaluation["randomisation"]["last"] == pytest.approx(alike[-1], abs=1e-6)
            assert evaluation["randomisation"]["layers"] == ["3", "0"]
            for kind in ("signed", "ssim"):
                one = getattr(stages[label], kind)[i]
                there = [torch.nan if v is None else v for v in evaluation["randomisation"][kind]]
                torch.testing.assert_close(torch.tensor(there).double(), one, atol=1e-6, rtol=0, equal_nan=True)
    assert {what for what, _, _ in seen} == {"insertion and deletion", "randomisation", "max-sensitivity"}
    assert all(done <= total for _, done, total in seen)


def test_forwards_are_shared_and_counted():
    model, x = problem()
    _maps, found = judged(model, x, None, steps=112, stages=0, samples=0)
    assert (found.cost.forwards, found.cost.backwards) == (2 * (3 + 6 * 4 * 111), 0)
    assert found.cost.forwards <= 2 * 6 * 2 * 224
    assert found.maps["gradient"][0]["randomisation"] is None and found.maps["gradient"][0]["max_sensitivity"] is None
    assert overview(found.maps, found.controls)["cascade"] == {}


def test_controls_cannot_depend_on_the_network():
    _, found = judged(*problem(), None)
    for name in CONTROLS:
        for evaluation in found.controls[name]:
            assert evaluation["randomisation"]["spearman"] == pytest.approx([1, 1], abs=1e-9)
    assert all(e["max_sensitivity"] == 0 for name in ("random", "centre") for e in found.controls[name])
    assert all(e["max_sensitivity"] > 0 for e in found.controls["sobel"])
    assert all(e["randomisation"]["last"] < 0.95 for e in found.maps["gradient"])


def test_a_row_depends_neither_on_the_batch_nor_on_its_order():
    model, x = problem(3)
    ids = torch.tensor([6, 3, 8])
    _, whole = judged(model, x, ids)
    _, alone = judged(model, x[2:], ids[2:], batch=4)

    def flat(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return [value] if inner is None else [f for v in inner for f in flat(v)]

    for name, rows in {**whole.maps, **whole.controls}.items():
        ours, theirs = (flat(r) for r in (rows[2], {**alone.maps, **alone.controls}[name][0]))
        for a, b in zip(ours, theirs, strict=True):
            assert a == b if not isinstance(a, float) else a == pytest.approx(b, abs=2e-4)


def test_the_overview_averages_what_exists():
    one = {
        "insertion": {"mean": 0.5, "blur": 0.25},
        "deletion": {"mean": 0.1, "blur": 0.2},
        "max_sensitivity": 0.4,
        "randomisation": {"layers": ["b", "a"], "spearman": [0.5, 0.1], "last": 0.1},
    }
    two = {
        **one,
        "max_sensitivity": None,
        "randomisation": {"layers": ["b", "a"], "spearman": [None, 0.3], "last": 0.3},
    }
    found = overview({"m": [one, two, None]}, {"random": [one]})
    assert found["rows"][0] == {
        "name": "m",
        "control": False,
        "insertion_mean": 0.5,
        "insertion_blur": 0.25,
        "deletion_mean": pytest.approx(0.1),
        "deletion_blur": pytest.approx(0.2),
        "max_sensitivity": 0.4,
        "randomisation": pytest.approx(0.2),
        "images": 2,
        "skipped": 1,
    }
    assert found["rows"][1]["control"] is True
    assert found["cascade"]["m"] == [0.5, pytest.approx(0.2)] and found["layers"] == ["b", "a"]
    assert set(found["texts"]) == set(TEXTS)


def test_results_hold_no_nan_and_say_what_could_not_be_measured():
    model = wrap(lambda batch: torch.stack([0 * batch.sum((1, 2, 3)), batch.mean((1, 2, 3))], 1))
    x = torch.rand(2, 3, 12, 12)
    maps = {"g": Gradient()(model, x, 0)}  # zero everywhere, and no weights to reset
    found = evaluate_maps(model, x, {"g": Gradient()}, maps, steps=3, samples=2)
    assert found.maps["g"][0]["max_sensitivity"] is None and found.maps["g"][0]["randomisation"] is None
    lost, zero = found.notes
    assert lost.startswith("no randomisation: there is nothing to randomise")
    assert zero == "g: no max-sensitivity for sample 0, 1: its map is zero everywhere"
    text = json.dumps([found.maps, found.controls, found.overview], allow_nan=False)
    assert math.isfinite(json.loads(text)[0]["g"][0]["insertion"]["mean"])


def test_bad_input_says_what_is_wrong():
    model, x = problem()
    maps = {"g": Gradient()(model, x, 0)}
    explainers = {"g": Gradient()}
    with pytest.raises(UsageError, match="maps of different classes"):
        other = {**maps, "h": InputTimesGradient()(model, x, 1)}
        evaluate_maps(model, x, {**explainers, "h": InputTimesGradient()}, other)
    with pytest.raises(UsageError, match=r"labels name methods.*random"):
        evaluate_maps(model, x, {"random": Gradient()}, {"random": maps["g"]})
    with pytest.raises(UsageError, match="measured on pictures"):
        evaluate_maps(model, x.flatten(1), explainers, maps)
    dense = wrap(nn.Conv2d(3, 4, 1), task="segmentation")
    with pytest.raises(UsageError, match="measured on classifiers"):
        evaluate_maps(dense, x, explainers, {"g": Gradient()(dense, x)})
    with pytest.raises(UsageError, match="stages is a whole number"):
        evaluate_maps(model, x, explainers, maps, stages=-1)


def test_the_page_runs_as_it_stands(capsys):
    page = Path(__file__).resolve().parents[2] / "docs" / "explain" / "metrics.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(code, str(page), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["gradient", "smoothgrad", *CONTROLS]
    assert all(line.split()[-1].startswith(("1.0", "0.99999")) for line in lines[2:6])
