"""The result of a saliency method: the map, what it is worth, and pictures of it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from robustkit.core import attribution_views as views
from robustkit.core import heat
from robustkit.core.errors import UsageError
from robustkit.core.files import plain, replace_file, slug
from robustkit.core.types import Bounds, Cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Mode = Literal["heat", "overlay", "signed", "cutout"]
SINGLE = ("x", "values", "target", "value", "residual", "standard_error")
"""Tensors that are stored under their own name."""


class Note(str):
    """A note about some samples of a batch: its text, and of which, (N,) bool.

    >>> Note("1 of 2 maps is black", torch.tensor([True, False])).which.tolist()
    [True, False]
    """

    which: Tensor

    def __new__(cls, text: str, which: Tensor) -> Self:
        note = super().__new__(cls, text)
        note.which = which
        return note


@dataclass(frozen=True, eq=False)
class Attribution:
    """Maps of a batch.

    Attributes:
        method, settings: name and options of the method.
        x: (N, *S), what was explained.
        values: (N, *S), or (N, 1, H, W) of methods that rate pixels; in units of the output per unit of the input for
            gradients, of the output for methods that share it out.
        target, output, value: (N,) class, what is made of its outputs, and how much that is at x, (N,).
        residual: (N,), sum of the values less what they should add up to, where the method promises completeness;
            never spread over the map.
        standard_error: as ``values``, of methods that estimate by random draws.
        extras: further tensors of the method by name, each (N, ...).
        notes: what the reader must know, such as a large residual.
        signed: whether the sign of a value means something.
        cost: forwards and backwards, in samples.
        class_names, bounds: of the model.
    """

    method: str
    settings: dict[str, Any]
    x: Tensor
    values: Tensor
    target: Tensor
    output: str
    value: Tensor
    signed: bool
    cost: Cost
    residual: Tensor | None = None
    standard_error: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def __len__(self) -> int:
        return len(self.values)

    def notes_of(self, index: int) -> list[str]:
        """The notes that one sample's reader must know: those of the batch, and those of some samples, if it is one."""
        return [str(n) for n in self.notes if not isinstance(n, Note) or bool(n.which[index])]

    @property
    def regions(self) -> bool:
        """Whether the map is constant on regions, which ``extras["ranks"]`` numbers from the most important on."""
        return "ranks" in self.extras

    @property
    def relative_error(self) -> Tensor | None:
        """(N,), the length of the standard error over that of the map."""
        if self.standard_error is None:
            return None
        error, length = (t.flatten(1).square().sum(1) for t in (self.standard_error, self.values))
        return (error / length).sqrt()

    @property
    def relative_residual(self) -> Tensor | None:
        """(N,), the size of the residual over that of what the values should add up to."""
        if self.residual is None:
            return None
        due: Tensor = self.extras.get("difference", self.values.flatten(1).sum(1) - self.residual)
        return self.residual.abs() / due.abs()

    def pixel_map(self, signed: bool | None = None) -> Tensor:
        """One value for each pixel, (N, H, W).

        Args:
            signed: the sum over channels; unsigned: of absolute values. By default what orders the pixels from the
                most important on: the values themselves of methods that rate pixels, otherwise the unsigned sum.

        Raises:
            UsageError: the inputs are no images.
        """
        rates_pixels = self.regions or self.values.shape != self.x.shape
        return heat.pixel_map(self.values, rates_pixels if signed is None else signed)

    def significant(self, z: float = heat.Z) -> Tensor:
        """(N, H, W), the pixels that are more than ``z`` standard errors away from 0.

        Raises:
            UsageError: the method gives no standard error.
        """
        if self.standard_error is None:
            raise UsageError(
                "no standard error to compare with",
                expected="a method that draws at random, such as smoothgrad with statistic=mean",
                got=self.method,
                where="significant",
                fix="Leave out significant=True.",
            )
        return heat.significant(self.values, self.standard_error, z)

    def to_image(self, index: int = 0, mode: Mode = "heat", *, top: float = 0.3, significant: bool = False) -> Image:
        """A picture of one map, as large as the input.

        Args:
            index: which sample.
            mode: ``heat``, ``overlay`` (over the dimmed grey input), ``signed`` (around 0), or ``cutout`` (the input
                where the map is in the top share).
            top: share of the pixels that ``cutout`` keeps.
            significant: leave out pixels that are less than two standard errors away from 0.

        Raises:
            UsageError: the inputs are no images, no such sample, mode or share, no standard error.
        """
        return views.image(self, index, mode, top, significant)

    def plot(self, *, limit: int = 8, scale: Literal["image", "shared"] = "image", significant: bool = False) -> Figure:
        """A figure with a row for each of the first samples: input, heat, overlay; bars where inputs are no images.

        Args:
            limit: most rows.
            scale: colours end at the 99th percentile of each map, or at that of all maps together.
            significant: leave out pixels that are less than two standard errors away from 0.
        """
        return views.figure(self, limit, scale, significant)

    def _repr_html_(self) -> str:
        return views.html(self)

    def save(self, path: str | Path, *, pictures: bool = True) -> list[Path]:
        """Write the arrays as an npz, and a heat map and an overlay of every image beside it; the files written.

        Args:
            path: a file that ends in ``.npz``, or a folder, in which it is named after the method.
            pictures: with the pictures, where the inputs are images.

        Raises:
            Incomplete: the folder cannot be written, or the disk is full.
        """
        path = Path(path)
        file = path if path.suffix == ".npz" else path / f"{slug(self.method)}.npz"
        stream = io.BytesIO()
        np.savez_compressed(stream, **self._arrays())
        replace_file(file, stream.getvalue())
        written = [file]
        modes: tuple[Mode, ...] = ("heat", "overlay") if pictures and views.are_pictures(self) else ()
        for index in range(len(self)):
            for mode in modes:
                written.append(file.with_name(f"{file.stem}-{index:05d}-{mode}.png"))
                replace_file(written[-1], views.png(self.to_image(index, mode)))
        return written

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """What :meth:`save` wrote; numbers only, nothing in the file is executed.

        Raises:
            UsageError: no such file, or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays: dict[str, Any] = {
                    name: torch.from_numpy(stored[name]) for name in stored.files if name != "about"
                }
                about = json.loads(str(stored["about"]))
            extras = {name.partition("/")[2]: arrays.pop(name) for name in list(arrays) if name.startswith("extra/")}
            about |= {"cost": Cost(**about["cost"]), "bounds": Bounds(*about["bounds"])}
            for name in ("notes", "class_names"):
                about[name] = None if about[name] is None else tuple(about[name])
            return cls(**about, **arrays, extras=extras)
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise UsageError(
                "cannot read the map", expected="an npz that save wrote", got=str(error), where=str(path)
            ) from error

    def _arrays(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in SINGLE} | {f"extra/{k}": v for k, v in self.extras.items()}
        about = {
            "method": self.method,
            "settings": self.settings,
            "output": self.output,
            "signed": self.signed,
            "cost": {"forwards": self.cost.forwards, "backwards": self.cost.backwards},
            "notes": self.notes,
            "class_names": self.class_names,
            "bounds": [self.bounds.low, self.bounds.high],
        }
        arrays = {name: _numbers(tensor) for name, tensor in tensors.items() if tensor is not None}
        return {**arrays, "about": np.array(json.dumps(plain(about), default=str))}


def _numbers(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
