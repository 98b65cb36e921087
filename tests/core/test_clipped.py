"""Clipping activations that keep their output: the same function and gradient as torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkit.core.clipped import Clipped
from robustkit.core.fold import folded


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", [nn.ReLU6, lambda inplace: nn.Hardtanh(-0.5, 0.75, inplace=inplace)])
def test_equals_hardtanh_with_its_gradient_at_the_ends(layer, inplace):
    made = layer(inplace=inplace)
    x = torch.cat([torch.linspace(-8, 8, 65), torch.tensor([-0.5, 0.75, 0.0, 6.0])]).requires_grad_()
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(0))
    wanted, found = made(x * 1), Clipped(made)(x * 1)
    assert torch.equal(wanted, found)
    grads = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (wanted, found)]
    assert torch.equal(*grads)


def test_inputs_that_are_leaves_are_not_changed():
    x = torch.full((3,), 9.0, requires_grad=True)
    assert Clipped(nn.ReLU6(inplace=True))(x).tolist() == [6.0] * 3 and x.tolist() == [9.0] * 3
    with torch.no_grad():
        Clipped(nn.ReLU6())(x)
    assert x.tolist() == [9.0] * 3


def test_fast_copies_clip_and_layers_with_hooks_are_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU6(inplace=True), nn.Flatten(), nn.Linear(8, 2)).eval()
    twin = folded(net, torch.rand(1, 1, 4, 4))
    assert type(twin[1]) is Clipped and type(net[1]) is nn.ReLU6
    net[1].register_forward_hook(lambda *_: None)
    assert type(folded(net, torch.rand(1, 1, 4, 4))[1]) is nn.ReLU6
