"""The drawn scenes and the network that labels them."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from robustkit.data import open_data
from robustkit.demo.pixel_network import PixelNet
from robustkit.demo.shapes import CLASSES, TEST, TRAIN, VOID, scenes
from robustkit.demo.train_shapes import main, mirrored, train
from robustkit.run import dense
from robustkit.zoo import load

LABELS = "bf430a3b7833ebd314f6d12a9543f37d5e6944d80ccf52b4d0e7feb68ffa25bd"


def test_scenes_never_move():
    """Labels to the bit; colours pass through sines, whose last bit differs between machines."""
    images, labels = scenes()
    assert hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() == LABELS
    assert images.shape == (256, 3, 48, 48) and images.dtype == np.uint8
    again, _ = scenes([7, 200])
    assert (again == images[[7, 200]]).all()


def test_every_class_occurs_and_training_scenes_are_others():
    _, labels = scenes()
    assert set(np.unique(labels)) == {*range(len(CLASSES)), VOID}
    assert not set(TEST) & set(TRAIN)


def test_a_shape_has_a_border_without_a_label():
    """No pixel of a shape touches the background."""
    _, labels = scenes(range(20))
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[:, :, 1:], labels[:, :, :-1])):
        touching = (a != b) & (a != VOID) & (b != VOID)
        assert not (touching & ((a == 0) | (b == 0))).any()


def test_the_network_reaches_what_its_card_says():
    model, data = load("demo:shapes-segmentation"), open_data("demo:shapes")
    assert model.task.name == "segmentation" and tuple(model.class_names) == CLASSES == data.classes
    assert sum(p.numel() for p in model.net.parameters()) == 74_477
    x, y = data.take(range(len(data)))
    with model.frozen(), torch.no_grad():
        rows = dense.describe(model.task, model(x), y)
    assert dense.mean_iou(rows) >= MIOU and dense.pixel_accuracy(rows) >= ACCURACY
    stored = files("robustkit.demo").joinpath("shapes-segmentation.safetensors")
    with stored.open("rb") as stream:
        assert len(stream.read()) < 300 * 1024


MIOU, ACCURACY = 0.75, 0.95


def test_training_is_a_function_of_its_seed_alone():
    torch.manual_seed(1)
    first = train(1, range(10_000, 10_032))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = train(1, range(10_000, 10_032))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_training_command(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("robustkit.demo.train_shapes.TRAIN", range(10_000, 10_016))
    monkeypatch.setattr("robustkit.demo.train_shapes.train.__defaults__", (14, range(10_000, 10_016)))
    main(["--out", str(tmp_path), "--epochs", "1", "--threads", str(torch.get_num_threads())])
    model = load("demo:shapes-segmentation", weights=tmp_path / "shapes-segmentation.safetensors")
    assert model.state_sha256() != load("demo:shapes-segmentation").state_sha256()


def test_mirroring_moves_labels_with_the_image():
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    moved, labels = mirrored(x, x[:, 0].long(), torch.Generator().manual_seed(3))
    assert torch.equal(moved[:, 0].long(), labels) and not torch.equal(moved, x)


def test_the_network_takes_any_size_that_four_divides():
    assert PixelNet(7, 4)(torch.zeros(2, 3, 12, 20)).shape == (2, 7, 12, 20)
