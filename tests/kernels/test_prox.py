"""Proximal operators against their definition: numeric minimisation, a slow loop over groups, and closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from robustkit.kernels.prox import group_soft_threshold, groups_of, soft_threshold, square_labels


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def slow(x: torch.Tensor, labels: torch.Tensor, threshold) -> torch.Tensor:
    """Group by group; ``threshold(sample, label)``."""
    out = torch.zeros_like(x)
    for i in range(len(x)):
        label = labels if labels.ndim == 2 else labels[i]
        for value in label.unique().tolist():
            part = x[i][..., label == value]
            length = part.square().sum().sqrt()
            out[i][..., label == value] = part * max(0.0, 1 - threshold(i, value) / length)
    return out


def test_the_soft_threshold_minimises_what_it_should():
    v = normal(1, 6)

    def value(u):
        return 0.4 * abs(u).sum() + ((u - v.numpy()[0]) ** 2).sum() / 2

    found = minimize(value, v.numpy()[0], method="Powell", options={"xtol": 1e-9, "ftol": 1e-14})
    ours = soft_threshold(v, 0.4)
    assert torch.allclose(ours, torch.tensor(found.x)[None], atol=1e-5)
    assert value(ours.numpy()[0]) <= found.fun + 1e-12


def test_the_soft_threshold_takes_one_number_for_each_sample():
    x = normal(3, 2, 4, 4)
    each = torch.tensor([0.1, 1.0, 5.0], dtype=torch.double)
    assert torch.equal(
        soft_threshold(x, each), torch.cat([soft_threshold(x[i : i + 1], float(each[i])) for i in range(3)])
    )
    assert not soft_threshold(x, each)[2].any()


def test_the_group_threshold_minimises_what_it_should():
    labels = torch.tensor([[0, 0, 1]])
    v = normal(1, 2, 1, 3)
    ours = group_soft_threshold(v, groups_of(labels, 1), 0.5)

    def value(u):
        u = torch.tensor(u).view_as(v)
        lengths = u[..., :2].square().sum().sqrt() + u[..., 2:].square().sum().sqrt()
        return float(0.5 * lengths + (u - v).square().sum() / 2)

    found = minimize(value, v.numpy().ravel(), method="BFGS")
    assert torch.allclose(ours, torch.tensor(found.x).view_as(v), atol=1e-5)
    assert value(ours.numpy().ravel()) <= found.fun + 1e-12


@pytest.mark.parametrize("channels", [(3,), (1,), (7,), (), (2, 2)])
@pytest.mark.parametrize(("height", "width", "size"), [(6, 6, 3), (7, 5, 3), (4, 9, 20), (3, 3, 1)])
def test_squares_of_any_size_against_a_loop(channels, height, width, size):
    x = normal(2, *channels, height, width)
    labels = square_labels(height, width, size)
    groups = groups_of(labels, 2)
    assert torch.allclose(group_soft_threshold(x, groups, 0.8), slow(x, labels, lambda i, g: 0.8))
    assert groups.count == -(-height // size) * -(-width // size)
    assert groups.pixels.sum(1).tolist() == [height * width] * 2
    assert int(groups.pixels.max()) == min(size, height) * min(size, width)


def test_any_labels_of_each_sample_against_a_loop():
    labels = torch.randint(-3, 40, (3, 8, 5), generator=torch.Generator().manual_seed(1)) * 1000
    x = normal(3, 2, 8, 5)
    groups = groups_of(labels, 3)
    each = torch.tensor([0.3, 1.0, 2.5], dtype=torch.double)
    assert torch.allclose(group_soft_threshold(x, groups, each), slow(x, labels, lambda i, g: each[i]))
    values = labels.unique().tolist()
    own = torch.rand(3, groups.count, generator=torch.Generator().manual_seed(2), dtype=torch.double) * 2
    found = group_soft_threshold(x, groups, own)
    assert torch.allclose(found, slow(x, labels, lambda i, g: own[i, values.index(g)]))


def test_a_group_is_gone_exactly_or_kept_in_its_direction():
    x = normal(2, 3, 9, 7).float()
    groups = groups_of(square_labels(9, 7, 4), 2)
    out = group_soft_threshold(x, groups, 6.0)
    before, after = groups.lengths(x), groups.lengths(out)
    gone = before <= 6
    assert gone.any() and not gone.all()
    assert torch.equal(after == 0, gone)
    assert torch.allclose(after, (before - 6).clamp_min(0), atol=1e-5)
    scale = groups.spread((before - 6).clamp_min(0) / before, x)
    assert torch.allclose(out, x * scale)


def test_a_group_of_zeros_stays_one():
    out = group_soft_threshold(torch.zeros(1, 1, 4, 4), groups_of(square_labels(4, 4, 2), 1), 0.0)
    assert torch.equal(out, torch.zeros(1, 1, 4, 4))


def test_a_sample_alone_gives_the_same():
    x, labels = normal(4, 3, 6, 6).float(), torch.randint(0, 5, (4, 6, 6), generator=torch.Generator().manual_seed(3))
    together = group_soft_threshold(x, groups_of(labels, 4), 1.0)
    for i in range(4):
        assert torch.equal(together[i], group_soft_threshold(x[i : i + 1], groups_of(labels[i : i + 1], 1), 1.0)[0])
        assert torch.equal(
            together[i], group_soft_threshold(x[i : i + 1], groups_of(labels, 4).take(torch.tensor([i])), 1.0)[0]
        )
