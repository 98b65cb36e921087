"""The averaged softmax against a loop over copies; what draws show of a smoothed classifier against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import ndtri
from torch import nn

import robustkit as rk
from robustkit.certify.refutation import confirms, refutes, resolution
from robustkit.certify.surrogate import Convincing, differentiable, smoothed
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws

X = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        return rk.wrap(network(), mean=[0.4, 0.5], std=[0.2, 0.3])


class Plane(nn.Module):
    """Class 1 where the sum of all values is positive; class 2 never wins."""

    def forward(self, x):
        total = x.flatten(1).sum(1)
        return torch.stack([-total, total, torch.full_like(total, -1e6)], 1)


def plane():
    return rk.wrap(Plane(), bounds=(-8, 8))


def slow(certifier, model, x, samples, seed, turn=0):
    """log of the mean probability, one copy after the other."""
    noise = Draws(seed, torch.tensor([0]), "surrogate", turn).normal(x.new_empty(1, samples, *x.shape[1:]))[0]
    votes, low, high = certifier.votes(model), -math.inf, math.inf
    if certifier.clip:
        low, high = 0, 1
    rows = []
    for one in x:
        copies = [(vote, (one + vote.sigma * e).clamp(low, high)) for vote in votes for e in noise]
        rows.append(sum(vote.model.module(copy[None]).softmax(1)[0] for vote, copy in copies) / len(copies))
    return torch.stack(rows).log()


CERTIFIERS = [
    rk.Smoothing(sigma=0.3),
    rk.Smoothing(sigma=0.3, clip=True),
    rk.DualSmoothing(sigma=0.3),
    rk.DualSmoothing(sigma=0.3, sigma_right=0.6, fill="mean"),
]


@pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda c: c.text)
def test_values_and_gradients_are_those_of_the_mean_probability(model, certifier):
    own = smoothed(certifier, model, X, samples=5, seed=7)
    torch.testing.assert_close(own(X), slow(certifier, model, X, 5, 7))
    y = torch.tensor([0, 1, 3])
    leaf = X.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-slow(certifier, model, leaf, 5, 7).gather(1, y[:, None]).sum(), leaf)
    _, grad, _ = own.value_and_grad(X, lambda outputs: Convincing().loss(outputs, y))
    torch.testing.assert_close(grad, wanted)
    torch.testing.assert_close(own.fast(X)(X), own(X))


def test_copies_are_those_of_the_seed_and_turn_alone(model):
    method = rk.Smoothing(sigma=0.3)
    a, b = smoothed(method, model, X, seed=1)(X), smoothed(method, model, X[1:], seed=1, batch=40)(X[1:])
    torch.testing.assert_close(a[1:], b)
    for other in ({"seed": 2}, {"seed": 1, "turn": 1}):
        assert not torch.allclose(a, smoothed(method, model, X, **other)(X))


def test_memory_is_that_of_a_batch(model):
    """No more copies at once than the batch says."""
    sizes = []
    handle = model.net[0].register_forward_hook(lambda net, inputs, output: sizes.append(len(inputs[0])))
    smoothed(rk.Smoothing(), model, X, samples=8, batch=16)(X)
    handle.remove()
    assert max(sizes) == 16


def test_a_success_has_a_lead():
    outputs = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.1, 0.2, 0.7]]).log()
    y = torch.zeros(3, dtype=torch.long)
    assert Convincing().failed(outputs, y).tolist() == [False, True, True]
    assert Convincing(0.3).failed(outputs, y).tolist() == [False, False, True]


def test_networks_without_gradients_run_all_the_same():
    numpy_net = rk.wrap(lambda x: torch.from_numpy(Plane()(x).numpy()), bounds=(-8, 8))
    detached = rk.wrap(lambda x: Plane()(x).detach(), bounds=(-8, 8))
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).clamp(-8, 8)
    wanted = smoothed(rk.Smoothing(), plane(), x)(x)
    for net in (numpy_net, detached):
        assert not differentiable(net, x)
        torch.testing.assert_close(smoothed(rk.Smoothing(), net, x)(x.requires_grad_()), wanted)
    assert differentiable(plane(), x)


def test_networks_are_left_as_they_came(model):
    model.net.train()
    out = rk.PGD(steps=2)(smoothed(rk.Smoothing(), model, X).fast(X), X, torch.tensor([0, 1, 2]))
    assert len(out.success) == 3 and model.net.training and all(p.requires_grad for p in model.net.parameters())
    model.net.eval()


def test_dense_outputs_are_refused():
    dense = rk.wrap(lambda x: torch.cat([x, -x], 1), task="segmentation")
    with pytest.raises(UsageError, match="one class for each input"):
        smoothed(rk.Smoothing(), dense, torch.rand(1, 1, 4, 4))


# -- what draws show ---------------------------------------------------------------------------------------------------


def asked_at(method, offset, count, claimed=0, seed=0, **given):
    """Tests at inputs of the sum ``offset``: class 1 has the probability Phi(offset / (2 sigma)) of four pixels."""
    x = torch.zeros(count, 1, 2, 2)
    x[:, 0, 0, 0] = offset
    options = {"ids": torch.arange(count), "seed": seed, "alpha": 0.05, "n": 200, **given}
    return refutes(method, plane(), x, torch.full((count,), claimed), **options)


def test_a_class_in_front_is_refuted_no_more_often_than_alpha():
    """At the boundary itself, where it is most frequent, and inside."""
    count = 1500
    wrong = int(asked_at(rk.Smoothing(), 0.0, count).sum())
    assert 0 < wrong <= count * 0.05 + 3 * math.sqrt(count * 0.05 * 0.95)
    assert not asked_at(rk.Smoothing(), -0.2, 500).any()


@pytest.mark.parametrize("method", [rk.Smoothing(sigma=0.5), rk.DualSmoothing(sigma=0.5, fill="zero")], ids=["1", "2"])
def test_what_is_behind_by_the_resolution_is_refuted(method):
    """One half sees the offset and two pixels of noise, the other is undecided: the mean lead is half of its own."""
    lead = 2.5 * resolution(method, 1000, 0.01)
    width = 0.5 * (2 if method.parts == 1 else math.sqrt(2))
    offset = width * float(ndtri((1 + lead * method.parts) / 2))
    found = asked_at(method, offset, 40, alpha=0.01, n=1000)
    assert found.double().mean() > 0.9
    assert not asked_at(method, offset, 40, claimed=1, alpha=0.01, n=1000).any()
    assert asked_at(method, offset / 8, 40, alpha=0.01, n=1000).double().mean() < 0.1


def test_tests_depend_on_the_sample_alone():
    """Not on the batch, the company or the order; a turn has draws of its own."""
    x = torch.zeros(30, 1, 2, 2)
    x[:, 0, 0, 0] = torch.linspace(-0.1, 0.4, 30)
    method, claimed, ids = rk.Smoothing(sigma=0.5), torch.zeros(30, dtype=torch.long), torch.arange(30) * 3

    def found(order, batch=None, turn=0):
        options = {"seed": 4, "alpha": 0.05, "n": 300, "batch": batch, "turn": turn}
        return refutes(method, plane(), x[order], claimed[order], ids=ids[order], **options)

    whole = found(torch.arange(30))
    assert 0 < whole.sum() < 30
    order = torch.tensor([29, 3, 17, 18, 4, 25, 26])
    assert torch.equal(found(order), whole[order]) and torch.equal(found(order, batch=32), whole[order])
    assert any(not torch.equal(found(torch.arange(30), turn=t), whole) for t in (1, 2, 3))


def test_confirmed_is_what_is_in_front_of_all_others():
    x = torch.zeros(3, 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([1.0, 0.0, -1.0])
    claimed = torch.tensor([1, 1, 1])
    options = {"ids": torch.arange(3), "seed": 0, "alpha": 0.001, "n": 500}
    assert confirms(rk.Smoothing(sigma=0.5), plane(), x, claimed, **options).tolist() == [True, False, False]
