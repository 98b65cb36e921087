"""The engine of gradients: packing, sums, moments, memory."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.core.gradients import Engine, Moments, Paired, Points, WeightedSum, check_gradients, default_batch
from robustkit.core.model import wrap
from robustkit.core.target import Target

SEEN: list[int] = []
"""Sizes of the batches; not on the network, of which the engine runs a copy."""


class Quadratic(nn.Module):
    """Outputs (x'Ax/2, w.x): gradients A x and w."""

    def __init__(self, size: int, limit: int | None = None) -> None:
        super().__init__()
        root = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.a, self.w = nn.Parameter(root + root.T), nn.Parameter(root[0])
        self.limit = limit

    def forward(self, x):
        if self.limit is not None and len(x) > self.limit:
            raise torch.OutOfMemoryError("no more")
        SEEN.append(len(x))
        x = x.flatten(1)
        return torch.stack([(x @ self.a * x).sum(1) / 2, x @ self.w], 1)


def subject(n=3, size=6, limit=None, batch=4):
    net = Quadratic(size, limit)
    model, x = wrap(net), torch.rand(n, size, generator=torch.Generator().manual_seed(1))
    with model.frozen():
        engine = Engine(model, x, Target(torch.zeros(n, dtype=torch.long)), batch)
    SEEN.clear()
    return net, engine, x


def stream(engine, x, per):
    for index in engine.batches(len(x) * per):
        sample, number = index // per, index % per
        yield Points(sample, x[sample] * (1 + number[:, None]), (1 + number).to(x.dtype))


def test_points_are_packed_across_samples_and_summed_by_weight():
    net, engine, x = subject()
    total = WeightedSum(x)
    engine.run(stream(engine, x, 5), total)
    assert SEEN[-4:] == [4, 4, 4, 3]  # before them the fast copy was tried
    factor = sum((1 + k) * (1 + k) for k in range(5))
    torch.testing.assert_close(total.total, factor * x @ net.a.detach())
    value = sum((1 + k) * (1 + k) ** 2 for k in range(5)) * (x @ net.a.detach() * x).sum(1) / 2
    torch.testing.assert_close(total.value, value)


def test_groups_stay_together():
    _, engine, _ = subject(batch=5)
    assert [piece.tolist() for piece in engine.batches(10, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(piece) for piece in engine.batches(6, 6)] == [6]


def test_memory_that_runs_out_halves_the_batch_for_good():
    net, engine, x = subject(limit=2, batch=8)
    total = WeightedSum(x)
    engine.run(stream(engine, x, 4), total)
    assert max(SEEN) == 2 and engine.batch == 2
    torch.testing.assert_close(total.total, 30 * x @ net.a.detach())


def test_moments_equal_two_passes_over_all_gradients():
    net, engine, x = subject()
    moments, pairs = Moments(x), Moments(x)
    engine.run(stream(engine, x, 6), moments, Paired(pairs))
    grads = torch.stack([(1 + k) * x @ net.a.detach() for k in range(6)])
    torch.testing.assert_close(moments.mean, grads.mean(0))
    torch.testing.assert_close(moments.variance, grads.var(0, correction=0))
    torch.testing.assert_close(moments.standard_error, grads.std(0) / 6**0.5)
    halves = (grads[::2] + grads[1::2]) / 2
    torch.testing.assert_close(pairs.standard_error, halves.std(0) / 3**0.5)


def test_the_variance_of_equal_gradients_is_zero_and_never_negative():
    net, engine, x = subject(batch=3)
    net.w.data.fill_(1000.1)
    engine.target = Target(torch.ones(3, dtype=torch.long))
    moments = Moments(x)
    engine.run(stream(engine, x, 7), moments)
    assert (moments.variance >= 0).all() and float(moments.variance.max()) < 1e-6


def test_one_gradient_has_no_standard_error():
    _, engine, x = subject()
    moments = Moments(x)
    engine.run(stream(engine, x, 1), moments)
    assert torch.isinf(moments.standard_error).all() and (moments.variance == 0).all()


def test_values_come_in_the_order_of_the_stream():
    net, engine, x = subject()
    found = engine.values(stream(engine, x, 2))
    wanted = torch.stack([(1 + k) ** 2 * (x @ net.a * x).sum(1) / 2 for k in range(2)], 1).flatten()
    torch.testing.assert_close(found, wanted.detach())


def test_nothing_is_kept_between_fifty_runs():
    _, engine, x = subject()

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def run():
        engine.run(stream(engine, x, 3), WeightedSum(x), Moments(x))

    run()
    before = tensors()
    for _ in range(50):
        run()
    assert tensors() <= before


def test_gradients_that_are_not_finite_are_named_by_sample():
    with pytest.raises(UsageError, match="sample 9"):
        check_gradients(torch.tensor([[0.0], [torch.nan]]), torch.tensor([4, 9]))


def test_the_batch_goes_by_the_size_of_the_input():
    assert default_batch(torch.empty(1, 3, 224, 224)) == 12
    assert default_batch(torch.empty(1, 2)) == 512
    assert default_batch(torch.empty(1, 3, 4000, 4000)) == 1


def test_progress_counts_gradients():
    told = []
    rk.SmoothGrad(samples=5)(wrap(nn.Linear(4, 2)), torch.rand(3, 4), batch=4, progress=told.append)
    assert told == [4, 8, 12, 15]
