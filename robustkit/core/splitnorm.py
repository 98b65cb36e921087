"""Batch normalisation with layers of its own for every part of a batch, by timm's ``SplitBatchNorm2d``.

Clean and adversarial inputs have other statistics; AdvProp (https://arxiv.org/abs/1911.09665, sec. 4.2) normalises them
by layers of their own, of which the first, the main one, is the only one that is used after training. All branches
share everything but their batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkit.core.batchnorm import batch_norms, replaced
from robustkit.core.errors import UsageError
from robustkit.core.model import Model


def split(model: Model, parts: int) -> Model:
    """Give every BatchNorm2d of a network one branch for each part of a batch, in place.

    In train mode a batch is cut into ``parts`` pieces of one size, and each goes through its branch; in eval mode all
    goes through the main one. Branches start equal. The main one keeps the parameters, buffers and names of the layer
    that it was: a checkpoint without the keys that hold ``.aux_bn.`` is one of the plain network. Make the optimiser
    afterwards: it has to know the new layers. A network without batch normalisation is left as it is.

    Returns:
        The same model.

    Raises:
        UsageError: batch normalisation that timm cannot split; fewer than two parts; split otherwise before.
    """
    if parts < 2:
        raise UsageError(
            "there is nothing to split",
            expected="a defense that trains on two kinds of inputs or more",
            got=f"{parts} part",
            where="statistics=split",
            fix="Use statistics=shared.",
        )
    if branches(model.net) == parts:
        return model
    _check(model.net, parts)
    from timm.layers import split_batchnorm  # takes a second to import

    convert: Any = split_batchnorm.convert_splitbn_model
    _exchange(model.net, {layer: _adopted(convert(layer, parts), layer) for layer in batch_norms(model.net)})
    return model


def merge(net: nn.Module) -> nn.Module:
    """Leave the main branch alone, as the plain layer that it was, in place; the same network is returned."""
    _exchange(net, {layer: _plain(layer) for layer in split_layers(net)})
    return net


@contextmanager
def branch(module: nn.Module, place: int) -> Iterator[None]:
    """Whole batches through one branch of every split layer, 0 for the main one, in train and in eval mode alike."""

    def forward_of(layer: Any) -> Callable[[Tensor], Tensor]:
        rest = [part for part in (getattr(layer, "drop", None), getattr(layer, "act", None)) if part is not None]

        def forward(x: Tensor) -> Tensor:
            x = layer.aux_bn[place - 1](x) if place else nn.BatchNorm2d.forward(layer, x)
            for part in rest:
                x = part(x)
            return x

        return forward

    with replaced(split_layers(module), forward_of):
        yield


def split_layers(module: nn.Module) -> list[Any]:
    """The layers below ``module`` that have branches; their branches are not among them."""
    return [layer for layer in batch_norms(module) if hasattr(layer, "aux_bn")]


def branches(module: nn.Module) -> int:
    """How many branches the layers have; 1 where none is split."""
    return max((1 + len(layer.aux_bn) for layer in split_layers(module)), default=1)


def splittable(module: nn.Module) -> bool:
    """Whether a network has layers to split, or has them split already."""
    return any(isinstance(layer, nn.BatchNorm2d) for layer in batch_norms(module))


def check_branches(module: nn.Module, parts: int) -> None:
    """Whether the layers are split into as many branches as a batch has parts; 1 for layers that are whole.

    Raises:
        UsageError: they are not.
    """
    found = branches(module)
    if found == parts or (found == 1 and not splittable(module)):
        return
    raise UsageError(
        "the batch normalisation of the network is not split as the defense trains it",
        expected=f"{parts} branches" if parts > 1 else "plain layers",
        got=f"{found} branches" if found > 1 else "plain layers",
        where="model",
        fix="Call model = defense.prepare(model) once, before the optimiser is made."
        if found == 1
        else "Call robustkit.core.splitnorm.merge(model.net) first.",
    )


def _check(net: nn.Module, parts: int) -> None:
    if branches(net) > 1:
        check_branches(net, parts)
    if isinstance(net, _BatchNorm):
        raise UsageError("a network that is one layer of batch normalisation cannot be split", where="statistics=split")
    for name, layer in net.named_modules():
        if isinstance(layer, _BatchNorm) and not _known(layer):
            kind = type(layer).__name__ + ("" if layer.track_running_stats else " without running statistics")
            raise UsageError(
                "this batch normalisation cannot be split",
                expected="BatchNorm2d with running statistics, or timm's BatchNormAct2d",
                got=f"{kind} in {name!r}",
                where="statistics=split",
                fix="Use statistics=clean, which normalises the parts apart with the layers that there are.",
            )


def _known(layer: _BatchNorm) -> bool:
    from timm.layers.norm_act import BatchNormAct2d

    return type(layer) in (nn.BatchNorm2d, BatchNormAct2d) and layer.track_running_stats


def _plain(layer: Any) -> nn.Module:
    """The layer that a split one was made from."""
    plain: Any = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine)
    if hasattr(layer, "act"):
        from timm.layers.norm_act import BatchNormAct2d

        plain = BatchNormAct2d(layer.num_features, layer.eps, layer.momentum, layer.affine)
        plain.drop, plain.act = layer.drop, layer.act
    return _adopted(plain, layer)


def _adopted(new: nn.Module, old: nn.Module) -> nn.Module:
    """``new`` with the very parameters and buffers of ``old``: optimisers that know them still do."""
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for name, buffer in old.named_buffers(recurse=False):
        setattr(new, name, buffer)
    for extra in getattr(new, "aux_bn", ()):
        for mine, theirs in zip(extra.parameters(), old.parameters(recurse=False), strict=True):
            mine.requires_grad_(theirs.requires_grad)
    for layer in (new, *getattr(new, "aux_bn", ())):
        layer.train(old.training)
    return new


def _exchange(net: nn.Module, made: dict[nn.Module, nn.Module]) -> None:
    """Put new layers where the old ones are, wherever those are used."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child in made:
                setattr(parent, name, made[child])
