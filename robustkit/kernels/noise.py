"""Keyed noise: every row of a batch is drawn from a key of its own.

On the CPU each key seeds a ``torch.Generator``; on CUDA a counter-based kernel (Philox) draws all rows at once. The two
give different bits, each the same on every run and for every batch. Other devices get the CPU's draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from robustkit.kernels import twins

TOGETHER = 1_000_000
"""Values from which on rows are drawn in several threads."""


def key_of(seed: int, sample: int, purpose: str, restart: int, chunk: int) -> int:
    """A 63-bit key: equal for equal arguments on every machine, unrelated otherwise.

    >>> key_of(0, 1, "pgd", 0, 0) == key_of(0, 1, "pgd", 0, 0) != key_of(0, 2, "pgd", 0, 0)
    True
    """
    text = f"{seed}/{sample}/{restart}/{chunk}/{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_uniform(keys: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """U[0, 1), (N, *shape): row i is a function of ``keys[i]`` alone."""
    return _draw(keys, shape, dtype, device, "uniform", lambda row, generator: row.uniform_(generator=generator))


def keyed_normal(keys: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """N(0, 1), (N, *shape): row i is a function of ``keys[i]`` alone."""
    return _draw(keys, shape, dtype, device, "normal", lambda row, generator: row.normal_(generator=generator))


def keyed_whole(keys: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform whole numbers 0 .. 2^60 - 1, (N, *shape) int64: row i is a function of ``keys[i]`` alone."""
    return _draw(keys, shape, torch.int64, device, "whole", lambda row, draw: row.random_(0, 1 << 60, generator=draw))


def _draw(
    keys: Sequence[int],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    kind: str,
    fill: Callable[[Tensor, torch.Generator], Tensor],
) -> Tensor:
    out = torch.empty((len(keys), *shape), dtype=dtype, device=device)
    if twins.on(out):
        drawn: Tensor = twins.ops().keyed(kind, torch.tensor(keys, dtype=torch.int64, device=device), out)
        return drawn
    host = out if out.device.type == "cpu" else out.cpu()

    workers = min(torch.get_num_threads(), len(keys))
    if workers > 1 and host.numel() >= TOGETHER:  # torch draws a row in one thread, and without Python's lock
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda row, key: fill(row, torch.Generator().manual_seed(key)), host, keys))
    else:
        generator = torch.Generator()
        for row, key in zip(host, keys, strict=True):
            fill(row, generator.manual_seed(key))
    return host.to(device)
