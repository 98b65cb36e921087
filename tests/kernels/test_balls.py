"""Projections and steps against solvers, closed forms and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustkit.kernels import balls
from robustkit.kernels.fill import fill_l1_box
from robustkit.kernels.l1 import project_l1_box

PROJECTIONS = {
    torch.inf: balls.project_linf_box,
    2: balls.project_l2_box,
    1: project_l1_box,
}
SHAPES = [(3, 4), (2, 1, 3, 5), (1, 7), (4, 2, 3)]


def draw(seed: int, shape: tuple[int, ...], spread: float = 1.0, dtype=torch.double):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g, dtype=torch.double)
    adv = x + spread * torch.randn(shape, generator=g, dtype=torch.double)
    return x.to(dtype), adv.to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    p=st.sampled_from(list(PROJECTIONS)),
    eps=st.floats(0.0, 3.0),
    spread=st.floats(0.01, 3.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projection_is_feasible_idempotent_and_leaves_inside_points(seed, shape, p, eps, spread, dtype):
    x, adv = draw(seed, shape, spread, dtype)
    project = PROJECTIONS[p]
    once = project(adv, x, eps, 0.0, 1.0)
    room = 1e-6 if dtype == torch.float32 else 1e-12
    assert once.dtype == dtype and once.shape == x.shape
    assert (once >= 0).all() and (once <= 1).all()
    assert (balls.norm(once - x, p) <= eps * (1 + room) + room).all()
    torch.testing.assert_close(project(once, x, eps, 0.0, 1.0), once, atol=2 * room, rtol=0)
    inside = project(x + (once - x) * 0.9, x, eps * 1.01 + room, 0.0, 1.0)
    assert torch.equal(inside, x + (once - x) * 0.9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.05, 2.0))
def test_l1_projection_is_nearer_than_any_feasible_point(seed, eps):
    x, adv = draw(seed, (1, 6))
    best = project_l1_box(adv, x, eps, 0.0, 1.0)
    g = torch.Generator().manual_seed(seed + 1)
    others = PROJECTIONS[1](x + torch.randn(400, 6, generator=g, dtype=torch.double), x.expand(400, 6), eps, 0.0, 1.0)
    near = best + 0.05 * (others - best)  # convex: the segment to any feasible point is feasible
    for points in (others, near):
        assert ((points - adv).norm(dim=1) >= (best - adv).norm() - 1e-9).all()


@pytest.mark.parametrize("seed", range(6))
def test_l1_projection_equals_a_general_solver(seed):
    x, adv = draw(seed, (1, 5))
    x0, target, eps = x[0].numpy(), adv[0].numpy(), 0.7
    ball = {"type": "ineq", "fun": lambda v: eps - v[:5].sum() - v[5:].sum()}
    # p - x = a - b with a, b >= 0: smooth in (a, b)
    bounds = [(0, 1 - v) for v in x0] + [(0, v) for v in x0]
    solved = minimize(
        lambda v: ((x0 + v[:5] - v[5:] - target) ** 2).sum(),
        np.full(10, 0.01),
        bounds=bounds,
        constraints=[ball],
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    ours = project_l1_box(adv, x, eps, 0.0, 1.0)[0].numpy()
    np.testing.assert_allclose(ours, x0 + solved[:5] - solved[5:], atol=2e-5)


def test_l1_projection_is_exact_for_images():
    """Large inputs: the norm is eps to the last digits, not merely below it."""
    for dtype, room in ((torch.float32, 2e-6), (torch.float64, 1e-9)):
        x, adv = draw(3, (4, 3, 64, 64), 0.3, dtype)
        length = balls.norm(project_l1_box(adv, x, 12.0, 0.0, 1.0) - x, 1)
        assert ((12 - length).abs() <= 12 * room + 1e-4 * (dtype == torch.float32)).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.01, 0.3, 12.0]),
    excess=st.floats(1.001, 4.0),
    decades=st.floats(0.0, 6.0),
    binary=st.booleans(),
)
def test_l1_projection_ends_at_the_root(seed, eps, excess, decades, binary):
    """Against the threshold found among the sorted kinks of the dual; entries over decades, pixels at bounds."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 300, generator=g, dtype=torch.double)
    x = x.round() if binary else x
    delta = torch.randn(2, 300, generator=g, dtype=torch.double)
    delta *= 10 ** (decades * torch.rand(2, 300, generator=g, dtype=torch.double))
    delta *= eps * excess / delta.abs().sum(1, keepdim=True)
    found = project_l1_box(x + delta, x, eps, 0.0, 1.0)
    for row in range(2):
        size, room = delta[row].abs().numpy(), torch.where(delta[row] > 0, 1 - x[row], x[row]).numpy()
        shift = slow_root(size, room, eps)
        expected = x[row].numpy() + np.minimum(np.maximum(size - shift, 0), room) * delta[row].sign().numpy()
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-9 * eps, rtol=0)


