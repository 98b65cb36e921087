"""Inputs outside the bounds: which usual preprocessing they have been through, and how to undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.model import Model
from robustkit.core.task import Classification

FAMILIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5/0.5": ((0.5,), (0.5,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307,), (0.3081,)),
}
EIGHT_BIT = "dividing by 255"
LOOKED_AT = 32 * 3 * 224 * 224
"""Input values on which clean accuracies are compared: 32 photos, or all of a probe of small images."""
OVERSHOOT = 0.01
"""How far resizing may carry values over the ends."""


def affine(mean: tuple[float, ...], std: tuple[float, ...], *, inverse: bool = False) -> Callable[[Tensor], Tensor]:
    """(z - mean) / std over channels, or its inverse."""

    def feed(z: Tensor) -> Tensor:
        m, s = (torch.tensor(v, dtype=z.dtype, device=z.device).view(-1, *[1] * (z.ndim - 2)) for v in (mean, std))
        return z * s + m if inverse else (z - m) / s

    return feed


def fits(mean: tuple[float, ...], x: Tensor) -> bool:
    """Whether there are as many means as channels; one is for any input."""
    return len(mean) == 1 or (x.ndim == 4 and len(mean) == x.shape[1])


@dataclass(frozen=True, eq=False)
class Origin:
    """A way the inputs may have been made, and the inputs before it.

    Attributes:
        name: of the way back.
        mean, std: what normalised them, on the scale of the bounds.
        x: (N, *S), inside the bounds.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    x: Tensor

    @property
    def whole(self) -> float:
        """Share of the values that are whole 255ths: pictures come from 8-bit files."""
        grey = (self.x.double() * 255).flatten()[:100_000]
        return float(((grey - grey.round()).abs() < 0.02).double().mean())

    @property
    def width(self) -> float:
        """How much of the range of pictures is used."""
        return float(self.x.max() - self.x.min())


def explain_range(model: Model, x: Tensor, y: Tensor) -> tuple[str, str]:
    """What would bring inputs back into the bounds, with clean accuracies, and what to write."""
    inside = [origin for origin in _origins(model, x) if _lies(origin.x, model)]
    if not inside:
        return "", "Give images in the bounds, and mean and std to wrap(); or set the bounds to the true range."
    likely = max(inside, key=lambda o: (o.whole > 0.99, o.width))
    few = slice(None, None, max(1, len(x) // max(16, LOOKED_AT // max(1, x[0].numel()))))
    given = accuracy(model, x[few], y[few])
    undone = {o.name: accuracy(model, model.bounds.clamp(o.x[few]), y[few]) for o in inside}
    if given is None:
        return f"; {likely.name} would bring them inside", _into_wrapper(likely)
    best = max(inside, key=lambda o: (o.whole > 0.99, undone[o.name] or 0.0))
    if not _normalises(model) and given > (undone[best.name] or 0.0):
        low = undone[likely.name] or 0.0  # the network wants what it gets: that step is the wrapper's work
        told = f"; clean accuracy is {low:.1%} after {likely.name}, and {given:.1%} if the wrapper does that step"
        return told, _into_wrapper(likely)
    told = f"; clean accuracy is {given:.1%} as given and {undone[best.name] or 0.0:.1%} after {best.name}"
    if best.name == EIGHT_BIT:
        return told, f"The data look like 8-bit images: divide them by 255, x / 255{_keep(model)}."
    return told, f"The data look normalised already: give images in [0, 1], as they were before{_keep(model)}."


def _normalises(model: Model) -> bool:
    """Whether the wrapper does anything to the inputs."""
    return not (set(model.mean or (0.0,)) == {0.0} and set(model.std or (1.0,)) == {1.0})


def _keep(model: Model) -> str:
    return ", and let wrap(net, mean=..., std=...) normalise" + (", as it does" if _normalises(model) else "")


def _into_wrapper(origin: Origin) -> str:
    mean, std = list(origin.mean), list(origin.std)
    if origin.name == EIGHT_BIT:
        return "Give images in [0, 1], x / 255, and wrap(net, mean=0, std=1/255) if the network wants 0 to 255."
    return f"Give images in [0, 1], not normalised, and let the wrapper do it: wrap(net, mean={mean}, std={std})."


def _origins(model: Model, x: Tensor) -> Iterator[Origin]:
    if float(x.max()) > 4 * model.bounds.high:
        yield Origin(EIGHT_BIT, (0.0,), (1 / 255,), x / 255)
    ways = dict(FAMILIES)
    if model.mean is not None and model.std is not None:
        ways = {"the model's own": (model.mean, model.std), **ways}
    for name, (mean, std) in ways.items():
        if fits(mean, x):
            label = f"undoing a normalisation by {name} mean and std"
            yield Origin(label, mean, std, affine(mean, std, inverse=True)(x))


def _lies(x: Tensor, model: Model) -> bool:
    low, high = model.bounds.low - OVERSHOOT, model.bounds.high + OVERSHOOT
    return float(x.min()) >= low and float(x.max()) <= high


def accuracy(model: Model, x: Tensor, y: Tensor) -> float | None:
    """Clean accuracy; None where the outputs and labels are not those of a classifier."""
    if not isinstance(model.task, Classification) or y.ndim != 1:
        return None
    with model.frozen(), torch.no_grad():
        outputs = model(x)
    return float((outputs.argmax(1) == y).double().mean()) if outputs.ndim == 2 else None
