"""Keyed randomness: a draw depends on (seed, sample id, purpose, restart) alone.

Never on the batch, its order, the number of workers, or where a run was cut and resumed. No global generator is
read or written. On the CPU every key seeds a ``torch.Generator``; on CUDA a counter-based kernel draws the whole
batch at once. The two give different bits, each the same on every run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustkit.kernels.noise import key_of, keyed_normal, keyed_uniform, keyed_whole


@dataclass(frozen=True, eq=False)
class Draws:
    """Random numbers for some samples.

    Attributes:
        seed: of the run.
        ids: sample ids, (N,) int64 on the CPU.
        purpose: who draws, such as ``"pgd"``.
        restart: number of the restart or of the chunk of draws.
    """

    seed: int
    ids: Tensor
    purpose: str
    restart: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """U[0, 1), in the shape, dtype and place of ``like`` (N, *S)."""
        return keyed_uniform(self._keys("uniform"), tuple(like.shape[1:]), like.dtype, like.device)

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1), in the shape, dtype and place of ``like`` (N, *S)."""
        return keyed_normal(self._keys("normal"), tuple(like.shape[1:]), like.dtype, like.device)

    def normal_of(self, rows: Tensor, numbers: Tensor, like: Tensor) -> Tensor:
        """N(0, 1) for draw ``numbers[i]`` of sample ``rows[i]``, (P, *S): those of ``again(number)``, in any mix."""
        return keyed_normal(self._keys_of(rows, numbers, "normal"), tuple(like.shape[1:]), like.dtype, like.device)

    def whole_of(self, rows: Tensor, numbers: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Uniform whole numbers of 60 bits, (P, *shape) int64, for draw ``numbers[i]`` of sample ``rows[i]``."""
        return keyed_whole(self._keys_of(rows, numbers, "whole"), shape, device)

    def take(self, index: Tensor) -> Draws:
        """The draws of some of the samples."""
        return replace(self, ids=self.ids[index.cpu()])

    def child(self, name: str) -> Draws:
        """An independent stream for another purpose."""
        return replace(self, purpose=f"{self.purpose}/{name}")

    def again(self, restart: int) -> Draws:
        """The independent stream of another restart."""
        return replace(self, restart=restart)

    def _keys(self, kind: str) -> list[int]:
        return [key_of(self.seed, sample, f"{self.purpose}:{kind}", self.restart, 0) for sample in self.ids.tolist()]

    def _keys_of(self, rows: Tensor, numbers: Tensor, kind: str) -> list[int]:
        pairs = zip(self.ids[rows.cpu()].tolist(), numbers.tolist(), strict=True)
        return [key_of(self.seed, sample, f"{self.purpose}:{kind}", number, 0) for sample, number in pairs]


def default_ids(n: int) -> Tensor:
    """0 .. n-1: the ids of samples that have none."""
    return torch.arange(n)
