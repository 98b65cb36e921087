"""Ranks of many values at once: orders for curves, and the average ranks that Spearman's coefficient needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def descending_ranks(values: Tensor) -> Tensor:
    """Place of every value (N, *S) among those of its row, int64: 0 for the largest; of equals the earlier is first.

    >>> descending_ranks(torch.tensor([[0.2, 0.9, 0.2, 0.5]]))
    tensor([[2, 0, 3, 1]])
    """
    flat = values.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(values.shape)


def average_ranks(values: Tensor) -> Tensor:
    """Ranks of values (N, D) in their row, float64, from 0 for the smallest; equals share the mean of their places.

    >>> average_ranks(torch.tensor([[0.2, 0.9, 0.2, 0.5]]))
    tensor([[0.5000, 3.0000, 0.5000, 2.0000]], dtype=torch.float64)
    """
    ordered, order = values.sort(1)
    place = torch.arange(values.shape[1], device=values.device).expand_as(order)
    differs = ordered[:, 1:] != ordered[:, :-1]
    first = F.pad(place[:, 1:].where(differs, 0), (1, 0)).cummax(1).values  # where the run of equals begins
    last = F.pad(place[:, :-1].where(differs, values.shape[1]), (0, 1), value=values.shape[1] - 1)
    last = last.flip(1).cummin(1).values.flip(1)
    return torch.empty_like(order, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's coefficient of the rows of a and b (N, D), (N,); nan where a row is constant.

    >>> correlation(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[5.0, 3.0, 1.0]])).round(decimals=3)
    tensor([-1.])
    """
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return torch.where(length > 0, (a * b).sum(1) / length, torch.nan)
