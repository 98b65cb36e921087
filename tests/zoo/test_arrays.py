"""npz files: layout, names, and everything that can be wrong with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.core.errors import UsageError
from robustkit.data import open_data
from robustkit.data.arrays import channels_first

X, Y = np.arange(2 * 12, dtype=np.uint8).reshape(2, 3, 4), np.array([1, 0])


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path / "data.npz", **arrays)
    return f"npz:{path / 'data.npz'}"


def test_gray_images_get_a_channel_and_bytes_become_fractions(tmp_path: Path) -> None:
    data = open_data(npz(tmp_path, x=X, y=Y))
    x, y = data.take([1])
    assert x.shape == (1, 1, 3, 4)
    assert torch.equal(x[0, 0], torch.from_numpy(X[1]).float() / 255)
    assert y.tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_passed_as_they_are(tmp_path: Path, dtype: type) -> None:
    x = np.array([[-1.5, 3.0], [0.25, 255.0]], dtype=dtype)
    data = open_data(npz(tmp_path, x=x, y=Y))
    assert torch.equal(data.take([0, 1])[0], torch.from_numpy(x).float())


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [
        ((5, 7), (5, 7)),
        ((5, 28, 28), (5, 1, 28, 28)),
        ((5, 32, 32, 3), (5, 3, 32, 32)),
        ((5, 32, 32, 1), (5, 1, 32, 32)),
        ((5, 3, 32, 32), (5, 3, 32, 32)),
        ((5, 3, 32, 3), (5, 3, 32, 3)),
        ((5, 16, 8, 8), (5, 16, 8, 8)),
    ],
)
def test_the_layout_rule(shape: tuple[int, ...], becomes: tuple[int, ...]) -> None:
    assert channels_first(np.zeros(shape)).shape == becomes


def test_channels_last_is_moved_not_reshaped(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 5, 6, 3), dtype=np.float32)
    data = open_data(npz(tmp_path, x=x, y=Y))
    assert torch.equal(data.take([0, 1])[0][1, 2, 3, 4], torch.tensor(x[1, 3, 4, 2]))


def test_other_names(tmp_path: Path) -> None:
    spec = npz(tmp_path, X_test=X, y_test=Y, X_train=X[:1], y_train=Y[:1])
    assert len(open_data(f"{spec}:X_test,y_test")) == 2
    with pytest.raises(UsageError, match=r"no array 'x'.*npz:FILE:X,Y"):
        open_data(spec)


def test_labels_as_whole_floats_or_a_column(tmp_path: Path) -> None:
    assert open_data(npz(tmp_path, x=X, y=Y.astype(np.float64))).take([0])[1].dtype == torch.int64
    assert open_data(npz(tmp_path, x=X, y=Y[:, None])).take([0, 1])[1].shape == (2,)


def test_the_fingerprint_follows_the_arrays(tmp_path: Path) -> None:
    first = open_data(npz(tmp_path, x=X, y=Y)).fingerprint()
    assert open_data(npz(tmp_path, x=X, y=Y)).fingerprint() == first
    assert open_data(npz(tmp_path, x=X, y=1 - Y)).fingerprint() != first
    assert open_data(npz(tmp_path, x=255 - X, y=Y)).fingerprint() != first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "no array 'y'"),
        ({}, "no array 'x'"),
        ({"x": X, "y": Y[:1]}, "different lengths"),
        ({"x": X[:0], "y": Y[:0]}, "empty"),
        ({"x": X, "y": np.array([0.5, 1.0])}, "not whole numbers"),
        ({"x": X, "y": np.array([0.0, np.nan])}, "not whole numbers"),
        ({"x": X, "y": np.array([-1, 0])}, "negative"),
        ({"x": X, "y": np.eye(2)}, "one-hot"),
        ({"x": X, "y": np.array(1)}, "wrong shape"),
        ({"x": X, "y": np.array(["cat", "dog"])}, "not an array of numbers"),
        ({"x": np.array(1.0), "y": Y}, "different lengths"),
        ({"x": X.astype(complex), "y": Y}, "complex"),
        ({"x": np.array([{}, []], dtype=object), "y": Y}, "pickled objects are never loaded"),
    ],
)
def test_bad_arrays_give_one_clear_message(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_data(npz(tmp_path, **arrays))


def test_nan_pixels_are_named_by_sample(tmp_path: Path) -> None:
    x = X.astype(np.float32)
    x[1, 0, 0] = np.nan
    data = open_data(npz(tmp_path, x=x, y=Y))
    data.take([0])
    with pytest.raises(UsageError, match=r"NaN.*samples 1"):
        data.take([0, 1])


def _torn(path: Path) -> None:
    np.savez(path, x=np.zeros(5000), y=np.zeros(5000))
    path.write_bytes(path.read_bytes()[:3000])


def _flipped(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).random(5000), y=np.zeros(5000))
    content = bytearray(path.read_bytes())
    content[600:700] = bytes(100)
    path.write_bytes(bytes(content))


def _single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("hello"), "no plain numbers"),
        (lambda path: path.write_bytes(pickle.dumps({"x": 1})), "never loaded"),
        (_single, "single array"),
        (_torn, "cannot be read"),
        (_flipped, "cannot be read"),
    ],
)
def test_bad_files_give_one_clear_message(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "data.npz")
    with pytest.raises(UsageError, match=message) as caught:
        open_data(f"npz:{tmp_path / 'data.npz'}")
    assert "data.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("mnist", "demo:mnist"),
        ("demo:mnits", "demo:mnist"),
        ("data.npz", "write npz:data.npz"),
        ("npz:", "folder:DIR"),
        ("ftp:thing", "folder:DIR"),
        ("", "folder:DIR"),
    ],
)
def test_unknown_data_are_answered_with_what_is_near(spec: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        open_data(spec)


def test_a_bare_folder_is_told_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"folder:{tmp_path}"):
        open_data(str(tmp_path))
