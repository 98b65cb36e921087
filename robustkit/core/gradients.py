"""The engine of all gradient-based maps: a lazy stream of points, packed across samples, summed as it goes.

A method says which points it wants, of which sample, with which weight; the engine takes their gradients in full
batches on the fast copy of the network and hands them to accumulators. Nothing is kept but the batch at work and the
sums, so that memory does not grow with the number of points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.target import Target
from robustkit.kernels.balls import per_sample

VALUES = 1_900_000
"""Input values in a batch on the CPU, 12 images of 3 x 224 x 224: batches of 32 are a tenth faster than those of 8 and
take four times the memory."""
CUDA_FACTOR = 16
MOST = 512


@dataclass(frozen=True, eq=False)
class Points:
    """Where gradients are wanted.

    Attributes:
        sample: (P,) int64 on the CPU, the row of the batch that each point belongs to.
        x: (P, *S), the points.
        weight: (P,), of each gradient in the sum.
    """

    sample: Tensor
    x: Tensor
    weight: Tensor


class Accumulator(Protocol):
    """What becomes of the gradients."""

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        """Take in the values (P,) and gradients (P, *S) of some points."""


class Engine:
    """Gradients of a target at streams of points.

    Args:
        model: the wrapped network; points run on its fast copy.
        x: the batch (N, *S) that points belong to.
        target: what is differentiated, for each of its samples.
        batch: most points at once; by default by the size of the input. Halved for good when memory runs out.
        tell: called after every batch with the number of gradients taken so far.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        target: Target,
        batch: int | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.target, self._tell, self._taken = model, target, tell, 0
        self._example = x[:1]
        self._batch = batch or default_batch(x)

    @cached_property
    def _fast(self) -> Model:
        """Made when the first point is asked for: some methods need none."""
        return self.model.fast(self._example)

    @property
    def batch(self) -> int:
        """Points in a batch, as memory allows."""
        return min(self._batch, self.model.chunk or self._batch)

    def batches(self, total: int, group: int = 1) -> Iterator[Tensor]:
        """0 .. total - 1 in pieces of a batch; ``group`` neighbours stay together. Numbers lie on the CPU."""
        start = 0
        while start < total:
            size = max(group, self.batch // group * group)
            yield torch.arange(start, min(start + size, total))
            start += size

    def run(self, stream: Iterable[Points], *accumulators: Accumulator) -> None:
        """Take the gradients at every point of the stream; one forward and one backward each."""
        for points in stream:
            value, grad, _ = self._fast.value_and_grad(points.x, self.target.take(points.sample))
            for accumulator in accumulators:
                accumulator.add(points, value, grad)
            self._taken += len(points.x)
            if self._tell is not None:
                self._tell(self._taken)

    def values(self, stream: Iterable[Points]) -> Tensor:
        """The target at every point of the stream, in its order; one forward each."""
        found = [self.target.take(points.sample)(self._fast(points.x)).detach() for points in stream]
        return torch.cat(found)


def default_batch(x: Tensor) -> int:
    """Points in a batch for inputs of this size and place."""
    size = VALUES * (CUDA_FACTOR if x.is_cuda else 1) // max(1, x[:1].numel())
    return max(1, min(MOST, size))


class WeightedSum:
    """sum_k w_k g_k and sum_k w_k f_k of every sample.

    Attributes:
        total: (N, *S).
        value: (N,).
    """

    def __init__(self, like: Tensor) -> None:
        self.total = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self.value = like.new_zeros(len(like))

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        rows, share = _shares(points.sample, points.weight)
        self.total.flatten(1)[rows] += _summed(share, grad.flatten(1))
        self.value[rows] += share @ value


class Moments:
    """Mean and variance of the gradients of every sample, in one pass, by the update of Chan, Golub and LeVeque.

    The variance is a sum of squares, so it is never negative, however close the gradients are. Weights are not used.

    Attributes:
        count: (N,), gradients seen.
        mean: (N, *S).
    """

    def __init__(self, like: Tensor) -> None:
        self.count = like.new_zeros(len(like))
        self.mean = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self._squares = torch.zeros_like(self.mean)

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        flat = grad.flatten(1)
        rows, share = _shares(points.sample, torch.ones_like(points.weight))
        added = share.sum(1)
        mean = _summed(share, flat) / added[:, None]
        squares = _summed(share, (flat - mean[share.argmax(0)]).square_())
        before, old = self.count[rows][:, None], self.mean.flatten(1)[rows]
        step, total = mean - old, before + added[:, None]
        self.mean.flatten(1)[rows] = old + step * (added[:, None] / total)
        self._squares.flatten(1)[rows] += squares + step.square() * (before * added[:, None] / total)
        self.count[rows] += added

    @property
    def variance(self) -> Tensor:
        """Population variance (N, *S); 0 for one gradient."""
        return self._squares / per_sample(self.count.clamp_min(1), self.mean)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, (N, *S): the root of the unbiased variance over the count; infinite for one gradient."""
        freedom = per_sample((self.count - 1) * self.count, self.mean)
        return torch.where(freedom > 0, self._squares / freedom.clamp_min(1), torch.inf).sqrt()


class Paired:
    """Hands the means of neighbouring pairs on: antithetic draws are independent only from pair to pair."""

    def __init__(self, inner: Accumulator) -> None:
        self.inner = inner

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        half = Points(points.sample[::2], points.x[::2], points.weight[::2])
        self.inner.add(half, (value[::2] + value[1::2]) / 2, (grad[::2] + grad[1::2]) / 2)


def check_gradients(grad: Tensor, ids: Tensor) -> None:
    """Gradients (N, *S) are finite.

    Raises:
        UsageError: they are not; names the samples.
    """
    bad = (~grad.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        shown = ", ".join(str(int(ids[i])) for i in bad[:5]) + (" ..." if len(bad) > 5 else "")
        raise UsageError(
            "the gradient of the network is not finite",
            expected="numbers",
            got=f"NaN or infinity for sample {shown}",
            where="the network's backward",
            fix="Look for log(0), sqrt(0) or a division by 0 inside; float64 sometimes helps.",
        )


def _shares(sample: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (R,) that points belong to and a matrix (R, P) with the weight of each point in its row.

    A product with it sums over points in a fixed order, which an atomic scatter on CUDA does not.
    """
    rows, place = sample.unique(return_inverse=True)
    share = weight.new_zeros((len(rows), len(sample)))
    share[place.to(weight.device), torch.arange(len(sample), device=weight.device)] = weight
    return rows.to(weight.device), share


def _summed(share: Tensor, flat: Tensor) -> Tensor:
    """``share @ flat``, (R, D), with what is not finite kept in its own row: in a product, 0 times NaN is NaN."""
    sums: Tensor = share @ flat
    if bool(sums.isfinite().all()):
        return sums
    return torch.stack([row[row != 0] @ flat[row != 0] for row in share])
