"""Models by name: timm, torchvision, a user's file, and weights from files. Nothing here uses a network connection."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.zoo import load, load_into, read_state

TINY = "test_vit"  # timm's own network for tests: 0.4 M parameters
IMAGE = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


def small() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    return net


USER = """
import torch
from torch import nn
from neighbour import CLASSES
import robustkit.core.model as core

def net(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, CLASSES))
def function(): return lambda x: x.flatten(1)
def wrapped(): return core.wrap(net(), mean=0.5, std=0.25, name="mine")
def nothing(): pass
def number(): return 3
def broken():
    return torch.zeros(2) @ torch.zeros(3)
def refused():
    return core.wrap(3)
def needs(depth, width=2): return net()
def leaves(): raise SystemExit("bye")
value = 3
"""


@pytest.fixture
def user(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "neighbour.py").write_text("CLASSES = 3\n")
    (tmp_path / "mine.py").write_text(USER)
    sys.modules.pop("neighbour", None)
    return lambda factory: f"{tmp_path / 'mine.py'}:{factory}"


def test_timm_by_name_with_a_file(tmp_path: Path) -> None:
    net = timm.create_model(TINY, pretrained=False).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    state = torch.get_rng_state()
    model = load(f"timm:{TINY}", weights=tmp_path / "w.safetensors")
    assert torch.equal(state, torch.get_rng_state())
    cfg = net.pretrained_cfg
    assert model.mean == tuple(cfg["mean"])
    assert model.preprocessing is not None
    assert model.preprocessing.size == tuple(cfg["input_size"][1:])
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = torch.rand(2, *cfg["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(x), net((x - mean) / std), atol=1e-6)
    assert model.class_names is not None
    assert model.class_names[967] == "espresso"
    assert model.name == f"timm:{TINY}"


def test_timm_takes_as_many_outputs_as_the_file_has(tmp_path: Path) -> None:
    net = timm.create_model(TINY, pretrained=False, num_classes=7)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pth")
    model = load(f"timm:{TINY}", weights=tmp_path / "w.pth", mean=0.5, std=0.5)
    assert model(torch.rand(1, *net.pretrained_cfg["input_size"])).shape == (1, 7)
    assert model.class_names is None
    assert model.mean == (0.5,)


def test_timms_own_loading_from_a_folder(tmp_path: Path) -> None:
    save_for_hf(timm.create_model(TINY, pretrained=False), tmp_path, safe_serialization=True)
    stored = read_state(tmp_path / "model.safetensors")
    model = load(f"timm:local-dir:{tmp_path}")
    assert all(torch.equal(stored[key], value) for key, value in model.net.state_dict().items())


def test_torchvision_by_name_with_a_file(tmp_path: Path) -> None:
    net = torchvision.models.resnet18(weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = load("torchvision:resnet18", weights=tmp_path / "w.pth")
    assert model.mean == pytest.approx((0.485, 0.456, 0.406))
    mean, std = torch.tensor(model.mean).view(3, 1, 1), torch.tensor(model.std).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model(IMAGE), net((IMAGE - mean) / std), atol=1e-5)
    assert model.class_names is not None
    assert model.class_names[0] == "tench"
    assert not model.net.training


def test_torchvision_fine_tuned_to_other_classes(tmp_path: Path) -> None:
    save_file(torchvision.models.resnet18(num_classes=2).state_dict(), tmp_path / "w.safetensors")
    model = load("torchvision:resnet18", weights=tmp_path / "w.safetensors")
    assert model(IMAGE).shape == (1, 2)
    assert model.class_names is None


def test_torchvision_segmentation_with_its_training_head(tmp_path: Path) -> None:
    net = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None, aux_loss=True)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    model = load("torchvision:deeplabv3_mobilenet_v3_large", weights=tmp_path / "w.safetensors")
    assert model.task.name == "segmentation"
    assert model.mean == pytest.approx((0.485, 0.456, 0.406))
    assert model(IMAGE).shape == (1, 21, 64, 64)


def test_demo_networks_take_other_weights(tmp_path: Path) -> None:
    other = load("demo:mnist-plain")
    save_file(other.net.state_dict(), tmp_path / "w.safetensors")
    assert load("demo:mnist-robust", weights=tmp_path / "w.safetensors").state_sha256() == other.state_sha256()


def test_a_users_network(user: Callable[[str], str], tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "w.safetensors")
    model = load(user("net"), weights=tmp_path / "w.safetensors", mean=0.5, std=0.25, bounds=(0, 2), device="cpu")
    assert (model.mean, model.bounds.high, model.name) == ((0.5,), 2, user("net"))
    assert torch.equal(model.net[3].weight, small()[3].weight)  # type: ignore[index, union-attr]
    assert model.net.training  # as the user's factory left it: the preflight judges that


def test_a_users_function_and_wrapped_model(user: Callable[[str], str], tmp_path: Path) -> None:
    assert load(user("function"))(torch.ones(2, 1, 2, 2)).shape == (2, 4)
    model = load(user("wrapped"), device="cpu")
    assert isinstance(model, Model)
    assert (model.name, model.mean) == ("mine", (0.5,))
    with pytest.raises(UsageError, match="already wrapped"):
        load(user("wrapped"), mean=0.5, std=0.5)
    save_file(small().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="given weights"):
        load(user("function"), weights=tmp_path / "w.safetensors")


def test_a_users_file_hides_no_module(user: Callable[[str], str]) -> None:
    before = list(sys.path)
    load(user("net"))
    assert sys.path == before
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", r"nothing\(\) returned nothing.*return"),
        ("number", "returned no model.*got int"),
        ("broken", r"broken\(\) of mine.py failed.*RuntimeError.*mine.py:13"),
        ("refused", "this is not a model"),
        ("needs", "one that needs depth"),
        ("leaves", "SystemExit: bye.*mine.py:17"),
        ("value", "no function value.*got int"),
        ("nett", "Did you mean net"),
        ("", "path.py:factory"),
    ],
)
def test_a_bad_factory_gives_one_clear_message(user: Callable[[str], str], factory: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(user(factory))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import a_module_that_is_not_there", r"ModuleNotFoundError.*bad.py:2"),
        ("def f(:", r"SyntaxError.*bad.py:2"),
        ("1 / 0", r"ZeroDivisionError: division by zero.*bad.py:2"),
    ],
)
def test_a_file_that_does_not_import_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(f"import torch\n{text}\n")
    with pytest.raises(UsageError, match=message):
        load(f"{tmp_path / 'bad.py'}:f")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet5000", "Did you mean resnet"),
        ("torchvision:resnet19", "resnet18"),
        ("demo:mnist-robus", "demo:mnist-robust"),
        ("resnet50", "timm:resnet50"),
        ("tim:resnet50", "one of demo:mnist-robust"),
        ("weights.pth", "needs its architecture"),
        ("timm:", "timm:NAME"),
        ("", "timm:NAME"),
        ("nowhere/mine.py:net", "no such file"),
    ],
)
def test_unknown_models_are_answered_with_what_is_near(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(spec)


def test_what_cannot_be_fetched_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("the network is unreachable\nand much more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"network is unreachable \(model\)\. With --weights FILE"):
        load(f"timm:{TINY}")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xyz:0"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UsageError, match="no such device"):
        load("demo:mnist-plain", device=device)


class Payload:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def _payload(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def _torn(path: Path) -> None:
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:900])


def _altered(path: Path, **changes: object) -> None:
    state = {**small().state_dict(), **changes}
    torch.save({key: value for key, value in state.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("w.pt", lambda path: None, "no such weights file"),
        ("w.pt", _payload, "refused: loading it could run code"),
        ("w.pt", lambda path: torch.save({"state_dict": {}, "made by": Payload()}, path), "refused"),
        ("w.pt", lambda path: torch.save(small(), path), r"refused.*torch\.nn.*state_dict\(\) as safetensors"),
        ("w.pt", _torn, "cannot be read"),
        ("w.pt", lambda path: path.write_bytes(b""), "cannot be read"),
        ("w.pt", lambda path: torch.save([1, 2], path), "no weights in the file.*list"),
        ("w.pt", lambda path: torch.save({"epoch": 3}, path), "keys: epoch"),
        ("w.pt", lambda path: torch.save({}, path), "nothing in it"),
        ("w.pth", lambda path: _altered(path, **{"3.bias": None}), r"missing: 3\.bias"),
        ("w.pth", lambda path: _altered(path, extra=torch.zeros(1)), "unexpected: extra"),
        ("w.pth", lambda path: _altered(path, **{"3.bias": torch.zeros(4)}), r"3\.bias is \(4,\), not \(3,\)"),
        ("w.safetensors", lambda path: path.write_text("hello"), "whole safetensors file"),
        ("w.safetensors", lambda path: path.mkdir(), "no such weights file"),
        ("w.h5", lambda path: path.write_text("hello"), "unknown kind of weights file"),
    ],
)
def test_bad_weights_give_one_clear_message(
    user: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    with pytest.raises(UsageError, match=message) as caught:
        load(user("net"), weights=tmp_path / name)
    assert name in str(caught.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("nest", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_nested_and_prefixed_weights_are_found(tmp_path: Path, nest: Callable[..., Any], prefix: str) -> None:
    state = small().state_dict()
    torch.save(nest({prefix + key: value for key, value in state.items()}), tmp_path / "w.pt")
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    load_into(net, read_state(tmp_path / "w.pt"), "w.pt")
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_old_checkpoints_without_batch_counts_fit(tmp_path: Path) -> None:
    state = {key: value for key, value in small().state_dict().items() if not key.endswith("num_batches_tracked")}
    load_into(small(), state, "old")
