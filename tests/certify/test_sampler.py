"""Counts of answers: those of a slow loop, whatever the batch, the company and the order; and memory flat in n."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.certify.noise import Gaussian
from robustkit.certify.sampler import BLOCK, Sampler, Vote, batch_for
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from tests.certify import slow

SIGMA = 0.4
X = torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Four classes, float64: nothing is close enough to a tie for the batch to matter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.w


class Holes(Net):
    """NaN where the first value is large."""

    def forward(self, x):
        return torch.where(x.flatten(1)[:, :1] > 2.0, torch.nan, super().forward(x))


def sampler(x=X, ids=None, net=None, batch=256, seed=0, votes=1, outputs=(4,), tell=lambda passed: None):
    model = rk.wrap(Net() if net is None else net)
    several = tuple(Vote(str(i), model, SIGMA) for i in range(votes))
    draws = Draws(seed, torch.arange(len(x)) if ids is None else torch.tensor(ids), "smoothing")
    return Sampler(x, several, outputs, Gaussian(), draws, batch, tell)


def test_counts_are_those_of_a_loop():
    found = sampler().counts("certify", 75)
    assert found.dtype == torch.int32 and found.shape == (1, 5, 5)
    assert torch.equal(found[0].long(), slow.counts(Net(), X, "certify", 75, SIGMA))


def test_counts_of_dense_outputs_are_those_of_a_loop():
    found = sampler(net=slow.Pixels(), outputs=(3, 3, 4)).counts("certify", 70)
    assert found.shape == (1, 5, 4, 3, 4)
    assert torch.equal(found[0].long(), slow.counts(slow.Pixels(), X, "certify", 70, SIGMA))


@pytest.mark.parametrize("batch", [1, 7, 32, 33, 64, 1000])
def test_counts_do_not_depend_on_the_batch(batch):
    assert torch.equal(sampler(batch=batch).counts("certify", 201), sampler().counts("certify", 201))


def test_counts_do_not_depend_on_company_and_order():
    whole = sampler().counts("certify", 201)
    order = [3, 0, 4]
    assert torch.equal(sampler(X[order], order).counts("certify", 201), whole[:, order])
    assert torch.equal(sampler(X[2:3], [2]).counts("certify", 201)[:, 0], whole[:, 2])


def test_ids_seeds_and_purposes_have_draws_of_their_own():
    x = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    base = sampler(x).counts("certify", 2000)
    for other in (
        sampler(x, [1]).counts("certify", 2000),
        sampler(x, seed=1).counts("certify", 2000),
        sampler(x).counts("selection", 2000),
    ):
        assert not torch.equal(base, other)


def test_more_draws_go_on_from_fewer():
    """n = 70 cuts a block: its other draws come with n = 201."""
    few, more = (sampler().counts("certify", n) for n in (70, 201))
    assert (few <= more).all() and few.sum(2).unique().tolist() == [70] and more.sum(2).unique().tolist() == [201]
    first = slow.copies(X[0], 0, "certify", 201, SIGMA)
    assert torch.equal(first[:70], slow.copies(X[0], 0, "certify", 70, SIGMA))


def test_votes_of_equal_noise_see_the_same_copies():
    nets = [slow.Watched(Net()) for _ in range(2)]
    one = sampler()
    one.votes = tuple(Vote(str(i), rk.wrap(net), SIGMA) for i, net in enumerate(nets))
    found = one.counts("certify", 64)
    assert torch.equal(found[0], found[1])
    assert all(torch.equal(a, b) for a, b in zip(nets[0].seen, nets[1].seen, strict=True))


def test_a_vote_of_other_noise_sees_the_same_draws_at_its_own_size():
    nets = [slow.Watched(Net()) for _ in range(2)]
    one = sampler(X[:1])
    one.votes = tuple(Vote(str(i), rk.wrap(net), s) for i, (net, s) in enumerate(zip(nets, (0.2, 0.6), strict=True)))
    one.counts("certify", 64)
    small, large = (torch.cat(net.seen) - X[:1] for net in nets)
    torch.testing.assert_close(large, 3 * small)


def test_no_batch_is_larger_than_asked_and_all_are_counted():
    net, told = slow.Watched(Net()), []
    sampler(net=net, batch=70, tell=told.append).counts("certify", 201)
    sizes = [len(x) for x in net.seen]
    assert max(sizes) <= 70 and sum(sizes) == 5 * 201 == told[-1] and told == sorted(told)
    assert sizes.count(2 * BLOCK) > 10, "batches are filled across samples"
    small = slow.Watched(Net())
    sampler(net=small, batch=10).counts("certify", 40)
    assert max(len(x) for x in small.seen) <= 10


def test_nan_is_an_answer_of_its_own():
    x = torch.full((1, 1, 3, 4), 1.0, dtype=torch.float64)
    one = sampler(x, net=Holes())
    found = one.counts("certify", 2000)
    assert torch.equal(found[0].long(), slow.counts(Holes(), x, "certify", 2000, SIGMA))
    assert 0 < int(found[0, 0, -1]) == int(one.undefined[0]) < 20


def test_many_nan_answers_stop():
    with pytest.raises(UsageError, match=r"NaN.*got NaN in 100 % of 2,000 answers"):
        sampler(torch.full((1, 1, 3, 4), 9.0, dtype=torch.float64), net=Holes()).counts("certify", 2000)


def test_memory_is_flat_in_n():
    """Values of all tensors that live when the last batch has passed, for n and for 16 n draws."""
    alive = {}

    def tell(passed):
        if passed >= 2 * n:  # isinstance would wake lazy objects of torch
            alive[n] = sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor)

    for n in (640, 10_240):
        sampler(X[:2], batch=320, tell=tell).counts("certify", n)
    assert alive[10_240] < alive[640] + 1000


def test_batches_are_whole_blocks():
    for values in (1, 100, 784, 3072, 150_528, 10**7, 10**9):
        assert batch_for(values) % BLOCK == 0 and BLOCK <= batch_for(values) <= 1024
