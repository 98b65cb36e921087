"""Losses that weigh pixels: CosPGD (https://arxiv.org/abs/2302.02213) and SegPGD (https://arxiv.org/abs/2207.12391).

Many pixels share one perturbation. Plain cross-entropy spends it on pixels that are wrong already, whose loss is the
largest; these losses spend it on those that still stand. Each is a mean over the pixels of one sample, so that it does
not depend on the batch; weights carry no gradient.
Shapes: logits (N, C, *P) with labels (N, *P), or values (N, C, *P) and (N, *P) with targets of the same shape; result
(N,). ``towards``: the labels are a target to reach, and the weights are those of a targeted attack; the caller turns
the sign.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.core.errors import UsageError


def labelled_mean(values: Tensor, y: Tensor, ignore: int) -> Tensor:
    """Mean of values (N, *P) over the pixels that have a label, (N,): void pixels neither add nor divide.

    The papers divide by all pixels: another factor for each sample, which no step in a norm's direction feels.

    >>> labelled_mean(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[0, 1, 255]]), 255)
    tensor([2.])
    """
    return values.flatten(1).sum(1) / (y != ignore).flatten(1).sum(1).clamp_min(1)


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the answer to each pixel is its label, (N, *P) bool: ``logits.argmax(1) == y``.

    On the CPU argmax across channels takes longer than the loss and its gradient: there the label's logit is compared
    with the largest, as long as no pixel has two of that size.

    >>> right(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([2])), right(torch.tensor([[1.0]]), torch.tensor([255]))
    (tensor([False]), tensor([False]))
    """
    if logits.device.type != "cpu":
        return logits.argmax(1) == y
    largest = logits.amax(1, keepdim=True)
    if bool(((logits == largest).sum(1) > 1).any()):
        return logits.argmax(1) == y
    index = y.clamp(0, logits.shape[1] - 1)[:, None]
    return ((logits.gather(1, index) == largest) & (index == y[:, None]))[:, 0]


def cospgd_labels(logits: Tensor, y: Tensor, ignore: int, *, towards: bool = False) -> Tensor:
    """CosPGD, eq. 5 to 7: cross-entropy times the cosine between the softmax and the one-hot label, (N,).

    The cosine with a unit vector is ``p_y / |p|_2``, so nothing of the one-hot tensor is needed.
    """
    log_p = F.log_softmax(logits, 1)
    loss = F.nll_loss(log_p, y, reduction="none", ignore_index=ignore)
    with torch.no_grad():
        length = log_p.exp().square_().sum(1).sqrt_()  # vector_norm takes ten times as long across channels
        cosine = (-loss).exp_() / length
        weight = 1 - cosine if towards else cosine
    return labelled_mean(weight * loss, y, ignore)


def segpgd_labels(logits: Tensor, y: Tensor, ignore: int, progress: float, *, towards: bool = False) -> Tensor:
    """SegPGD, eq. 3 to 5: right pixels weigh ``1 - lambda``, wrong ones ``lambda = progress / 2``, (N,).

    The other way round towards a target, where a pixel is right once it says the target.
    """
    loss = F.cross_entropy(logits, y, reduction="none", ignore_index=ignore)
    settled = right(logits.detach(), y) ^ (not towards)
    share = progress / 2
    return labelled_mean(torch.where(settled, share * loss, (1 - share) * loss), y, ignore)


def cospgd_values(values: Tensor, y: Tensor, *, towards: bool = False) -> Tensor:
    """CosPGD for flow, disparity, restoration: squared error of a pixel times how well it agrees, (N,).

    Raises:
        UsageError: the outputs have no pixels.
    """
    values, y = pixels(values), pixels(y)
    loss = (values - y).square().mean(1)
    with torch.no_grad():
        alike = agreement(values, y)
        weight = 1 - alike if towards else alike
    return (weight * loss).flatten(1).mean(1)


def agreement(values: Tensor, y: Tensor) -> Tensor:
    """How well each pixel agrees, in (0, 1], (N, *P), from values and targets (N, C, *P).

    Two channels and more: the cosine between the two softmaxes over the channels, as published. One channel has a
    softmax of 1 everywhere, which would weigh all pixels alike, and by 0 towards a target; there, as our own choice,
    ``exp(-|p - y| / scale)``, where scale is the mean of ``|p - y|`` over the sample: no unit enters.
    """
    if values.shape[1] > 1:
        return F.cosine_similarity(values.softmax(1), y.softmax(1), dim=1)
    error = (values - y).abs()[:, 0]
    scale = error.flatten(1).mean(1).clamp_min(torch.finfo(error.dtype).tiny)
    return (-error / scale.view(-1, *[1] * (error.ndim - 1))).exp()


def pixels(values: Tensor) -> Tensor:
    """Values with their channels, (N, C, *P): (N, H, W) has one.

    Raises:
        UsageError: (N,) or (N, D), where one weight a sample would change no step.
    """
    if values.ndim < 3:
        raise UsageError(
            "the cospgd loss weighs pixels",
            expected="outputs of shape (N, C, H, W) or (N, H, W)",
            got=str(tuple(values.shape)),
            where="loss=cospgd",
            fix="Use loss=ce: with one weight a sample every step would be the same.",
        )
    return values if values.ndim > 3 else values[:, None]
