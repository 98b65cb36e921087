"""Baselines of path methods: inputs that are to mean "nothing there", in the units of the model's inputs.

=========  =====================================================================================================
black      the lowest value of the bounds
white      the highest value of the bounds
mean       the mean colour: what the network's normalisation maps to 0; where that is unknown, the image's own mean
blur       the image under a Gaussian, edges repeated
uniform    draws from U(low, high), keyed by sample; several, each a baseline of its own
min, max   the lowest or highest value of the image itself, in every channel
=========  =====================================================================================================

Zero after normalisation is the mean colour, not black: a baseline is always named before normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.explainer import Subject
from robustkit.kernels.balls import per_sample

NAMES = ("black", "white", "mean", "blur", "uniform", "min", "max")

Baseline = Callable[[Tensor], Tensor]
"""Rows (R,) of the batch, on the CPU -> their baselines (R, *S)."""


def checked(text: str) -> str:
    """One or several names joined by "+".

    >>> checked("black+white")
    'black+white'

    Raises:
        ValueError: an unknown name, or one given twice; says what is expected.
    """
    names = text.split("+")
    if not set(names) <= set(NAMES):
        raise ValueError(f"{', '.join(NAMES)}, or several of them joined by +")
    if len(set(names)) < len(names):
        raise ValueError("every baseline once; draws of uniform are numbered by uniform_samples")
    return text


@dataclass(frozen=True)
class Setting:
    """What the names leave open: draws of ``uniform``, and the sigma of ``blur`` in longer sides of the image."""

    samples: int
    blur: float


def named(subject: Subject, text: str, setting: Setting) -> list[Baseline]:
    """The baselines of a text form, for this batch.

    Raises:
        UsageError: black, white or uniform of a model without bounds; blur of what is no image.
    """
    found: list[Baseline] = []
    for name in text.split("+"):
        if name == "uniform":
            found += [_uniform(subject, number) for number in range(setting.samples)]
        else:
            found.append(_fixed(_made(subject, name, setting)))
    return found


def given(subject: Subject, tensors: Sequence[Tensor]) -> list[Baseline]:
    """Baselines of the caller's, each (N, *S) or what broadcasts to it.

    Raises:
        UsageError: no tensor; one of another size, with NaN, or outside the bounds.
    """
    if not len(tensors):
        raise UsageError("no baseline is given", expected="at least one tensor", got="none", where="reference")
    return [_fixed(_fitting(subject, tensor)) for tensor in tensors]


def blurred(x: Tensor, sigma: float) -> Tensor:
    """x (N, C, H, W) under a Gaussian of ``sigma`` pixels, cut at 3 sigma, edges repeated."""
    radius = max(1, math.ceil(3 * sigma))
    place = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.softmax(-place.square() / (2 * sigma**2), 0)
    planes = F.pad(x.flatten(0, 1)[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(x)


def _fixed(values: Tensor) -> Baseline:
    """Rows of (N, ...), or the same for all of (1, ...)."""
    return lambda rows: values if len(values) == 1 else values[rows.to(values.device)]


def _uniform(subject: Subject, number: int) -> Baseline:
    low, high = _bound(subject, "low"), _bound(subject, "high")
    draws = subject.draws.child("baseline").again(number)

    def draw(rows: Tensor) -> Tensor:
        u = draws.take(rows).uniform(subject.x[rows.to(subject.x.device)])
        return u.mul_(high - low).add_(low)

    return draw


def _made(subject: Subject, name: str, setting: Setting) -> Tensor:
    x = subject.x
    if name in ("black", "white"):
        return x.new_full((1, *[1] * (x.ndim - 1)), _bound(subject, "low" if name == "black" else "high"))
    if name == "mean":
        return _mean(subject)
    if name == "min":
        return per_sample(x.flatten(1).amin(1), x)
    if name == "max":
        return per_sample(x.flatten(1).amax(1), x)
    if x.ndim != 4:
        raise UsageError(
            "only images can be blurred",
            expected="inputs (N, C, H, W)",
            got=f"shape {tuple(x.shape)}",
            where="baseline=blur",
            fix="Use baseline=mean or baseline=uniform.",
        )
    return blurred(x, setting.blur * max(x.shape[2:]))


def _mean(subject: Subject) -> Tensor:
    """(1, C, 1, ...) of the model, else (N, C, 1, ...) of each image; one number for a sample that is a vector."""
    x, mean = subject.x, subject.model.mean
    if mean is not None:
        return x.new_tensor(mean).view(1, -1, *[1] * (x.ndim - 2))
    if x.ndim == 2:
        return x.mean(1, keepdim=True)
    return x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.ndim - 2))


def _bound(subject: Subject, side: str) -> float:
    value: float = getattr(subject.model.bounds, side)
    if not math.isfinite(value):
        raise UsageError(
            "the model has no bounds to take a colour from",
            expected="finite bounds",
            got=f"{side}={value}",
            where="baseline",
            fix="Wrap the model with bounds=(low, high), or use baseline=mean, min+max or a tensor.",
        )
    return value


def _fitting(subject: Subject, tensor: Tensor) -> Tensor:
    x, bounds = subject.x, subject.model.bounds
    try:
        values = torch.as_tensor(tensor, dtype=x.dtype, device=x.device).expand(x.shape)
    except RuntimeError:
        raise UsageError(
            "the baseline does not fit the inputs",
            expected=f"a tensor that broadcasts to {tuple(x.shape)}",
            got=str(tuple(tensor.shape)),
            where="reference",
        ) from None
    if not bool(((values >= bounds.low) & (values <= bounds.high)).all()):
        raise UsageError(
            "the baseline leaves the bounds of the model",
            expected=f"{bounds.low} .. {bounds.high}",
            got=f"{float(values.min()):g} .. {float(values.max()):g}",
            where="reference",
            fix="Baselines are inputs of the wrapped model, before normalisation.",
        )
    return values
