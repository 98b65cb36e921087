"""Norm balls around a batch: sample, step, project, measure.

Shapes: x, adv, delta, grad (N, *S) of any number of dimensions; eps and step one number or (N,). The torch code here is
the reference; on CUDA the two hot steps run as one Triton kernel each (:mod:`robustkit.kernels.triton_ops`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.kernels import twins

Size = float | Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View (N,) as (N, 1, ..., 1), so that it broadcasts against ``like`` (N, *S)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def sized(size: Size, like: Tensor) -> Size:
    """A number as it is; (N,) in the dtype and place of ``like``, viewed to broadcast against it."""
    return per_sample(size.to(like), like) if isinstance(size, Tensor) else size


def norm(delta: Tensor, p: float) -> Tensor:
    """lp norm of each sample, (N,).

    >>> norm(torch.tensor([[3.0, -4.0]]), 2)
    tensor([5.])
    """
    result: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)
    return result


# -- uniform points of the balls, from independent draws -------------------------------------------------------------


def uniform_linf(eps: Size, u: Tensor) -> Tensor:
    """A uniform point of the l-infinity ball from ``u`` ~ U(-1, 1), (N, *S)."""
    return u * sized(eps, u)


def uniform_l2(eps: Size, z: Tensor, u: Tensor) -> Tensor:
    """A uniform point of the l2 ball from ``z`` ~ N(0, 1), (N, *S), and ``u`` ~ U(0, 1), (N,).

    The direction is uniform on the sphere; the radius is eps * u^(1/d), since the volume within r grows as r^d.
    """
    return z * per_sample(_radius(u, z) / _safe(norm(z, 2)), z) * sized(eps, z)


def uniform_l1(eps: Size, u: Tensor, sign: Tensor, radius: Tensor) -> Tensor:
    """A uniform point of the l1 ball from ``u`` and ``sign`` ~ U(0, 1), (N, *S), and ``radius`` ~ U(0, 1), (N,).

    Exponential gaps divided by their sum are uniform on the simplex; signs spread it over the sphere.
    """
    gaps = -torch.log1p(-u)
    signed = torch.where(sign < 0.5, -gaps, gaps)
    return signed * per_sample(_radius(radius, u) / _safe(norm(gaps, 1)), u) * sized(eps, u)


def _radius(u: Tensor, like: Tensor) -> Tensor:
    return u ** (1 / max(1, like.flatten(1).shape[1]))


# -- projections onto ball and box -----------------------------------------------------------------------------------


def project_linf_box(adv: Tensor, x: Tensor, eps: Size, low: float, high: float) -> Tensor:
    """The nearest point with ||p - x||_inf <= eps and low <= p <= high."""
    radius = sized(eps, x)
    return adv.clamp(x - radius, x + radius).clamp_(low, high)


def project_l2_box(adv: Tensor, x: Tensor, eps: Size, low: float, high: float) -> Tensor:
    """Onto the l2 ball, then onto the box (x in the box: the result is in both). Points inside stay bit for bit."""
    delta = adv - x
    length = norm(delta, 2)
    radius = eps.to(length) if isinstance(eps, Tensor) else torch.full_like(length, eps)
    pulled = delta.mul_(per_sample(radius / _safe(length), x)).add_(x)
    return torch.where(per_sample(length > radius, x), pulled, adv).clamp_(low, high)


# -- one step of steepest ascent, back onto ball and box -------------------------------------------------------------


def step_linf(adv: Tensor, x: Tensor, grad: Tensor, step: Size, eps: Size, low: float, high: float) -> Tensor:
    """``adv + step * sign(grad)``, projected; coordinates without gradient stay."""
    if twins.on(adv):
        fused: Tensor = twins.ops().step_linf(adv, x, grad, step, eps, low, high)
        return fused
    moved = grad.sign().mul_(sized(step, x)).add_(adv)
    radius = sized(eps, x)
    return moved.clamp_(x - radius, x + radius).clamp_(low, high)


def step_l2(adv: Tensor, x: Tensor, grad: Tensor, step: Size, eps: Size, low: float, high: float) -> Tensor:
    """``adv + step * grad / ||grad||_2``, projected; samples without gradient stay."""
    if twins.on(adv):
        fused: Tensor = twins.ops().step_l2(adv, x, grad, step, eps, low, high)
        return fused
    moved = steepest_l2(grad).mul_(sized(step, x)).add_(adv)
    return project_l2_box(moved, x, eps, low, high)


def steepest_l2(grad: Tensor) -> Tensor:
    """``grad`` scaled to unit length, zero where it is zero.

    Divided by its largest entry first: the squares of gradients below 1e-19, as confident networks have, vanish.

    >>> steepest_l2(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    largest = norm(grad, torch.inf) if grad.numel() else grad.new_zeros(len(grad))
    unit = grad / per_sample(torch.where(largest > 0, largest, 1), grad)
    return unit.div_(per_sample(_safe(norm(unit, 2)), grad))


def _safe(length: Tensor) -> Tensor:
    return length.clamp_min(torch.finfo(length.dtype).tiny)
