"""A private copy of a network that computes the same function faster.

BatchNorm layers that directly follow a convolution are folded into it, clipping activations keep their output alone for
the backward, and the weights are laid out channels-last where images are large enough for that to pay; where they are
not, strided layers of few channels are unstrided on the CPU. Which BatchNorm follows which convolution is seen by
running the network once; that the copy computes the same is checked on the same example, so an unusual network is never
wrong: it is used as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustkit.core.clipped import Clipped
from robustkit.core.strided import Unshuffled, suits

CHANNELS_LAST_PIXELS = 32 * 32
"""Smallest image that is laid out channels-last; see docs/adr/0004-fast-copy.md."""


def folded(module: nn.Module, example: Tensor) -> nn.Module:
    """An evaluation copy that is equal on ``example`` up to rounding, or ``module`` itself where that cannot be had."""
    if example.dtype not in (torch.float32, torch.float64) or len(example) == 0:
        return module
    try:
        with torch.no_grad():
            twin = copy.deepcopy(module).eval().requires_grad_(False)
            for conv, norm in _pairs(twin, example):
                _fold(twin, conv, norm)
            _clip(twin)
            if example.ndim == 4 and example.shape[2] * example.shape[3] >= CHANNELS_LAST_PIXELS:
                twin = twin.to(memory_format=torch.channels_last)
            elif example.device.type == "cpu":
                _unshuffle(twin)
            same = _close(module(example), twin(example))
    except Exception:  # what cannot be copied or run twice is used as it is: the copy is an optimisation only
        return module
    return twin if same else module


def _pairs(module: nn.Module, example: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """(convolution, BatchNorm) where each ran once and the second ate just what the first returned."""
    runs: dict[nn.Module, int] = {}
    made: list[tuple[Tensor, nn.Module]] = []
    fed: list[tuple[nn.Module, Tensor]] = []

    def after(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[layer] = runs.get(layer, 0) + 1
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            fed.append((layer, inputs[0]))
        else:
            made.append((output, layer))

    layers = [layer for layer in module.modules() if _foldable(layer)]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    pairs = [(conv, norm) for norm, x in fed for y, conv in made if y is x]
    return [(conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == 1]


def _clip(root: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            plain = type(child) in (nn.Hardtanh, nn.ReLU6)  # another class of theirs may do something else
            if isinstance(child, nn.Hardtanh) and plain and not _hooked(child):
                setattr(parent, name, Clipped(child))


def _unshuffle(root: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if suits(child) and _foldable(child):
                setattr(parent, name, Unshuffled(child))  # type: ignore[arg-type]


def _foldable(layer: nn.Module) -> bool:
    if _hooked(layer):
        return False
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return layer.track_running_stats and layer.running_mean is not None
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not hasattr(layer, "parametrizations")


def _hooked(layer: nn.Module) -> bool:
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks))


def _fold(root: nn.Module, conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.requires_grad_(False)
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if child is norm:
                setattr(parent, name, nn.Sequential(*rest))


def _close(a: Any, b: Any) -> bool:
    from robustkit.core.outputs import as_tensor

    a, b = as_tensor(a), as_tensor(b)
    tolerance = 1e-4 if a.dtype == torch.float32 else 1e-9
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1))
