"""Strided convolutions of few channels as unstrided ones: the same function, and only where it is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from robustkit.core.model import wrap
from robustkit.core.strided import Unshuffled, suits

CASES = [
    (channels, kernel, stride, padding)
    for channels, kernel, stride, padding in itertools.product((1, 3), (3, 4, 5, 7), (2, 3, 4), (0, 1, 2, 3))
    if suits(nn.Conv2d(channels, 2, kernel, stride, padding))
]


@pytest.mark.parametrize(("channels", "kernel", "stride", "padding"), CASES)
def test_computes_the_same_on_every_size(channels, kernel, stride, padding):
    conv = nn.Conv2d(channels, 4, kernel, stride, padding).double()
    for height, width in ((12, 14), (13, 28), (17, 14)):
        x = torch.rand(2, channels, height, width, dtype=torch.float64)
        torch.testing.assert_close(Unshuffled(conv)(x), conv(x), atol=1e-12, rtol=0)


def test_refuses_what_it_cannot_compute():
    assert len(CASES) > 20
    for conv in (
        nn.Conv2d(1, 2, 3),
        nn.Conv2d(4, 2, 3, 2),
        nn.Conv2d(2, 2, 3, 2, groups=2),
        nn.Conv2d(1, 2, 3, 2, dilation=2),
        nn.Conv2d(1, 2, (3, 5), 2),
        nn.Conv2d(1, 2, 3, 2, padding_mode="reflect", padding=1),
        nn.Conv2d(1, 2, 2, 2),
        nn.Conv1d(1, 2, 3, 2),
        nn.Linear(2, 2),
    ):
        assert not suits(conv)


def test_the_fast_copy_uses_it_on_small_images_and_leaves_the_network_alone():
    net = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3))
    model, x = wrap(net), torch.rand(3, 1, 14, 14)
    twin = model.fast(x)
    assert any(isinstance(m, Unshuffled) for m in twin.module.modules())
    assert not any(isinstance(m, Unshuffled) for m in model.module.modules())
    torch.testing.assert_close(twin(x), model(x), atol=1e-5, rtol=1e-5)
    assert twin.module is not model.module
