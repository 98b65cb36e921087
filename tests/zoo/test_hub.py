"""hf: models and data, through stand-ins for the two libraries that keep to what their documentation promises."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing
from robustkit.data import open_data
from robustkit.zoo import load
from robustkit.zoo.hf import processor_preprocessing


def processor(**more: object) -> SimpleNamespace:
    """The attributes of a Hugging Face image processor that matter."""
    plain = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "size": {"shortest_edge": 8}, "resample": 2}
    return SimpleNamespace(**plain | more)


class Network(nn.Module):
    """Logits in an object, as transformers returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.config = SimpleNamespace(id2label={1: "dog", 0: "cat"})

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(pixel_values.mean((2, 3))))


def transformers(**found: object) -> Any:
    def loader(kind: str) -> SimpleNamespace:
        def from_pretrained(name: str) -> object:
            if name not in found:
                raise OSError(f"{name} is not a local folder and is not a valid model identifier")
            return found[name][kind]  # type: ignore[index]

        return SimpleNamespace(from_pretrained=from_pretrained)

    module: Any = ModuleType("transformers")
    module.AutoModelForImageClassification, module.AutoImageProcessor = loader("model"), loader("processor")
    return module


def test_a_classifier_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network().train()
    monkeypatch.setitem(sys.modules, "transformers", transformers(pets={"model": net, "processor": processor()}))
    model = load("hf:pets")
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.2, 0.2]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model(x), net((x - mean) / std).logits)
    assert (model.class_names, model.name, net.training) == (("cat", "dog"), "hf:pets", False)
    with pytest.raises(UsageError, match="not a valid model identifier"):
        load("hf:pests")


@pytest.mark.parametrize(
    ("options", "size", "crop", "interpolation"),
    [
        ({}, (8, 8), 1.0, "bilinear"),
        ({"resample": 3}, (8, 8), 1.0, "bicubic"),
        ({"size": {"height": 6, "width": 4}}, (6, 4), 1.0, "bilinear"),
        ({"do_center_crop": True, "crop_size": {"height": 6, "width": 6}}, (6, 6), 0.75, "bilinear"),
        ({"do_center_crop": False, "crop_size": {"height": 6, "width": 6}}, (8, 8), 1.0, "bilinear"),
        ({"crop_pct": 0.875}, (8, 8), 0.875, "bilinear"),
    ],
)
def test_what_a_processor_does_is_read(
    options: dict[str, object], size: tuple[int, int], crop: float, interpolation: str
) -> None:
    found = processor_preprocessing(processor(**options))
    assert found is not None
    assert (found.size, found.crop_pct, found.interpolation) == (size, crop, interpolation)


def test_a_processor_that_does_not_normalise() -> None:
    found = processor_preprocessing(processor(do_normalize=False))
    assert found is not None
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))
    assert processor_preprocessing(object()) is None


class Table:
    """What is used of a `datasets.Dataset`: columns by name, rows by number, typed features."""

    _fingerprint = "abc"

    def __init__(self, labels: list[int], **features: object) -> None:
        self.labels = labels
        self.features = features or {"image": type("Image", (), {})(), "label": self.classes("cat", "dog")}

    @staticmethod
    def classes(*names: str) -> object:
        return type("ClassLabel", (), {"names": list(names)})()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self.labels
        return {"image": Image.new("RGB", (8, 6), (key,) * 3), "label": self.labels[key]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    stored: dict[str, Any] = {}

    def load_dataset(name: str, split: str | None = None) -> Any:
        if name not in stored or (split and split not in stored[name]):
            raise FileNotFoundError(f"Couldn't find {name}\nsecond line")
        return stored[name][split] if split else stored[name]

    module: Any = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    yield stored


def test_a_data_set_of_the_hub(hub: dict[str, Any]) -> None:
    hub["me/pets"] = {"train": Table([0]), "test": Table([0, 0, 0, 1, 1])}
    data = open_data("hf:me/pets")
    x, y = data.take(range(5))
    assert y.tolist() == [0, 1, 0, 1, 0]
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [0, 3, 1, 4, 2]
    assert (x.shape, data.classes, data.name) == ((5, 3, 6, 8), ("cat", "dog"), "hf:me/pets")
    assert len(open_data("hf:me/pets:train")) == 1
    gray = Preprocessing((0.5,), (0.5,), size=(4, 4))
    assert open_data("hf:me/pets", preprocessing=gray).take([0])[0].shape == (1, 1, 4, 4)
    assert open_data("hf:me/pets", preprocessing=gray).fingerprint() != data.fingerprint()


def test_a_local_folder_is_an_id(hub: dict[str, Any], tmp_path: Path) -> None:
    hub[str(tmp_path)] = {"train": Table([1, 0])}
    assert open_data(f"hf:{tmp_path}").take([0])[1].tolist() == [0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:none", r"cannot be loaded.*Couldn't find none \("),
        ("hf:two", r"which split\?.*a, b"),
        ("hf:two:c", "cannot be loaded"),
        ("hf:empty", "empty"),
        ("hf:text", "no column of type Image"),
        ("hf:unlabelled", "no column of type ClassLabel"),
        ("hf:fractions", "not whole numbers"),
    ],
)
def test_bad_data_sets_give_one_clear_message(hub: dict[str, Any], spec: str, message: str) -> None:
    image = type("Image", (), {})()
    hub.update(
        two={"a": Table([0]), "b": Table([0])},
        empty={"test": Table([])},
        text={"test": Table([0], text="Value", label=Table.classes("a"))},
        unlabelled={"test": Table([0], image=image, caption="Value")},
        fractions={"test": Table(list(np.array([0.5])), image=image, label="Value")},
    )
    with pytest.raises(UsageError, match=message):
        open_data(spec)


@pytest.mark.parametrize(("library", "call"), [("transformers", load), ("datasets", open_data)])
def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, library: str, call: Any) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install '\.\[hub\]'"):
        call("hf:anything")
