"""When the Triton twin of a torch kernel runs: on CUDA tensors, where Triton is installed."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor


def on(tensor: Tensor) -> bool:
    """Whether ``tensor`` is for the twin."""
    return tensor.is_cuda and _available() and tensor.numel() > 0


def ops() -> ModuleType:
    """The module of the twins, imported when first needed."""
    from robustkit.kernels import triton_ops

    return triton_ops


@lru_cache(maxsize=1)
def _available() -> bool:
    return find_spec("triton") is not None
