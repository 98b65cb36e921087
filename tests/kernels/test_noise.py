"""Rows depend on their keys alone."""

from __future__ import annotations

import torch
from scipy import stats

from robustkit.kernels import noise
from robustkit.kernels.noise import key_of, keyed_normal, keyed_uniform

CPU = torch.device("cpu")


def test_rows_depend_on_their_keys_alone():
    keys = [key_of(0, i, "test", 0, 0) for i in range(6)]
    for draw in (keyed_uniform, keyed_normal):
        whole = draw(keys, (3, 5), torch.float32, CPU)
        assert torch.equal(draw(keys[2:4], (3, 5), torch.float32, CPU), whole[2:4])
        assert torch.equal(draw(keys[::-1], (3, 5), torch.float32, CPU), whole.flip(0))
        assert len({tuple(row.flatten().tolist()) for row in whole}) == 6


def test_distributions():
    keys = [key_of(1, i, "test", 0, 0) for i in range(20)]
    assert stats.kstest(keyed_uniform(keys, (500,), torch.float64, CPU).flatten(), "uniform").pvalue > 0.01
    assert stats.kstest(keyed_normal(keys, (500,), torch.float64, CPU).flatten(), "norm").pvalue > 0.01


def test_keys_are_spread_and_stable():
    keys = {
        key_of(s, i, p, r, c) for s in range(3) for i in range(20) for p in "ab" for r in range(3) for c in range(3)
    }
    assert len(keys) == 3 * 20 * 2 * 3 * 3
    assert all(0 <= key < 2**63 for key in keys)
    assert key_of(0, 0, "pgd:uniform", 0, 0) == 6513271410210535710


def test_threads_change_nothing(monkeypatch):
    keys = [key_of(0, i, "test", 0, 0) for i in range(5)]
    alone = keyed_normal(keys, (40,), torch.float32, CPU)
    monkeypatch.setattr(noise, "TOGETHER", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(keyed_normal(keys, (40,), torch.float32, CPU), alone)


def test_empty():
    assert keyed_normal([], (3,), torch.float32, CPU).shape == (0, 3)
