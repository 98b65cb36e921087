"""Which statistics batch normalisation uses in training, and which it learns from, without a change of the network.

A training batch may hold several parts, such as clean and adversarial inputs, one after the other. As it is, a layer
normalises all of them together. Inside :func:`normalising` each part is normalised by its own statistics, as if the
parts had been passed one by one, and the running statistics learn from those parts alone that are named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[Tensor], Tensor]


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The layers below ``module`` that normalise by statistics of the batch in training."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def normalising(module: nn.Module, sizes: Sequence[int], learn: Collection[int]) -> Iterator[None]:
    """Normalise the parts of a batch, of these sizes, apart from each other; layers in eval mode are left alone.

    Args:
        module: the network.
        sizes: rows of each part.
        learn: the parts, by place, from which running statistics are learnt, in this order.
    """

    def forward_of(layer: _BatchNorm) -> Forward:
        plain: Forward = layer.forward
        return lambda x: _parted(layer, plain, x, sizes, learn) if layer.training else plain(x)

    with replaced(batch_norms(module), forward_of):
        yield


@contextmanager
def replaced(layers: Sequence[nn.Module], forward_of: Callable[..., Forward]) -> Iterator[None]:
    """Give layers another forward for a while; also after an exception they have their own again."""
    mine = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = forward_of(layer)
        yield
    finally:
        for layer, own in zip(layers, mine, strict=True):
            if own is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = own


def normalised(layer: _BatchNorm, forward: Forward, x: Tensor, *, learn: bool) -> Tensor:
    """``x`` normalised by its own statistics; with ``learn`` the running ones take notice.

    The layer's own ``forward`` runs in either case: it may do more than normalise, as timm's, which end in a clipping,
    and may hand its input to other layers, as those of :mod:`robustkit.core.splitnorm`.
    """
    if learn:
        return forward(x)
    tracks, layer.track_running_stats = layer.track_running_stats, False
    try:
        return forward(x)
    finally:
        layer.track_running_stats = tracks


def _parted(layer: _BatchNorm, forward: Forward, x: Tensor, sizes: Sequence[int], learn: Collection[int]) -> Tensor:
    """The parts normalised one by one; a layer may see several rows for every input, all in the same order."""
    each = x.split(_rows(len(x), sizes))
    return torch.cat([normalised(layer, forward, part, learn=place in learn) for place, part in enumerate(each)])


def _rows(total: int, sizes: Sequence[int]) -> list[int]:
    """Rows of each part where the whole has ``total``.

    >>> _rows(6, [2, 1]), _rows(3, [2, 1])
    ([4, 2], [2, 1])
    """
    ends = [total * end // sum(sizes) for end in accumulate(sizes)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
