from __future__ import annotations
import torch
from torch import Tensor
def per_sample(values, like):
    return values.reshape(-1, *[1] * (like.ndim - 1))
def _e(eps, like):
    return per_sample(eps.to(like), like) if isinstance(eps, Tensor) else eps
def norm(delta, p):
    return torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)
def uniform_linf(eps, u):
    return u * _e(eps, u)
def uniform_l2(eps, n, u):
    d = n[0].numel()
    return n / per_sample(norm(n, 2), n) * per_sample(u ** (1 / d), n) * _e(eps, n)
def uniform_l1(eps, u, s, r):
    e = -(1 - u).log()
    d = u[0].numel()
    return e / per_sample(norm(e, 1), e) * torch.where(s < .5, -1, 1) * per_sample(r ** (1 / d), e) * _e(eps, e)
def project_linf_box(adv, x, eps, low, high):
    e = _e(eps, x)
    return adv.clamp(x - e, x + e).clamp(low, high)
def project_l2_box(adv, x, eps, low, high):
    d = adv - x
    s = ((eps.to(x) if isinstance(eps, Tensor) else eps) / norm(d, 2).clamp_min(1e-30)).clamp_max(1)
    return (x + d * per_sample(s, x)).clamp(low, high)
def step_linf(adv, x, grad, step, eps, low, high):
    return project_linf_box(adv + _e(step, x) * grad.sign(), x, eps, low, high)
def step_l2(adv, x, grad, step, eps, low, high):
    return project_l2_box(adv + _e(step, x) * grad / per_sample(norm(grad, 2).clamp_min(1e-30), grad), x, eps, low, high)
