"""Explanations as runs: what is stored is what the methods say, however often the run was cut."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image
from torch import nn

import robustkit as rk
import robustkit.explain.smoothgrad
from robustkit.core import files
from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing
from robustkit.explain.metrics.similarity import similarity
from robustkit.explain.smoothgrad import SmoothGrad
from robustkit.images import seen_box
from robustkit.report.explain import load_schema
from robustkit.run import evaluate as evaluation
from robustkit.run import explain as journey
from robustkit.run.config import load_config
from robustkit.run.directory import RunDirectory
from robustkit.run.explain_config import load_explain_config
from robustkit.run.verify import verify

NAMES = ("ant", "bee", "cat, house cat", "dog")
METHODS = "gradient,smoothgrad:samples=4,noise_level=0.1"

NET = """
import torch
from torch import nn


def net(channels=1):
    torch.manual_seed(3)
    made = nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    )
    with torch.no_grad():
        made[4].weight.mul_(8)
    return made


def data():
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x, net()(x).argmax(1)
"""


def of_the_file(name: str, **options):
    found: dict = {}
    exec(NET, found)
    with torch.random.fork_rng():
        return found[name](**options)


@pytest.fixture(autouse=True)
def unsynced():
    """Power cuts are tested elsewhere."""
    with files.unsynced():
        yield


@pytest.fixture(scope="module")
def model():
    return rk.wrap(of_the_file("net"), name="net", class_names=NAMES)


@pytest.fixture(scope="module")
def x():
    return of_the_file("data")[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NET, encoding="utf-8")
    return path


def results(folder: Path) -> dict:
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del found["times"]
    return found


def stored(folder: Path) -> dict[str, bytes]:
    """Rows, maps and pictures."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".npz", ".png") or path.name.startswith("samples-")
    }


def test_what_is_stored_is_what_the_methods_say(model, x, tmp_path):
    found = rk.explain(model, x[:3], [METHODS, rk.InputTimesGradient()], seed=5, out=tmp_path)
    assert found.labels == ["gradient", "smoothgrad:samples=4,noise_level=0.1", "input-times-gradient"]
    alone = SmoothGrad(samples=4, noise_level=0.1)(model, x[:3], seed=5)
    read = found.attribution("smoothgrad")
    for name in ("values", "standard_error", "target", "value", "x"):
        assert torch.equal(getattr(read, name), getattr(alone, name)), name
    assert read.extras["variance"].shape == alone.values.shape and read.signed == alone.signed
    cell = found.data["images"][2]["maps"][1]
    pixels = alone.values[2].abs().sum(0)
    assert cell["max"] == pytest.approx(float(pixels.max())) and cell["min"] == pytest.approx(float(pixels.min()))
    assert cell["relative_error"] == pytest.approx(float(alone.relative_error[2]))
    assert found.data["methods"][1]["cost"]["backwards"] == 3 * 4
    top = found.data["images"][1]["top"]
    assert top[0]["class"] == int(model(x[1:2]).argmax()) and top[0]["name"] == NAMES[top[0]["class"]]
    assert sum(entry["p"] for entry in top) == pytest.approx(1)
    assert Draft202012Validator(load_schema()).is_valid(json.loads((tmp_path / "results.json").read_text()))
    assert (tmp_path / "report.html").is_file() and "<img" in found._repr_html_()
    assert found.report(tmp_path.with_suffix(".html")).stat().st_size > 1000
    with pytest.raises(UsageError, match="Did you mean gradient"):
        found.attribution("gradien")


