"""What every measure asks of its maps before it starts."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.heat import pixel_map
from robustkit.core.keyed import default_ids
from robustkit.core.model import Model
from robustkit.core.task import Classification


def rating(values: Tensor, pixels: bool) -> Tensor:
    """How important each pixel is, (N, H, W): the rating of a method that rates pixels, else the sum of magnitudes.

    Magnitudes, since the sign of a gradient says which way to move a pixel and not whether it matters; ratings as they
    are, since those of regions may be negative and their order is what the method means.
    """
    return pixel_map(values, signed=pixels)


def check_pictures(x: Tensor) -> None:
    """x is a batch of pictures.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or 0 in x.shape:
        raise UsageError(
            "maps are measured on pictures",
            expected="a tensor (N, C, H, W) of at least one",
            got=f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__,
            where="x",
        )


def check_map(found: Tensor, x: Tensor, name: str) -> None:
    """A pixel map (N, H, W) fits the pictures x and holds numbers.

    Raises:
        UsageError: another size; a value that is not finite.
    """
    wanted = (len(x), *x.shape[2:])
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        raise UsageError(
            "a map does not fit the pictures",
            expected=f"a tensor (N, H, W) = {wanted}",
            got=f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__,
            where=f"maps[{name!r}]",
            fix="Sum over the channels: robustkit.core.heat.pixel_map(values, signed=False).",
        )
    check_finite(found, f"maps[{name!r}]")


def check_finite(found: Tensor, where: str) -> None:
    """Every value of a batch of maps is a number.

    Raises:
        UsageError: one is not; names the row.
    """
    bad = (~found.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise UsageError("a map is not finite", expected="numbers", got=f"NaN or infinity in row {bad[0]}", where=where)


def check_classes(model: Model, x: Tensor, classes: Tensor) -> Tensor:
    """The classes (N,) as int64 beside the network.

    Raises:
        UsageError: the model is no classifier; not one class for each picture; a class that does not exist.
    """
    shape = model.output_shape(x)
    if not isinstance(model.task, Classification) or len(shape) != 1 or shape[0] < 2:
        raise UsageError(
            "maps are measured on classifiers",
            expected="task classification with outputs (N, C), C at least 2",
            got=f"task {model.task.name} with outputs (N, {', '.join(map(str, shape))})",
            where="model",
        )
    found = torch.as_tensor(classes, device=x.device)
    if found.shape != (len(x),) or found.is_floating_point() or found.dtype == torch.bool:
        raise UsageError(
            "classes do not fit the pictures",
            expected=f"whole numbers of shape ({len(x)},)",
            got=f"{found.dtype} of shape {tuple(found.shape)}",
            where="classes",
        )
    outside = found[(found < 0) | (found >= shape[0])].tolist()
    if outside:
        raise UsageError(
            "a class does not exist",
            expected=f"0 .. {shape[0] - 1}, for the {shape[0]} outputs of the network",
            got=str(outside[0]),
            where="classes",
        )
    return found.long()


def checked_ids(x: Tensor, ids: Tensor | None) -> Tensor:
    """The sample ids (N,), 0 .. N-1 where there are none.

    Raises:
        UsageError: not one for each picture.
    """
    if ids is None:
        return default_ids(len(x))
    if len(ids) != len(x):
        raise UsageError("x and ids have different lengths", expected=str(len(x)), got=str(len(ids)), where="ids")
    return ids.cpu()


def check_whole(value: int, name: str, least: int = 1) -> None:
    """A whole number of at least ``least``.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is a whole number", expected=f"at least {least}", got=repr(value), where=name)
