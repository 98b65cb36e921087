"""A folder with a small network, samples it gets right, and many files and functions that are wrong in one way each."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

CLASSES, SHAPE = 4, (1, 4, 4)

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, outputs=4, inputs=16):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        grid = torch.arange(outputs * inputs, dtype=torch.float32).reshape(outputs, inputs)
        with torch.no_grad():
            self.layer.weight.copy_(torch.sin(7 * grid))
            self.layer.bias.copy_(-self.layer.weight.sum(1) / 2)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Changed(Net):
    """The same network with something done to its outputs."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


def good():
    return Net()

def returns_none():
    return Changed(lambda z: None)

def returns_text():
    return Changed(lambda z: "cat")

def returns_one_logit():
    return Changed(lambda z: z[:, :1])

def returns_probabilities():
    return Changed(lambda z: z.softmax(1))

def returns_nan():
    return Changed(lambda z: z * float("nan"))

def has_no_gradient():
    return Changed(lambda z: z.round())

def is_detached():
    return Changed(lambda z: z.detach())

def is_random():
    return Changed(lambda z: z + torch.randn_like(z))

def raises_inside():
    def fail(z):
        raise RuntimeError("the matrix is not a matrix")
    return Changed(fail)

def wants_color():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def on_meta():
    return Net().to("meta")

def split_over_devices():
    net = Net()
    net.layer.bias = nn.Parameter(torch.empty(4, device="meta"))
    return net

def forgot_return():
    Net()

def is_a_number():
    return 3

def fails():
    raise ValueError("no such checkpoint")

def wants_arguments(depth):
    return Net()
'''

DATA = '''
import torch
from torch.utils.data import Dataset, TensorDataset


def empty():
    return torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long)

def unequal():
    return torch.rand(8, 1, 4, 4), torch.zeros(7, dtype=torch.long)

def not_pairs():
    return [1, 2, 3]

def a_number():
    return 5


class Broken(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise OSError(f"file {index}.raw is gone")


def broken():
    return Broken()
'''


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("EXECUTED", "w"))


def samples(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Inputs in [0, 1] and the labels that the network ``good`` gives them."""
    x = np.random.default_rng(0).random((n, *SHAPE), dtype=np.float32)
    names: dict[str, object] = {}
    exec(NETS, names)
    with torch.no_grad():
        y = names["good"]()(torch.from_numpy(x)).argmax(1).numpy()  # type: ignore[operator]
    return x, y


def build(folder: Path) -> None:
    """Write all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nets.py").write_text(NETS)
    (folder / "sets.py").write_text(DATA)
    (folder / "syntax.py").write_text("def good(:\n")
    (folder / "imports.py").write_text("import a_module_that_is_not_there\n")
    _arrays(folder)
    _weights(folder)
    _pictures(folder)
    _configurations(folder)
    (folder / "taken").write_text("a file")
    (folder / "holiday").mkdir()
    (folder / "holiday" / "beach.txt").touch()


def _arrays(folder: Path) -> None:
    x, y = samples()
    nan = x.copy()
    nan[3, 0, 1, 1] = np.nan
    for name, (some_x, some_y) in {
        "good": (x, y), "unequal": (x, y[:-1]), "nan": (nan, y), "bytes": (255 * x, y),
        "normalised": ((x - 0.5) / 0.2, y),
        "float_labels": (x, y + 0.5), "negative_labels": (x, y - 1), "many_labels": (x, y + 7), "empty": (x[:0], y[:0]),
        "color": (np.repeat(x, 3, axis=1), y), "wide": (np.repeat(x, 2, axis=3), y), "text": (x.astype(str), y),
        "complex": (x.astype(complex), y), "two_labels": (x, np.stack([y, y], 1)), "shuffled": (x, (y + 1) % CLASSES),
    }.items():
        np.savez(folder / f"{name}.npz", x=some_x, y=some_y)
    np.savez(folder / "only_x.npz", x=x)
    np.savez(folder / "objects.npz", x=np.array([Payload()], dtype=object), y=y[:1])
    np.save(folder / "single.npy", x)
    whole = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.npz").write_bytes(b"this is no zip file at all")
    (folder / "nothing.npz").write_bytes(b"")


def _weights(folder: Path) -> None:
    state = {"layer.weight": torch.zeros(CLASSES, 16), "layer.bias": torch.zeros(CLASSES)}
    save_file({f"encoder.{key}x": value for key, value in state.items()}, folder / "keys.safetensors")
    save_file({**state, "layer.weight": torch.zeros(CLASSES, 9)}, folder / "shapes.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "keys.safetensors").read_bytes()[:40])
    (folder / "payload.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"model": nn.Linear(2, 2)}, folder / "whole_model.pt")
    (folder / "noise.pt").write_bytes(b"\x00" * 64)
    (folder / "weights.h5").write_bytes(b"\x89HDF")


def _pictures(folder: Path) -> None:
    for name in ("no_pictures", "bomb/cat", "fake/cat", "escapes"):
        (folder / name).mkdir(parents=True)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    blocks = _block(b"IHDR", header) + _block(b"IDAT", zlib.compress(b""))
    (folder / "bomb/cat/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + blocks)
    (folder / "fake/cat/a.png").write_bytes(b"GIF89a not a png")
    (folder / "escapes/labels.csv").write_text("file,index\n../../secret.png,0\n")


def _block(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _configurations(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (folder / "bomb.yaml").write_text("\n".join(lines))
    (folder / "unknown_key.yaml").write_text("sede: 1\n")
    (folder / "wrong_type.yaml").write_text("limit: many\n")
    (folder / "code.yaml").write_text("seed: !!python/object/apply:os.system ['touch EXECUTED']\n")
    (folder / "broken.yaml").write_text("model: [\n")
