"""Certifications as runs: the figures follow from the certificates, however often the run was cut."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.core import files
from robustkit.core.errors import Refused, UsageError
from robustkit.run import certify as journey
from robustkit.run import certify_plan
from robustkit.run.certify_config import load_certify_config
from robustkit.run.verify import verify
from tests.run.forks import forking

METHOD = "smoothing:sigma=0.5,n=400,n0=40"


class Halves(nn.Module):
    """Linear: class 1 where the first value is above one half; the other values count little."""

    def forward(self, x):
        z = 4 * (x.flatten(1)[:, 0] - 0.5) + 0.01 * x.flatten(1)[:, 1]
        return torch.stack([-z, z], 1)


class Pixels(nn.Module):
    """Dense: class 1 where a pixel is above one half."""

    def forward(self, x):
        z = 4 * (x - 0.5)
        return torch.cat([-z, z], 1)


@pytest.fixture(autouse=True)
def unsynced():
    """Power cuts are tested elsewhere."""
    with files.unsynced():
        yield


def samples(n=12):
    x = torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return x, (x.flatten(1)[:, 0] > 0.5).long()


@pytest.fixture(scope="module")
def model():
    return rk.wrap(Halves(), name="halves", class_names=("low", "high"))


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    with files.unsynced():
        return rk.certify(model, samples(), METHOD, out=tmp_path_factory.mktemp("runs") / "a", seed=3)


def test_rows_are_the_certificates_of_the_method(model, found):
    x, y = samples()
    own = rk.Smoothing(sigma=0.5, n=400, n0=40)(model, x, seed=3)
    stored = found.certificate()
    assert torch.equal(stored.prediction, own.prediction)
    assert torch.equal(stored.radius, own.radius)
    assert torch.equal(stored.extras["hits"], own.extras["hits"])
    assert stored.reasons == own.reasons and stored.outcome == own.outcome
    assert found.certified_accuracy == own.accuracy(y) and found.abstained == own.abstained.double().mean()


def test_figures_follow_from_the_certificates(found):
    """Shares, the curve, the mean radius and the classes, computed again from the certificates."""
    y, c, r = samples()[1], found.certificate(), found.data
    right = c.prediction == y
    for point in r["curve"]:
        accurate = right & (c.radius >= point["radius"])
        assert point["certified_accuracy"] == pytest.approx(float(accurate.double().mean()))
        held = (c.prediction >= 0) & (c.radius >= point["radius"])
        assert point["certified"] == pytest.approx(float(held.double().mean()))
        assert point["interval"][0] <= point["certified_accuracy"] <= point["interval"][1]
    assert r["curve"][0]["radius"] == 0 and r["curve"][-1]["radius"] == pytest.approx(r["verifier"]["max_radius"])
    assert r["average_certified_radius"] == pytest.approx(float((c.radius * right).mean()))
    assert r["outcomes"] == {"certified": int(c.certified.sum()), "falsified": 0, "unknown": int((~c.certified).sum())}
    assert sum(reason["count"] for reason in r["reasons"]) == r["outcomes"]["unknown"]
    assert [(k["class"], k["name"], k["n"]) for k in r["per_class"]] == [
        (label, name, int((y == label).sum())) for label, name in ((0, "low"), (1, "high"))
    ]
    assert r["draws"] == {"selection": 40, "votes": 1, "median": 400, "max": 400, "total": 4800, "cap": 400}
    assert r["linf"]["factor"] == pytest.approx(1 / 3) and r["linf"]["dimension"] == 9
    assert torch.allclose(c.radius_linf, c.radius / 3)


def test_the_asked_radius_decides_what_is_proved(model):
    found = rk.certify(model, samples(), METHOD + ",radius=0.2", seed=3)
    c, y = found.certificate(), samples()[1]
    assert torch.equal(c.certified, c.radius >= 0.2)
    assert found.certified_accuracy == pytest.approx(float(((c.prediction == y) & (c.radius >= 0.2)).double().mean()))
    assert found.data["outcomes"]["unknown"] > 0 and 0.2 in found.curve
    assert found.data["property"]["radius"] == 0.2 and found.data["radius"] == 0.2


def test_decide(model):
    found = rk.certify(model, samples(), "smoothing:sigma=0.5,mode=decide,radius=0.1,n=4000", seed=3)
    c = found.certificate()
    assert set(c.radius.tolist()) == {0.0, 0.1}
    assert found.data["draws"]["median"] < 1000 and found.data["verifier"]["beta"] == 0.001
    assert found.data["average_certified_radius"] is None
    assert [p["radius"] for p in found.data["curve"]] == [0.0, 0.1]


def test_dense_counts_labelled_pixels(tmp_path):
    """Shares of pixels, again from the stored maps; void pixels count for nothing."""
    x = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0.5).long()
    y[0, 0, 0] = 255
    model = rk.wrap(Pixels(), task="segmentation")
    found = rk.certify(model, (x, y), "smoothing:sigma=0.25,n=600,radius=0.05,correction=holm", out=tmp_path / "a")
    c, known = found.certificate(), y != 255
    own = rk.Smoothing(sigma=0.25, n=600, radius=0.05, correction="holm")(model, x)
    assert torch.equal(c.prediction, own.prediction) and torch.equal(c.certified, own.certified)
    assert torch.equal(c.radius, own.radius) and c.accuracy(y, 0.05) == own.accuracy(y, 0.05) > 0
    right = (c.certified & (c.prediction == y))[known].double().mean()
    assert found.certified_accuracy == pytest.approx(float(right)) and 0 < right < 1
    assert found.abstained == pytest.approx(float((c.prediction < 0)[known].double().mean()))
    point = next(p for p in found.data["curve"] if p["radius"] == 0.05)
    assert point["certified_accuracy"] == pytest.approx(float(right))
    assert found.data["dense"]["labelled"] == int(known.sum()) and found.data["dense"]["correction"] == "holm"
    ious = []
    for k in range(2):
        mine, label = (c.certified & (c.prediction == k))[known], (y == k)[known]
        ious.append(float((mine & label).sum() / (mine | label).sum()))
    assert found.data["dense"]["miou"] == pytest.approx(sum(ious) / 2)


def test_classes_of_dense_outputs_have_the_median_radius_of_their_pixels(monkeypatch):
    """Over several chunks, which are short where outputs are large: 3 * 20 counts of each image."""
    monkeypatch.setattr(certify_plan, "COUNTS", 150)
    x = torch.rand(5, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0.4).long()
    found = rk.certify(rk.wrap(Pixels(), task="segmentation"), (x, y), "smoothing:n=300")
    assert len(list((found.path / "certificates").iterdir())) == 3
    c = found.certificate()
    for row in found.data["per_class"]:
        assert row["median_radius"] == float((c.radius * (c.prediction == y))[y == row["class"]].median())


def test_shares_of_no_labelled_pixel_are_no_numbers():
    x = torch.rand(1, 1, 4, 5)
    model = rk.wrap(Pixels(), task="segmentation")
    found = rk.certify(model, (x, torch.full((1, 4, 5), 255)), "smoothing:n=100", force=True)
    assert math.isnan(found.certified_accuracy) and math.isnan(found.abstained) and "nan" in repr(found)


def test_the_batch_size_bounds_every_pass():
    sizes = []

    class Watched(Halves):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    plan = rk.certify(rk.wrap(Watched()), samples(), METHOD, batch_size=3, force=True)
    assert plan.certified_accuracy > 0 and max(sizes[-4:]) <= 3


def test_the_same_call_goes_on_and_another_is_refused(model, found, monkeypatch):
    monkeypatch.setattr(journey, "certify_stage", None)
    again = rk.certify(model, samples(), METHOD, out=found.path, seed=3)
    assert again.data == found.data
    with pytest.raises(UsageError, match="seed: 3 -> 4"):
        rk.certify(model, samples(), METHOD, out=found.path, seed=4)


def test_chunks_and_batches_change_no_certificate(model, found, monkeypatch):
    monkeypatch.setattr("robustkit.run.certify_plan.VALUES", 9 * 900)
    other = rk.certify(model, samples(), METHOD, seed=3, batch_size=50)
    assert torch.equal(other.certificate().radius, found.certificate().radius)
    assert torch.equal(other.certificate().extras["hits"], found.certificate().extras["hits"])


def test_random_models_and_foreign_labels_are_refused(model):
    noisy = rk.wrap(lambda x: Halves()(x) + torch.randn(len(x), 2), name="noisy")
    with pytest.raises((UsageError, Refused), match="random"):
        rk.certify(noisy, samples(), METHOD)
    x, y = samples()
    with pytest.raises((UsageError, Refused), match=r"label|out of range"):
        rk.certify(model, (x, y + 1), METHOD)


def test_nothing_is_kept_of_a_run_that_could_not_begin(tmp_path):
    """NaN under noise only: the options can be mended and the folder used again."""
    sick = rk.wrap(
        lambda x: (
            Halves()(x)
            / (x.flatten(1).amax(1, keepdim=True) < 1.3)
            .float()
            .sqrt()
            .where(x.flatten(1).amax(1, keepdim=True) < 1.3, torch.nan)
        ),
        name="sick",
    )
    with pytest.raises(UsageError, match="NaN"):
        rk.certify(sick, samples(), METHOD, out=tmp_path / "a")
    healthy = rk.certify(rk.wrap(Halves(), name="sick"), samples(), METHOD, out=tmp_path / "a")
    assert healthy.data["complete"]


def test_networks_without_gradients_are_certified():
    """No gradient, no access to layers: outputs alone."""

    def numpy_net(x):
        return torch.from_numpy(Halves()(x).numpy())

    x, y = samples()
    found = rk.certify(rk.wrap(numpy_net), (x, y), METHOD)
    assert found.certified_accuracy > 0.5


def test_too_few_draws_are_said_in_the_results(model):
    found = rk.certify(model, samples(), "smoothing:n=9,n0=5")
    assert "At least n = 10" in found.data["notes"][0]
    assert found.certified_accuracy == 0 and found.data["outcomes"]["unknown"] == 12


def test_verify_checks_the_files(found):
    assert [row.status for row in verify(found.path)] == ["PASS"]
    page = found.path / "report.html"
    kept = page.read_bytes()
    page.write_bytes(kept + b" ")
    assert verify(found.path)[0].status == "FAIL"
    page.write_bytes(kept)


def test_configuration_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_certify_config(
        None, {"model": "m.py:net", "data": "npz:d.npz", "method": " smoothing: n=5 , sigma=1/4"}
    )
    assert config.model == f"{tmp_path}/m.py:net" and config.data == f"npz:{tmp_path}/d.npz"
    assert config.method == "smoothing:n=5,sigma=1/4" and config.stem == "certify-m.py:net"
    with pytest.raises(UsageError, match="no method given"):
        load_certify_config(None, {"model": "a", "data": "b"})


WORKER = """
import torch
torch.set_num_threads(1)
import robustkit as rk
import robustkit.run.certify, robustkit.report.write, robustkit.run.certify_plan
import robustkit.certify.smoothing, scipy.stats
robustkit.report.write.write_page = lambda folder: folder
robustkit.run.certify_plan.VALUES = 9 * 3000
from tests.run.test_certify import Halves, samples

def work(out):
    rk.certify(rk.wrap(Halves(), name="halves"), samples(24), "smoothing:sigma=0.5,n=1000", out=out)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_and_continued_gives_the_same_counts(tmp_path):
    def outcome(folder: Path) -> tuple[dict, bytes]:
        results = json.loads((folder / "results.json").read_text())
        del results["times"]
        return results, (folder / "samples-certify.jsonl").read_bytes()

    with forking(WORKER) as work:
        status, seconds = work(tmp_path / "whole")
        assert status == 0
        expected, draw, killed = outcome(tmp_path / "whole"), random.Random(5), 0
        for i in range(4):
            folder = tmp_path / f"run{i}"
            status, _ = work(folder, draw.uniform(0.1, 0.95) * seconds)
            killed += status == signal.SIGKILL
            assert work(folder)[0] == 0
            assert outcome(folder) == expected, f"run {i}"
        assert killed
