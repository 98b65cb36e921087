"""Triton twins of the hot kernels; each computes what its torch reference does, in one launch.

Import this module only where Triton is installed. With TRITON_INTERPRET=1 set before the import the kernels run on the
CPU, which is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _step_linf(out, adv, x, grad, step, eps, low, high, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row program_id(0), block program_id(1) of clamp(clamp(adv + step * sign(grad), x -+ eps), low, high)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    at = row * size + column
    wide = tl.load(eps + row)
    wide = wide.to(tl.float64) if wide.dtype == tl.float64 else wide.to(tl.float32)
    g = tl.load(grad + at, mask=inside, other=0.0).to(wide.dtype)
    centre = tl.load(x + at, mask=inside, other=0.0).to(wide.dtype)
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0)).to(wide.dtype)
    moved = tl.load(adv + at, mask=inside, other=0.0).to(wide.dtype) + tl.load(step + row).to(wide.dtype) * sign
    moved = tl.minimum(tl.maximum(moved, centre - wide), centre + wide)
    tl.store(out + at, tl.minimum(tl.maximum(moved, low), high), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _step_l2(out, adv, x, grad, step, eps, low, high, size, tiny, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row program_id(0): the gradient's largest entry, its length, that of the moved perturbation, then the result.

    The largest entry is divided out first: the squares of tiny gradients vanish.
    """
    row = tl.program_id(0).to(tl.int64)
    radius = tl.load(eps + row)
    total = tl.zeros([BLOCK], dtype=tl.float32) if radius.dtype != tl.float64 else tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        g = tl.load(grad + row * size + column, mask=column < size, other=0.0).to(total.dtype)
        total = tl.maximum(total, tl.abs(g))
    top = tl.max(total, 0)
    top = tl.where(top > 0, top, 1.0)
    total = total * 0
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        g = tl.load(grad + row * size + column, mask=column < size, other=0.0).to(total.dtype) / top
        total += g * g
    scale = tl.load(step + row).to(total.dtype) / tl.maximum(tl.sqrt(tl.sum(total, 0)), tiny)
    total = total * 0
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at, inside = row * size + column, column < size
        delta = (
            tl.load(adv + at, mask=inside, other=0.0).to(total.dtype)
            + scale * (tl.load(grad + at, mask=inside, other=0.0).to(total.dtype) / top)
            - tl.load(x + at, mask=inside, other=0.0).to(total.dtype)
        )
        total += tl.where(inside, delta * delta, 0.0)
    pull = tl.minimum(radius.to(total.dtype) / tl.maximum(tl.sqrt(tl.sum(total, 0)), tiny), 1.0)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at, inside = row * size + column, column < size
        centre = tl.load(x + at, mask=inside, other=0.0).to(total.dtype)
        moved = tl.load(adv + at, mask=inside, other=0.0).to(total.dtype)
        moved += scale * (tl.load(grad + at, mask=inside, other=0.0).to(total.dtype) / top)
        moved = centre + pull * (moved - centre)
        tl.store(out + at, tl.minimum(tl.maximum(moved, low), high), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _keyed(out, keys, size, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row program_id(0), block program_id(1): Philox with the row's key and the position as its counter."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + row)
    if KIND == "whole":
        high, low, _, _ = tl.randint4x(key, column)
        drawn = ((high.to(tl.int64) & 0x3FFFFFFF) << 30) | (low.to(tl.int64) & 0x3FFFFFFF)
    elif KIND == "normal":
        drawn = tl.randn(key, column)
    else:
        drawn = tl.rand(key, column)
    tl.store(out + row * size + column, drawn, mask=column < size)


def step_linf(adv: Tensor, x: Tensor, grad: Tensor, step: Any, eps: Any, low: float, high: float) -> Tensor:
    """Twin of :func:`robustkit.kernels.balls.step_linf`."""
    out, size = _like(adv)
    grid = (len(adv), triton.cdiv(size, BLOCK))
    with torch.cuda.device_of(out):
        _step_linf[grid](
            out,
            adv.contiguous(),
            x.contiguous(),
            grad.contiguous(),
            _rows(step, adv),
            _rows(eps, adv),
            low,
            high,
            size,
            BLOCK=BLOCK,
        )
    return out


def step_l2(adv: Tensor, x: Tensor, grad: Tensor, step: Any, eps: Any, low: float, high: float) -> Tensor:
    """Twin of :func:`robustkit.kernels.balls.step_l2`; lengths are summed in float32 (float64 for float64)."""
    out, size = _like(adv)
    tiny = float(torch.finfo(torch.float32).tiny)
    with torch.cuda.device_of(out):
        _step_l2[(len(adv),)](
            out,
            adv.contiguous(),
            x.contiguous(),
            grad.contiguous(),
            _rows(step, adv),
            _rows(eps, adv),
            low,
            high,
            size,
            tiny,
            BLOCK=BLOCK,
        )
    return out


def keyed(kind: str, keys: Tensor, out: Tensor) -> Tensor:
    """Fill ``out`` (N, *S) with uniform, normal or whole (60 bits; int64) draws of ``keys`` (N,) int64."""
    size = out.flatten(1).shape[1]
    grid = (len(out), triton.cdiv(size, BLOCK))
    with torch.cuda.device_of(out):
        _keyed[grid](out, keys, size, KIND=kind, BLOCK=BLOCK)
    return out


def _like(adv: Tensor) -> tuple[Tensor, int]:
    return torch.empty_like(adv, memory_format=torch.contiguous_format), adv.flatten(1).shape[1]


def _rows(size: Any, like: Tensor) -> Tensor:
    """One value a row, in float32 (float64 for float64): in a short type eps itself would be rounded."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(size, Tensor):
        return size.to(like.device, dtype).contiguous()
    return torch.full((len(like),), size, dtype=dtype, device=like.device)