def slow_root(size: np.ndarray, room: np.ndarray, eps: float) -> float:
    """Where sum(min(max(size - t, 0), room)) falls to eps: two neighbours of its sorted kinks, then the line."""

    def value(t):
        return np.minimum(np.maximum(size - t, 0), room).sum()

    if value(0) <= eps:
        return 0.0
    kinks = np.unique(np.concatenate([[0.0], size, np.maximum(size - room, 0)]))
    low, high = 0, len(kinks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(kinks[middle]) > eps else (low, middle)
    a, b = kinks[low], kinks[high]
    return a + (value(a) - eps) / (value(a) - value(b)) * (b - a)


@pytest.mark.parametrize("scale", [1e-3, 1e-20, 1e-30, 1e-40])
def test_l2_steps_do_not_shrink_with_the_gradient(scale):
    """Squares of such gradients vanish in float32; the step is as long as for large ones, in the same direction."""
    grad = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    x = torch.full_like(grad, 0.5)
    step = balls.step_l2(x, x, grad * scale, 0.1, 0.2, 0.0, 1.0)
    torch.testing.assert_close(step, balls.step_l2(x, x, grad, 0.1, 0.2, 0.0, 1.0), atol=1e-6, rtol=0)
    half = balls.step_l2(x.half(), x.half(), (grad * 1e-5).half(), 0.1, 0.2, 0.0, 1.0)
    assert ((half - x).float().norm(dim=1) - 0.1).abs().max() < 0.005


@pytest.mark.parametrize("p", PROJECTIONS)
def test_per_sample_radius_and_empty_batch(p):
    x, adv = draw(0, (3, 2, 4), 2.0)
    eps = torch.tensor([0.0, 0.3, 9.0], dtype=torch.double)
    out = PROJECTIONS[p](adv, x, eps, -20.0, 20.0)
    for i in range(3):
        torch.testing.assert_close(
            out[i : i + 1], PROJECTIONS[p](adv[i : i + 1], x[i : i + 1], float(eps[i]), -20.0, 20.0)
        )
    assert torch.equal(out[0], x[0]) and PROJECTIONS[p](adv[:0], x[:0], 1.0, 0.0, 1.0).shape == (0, 2, 4)
    if p != 1:
        assert torch.equal(out[2], adv[2])


@pytest.mark.parametrize("step", [balls.step_linf, balls.step_l2])
def test_steps_are_step_then_project(step):
    x, adv = draw(1, (3, 2, 5), 0.05)
    adv = adv.clamp(0, 1)
    grad = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    grad[1] = 0
    p = torch.inf if step is balls.step_linf else 2
    direction = grad.sign() if p == torch.inf else grad / grad.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1)
    expected = PROJECTIONS[p](adv + 0.1 * direction, x, 0.15, 0.0, 1.0)
    before = adv.clone(), grad.clone()
    torch.testing.assert_close(step(adv, x, grad, 0.1, 0.15, 0.0, 1.0), expected)
    assert torch.equal(adv, before[0]) and torch.equal(grad, before[1])
    eps = torch.full((3,), 0.15)
    torch.testing.assert_close(step(adv, x, grad, eps * 0 + 0.1, eps, 0.0, 1.0), expected, atol=1e-7, rtol=0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.floats(0.0, 4.0))
def test_fill_spends_where_the_gradient_is_largest(seed, budget):
    x, grad = draw(seed, (1, 8))
    grad = grad - 0.5
    step = fill_l1_box(grad, x, budget, 0.0, 1.0)[0]
    room = torch.where(grad[0] > 0, 1 - x[0], x[0])
    gain, left = 0.0, budget
    for i in sorted(range(8), key=lambda i: -abs(float(grad[0, i]))):
        move = min(left, float(room[i]))
        gain, left = gain + move * abs(float(grad[0, i])), left - move
    assert float(grad[0] @ step) == pytest.approx(gain, abs=1e-9)
    assert float(step.abs().sum()) <= budget + 1e-9
    assert ((x[0] + step) >= -1e-12).all() and ((x[0] + step) <= 1 + 1e-12).all()
