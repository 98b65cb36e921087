"""Strided convolutions of few channels as unstrided ones of many: the same function, with a quicker gradient on CPUs.

A convolution of stride s reads its input in s * s interleaved grids. Given one channel for each grid (pixel unshuffle),
a smaller kernel of stride 1 computes the same, and the gradient with respect to the input, which is what attacks ask
for, is an ordinary convolution again.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Unshuffled(nn.Module):
    """What ``conv`` computes, up to rounding; see :func:`suits`.

    In one dimension output o reads input s * o + a - padding with weight a. Written s * q + r with 0 <= r < s, that is
    grid r at place q = o + (the tap), for taps from floor(-padding / s) on.
    """

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.kernel, self.padding = conv.stride[0], conv.kernel_size[0], int(conv.padding[0])
        first, last = -self.padding // self.stride, (self.kernel - 1 - self.padding) // self.stride
        self.before, self.after = -first, last
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", self._rearranged(conv.weight.detach()), persistent=False)

    def _rearranged(self, weight: Tensor) -> Tensor:
        """(O, C, k, k) -> (O, C * s * s, taps, taps): zeros around the kernel, then the unshuffle of the input."""
        s = self.stride
        front = s * self.before - self.padding
        back = s * (self.before + self.after + 1) - self.kernel - front
        return F.pixel_unshuffle(F.pad(weight, (front, back, front, back)), s).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._size(n) for n in x.shape[2:])
        grids = F.pixel_unshuffle(F.pad(x, (0, -x.shape[3] % self.stride, 0, -x.shape[2] % self.stride)), self.stride)
        around = (self.before, self.after, self.before, self.after)
        if self.before == self.after:
            return F.conv2d(grids, self.weight, self.bias, padding=self.before)[:, :, :height, :width]
        return F.conv2d(F.pad(grids, around), self.weight, self.bias)[:, :, :height, :width]

    def _size(self, n: int) -> int:
        return (n + 2 * self.padding - self.kernel) // self.stride + 1


def suits(layer: nn.Module) -> bool:
    """Whether it is a convolution that this pays for: of at most three channels, strided, of an ordinary kind."""
    if type(layer) is not nn.Conv2d or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    square = all(len(set(sizes)) == 1 for sizes in (layer.stride, layer.kernel_size, layer.padding))
    plain = layer.groups == 1 and set(layer.dilation) == {1}
    if not square or not plain or layer.in_channels > 3 or layer.stride[0] < 2:
        return False
    # an output for every place of the grids, or fewer: otherwise zeros beyond them would be read
    return layer.kernel_size[0] > layer.stride[0] and 2 * int(layer.padding[0]) < layer.kernel_size[0]