def test_chunks_change_nothing_but_rounding(model, x):
    model = rk.wrap(of_the_file("net").double())
    whole = rk.explain(model, x.double(), METHODS)
    parts = rk.explain(model, x.double(), METHODS, batch_size=5)
    for label in whole.labels:
        assert torch.allclose(whole.attribution(label).values, parts.attribution(label).values, atol=1e-12)


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_cut_anywhere_and_continued_gives_the_same_bytes(model, x, tmp_path, monkeypatch, at):
    options = {"batch_size": 2, "out": tmp_path / "cut"}
    rk.explain(model, x[:4], METHODS, batch_size=2, out=tmp_path / "whole")
    calls, append = [], RunDirectory.append_rows

    def dies(self, name, rows):
        calls.append(name)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        append(self, name, rows)

    monkeypatch.setattr(RunDirectory, "append_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        rk.explain(model, x[:4], METHODS, **options)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "results.json").exists()
    rk.explain(model, x[:4], METHODS, **options)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")


def test_a_finished_run_computes_nothing_and_is_as_it_was(x, tmp_path):
    first = rk.explain(of_the_file("net"), x[:2], METHODS, out=tmp_path)
    fresh = rk.wrap(of_the_file("net"))
    again = rk.explain(fresh, x[:2], METHODS, out=tmp_path)
    assert again.data == first.data and fresh.cost.backwards == 0
    assert [row.status for row in verify(tmp_path)] == ["PASS"]
    (tmp_path / "images" / "00000.png").write_bytes(b"")
    assert [row.status for row in verify(tmp_path)] == ["FAIL"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"methods": "gradient"}, "methods: gradient, smoothgrad:samples=4,noise_level=0.1 -> gradient"),
        ({"target": 2}, "target: predicted -> 2"),
        ({"target": torch.tensor([0, 1])}, "target: predicted -> python:target"),
        ({"data": torch.rand(2, 1, 8, 8)}, "contents of data"),
    ],
)
def test_other_options_are_refused_with_the_difference(model, x, tmp_path, change, says):
    call = {"data": x[:2], "methods": METHODS, "out": tmp_path}
    rk.explain(model, **call)
    with pytest.raises(UsageError, match=says):
        rk.explain(model, **{**call, **change})


def test_the_folder_of_another_kind_is_refused(model, x, tmp_path):
    rk.evaluate(model, of_the_file("data"), attacks=["fgsm"], threat="linf:0.1", limit=4, force=True, out=tmp_path)
    with pytest.raises(UsageError, match="another kind"):
        rk.explain(model, x[:2], METHODS, out=tmp_path)


def test_targets(model, x):
    def classes(target):
        return [image["target"] for image in rk.explain(model, (x[:3], torch.tensor([3, 0, 1])), "gradient", target=target).data["images"]]  # fmt: skip # noqa: E501

    assert classes("predicted") == model(x[:3]).argmax(1).tolist()
    assert classes("label") == [3, 0, 1]
    assert classes(2) == classes("house cat") == classes("Cat, House Cat") == classes("2") == [2, 2, 2]
    assert classes(torch.tensor([1, 2, 0])) == [1, 2, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": 4}, r"no such class.*0 \.\. 3.*got 4"),
        ({"target": "cats"}, "Did you mean cat"),
        ({"target": "label"}, "no single label"),
        ({"target": "clean"}, "from-run"),
        ({"target": torch.tensor([0.5, 1.0])}, "whole number"),
        ({"methods": "smoothgrd"}, "Did you mean smoothgrad"),
        ({"methods": "smoothgrad:sample=3"}, "Did you mean samples"),
        ({"methods": "gradient,gradient"}, "once"),
        ({"methods": []}, "methods"),
        ({"methods": [3]}, "not a saliency method"),
        ({"methods": "gradient:output=margin,smoothgrad"}, "different outputs"),
        ({"methods": "gradcam:layer=nine"}, "no layer 'nine'"),
        ({"mask": torch.ones(8, 8)}, "mask"),
        ({"data": torch.rand(8, 8)[0]}, "batch"),
        ({"data": torch.full((1, 1, 8, 8), torch.nan)}, "NaN"),
        ({"data": torch.rand(1, 3, 8, 8)}, "channels"),
        ({"data": torch.rand(1, 1, 8, 8) + 2}, "bounds"),
    ],
)
def test_what_is_refused(model, x, options, says):
    with pytest.raises(UsageError, match=says):
        rk.explain(model, **{"data": x[:2], "methods": "gradient", **options})


def test_output_and_functions(model, x):
    found = rk.explain(model, x[:2], [rk.Gradient()], output="probability")
    assert found.data["output"] == "probability"
    assert found.data["images"][0]["value"] == pytest.approx(found.data["images"][0]["top"][0]["p"], abs=1e-6)
    total = rk.explain(model, x[:2], "gradient", output=lambda outputs, classes: outputs.sum(1))
    assert total.data["output"] == "function" and total.data["methods"][0]["options"]["output"] == "function"
    assert total.data["images"][0]["value"] == pytest.approx(float(model(x[:1]).sum()), abs=1e-5)


