"""Dense tasks from end to end: metrics against slow versions, the worst case per image, what is stored and said."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.core.task import DenseClassification, Regression
from robustkit.report.files import RunFiles, load_schema
from robustkit.run import dense
from robustkit.run.diagnostics import verification
from tests.dense import PixelNet, regression, segmentation

ATTACKS = ["cospgd:steps=6", "pgd:steps=3,loss=segpgd"]


def slow_miou(predictions, labels, void, classes):
    """Class by class over all pixels at once."""
    values = []
    for c in range(classes):
        valid = labels != void
        both = ((predictions == c) & (labels == c) & valid).sum()
        either = (((predictions == c) | (labels == c)) & valid).sum()
        if either:
            values.append(both / either)
    return float(np.mean(values))


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_iou_of_many_images_is_that_of_all_their_pixels(seed, classes):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, 4, 5, generator=draw)
    y = torch.randint(0, classes, (3, 4, 5), generator=draw)
    y[torch.rand(y.shape, generator=draw) < 0.2] = 255
    rows = dense.describe(DenseClassification(), logits, y)
    said = logits.argmax(1).numpy()
    assert dense.mean_iou(rows) == pytest.approx(slow_miou(said, y.numpy(), 255, classes))
    right = ((said == y.numpy()) & (y.numpy() != 255)).sum() / (y.numpy() != 255).sum()
    assert dense.pixel_accuracy(rows) == pytest.approx(right)
    for row, harm in zip(rows, DenseClassification().harm(logits, y), strict=True):
        assert dense.harm_of(row) == pytest.approx(float(harm), abs=1e-6)


def test_an_image_without_labels_counts_for_nothing():
    rows = dense.describe(DenseClassification(), torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert rows == [{"pixels": 0, "right": 0, "classes": []}]
    assert dense.mean_iou(rows) is None and dense.pixel_accuracy(rows) is None and dense.harm_of(rows[0]) == 0


def test_end_point_error_and_psnr_in_closed_form():
    outputs, y = torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3)
    outputs[1, 0], outputs[1, 1] = 3.0, 4.0
    assert dense.end_point_error(outputs, y).tolist() == [0.0, 5.0]
    row = dense.describe(Regression(), outputs, y)[1]
    assert row == {"epe": 5.0, "mse": 12.5}
    assert dense.psnr(12.5, 10.0) == pytest.approx(10 * math.log10(100 / 12.5))
    assert dense.end_point_error(torch.ones(1, 4, 4), torch.zeros(1, 4, 4)).tolist() == [1.0]  # a depth map


def test_the_worst_case_is_per_image():
    clean = {0: {"right": 9, "pixels": 10, "classes": [[0, 9, 10, 9]]}, 1: {"right": 9, "pixels": 10, "classes": []}}
    first = {0: {"right": 2, "pixels": 10, "classes": []}, 1: {"right": 8, "pixels": 10, "classes": []}}
    second = {0: {"right": 5, "pixels": 10, "classes": []}, 1: {"right": 1, "pixels": 10, "classes": []}}
    found = dense.summary(DenseClassification(), clean, [first, second], str, None)
    accuracy = found["metrics"][1]
    assert accuracy["clean"] == 0.9 and accuracy["attacks"] == [0.5, 0.3]
    assert accuracy["robust"] == 0.15


def test_an_attack_that_helps_counts_as_none():
    clean = {0: {"epe": 2.0, "mse": 4.0}}
    found = dense.summary(Regression(), clean, [{0: {"epe": 1.0, "mse": 9.0}}], str, 3.0)
    psnr, epe = found["metrics"]
    assert epe["robust"] == 2.0 and psnr["robust"] == pytest.approx(10 * math.log10(9 / 9.0))


def faults(results):
    found = Draft202012Validator(load_schema()).iter_errors(results)
    return [f"{list(error.absolute_path)}: {error.message}"[:200] for error in found]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model, x, y = segmentation(dtype=torch.float32, n=12)
    folder = tmp_path_factory.mktemp("dense") / "run"
    result = rk.evaluate(model, (x, y), attacks=ATTACKS, threat=rk.Linf(0.05), out=folder, batch_size=5)
    return model, x, y, folder, result


def test_results_fit_the_schema_and_the_stored_points(run):
    model, x, y, folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    assert faults(results) == []
    worst = model(x).detach()
    for k, entry in enumerate(results["attacks"]):
        parts = [load_file(file) for file in sorted((folder / "adversarial").glob(f"{k}-*/*.safetensors"))]
        ids, adversarial = torch.cat([p["ids"] for p in parts]), torch.cat([p["adversarial"] for p in parts])
        assert ids.tolist() == list(range(12)), entry["label"]  # every image, broken or not
        assert (adversarial - x).abs().max() <= 0.05 + 1e-6
        outputs = model(adversarial).detach()
        shown = results["dense"]["metrics"][0]["attacks"][k]
        better = model.task.harm(model(x), y) >= model.task.harm(outputs, y)
        single = torch.where(better[:, None, None, None], model(x), outputs)
        assert shown == pytest.approx(slow_miou(single.argmax(1).numpy(), y.numpy(), 255, 5), abs=2e-3)
        more = model.task.harm(outputs, y) > model.task.harm(worst, y)
        worst = torch.where(more[:, None, None, None], outputs, worst)
    shown = results["dense"]["metrics"][0]
    assert shown["robust"] == pytest.approx(slow_miou(worst.argmax(1).numpy(), y.numpy(), 255, 5), abs=2e-3)
    assert shown["robust"] < min(shown["attacks"]) + 1e-9 < shown["clean"]


def test_stored_points_verify_and_tampering_is_seen(run):
    _, _, _, _, result = run
    rows = {row["id"]: row for row in result.data["diagnostics"]}
    assert rows["D17"]["status"] in ("PASS", "WARN"), rows["D17"]
    model, x, y, _, _ = run
    ids, harm = torch.arange(12), model.task.harm(model(x), y)
    assert verification(model, [(ids, x, y, None, x, harm)], rk.Linf(0.05)).status == "PASS"
    assert verification(model, [(ids, x, y, None, x, harm + 0.2)], rk.Linf(0.05)).fatal
    assert verification(model, [(ids, x, y, None, (x + 0.1).clamp(0, 1), harm)], rk.Linf(0.05)).fatal


def test_a_killed_run_goes_on_to_the_same_results(run, tmp_path):
    model, x, y, _, result = run
    again = rk.evaluate(
        model, (x, y), attacks=ATTACKS, threat=rk.Linf(0.05), out=tmp_path / "b", batch_size=5, max_minutes=1e-9
    )
    assert not again.complete
    again = rk.evaluate(model, (x, y), attacks=ATTACKS, threat=rk.Linf(0.05), out=tmp_path / "b", batch_size=5)
    assert again.complete and again.data["dense"] == result.data["dense"]


def test_images_that_are_wrong_when_clean_are_attacked_but_not_called_broken(tmp_path):
    model, x, y = segmentation(dtype=torch.float32, n=6, fraction=0.05)
    result = rk.evaluate(model, (x, y), attacks=["cospgd:steps=4"], threat="linf:0.05", out=tmp_path / "r", force=True)
    wrong = int(model.task.failed(model(x), y).sum())
    assert wrong > 0 and result.clean_accuracy == pytest.approx(1 - wrong / 6)
    assert 0 <= result.robust_accuracy <= result.clean_accuracy
    rows = [json.loads(line) for line in next((tmp_path / "r").glob("samples-0*.jsonl")).read_text().splitlines()]
    assert len(rows) == 6 and all({"pixels", "right", "classes"} <= set(row) for row in rows)


def test_gates_and_reports(run):
    from robustkit.report.html import render
    from robustkit.report.markdown import render as markdown
    from robustkit.run.gates import judge

    _, _, _, folder, result = run
    value = result.data["dense"]["metrics"][0]["robust"]
    verdicts = judge(["miou=0.99", "pixel_accuracy=0.01"], result.data)
    assert [v["passed"] for v in verdicts] == [False, True] and verdicts[0]["value"] == value
    page, text = render(RunFiles.open(folder)), markdown(RunFiles.open(folder))
    shown = f"{100 * value:.1f} %"
    for report in (page, text):
        assert "mIoU" in report and "pixel accuracy" in report and shown in report
    assert page.count("answer, attacked") >= 6 and "swatch" in page and "worst case" in text


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_regression_from_end_to_end(tmp_path, channels):
    model, x, y = regression(channels, dtype=torch.float32, n=6)
    result = rk.evaluate(model, (x, y), attacks=["cospgd:steps=5", "fgsm"], threat="linf:0.02", out=tmp_path / "run")
    assert [e.message for e in Draft202012Validator(load_schema()).iter_errors(result.data)] == []
    metrics = {m["key"]: m for m in result.data["dense"]["metrics"]}
    assert set(metrics) == ({"psnr", "epe"} if channels == 3 else {"epe"})  # three channels: images like the inputs
    assert metrics["epe"]["robust"] > metrics["epe"]["clean"]
    expected = dense.end_point_error(model(x), y).mean()
    assert metrics["epe"]["clean"] == pytest.approx(float(expected), rel=1e-4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "end-point error" in page and page.count("answer, attacked") >= 6


@pytest.mark.parametrize("kind", ["next", "random"])
def test_targets_keep_void_and_are_keyed(kind):
    y = torch.tensor([[[0, 4], [255, 2]]] * 3)
    wanted = dense.targets(DenseClassification(), kind, 5, y, torch.tensor([5, 6, 7]), 0)
    assert (wanted[:, 1, 0] == 255).all() and wanted[y != 255].max() <= 4 and wanted.min() >= 0
    alone = dense.targets(DenseClassification(), kind, 5, y[1:2], torch.tensor([6]), 0)
    assert torch.equal(alone[0], wanted[1])
    if kind == "next":
        assert wanted[0].tolist() == [[1, 0], [255, 3]]


def test_targeted_from_end_to_end(tmp_path):
    model, x, y = segmentation(dtype=torch.float32, n=6)
    options = {"attacks": ["cospgd:steps=5"], "threat": "linf:0.05", "out": tmp_path / "run"}
    result = rk.evaluate(model, (x, y), targeted="next", **options)
    assert result.complete and result.data["dense"]["metrics"][0]["robust"] is not None
    with pytest.raises(UsageError, match="next or random, for segmentation"):
        rk.evaluate(model, (x, y), targeted="least-likely", attacks=["cospgd"], threat="linf:0.05")


def test_task_options_are_read_from_text():
    assert rk.wrap(PixelNet(), task="segmentation:ignore_index=0,fraction=0.9").task == DenseClassification(0.9, 0)
    for text, said in (("segmentation:ignore=1", "unknown option"), ("regression:tolerance=x", "not a number")):
        with pytest.raises(UsageError, match=said):
            rk.wrap(PixelNet(), task=text)
