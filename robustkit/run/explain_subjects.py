"""What is explained: pictures, samples of a data set, or clean and adversarial pairs of an evaluation."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustkit.core import heat
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.data import Data
from robustkit.data.samples import hash_of, inputs, numeric
from robustkit.images import SUFFIXES, Mode, channels_of, read_image, seen_box, to_array
from robustkit.run.directory import RunDirectory
from robustkit.run.gallery import broken_samples
from robustkit.run.plan import Plan
from robustkit.run.stages import tensors_file

Box = tuple[float, float, float, float]
Variant = Literal["clean", "adversarial"]


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        sample: its id, which keys all random draws: the two inputs of a pair have the same.
        name: how reports call it.
        variant: which of a pair.
    """

    sample: int
    name: str
    variant: Variant | None = None

    @property
    def key(self) -> str:
        """What its files are named after."""
        return f"{self.sample:05d}" + ("-adversarial" if self.variant == "adversarial" else "")


@dataclass(frozen=True)
class Shown:
    """A picture as people know it, upright, and what the network sees of it: left, top, right, bottom in its pixels."""

    image: Image.Image
    box: Box


class Subjects(ABC):
    """Inputs in a fixed order; a place is a position in it.

    Attributes:
        name, size, classes: how reports call them, how many there are to choose from, and the names of the classes.
        items: those that are explained.
        model: whose device and type the inputs are made for.
    """

    name: str
    size: int
    items: tuple[Item, ...]
    model: Model
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def read(self, places: Sequence[int]) -> Tensor:
        """The inputs (n, *S) of some places, which are of one shape, on the CPU."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 (hex) that changes when the inputs or their order do."""

    def inputs(self, places: Sequence[int]) -> Tensor:
        """The inputs where the network lies."""
        return self.read(places).to(self.model.device, self.model.dtype)

    def labels(self, places: Sequence[int]) -> list[int] | None:
        """The class of each, where there is one."""
        return None

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of the input at every place."""
        return [tuple(self.read([0]).shape[1:])] * len(self)

    def shown(self, place: int, x: Tensor) -> Shown | None:
        """The picture of an input x (C, H, W); None for inputs that are no pictures."""
        if x.ndim != 3 or x.shape[0] not in (1, 3):
            return None
        image = heat.picture(x, self.model.bounds)
        return Shown(image, (0.0, 0.0, float(image.width), float(image.height)))


class Inputs(Subjects):
    """A batch of inputs alone, (N, *S)."""

    def __init__(self, x: Tensor, model: Model) -> None:
        if x.ndim < 2 or len(x) == 0:
            raise UsageError(
                "inputs must be a batch",
                expected="a tensor (N, ...) of at least one sample",
                got=f"shape {tuple(x.shape)}",
                where="data",
                fix="Add the batch dimension: x[None].",
            )
        self.x, self.model, self.name, self.size = numeric(x, "data").detach().cpu(), model, "inputs", len(x)
        self.items = tuple(Item(i, f"sample {i}") for i in range(len(x)))

    def read(self, places: Sequence[int]) -> Tensor:
        return inputs(self.x[list(places)], places, self.name)

    def fingerprint(self) -> str:
        return hash_of(self.x)


class Samples(Subjects):
    """The first samples of a data set."""

    def __init__(self, data: Data, model: Model, limit: int | None) -> None:
        self.data, self.model, self.name, self.size, self.classes = data, model, data.name, len(data), data.classes
        files = [data.picture_file(i) for i in range(min(len(data), limit or len(data)))]
        self.items = tuple(Item(i, f"sample {i}" if file is None else file.name) for i, file in enumerate(files))

    def read(self, places: Sequence[int]) -> Tensor:
        return self.data.take(places)[0]

    def labels(self, places: Sequence[int]) -> list[int] | None:
        y = self.data.take(places)[1]
        return y.tolist() if y.ndim == 1 and not y.is_floating_point() else None

    def fingerprint(self) -> str:
        return self.data.fingerprint()

    def shown(self, place: int, x: Tensor) -> Shown | None:
        file = self.data.picture_file(place)
        return super().shown(place, x) if file is None else _original(file, self.model)


class Pictures(Subjects):
    """Pictures in files, as the model's preprocessing wants them."""

    def __init__(self, paths: Sequence[str], model: Model) -> None:
        self.files = _files(paths)
        self.model, self.name, self.size = model, "pictures", len(self.files)
        common = Counter(file.name for file in self.files)
        root = Path(os.path.commonpath([file.parent for file in self.files]))
        names = [file.name if common[file.name] == 1 else str(file.relative_to(root)) for file in self.files]
        self.items = tuple(Item(i, name) for i, name in enumerate(names))
        self._mode = self._channels()

    def read(self, places: Sequence[int]) -> Tensor:
        return torch.stack([_pixels(self.files[i], self._mode, self.model) for i in places])

    def shapes(self) -> list[tuple[int, ...]]:
        if self.model.preprocessing is not None and self.model.preprocessing.size is not None:
            return super().shapes()
        sizes = [read_image(file).size for file in self.files]
        return [(1 if self._mode == "L" else 3, height, width) for width, height in sizes]

    def fingerprint(self) -> str:
        return self._sha256

    def shown(self, place: int, x: Tensor) -> Shown:
        return _original(self.files[place], self.model)

    @cached_property
    def _sha256(self) -> str:
        p = self.model.preprocessing
        digest = hashlib.sha256(repr((self._mode, p and (p.size, p.crop_pct, p.interpolation))).encode())
        for item, file in zip(self.items, self.files, strict=True):
            digest.update(repr(item.name).encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def _channels(self) -> Mode:
        """Grey or colour: as the network says it, or as the first picture is stored, or what the network can run on."""
        p = self.model.preprocessing
        if p is not None and len(p.mean) not in (1, 3):
            raise UsageError(
                "a picture cannot be made into an input of this network",
                expected="one channel or three",
                got=f"{len(p.mean)} channels",
                where=self.model.name,
                fix="Give the inputs as arrays: --data npz:FILE.",
            )
        mode = channels_of(read_image(self.files[0]), p)
        other: Mode = "RGB" if mode == "L" else "L"
        if p is not None or self._runs(mode) or not self._runs(other):
            return mode
        return other

    def _runs(self, mode: Mode) -> bool:
        try:
            x = _pixels(self.files[0], mode, self.model)[None]
            self.model.output_shape(x.to(self.model.device, self.model.dtype))
        except UsageError:
            return False
        return True


class Pairs(Subjects):
    """Samples that an evaluation broke, each clean and then adversarial."""

    def __init__(self, plan: Plan, run: RunDirectory, limit: int | None) -> None:
        self.plan, self.run, self.model = plan, run, plan.model
        self.name, self.size, self.classes = plan.data.name, len(plan.data), plan.data.classes
        self.chosen = broken_samples(plan, run, limit or len(plan.data))
        if not self.chosen:
            raise UsageError(
                "no adversarial input is stored there",
                expected="a run that broke a sample",
                where=str(run.path),
                fix="Evaluate with a stronger attack or a larger eps.",
            )
        variants: tuple[Variant, ...] = ("clean", "adversarial")
        self.items = tuple(Item(i, f"sample {i}", variant) for i, _ in self.chosen for variant in variants)

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that made the adversarial inputs, by label."""
        return tuple(dict.fromkeys(self.plan.labels[k] for _, k in self.chosen))

    def read(self, places: Sequence[int]) -> Tensor:
        return torch.stack([self._one(place) for place in places])

    def labels(self, places: Sequence[int]) -> list[int] | None:
        y = self.plan.data.take([self.items[place].sample for place in places])[1]
        return y.tolist() if y.ndim == 1 and not y.is_floating_point() else None

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.plan.data.fingerprint().encode())
        for place in range(1, len(self), 2):
            digest.update(np.ascontiguousarray(self._one(place).float().numpy()).tobytes())
        return digest.hexdigest()

    def _one(self, place: int) -> Tensor:
        sample, k = self.chosen[place // 2]
        if self.items[place].variant == "clean":
            return self.plan.data.take([sample])[0][0]
        chunk = next(c for c in self.plan.chunks() if sample in c)
        stored = self.run.read_tensors(tensors_file(self.plan, k, chunk))
        return stored["adversarial"][stored["ids"].tolist().index(sample)]


def _files(paths: Sequence[str]) -> list[Path]:
    """The pictures that are named, and those in the folders that are."""
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_picture(file))
            if not inside:
                raise UsageError("no pictures found", expected=", ".join(sorted(SUFFIXES)), where=str(path))
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError("no such picture", expected="a file, or a folder of them", where=str(path))
    return found


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _pixels(file: Path, mode: Mode, model: Model) -> Tensor:
    """(C, H, W) in [0, 1]."""
    return torch.tensor(to_array(read_image(file), mode, model.preprocessing, str(file))).float() / 255


def _original(file: Path, model: Model) -> Shown:
    image = read_image(file)
    return Shown(image.convert("RGB"), seen_box(image.size, model.preprocessing))
