"""The gradient and its product with the input."""

from __future__ import annotations

import torch
from torch import nn

import robustkit as rk


def linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
    return rk.wrap(net), net[1].weight.detach()


def test_of_a_linear_network_the_gradient_is_the_signed_weight():
    model, weight = linear()
    x = torch.rand(5, 3, 2, 2)
    classes = torch.tensor([0, 1, 2, 1, 0])
    found = rk.Gradient()(model, x, classes)
    torch.testing.assert_close(found.values.flatten(1), weight[classes])
    assert (found.values < 0).any() and found.signed
    assert (found.cost.forwards, found.cost.backwards) == (10, 5)
    torch.testing.assert_close(found.value, (x.flatten(1) * weight[classes]).sum(1))


def test_input_times_gradient_of_a_linear_network_adds_up_to_the_output():
    model, _ = linear()
    x = torch.rand(5, 3, 2, 2)
    found = rk.InputTimesGradient()(model, x)
    torch.testing.assert_close(found.values.flatten(1).sum(1), found.value)


def test_the_gradient_is_that_of_the_wrapper_with_its_normalisation():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model = rk.wrap(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    x = torch.rand(2, 3, 6, 6).requires_grad_()
    logit = model(x)[torch.arange(2), [1, 2]].sum()
    (wanted,) = torch.autograd.grad(logit, x)
    found = rk.Gradient()(model, x, torch.tensor([1, 2]))
    torch.testing.assert_close(found.values, wanted)
    assert not found.values.requires_grad


def test_inputs_that_are_no_images():
    model = rk.wrap(nn.Linear(4, 2))
    assert rk.Gradient()(model, torch.rand(3, 4)).values.shape == (3, 4)
