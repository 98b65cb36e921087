"""What another library sees of a model, and how its points come back.

It is handed :class:`Seen`, a module from images in [0, 1] to outputs, whatever the bounds of the model are, and gives
back one point for every sample. Shapes: x, points (N, *S); y, target (N,).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.threat import Threat
from robustkit.core.types import Bounds
from robustkit.kernels.balls import norm, per_sample

ROUNDING = 1e-5
"""Points that lie outside the threat by no more than this, relative to eps, do so by rounding, and are put back."""


class Seen(nn.Module):
    """A wrapped model as another library takes it: images in [0, 1] to outputs, every pass counted.

    Its own parameter is a place only: libraries ask for its device. The network is no part of it, so that nothing a
    library does to modules and parameters reaches the network.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model, self._bounds = model, model.bounds
        self.place = nn.Parameter(torch.zeros((), device=model.device, dtype=model.dtype), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._model(scaled(x.to(self.place), self._bounds))
        if outputs.requires_grad:
            outputs.register_hook(self._counter(len(x)))
        return outputs

    def _counter(self, n: int) -> Callable[[Tensor], None]:
        """Called with every gradient that passes the outputs of n samples."""

        def count(_: Tensor) -> None:
            self._model.cost.backwards += n * self._model.eot

        return count


@dataclass(frozen=True, eq=False)
class Case:
    """What a library is asked for.

    Attributes:
        net: the model.
        x, y, target: samples in [0, 1] (N, *S), labels (N,), classes to reach (N,) or None.
        norm, eps: of the threat, in the units of x.
        classes: outputs of the network.
        seed: for the library's draws, in 31 bits.
    """

    net: Seen
    x: Tensor
    y: Tensor
    target: Tensor | None
    norm: str
    eps: float
    classes: int
    seed: int

    @property
    def labels(self) -> Tensor:
        """The labels that a targeted or an untargeted attack is called with, (N,)."""
        return self.y if self.target is None else self.target


def scaled(x: Tensor, bounds: Bounds) -> Tensor:
    """From [0, 1] to the bounds; bit for bit the same where these are [0, 1]."""
    return x if (bounds.low, bounds.high) == (0, 1) else bounds.low + bounds.width * x


def returned(points: Tensor, given: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
    """Points of a library (N, *S) in the units and bounds of x, which lies at ``given`` in [0, 1].

    What was not moved is x itself, bit for bit; so is a sample with a value that is not finite.

    Raises:
        UsageError: another shape.
    """
    if points.shape != x.shape:
        raise UsageError(
            "the library returned another shape", expected=str(tuple(x.shape)), got=str(tuple(points.shape))
        )
    points = points.detach().to(given)
    found = bounds.clamp(torch.where(points == given, x, scaled(points, bounds)))
    return torch.where(per_sample(found.isfinite().flatten(1).all(1), x), found, x)


def settled(points: Tensor, x: Tensor, threat: Threat, bounds: Bounds) -> Tensor:
    """The points, those put back into the threat that lie outside by rounding only, (N, *S).

    A projection ends within a digit of eps, on either side; the last digits of the pixels are then stepped towards x.
    """
    digit = torch.finfo(x.dtype).eps * max(abs(bounds.low), abs(bounds.high))
    room = threat.eps * (1 + ROUNDING) + norm(torch.full_like(x, digit), threat.p)
    distance = threat.distance(points, x)
    outside = (distance > threat.eps) & (distance <= room)
    points = torch.where(per_sample(outside, x), threat.project(points, x, bounds), points)
    for _ in range(8):
        over = outside & (threat.distance(points, x) > threat.eps)
        if not over.any():
            break
        points = torch.where(per_sample(over, x), torch.nextafter(points, x), points)
    return points


def spread(total: int, like: Tensor) -> Tensor:
    """``total`` passes over N samples as evenly as whole numbers go, (N,); they sum to the total.

    >>> spread(7, torch.zeros(3))
    tensor([3, 2, 2])
    """
    n = len(like)
    return total // n + (torch.arange(n, device=like.device) < total % n).long()


@contextmanager
def private(seed: int) -> Iterator[None]:
    """Global generators of numpy and random for a library to read and seed; both are put back. torch's: ``frozen``."""
    ours, plain = np.random.get_state(), random.getstate()
    try:
        np.random.set_state(np.random.RandomState(seed).get_state())
        random.setstate(random.Random(seed).getstate())
        yield
    finally:
        np.random.set_state(ours)
        random.setstate(plain)