def test_inputs_that_are_no_pictures(tmp_path):
    found = rk.explain(nn.Linear(5, 3), torch.rand(4, 5), METHODS, out=tmp_path)
    assert found.attribution().values.shape == (4, 5)
    assert found.data["images"][0]["picture"] is None and found.data["images"][0]["maps"][0]["heat"] is None
    assert not (tmp_path / "report.html").exists() and "4 inputs" in found._repr_html_()


def test_the_measures_stand_beside_the_maps(model, x, tmp_path):
    found = rk.explain(model, x[:2], "gradient", evaluate=True, out=tmp_path)
    rows = {row["name"]: row for row in found.data["evaluation"]["rows"]}
    assert {"gradient", "random", "sobel"} <= set(rows) and rows["random"]["control"]
    cells = [image["maps"][0]["evaluation"] for image in found.data["images"]]
    mean = sum(cell["insertion"]["mean"] for cell in cells) / 2
    assert rows["gradient"]["insertion_mean"] == pytest.approx(mean) and 0 < mean < 1
    assert found.data["images"][0]["controls"][0]["name"] in rows
    assert found.data["evaluation"]["cost"]["forwards"] > 0
    with pytest.raises(UsageError, match="measured"):
        rk.explain(rk.wrap(nn.Linear(5, 3)), torch.rand(4, 5), "gradient", evaluate=True)


# -- dense tasks


def test_a_class_of_a_segmentation():
    model = rk.load("demo:shapes-segmentation")
    x, _ = rk.open_data("demo:shapes").take([0, 1])
    answer = model(x).argmax(1)
    found = rk.explain(model, x, "gradient")
    for image, said in zip(found.data["images"], answer, strict=True):
        assert image["target"] == int(said.flatten().bincount().argmax()) and image["top"] == []
        assert image["target_name"] == model.class_names[image["target"]]
    mask = torch.zeros(48, 48, dtype=torch.bool)
    mask[10:20, 10:20] = True
    masked = rk.explain(model, x, "gradient", target=1, mask=mask)
    expected = model(x)[:, 1, 10:20, 10:20].sum((1, 2))
    assert [image["value"] for image in masked.data["images"]] == pytest.approx(expected.tolist(), rel=1e-4)
    absent = next(c for c in range(5) if not bool((answer[0] == c).any()))
    with pytest.raises(UsageError, match="no pixel the target class"):
        rk.explain(model, x, "gradient", target=absent)


# -- pictures in files


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A colour picture that lies on its side, one in grey, and a folder of them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    colour.save(folder / "side.png", exif=exif)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 30), dtype=np.uint8)).save(folder / "more/grey.png")
    Image.new("RGB", (9, 9), (10, 200, 90)).save(folder / "more/flat.jpg")
    (folder / "fake.png").write_text("no picture")
    return folder


def explained(folder, out, **options):
    config = load_explain_config(None, {"methods": ["gradient"], **options})
    return journey.run(config, out, command=["test"])


@pytest.fixture
def sized(monkeypatch):
    """The network of the file for colour pictures of 16 x 16, cut out of the middle."""
    p = Preprocessing((0.5,) * 3, (0.25,) * 3, size=(16, 16), crop_pct=0.8, interpolation="bilinear")
    model = rk.wrap(of_the_file("net", channels=3), preprocessing=p, name="sized")
    monkeypatch.setattr(journey, "load", lambda *_, **__: model)
    return p


def test_pictures_are_upright_and_their_box_is_kept(pictures, sized, tmp_path):
    found = explained(None, tmp_path, model="demo:any", images=[str(pictures / "side.png"), str(pictures / "more")])
    side, flat, grey = found["images"]
    assert (side["name"], flat["name"], grey["name"]) == ("side.png", "flat.jpg", "grey.png")
    assert (side["width"], side["height"]) == (40, 24) and side["box"] == list(seen_box((40, 24), sized))
    with Image.open(tmp_path / side["picture"]) as kept:
        assert kept.size == (40, 24)
    left, top, right, bottom = side["box"]
    with Image.open(tmp_path / side["maps"][0]["overlay"]) as drawn:
        assert drawn.size == (round(right) - round(left), round(bottom) - round(top))
    with np.load(tmp_path / grey["maps"][0]["file"]) as arrays:
        assert arrays["x"].shape == (3, 16, 16) and np.array_equal(arrays["x"][0], arrays["x"][2])


