"""Networks to be trained, and networks that a training has made. Nothing here uses a network connection."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from robustkit import catalogue
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.demo.networks import digit_net
from robustkit.run.sources import absolute_source
from robustkit.zoo import load
from robustkit.zoo.blank import blank
from robustkit.zoo.run import origin

TINY = "test_resnet"
SMALL = "mobilenet_v3_small"
DIGIT = (1, 28, 28)
USER = """
from torch import nn
from robustkit.core.model import wrap

def net(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
def dense(): return nn.Conv2d(1, 3, 1)
def wrapped(): return wrap(net(), mean=0.5, std=0.25, bounds=(-1, 1))
"""


@pytest.fixture
def user(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "mine.py").write_text(USER)
    return lambda factory: f"{tmp_path / 'mine.py'}:{factory}"


def made(spec: str, shape: tuple[int, ...] = DIGIT, classes: int = 10, seed: int = 0, **more: Any) -> Model:
    return blank(spec, classes=classes, shape=shape, seed=seed, **more)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- new networks ------------------------------------------------------------------------------------------------------


def test_cnn_is_the_demo_s_network() -> None:
    stored = digit_net("mnist-robust")
    net = made("cnn").net
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in stored.state_dict().items()}
    net.load_state_dict(stored.state_dict())
    x = torch.rand(2, *DIGIT, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), stored(x))


@pytest.mark.parametrize("spec", ["cnn", "resnet8", f"timm:{TINY}"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 33, 41)])
def test_networks_fit_any_picture(spec: str, shape: tuple[int, int, int]) -> None:
    model = made(spec, shape, classes=7)
    assert model.output_shape(torch.rand(1, *shape)) == (7,)
    assert all(p.requires_grad for p in model.net.parameters())
    assert model.name == spec


def test_resnet8_has_its_textbook_size() -> None:
    """3x3 convolutions and two 1x1 shortcuts; three norms at each width; a head with biases."""
    weights = 9 * (3 * 16 + 2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2) + 16 * 32 + 32 * 64
    net = made("resnet8", (3, 32, 32)).net
    assert sum(p.numel() for p in net.parameters()) == weights + 2 * 3 * (16 + 32 + 64) + 65 * 10
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()) == 9


@pytest.mark.parametrize("spec", ["cnn", "resnet8", f"timm:{TINY}", f"torchvision:{SMALL}", "user"])
def test_weights_are_of_the_seed_alone(spec: str, user: Callable[[str], str]) -> None:
    spec, shape = (user("net"), (1, 2, 2)) if spec == "user" else (spec, (3, 32, 32))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = made(spec, shape, seed=5).net
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first, made(spec, shape, seed=5).net)
    assert not same(first, made(spec, shape, seed=6).net)


def test_mean_std_and_size_are_the_makers_unless_given() -> None:
    config = timm.create_model(TINY).pretrained_cfg
    edge = config["input_size"][1]
    large, small = (made(f"timm:{TINY}", (3, size, size)) for size in (edge, 32))
    assert large.mean == small.mean == tuple(config["mean"])
    assert large.preprocessing is not None
    assert small.preprocessing is not None
    assert large.preprocessing.size == (edge, edge)
    assert small.preprocessing.size is None
    assert made("timm:test_vit", (3, 32, 32)).preprocessing.size == (160, 160)  # type: ignore[union-attr]
    grey = made(f"timm:{TINY}", (1, 32, 32))
    assert grey.mean == pytest.approx([sum(config["mean"]) / 3])
    given = made(f"timm:{TINY}", (3, 32, 32), mean=0.1, std=0.2, bounds=(-1, 1))
    assert (given.mean, given.std, given.bounds.low) == ((0.1,), (0.2,), -1)
    assert made("cnn").mean is None
    tv = made(f"torchvision:{SMALL}", (3, 32, 32))
    assert tv.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("spec", ["cnn", f"timm:{TINY}"])
def test_init_takes_weights_from_a_file(spec: str, tmp_path: Path) -> None:
    other = made(spec, (3, 32, 32), seed=9).net
    save_file({f"module.{k}": v for k, v in other.state_dict().items()}, tmp_path / "w.safetensors")
    assert same(made(spec, (3, 32, 32), init=str(tmp_path / "w.safetensors")).net, other)


def test_init_leaves_a_head_for_other_classes_as_it_was_drawn(tmp_path: Path) -> None:
    other = made(f"timm:{TINY}", (3, 32, 32), classes=5, seed=9).net
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    fresh = made(f"timm:{TINY}", (3, 32, 32), classes=7).net
    net = made(f"timm:{TINY}", (3, 32, 32), classes=7, init=tmp_path / "w.safetensors").net
    head = [key for key in net.state_dict() if net.state_dict()[key].shape[:1] == (7,)]
    for key, value in net.state_dict().items():
        assert torch.equal(value, (fresh if key in head else other).state_dict()[key])
    assert len(head) == 2


def test_pretrained_weights_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.get_model(SMALL, weights=None)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published.state_dict())
    net = made(f"torchvision:{SMALL}", (3, 32, 32), classes=7, init="pretrained").net
    assert torch.equal(net.features[0][0].weight, published.features[0][0].weight)
    assert net.classifier[-1].weight.shape == (7, 1024)


def test_pretrained_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **options: Any) -> nn.Module:
        if options["pretrained"]:
            raise OSError("no connection")
        raise AssertionError

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UsageError, match=r"no connection.*With --init FILE"):
        made(f"timm:{TINY}", (3, 32, 32), init="pretrained")


def test_a_file_of_one_s_own_is_used_as_it_is(user: Callable[[str], str]) -> None:
    assert made(user("net"), (1, 2, 2), mean=0.5, std=0.5).mean == (0.5,)
    assert made(user("wrapped"), (1, 2, 2)).bounds.low == -1
    assert made(user("dense"), (1, 2, 2), task="segmentation").task.name == "segmentation"
    with pytest.raises(UsageError, match="already wrapped"):
        made(user("wrapped"), (1, 2, 2), mean=0.5, std=0.5)


def test_embedded_networks_are_trained_further() -> None:
    assert same(made("demo:mnist-plain").net, digit_net("mnist-plain"))
    assert made("demo:shapes-segmentation", (3, 48, 48)).task.name == "segmentation"


@pytest.mark.parametrize(
    ("spec", "shape", "more", "words"),
    [
        ("cn", DIGIT, {}, "Did you mean cnn"),
        ("resnet18", DIGIT, {}, "timm:resnet18"),
        ("timm:resnett18", DIGIT, {}, "Did you mean resnet"),
        ("torchvision:resnett18", DIGIT, {}, "Did you mean resnet"),
        ("torchvision:fcn_resnet50", DIGIT, {}, "path.py:factory"),
        ("torchvision:resnet18", DIGIT, {}, "colour"),
        ("timm:", DIGIT, {}, "unknown network"),
        ("npz:x", DIGIT, {}, "unknown network"),
        ("demo:mnist", DIGIT, {}, "demo:mnist-"),
        ("cnn", (20,), {}, r"got \(20\)"),
        ("resnet8", DIGIT, {"task": "segmentation"}, "demo:shapes-segmentation"),
        ("cnn", DIGIT, {"init": "pretrained"}, "no published weights"),
        ("demo:mnist-plain", DIGIT, {"init": "pretrained"}, "no published weights"),
        ("cnn", DIGIT, {"init": "nowhere.safetensors"}, "no such weights file"),
        ("cnn", DIGIT, {"device": "moon"}, "no such device"),
    ],
)
def test_networks_that_cannot_be(spec: str, shape: tuple[int, ...], more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(spec, shape, **more)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(made("cnn").net.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="do not fit ResNet8"):
        made("resnet8", init=tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="do not fit ConvNet"):
        made("cnn", (3, 32, 32), init=tmp_path / "w.safetensors")


# -- trained networks --------------------------------------------------------------------------------------------------


def stored(folder: Path, model: Model, **more: Any) -> Path:
    """A folder as a training leaves it: the best weights are the model's, the last are twice as large."""
    folder.mkdir()
    facts = {
        "spec": model.name,
        "classes": 10,
        "shape": [1, 28, 28],
        "mean": model.mean,
        "std": model.std,
        "bounds": [model.bounds.low, model.bounds.high],
        "task": "classification",
        "class_names": None,
        "weights": {"best": "best.safetensors", "last": "last.safetensors"},
    }
    (folder / "model.json").write_text(json.dumps({**facts, **more}))
    state = model.net.state_dict()
    save_file(state, folder / "best.safetensors")
    save_file({key: value * 2 for key, value in state.items()}, folder / "last.safetensors")
    return folder


def test_runs_are_models(tmp_path: Path) -> None:
    model = made("cnn", seed=3, mean=0.2, std=0.5, bounds=(-1, 1))
    folder = stored(tmp_path / "a", model, class_names=list("abcdefghij"))
    best, last = load(f"run:{folder}"), load(f"run:{folder}:last")
    assert same(best.net, model.net)
    assert torch.equal(last.net.features[0].weight, 2 * model.net.features[0].weight)
    assert (best.mean, best.std, best.bounds.low, best.bounds.high) == ((0.2,), (0.5,), -1, 1)
    assert best.class_names == tuple("abcdefghij")
    assert best.name == f"run:{folder}"
    assert not best.net.training
    assert load(f"run:{folder}", bounds=(0, 2), mean=0.1, std=0.1).bounds.high == 2
    assert torch.equal(
        load(f"run:{folder}", weights=folder / "last.safetensors").net.features[0].weight, last.net.features[0].weight
    )
    assert same(made(f"run:{folder}").net, model.net)
    assert origin(f"run:{folder}:last") == "cnn"
    assert origin("timm:resnet18") == "timm:resnet18"


def test_runs_of_timm_networks_keep_size_and_crop(tmp_path: Path) -> None:
    model = made(f"timm:{TINY}", (3, 160, 160))
    again = load(f"run:{stored(tmp_path / 'a', model, shape=[3, 160, 160])}")
    assert again.preprocessing == model.preprocessing
    assert same(again.net, model.net)


def test_runs_of_one_s_own_networks(tmp_path: Path, user: Callable[[str], str]) -> None:
    model = made(user("wrapped"), (1, 2, 2))
    model.name = user("wrapped")
    again = load(f"run:{stored(tmp_path / 'a', model)}")
    assert same(again.net, model.net)
    assert (again.mean, again.bounds.low) == ((0.5,), -1)
    dense = made(user("dense"), (1, 2, 2), task="segmentation:ignore_index=0")
    folder = stored(tmp_path / "b", dense, task="segmentation:ignore_index=0")
    assert load(f"run:{folder}").task == dense.task


def test_folders_that_hold_no_trained_network(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", made("cnn"))
    with pytest.raises(UsageError, match="no such run"):
        load(f"run:{tmp_path / 'b'}")
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="no trained network"):
        load(f"run:{tmp_path / 'c'}")
    for content in ("{", "[]", '{"spec": "cnn"}', '{"spec": 3}'):
        (tmp_path / "c" / "model.json").write_text(content)
        with pytest.raises(UsageError, match="damaged"):
            load(f"run:{tmp_path / 'c'}")
    shutil.copy(folder / "model.json", tmp_path / "c")
    with pytest.raises(UsageError, match="no weights yet"):
        load(f"run:{tmp_path / 'c'}")
    (tmp_path / "c" / "best.safetensors").write_bytes((folder / "best.safetensors").read_bytes()[:500])
    with pytest.raises(UsageError, match="cannot be read"):
        load(f"run:{tmp_path / 'c'}")


def test_networks_built_in_python_say_how_to_load_them(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", made("cnn"), spec="python:MyNet")
    with pytest.raises(UsageError, match=r"MyNet of your code.*load_file\(.*last\.safetensors"):
        load(f"run:{folder}:last")


def test_paths_of_runs_are_made_absolute() -> None:
    assert absolute_source("run:a/../b:last", Path("/data")) == "run:/data/b:last"
    assert absolute_source("run:b", Path("/data")) == "run:/data/b"


def test_new_networks_are_listed() -> None:
    names = [item.name for item in catalogue.networks()]
    assert names[:2] == ["cnn", "resnet8"]
    assert "run:DIR" in [item.name for item in catalogue.models()]
