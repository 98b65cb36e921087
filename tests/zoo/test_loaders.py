"""as_data: every form of data that Python users hold in their hands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from robustkit.core.errors import UsageError
from robustkit.data import Data, TensorData, as_data, open_data

N = 7
X = torch.arange(N * 12, dtype=torch.float32).reshape(N, 3, 2, 2) / 100
Y = torch.arange(N) % 3


def everything(data: Data) -> tuple[Tensor, Tensor]:
    return data.take(range(len(data)))


class Rows(Dataset[tuple[Tensor, int]]):
    """Sample by sample, with Python labels."""

    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i], int(Y[i])


class Stream(IterableDataset[tuple[Tensor, int]]):
    """The same without places."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(X[i], int(Y[i])) for i in range(N)])


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, N, 3):
        yield X[start : start + 3], Y[start : start + 3]


SOURCES: dict[str, Any] = {
    "data": TensorData(X, Y),
    "tensors": (X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "bytes": ((X * 100).round().to(torch.uint8), Y),
    "dataset": Rows(),
    "tensor dataset": TensorDataset(X, Y),
    "loader": DataLoader(Rows(), batch_size=3),
    "shuffled loader": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "list of samples": [(X[i], int(Y[i])) for i in range(N)],
    "list of batches": list(batches()),
    "loader over a stream": DataLoader(Stream(), batch_size=2),
    "loader without batches": DataLoader(Rows(), batch_size=None),
    "stream": Stream(),
    "mappings": [{"pixel_values": X[i], "label": int(Y[i])} for i in range(N)],
}


@pytest.mark.parametrize("form", SOURCES)
def test_every_form_gives_the_same_samples_in_order(form: str) -> None:
    x, y = everything(as_data(SOURCES[form]))
    assert torch.allclose(x, X * 100 / 255 if form == "bytes" else X)
    assert torch.equal(y, Y)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_a_generator_is_read_up_to_the_limit() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches()

    data = as_data(endless(), limit=10)
    assert len(data) == 10
    assert torch.equal(everything(data)[0], torch.cat([X, X[:3]]))


def test_the_loaders_collation_is_used() -> None:
    def collate(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in rows]) + 1, torch.tensor([y for _, y in rows])

    x, _ = everything(as_data(DataLoader(Rows(), batch_size=2, collate_fn=collate)))
    assert torch.equal(x, X + 1)


def test_a_sampler_of_a_subset_is_followed_in_the_datasets_order() -> None:
    data = as_data(DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([5, 1, 2])))
    assert torch.equal(everything(data)[0], X[[1, 2, 5]])
    assert torch.equal(everything(as_data(Subset(Rows(), [5, 1])))[0], X[[5, 1]])


def test_class_names_are_found_below_a_subset() -> None:
    assert as_data(Subset(Rows(), [0])).classes == ("a", "b", "c")
    assert as_data(TensorDataset(X, Y)).classes is None


def test_dense_labels_keep_their_shape() -> None:
    masks = torch.zeros(N, 2, 2, dtype=torch.int64)
    assert everything(as_data((X, masks)))[1].shape == (N, 2, 2)
    assert everything(as_data([(X[i], masks[i]) for i in range(N)]))[1].shape == (N, 2, 2)


def test_an_empty_request_is_an_empty_batch() -> None:
    for source in (SOURCES["tensors"], SOURCES["dataset"]):
        x, y = as_data(source).take([])
        assert (x.shape, y.shape) == ((0, 3, 2, 2), (0,))


def test_fingerprints_tell_data_apart() -> None:
    other = TensorDataset(X + 1, Y)
    for form in ("dataset", "tensors"):
        assert as_data(SOURCES[form]).fingerprint() == as_data(SOURCES[form]).fingerprint()
    assert as_data(TensorDataset(X, Y)).fingerprint() != as_data(other).fingerprint()
    assert as_data(TensorDataset(X, Y)).fingerprint() != as_data(TensorDataset(X[:6], Y[:6])).fingerprint()


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    everything(as_data(SOURCES["shuffled loader"]))
    everything(as_data(DataLoader(Stream(), batch_size=2)))
    assert torch.equal(state, torch.get_rng_state())


class Random(Rows):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i] + torch.rand(()), 0


class Broken(Rows):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        raise KeyError("no such column")


class Pictures(Rows):
    def __getitem__(self, i: int) -> Any:
        return Image.new("RGB", (2, 2)), 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("demo:mnist", "open_data"),
        (3, "not data"),
        ({"x": X, "y": Y}, "not data"),
        (X, "not data"),
        ([], "empty"),
        (iter([]), "empty"),
        ((X, Y[:2]), "different lengths"),
        ((X, Y + 0.5), "not whole numbers"),
        ((X, torch.eye(N)), "one-hot"),
        ([X[0], X[1], X[2]], "not a pair"),
        ([{"image": X[0]}], "mapping with keys image"),
        ([(X[0], "cat")], "not an array of numbers|cannot be read"),
        (iter([(X, Y), (X[:, :1], Y)]), "different shapes"),
        (Random(), "random augmentation"),
        (Broken(), "no such column"),
        (Pictures(), r"ToTensor\(\)"),
        (DataLoader(Rows(), sampler=WeightedRandomSampler([1.0] * N, N)), "Subset"),
        (DataLoader(Rows(), collate_fn=lambda rows: (X[:1], Y[:1])), "lost samples"),
        (DataLoader(Rows(), collate_fn=lambda rows: None), "not a pair"),
    ],
)
def test_what_is_no_data_gives_one_clear_message(source: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_data(source)


def test_nan_is_named_by_sample() -> None:
    x = X.clone()
    x[5, 0, 0, 0] = torch.inf
    for source in ((x, Y), TensorDataset(x, Y)):
        with pytest.raises(UsageError, match="samples 5"):
            as_data(source).take([4, 5])


FILE = """
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset

X, Y = torch.zeros(4, 1, 2, 2), torch.arange(4)

def tensors(): return X, Y
def arrays(): return np.zeros((4, 2), dtype=np.uint8), np.arange(4)
def loader(): return DataLoader(TensorDataset(X, Y), batch_size=2)
def stream():
    while True:
        yield X[0], 1
"""


@pytest.mark.parametrize(("factory", "length"), [("tensors", 4), ("arrays", 4), ("loader", 4), ("stream", 3)])
def test_factories_in_a_users_file(tmp_path: Path, factory: str, length: int) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    spec = f"{tmp_path / 'mine.py'}:{factory}"
    data = open_data(spec, limit=3)
    assert (len(data), data.name) == (length, spec)
    assert everything(data)[0].dtype == torch.float32


def test_samples_in_memory_cannot_be_changed_from_outside() -> None:
    x = np.zeros((2, 3), dtype=np.float32)
    data = as_data((x, np.array([0, 1])))
    before = data.fingerprint()
    x[:] = 1
    assert float(data.take([0])[0].sum()) == 0
    assert data.fingerprint() == before
