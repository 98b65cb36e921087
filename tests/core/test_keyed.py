"""A draw is a function of (seed, sample, purpose, restart) and of nothing else."""

from __future__ import annotations

import torch

from robustkit.core.keyed import Draws


def test_same_key_same_draw_whatever_the_batch():
    like = torch.empty(4, 3, 5)
    draws = Draws(7, torch.tensor([10, 20, 30, 40]), "pgd")
    whole = draws.normal(like)
    order = torch.tensor([2, 0])
    assert torch.equal(draws.take(order).normal(like[:2]), whole[order])
    assert torch.equal(Draws(7, torch.tensor([40]), "pgd").normal(like[:1]), whole[3:])


def test_other_keys_other_draws():
    like = torch.empty(2, 1000)
    base = Draws(0, torch.tensor([1, 2]), "pgd")
    others = [
        Draws(1, base.ids, "pgd"),
        Draws(0, base.ids, "fgsm"),
        base.again(1),
        base.child("x"),
        Draws(0, base.ids + 2, "pgd"),
    ]
    streams = [d.uniform(like) for d in (base, *others)]
    rows = torch.cat(streams)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.15
    assert not torch.equal(base.uniform(like), base.normal(like))


def test_distributions_and_dtypes():
    draws = Draws(3, torch.arange(50), "test")
    u, z = draws.uniform(torch.empty(50, 2000)), draws.normal(torch.empty(50, 2000))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.015 and abs(z.var() - 1) < 0.02
    for dtype in (torch.float64, torch.bfloat16):
        assert draws.normal(torch.empty(50, 4, dtype=dtype)).dtype == dtype


def test_global_generator_is_neither_read_nor_written():
    state = torch.get_rng_state()
    first = Draws(0, torch.arange(2), "a").normal(torch.empty(2, 5))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, Draws(0, torch.arange(2), "a").normal(torch.empty(2, 5)))