def test_networks_without_a_size_take_pictures_as_they_are(file, pictures, tmp_path):
    images = [str(pictures / "more/grey.png"), str(pictures / "side.png")]
    found = explained(None, tmp_path, model=f"{file}:net", images=images)
    assert [image["box"] for image in found["images"]] == [[0, 0, 30, 20], [0, 0, 40, 24]]
    with np.load(tmp_path / found["images"][1]["maps"][0]["file"]) as arrays:
        assert arrays["values"].shape == (1, 24, 40)  # a network of one channel sees colours in grey


@pytest.mark.parametrize(
    ("image", "says"),
    [("fake.png", "not a picture"), ("absent.png", "no such picture"), (".", "not a picture")],
)
def test_files_that_are_no_pictures(file, pictures, tmp_path, image, says):
    with pytest.raises(UsageError, match=says):
        explained(None, tmp_path / "out", model=f"{file}:net", images=[str(pictures / image)])
    assert not (tmp_path / "out").exists()


# -- pairs of an evaluation


@pytest.fixture(scope="module")
def evaluated(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    options = {"model": f"{file}:net", "data": f"{file}:data", "attacks": ["fgsm"], "threat": "linf:0.2", "seed": 9}
    config = load_config(None, {**options, "force": True, "batch_size": 5})
    evaluation.run(config, folder, command=["test"])
    return folder


def test_pairs_share_the_class_of_the_clean_input(evaluated, tmp_path):
    found = explained(None, tmp_path, from_run=evaluated, limit=2, methods=["smoothgrad:samples=4"])
    clean, adversarial = found["images"][:2]
    assert (clean["variant"], adversarial["variant"], clean["id"]) == ("clean", "adversarial", adversarial["id"])
    assert clean["target"] == adversarial["target"] == clean["top"][0]["class"] != adversarial["top"][0]["class"]
    assert found["target"] == "clean" and found["seed"] == 9 and found["pair"]["attack"] == "fgsm"
    maps = [np.load(tmp_path / image["maps"][0]["file"]) for image in (clean, adversarial)]
    pixels = [torch.from_numpy(arrays["values"]).abs().sum(0)[None] for arrays in maps]
    expected = {name: float(value) for name, value in similarity(*pixels).items()}
    assert adversarial["maps"][0]["similarity"] == pytest.approx(expected) and clean["maps"][0]["similarity"] is None
    assert 0 < np.abs(maps[0]["x"] - maps[1]["x"]).max() <= 0.2 + 1e-6
    assert Draft202012Validator(load_schema()).is_valid(json.loads((tmp_path / "results.json").read_text()))
    assert (tmp_path / f"maps/{clean['id']:05d}-adversarial_smoothgrad-samples-4.npz").is_file()


def test_pairs_with_their_own_predictions(evaluated, tmp_path):
    found = explained(None, tmp_path, from_run=evaluated, limit=1, target="predicted")
    clean, adversarial = found["images"]
    assert clean["target"] == clean["top"][0]["class"] and adversarial["target"] == adversarial["top"][0]["class"]
    assert clean["target"] != adversarial["target"]


def test_runs_that_give_no_pairs(evaluated, file, tmp_path, model, x):
    rk.explain(model, x[:1], "gradient", out=tmp_path / "maps")
    with pytest.raises(UsageError, match="this run is an explanation"):
        explained(None, tmp_path / "a", from_run=tmp_path / "maps")
    rk.evaluate(
        model, of_the_file("data"), attacks=["fgsm"], threat="linf:0.1", limit=4, force=True, out=tmp_path / "b"
    )
    with pytest.raises(UsageError, match="made from Python"):
        explained(None, tmp_path / "c", from_run=tmp_path / "b")
    with pytest.raises(UsageError, match="data comes from the run"):
        explained(None, tmp_path / "d", from_run=evaluated, data=f"{file}:data")


# -- the package that is also a function


def test_explain_is_a_package_and_a_function(model, x):
    assert rk.explain is robustkit.explain is sys.modules["robustkit.explain"]
    assert robustkit.explain.smoothgrad.SmoothGrad is SmoothGrad is rk.SmoothGrad
    assert list(inspect.signature(rk.explain).parameters)[:3] == ["model", "data", "methods"]
    assert len(rk.explain(model, x[:1])) == 1
