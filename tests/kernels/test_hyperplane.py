"""Projections onto a hyperplane inside a box against solvers, a slow sort, and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from robustkit.kernels.balls import norm as lp
from robustkit.kernels.hyperplane import project_hyperplane_box, step_to_hyperplane

P = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
SHAPES = [(3, 4), (2, 1, 3, 5), (1, 7), (4, 2, 3), (5, 1)]


def draw(seed: int, shape: tuple[int, ...], share: float, dtype=torch.double, wild: bool = False, low=0.0, high=1.0):
    """x in the box, w, and b so that a share of what the box allows is needed (above 1: the plane misses it)."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.rand(shape, generator=g, dtype=torch.double), torch.randn(shape, generator=g, dtype=torch.double)
    if wild:  # pixels at their bounds, zero weights, weights of all sizes
        x = torch.where(torch.rand(shape, generator=g) < 0.3, x.round(), x)
        w = w * 10 ** (-4 * torch.rand(shape, generator=g, dtype=torch.double))
        w = torch.where(torch.rand(shape, generator=g) < 0.2, 0, w)
    x = (low + (high - low) * x).to(dtype).double()
    w = w.to(dtype).double()
    side = torch.where(torch.rand(shape[0], generator=g) < 0.5, -1.0, 1.0).double()
    missing = side * share * reach(x, w, side, low, high)
    return x.to(dtype), w.to(dtype), missing.to(dtype)


def reach(x, w, side, low, high):
    """The most that the box allows on each side of the plane, (N,)."""
    w = w.flatten(1) * side[:, None]
    return (w * torch.where(w > 0, high - x.flatten(1), low - x.flatten(1))).sum(1)


def slow_step(x: np.ndarray, w: np.ndarray, missing: float, norm: str, low: float, high: float) -> np.ndarray:
    """One sample, by sorting the t at which coordinates stop; the textbook way."""
    gain, side = np.abs(w), np.sign(w) * np.sign(missing)
    room = np.where(side > 0, high - x, np.where(side < 0, x - low, 0.0))
    missing = min(abs(missing), gain @ room)
    if norm == "l1":
        step = np.zeros_like(x)
        for i in np.argsort(-gain, kind="stable"):
            if gain[i] > 0:
                step[i] = min(room[i], (missing - gain @ step) / gain[i])
        return side * np.maximum(step, 0)
    rate = np.ones_like(gain) if norm == "linf" else gain
    stops = np.where(gain > 0, room / np.where(gain > 0, rate, 1), 0)
    previous = 0.0
    for stop in np.sort(stops):
        if gain @ np.minimum(stop * rate, room) >= missing:
            free = stops >= stop
            slope = (gain * rate * (gain > 0))[free].sum()
            t = previous + (missing - gain @ np.minimum(previous * rate, room)) / slope if slope > 0 else stop
            return side * np.minimum(t * rate, room)
        previous = stop
    return side * room


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("share", [1e-6, 0.02, 0.3, 0.6, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 5.0)])
def test_equals_the_slow_sort(norm, share, dtype, low, high):
    x, w, missing = draw(0, (8, 3, 9, 11), share, dtype, low=low, high=high)
    step = step_to_hyperplane(x, w, missing, low, high, norm)
    for i in range(len(x)):
        flat = (t[i].double().flatten().numpy() for t in (x, w))
        slow = slow_step(*flat, float(missing[i]), norm, low, high)
        scale = np.abs(slow).max()
        single = dtype == torch.float32
        if share <= 0.9:  # beyond, single precision does not say what is left, and l2 may not have ended
            room = (2e-4 if norm == "l1" else 2e-5) if single else 1e-9  # of l1 one coordinate takes the rest
            np.testing.assert_allclose(step[i].flatten().numpy(), slow, atol=room * max(scale, 1e-3), rtol=0)
        length = float(lp(step[i][None].double(), P[norm]))
        room = (1e-3 if single else 1e-9) if share <= 0.9 else 1e-2
        assert length == pytest.approx(np.linalg.norm(slow, ord=P[norm]), rel=room)


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_nearer_by_a_general_solver(norm, seed):
    x, w, missing = draw(seed, (1, 6), 0.1 + 0.12 * seed)
    step = step_to_hyperplane(x, w, missing, 0.0, 1.0, norm)[0]
    best = solver_distance(x[0].numpy(), w[0].numpy(), float(missing[0]), norm)
    assert float(w[0] @ step) == pytest.approx(float(missing[0]), rel=1e-9)
    assert float(lp(step[None], P[norm])) == pytest.approx(best, rel=1e-6)


def solver_distance(x: np.ndarray, w: np.ndarray, missing: float, norm: str) -> float:
    n = len(x)
    if norm == "l2":
        plane = {"type": "eq", "fun": lambda d: w @ d - missing, "jac": lambda d: w}
        bounds = list(zip(-x, 1 - x, strict=True))
        start = missing * w / (w @ w)
        found = minimize(
            lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=bounds, constraints=[plane], options={"ftol": 1e-15}
        )
        return float(np.sqrt(found.fun))
    if norm == "l1":  # d = p - q, p and q >= 0
        bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
        return float(linprog(np.ones(2 * n), A_eq=[np.concatenate([w, -w])], b_eq=[missing], bounds=bounds).fun)
    limits = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])  # abs(d_i) <= t
    bounds = [(-v, 1 - v) for v in x] + [(0, None)]
    cost = np.append(np.zeros(n), 1)
    return float(
        linprog(cost, A_ub=limits, b_ub=np.zeros(2 * n), A_eq=[np.append(w, 0)], b_eq=[missing], bounds=bounds).fun
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    norm=st.sampled_from(list(P)),
    share=st.one_of(st.floats(0.0, 1.0), st.floats(0.0, 1e-6), st.floats(1.0, 5.0)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    wild=st.booleans(),
)
@example(seed=26, shape=(2, 1, 3, 5), norm="l2", share=0.9375, dtype=torch.float32, wild=True)
def test_on_the_plane_or_at_the_corner_and_in_the_box(seed, shape, norm, share, dtype, wild):
    x, w, missing = draw(seed, shape, share, dtype, wild)
    step = step_to_hyperplane(x, w, missing, 0.0, 1.0, norm)
    ulp = torch.finfo(dtype).eps
    assert step.dtype == dtype and step.shape == x.shape and step.isfinite().all()
    assert (x + step >= -ulp).all() and (x + step <= 1 + ulp).all()
    gained = (w.double() * step.double()).flatten(1).sum(1)
    most = reach(x.double(), w.double(), missing.sign().double(), 0.0, 1.0)
    wanted = missing.sign() * torch.minimum(missing.abs().double(), most)
    length = w.double().abs().flatten(1).sum(1)
    room = 100 if norm == "l2" and dtype == torch.float32 else 20  # near the corner single precision ends l2 early
    assert ((gained - wanted).abs() <= room * ulp * torch.maximum(length, wanted.abs())).all()
    assert (step * w * missing.sign().reshape(-1, *[1] * (x.ndim - 1)) >= 0).all()  # nothing moves away from the plane


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(list(P)),
    share=st.floats(0.001, 1.0),
    wild=st.booleans(),
)
def test_no_other_point_of_the_plane_is_nearer(seed, norm, share, wild):
    """Against random points in the box, moved along the way to a point beyond the plane until they lie on it."""
    x, w, missing = draw(seed, (4, 8), share, wild=wild)
    step = step_to_hyperplane(x, w, missing, 0.0, 1.0, norm)
    side = missing.sign()[:, None]
    corner = torch.where(w * side > 0, 1 - x, torch.where(w * side < 0, -x, 0))
    g = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = torch.rand(4, 8, generator=g, dtype=torch.double) - x
        gained, most = (w * other).sum(1), (w * corner).sum(1)
        short = (gained * side[:, 0] < missing.abs()).double()  # from there to the corner the plane is crossed
        share_of_corner = ((missing - gained) / (most - gained)).clamp(0, 1)
        on = torch.where(short[:, None] > 0, other + share_of_corner[:, None] * (corner - other), 0)
        on = torch.where(short[:, None] > 0, on, other * (missing / gained)[:, None])
        valid = ((w * on).sum(1) - missing).abs() <= 1e-9 * missing.abs().clamp_min(1e-300)
        nearer = lp(step, P[norm]) <= lp(on, P[norm]) * (1 + 1e-6) + 1e-12
        assert (nearer | ~valid).all()


@pytest.mark.parametrize("norm", P)
def test_special_cases(norm):
    x = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    w = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    here = (w * x).flatten(1).sum(1)
    assert torch.equal(project_hyperplane_box(x, w, here, 0.0, 1.0, norm), x)  # x lies on the plane
    flat = project_hyperplane_box(x, torch.zeros_like(w), torch.ones(3).double(), 0.0, 1.0, norm)
    assert torch.equal(flat, x)  # no plane at all
    corner = project_hyperplane_box(x, w, here + 1e6, 0.0, 1.0, norm)
    assert torch.equal(corner, (w > 0).double())  # missed: the corner that comes closest
    assert torch.equal(project_hyperplane_box(x, w, here - 1e6, 0.0, 1.0, norm), (w < 0).double())
    empty = project_hyperplane_box(x[:0], w[:0], here[:0], 0.0, 1.0, norm)
    assert empty.shape == (0, 2, 5)


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_size_of_the_gradient_does_not_matter(norm, factor):
    x, w, missing = draw(3, (4, 20), 0.3, torch.float32)
    step = step_to_hyperplane(x, w * factor, missing * factor, 0.0, 1.0, norm)
    torch.testing.assert_close(step, step_to_hyperplane(x, w, missing, 0.0, 1.0, norm), atol=1e-5, rtol=1e-4)


def test_equal_weights_share_what_is_left():
    x, w = torch.zeros(1, 4), torch.tensor([[2.0, 1.0, 1.0, 0.5]])
    step = step_to_hyperplane(x, w, torch.tensor([3.0]), 0.0, 1.0, "l1")
    torch.testing.assert_close(step, torch.tensor([[1.0, 0.5, 0.5, 0.0]]))


def test_large_weights_without_room_have_no_say():
    x, w = torch.tensor([[1.0, 0.5, 0.5]]), torch.tensor([[1e12, 1e-12, 2e-12]])
    for norm in P:
        step = step_to_hyperplane(x, w, torch.tensor([5e-13]), 0.0, 1.0, norm)
        assert step[0, 0] == 0
        assert float((w * step).sum()) == pytest.approx(5e-13, rel=1e-5)


@pytest.mark.parametrize("norm", P)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(norm, dtype):
    x, w, missing = draw(5, (3, 1000), 0.2, dtype)
    step = step_to_hyperplane(x, w, missing, 0.0, 1.0, norm)
    wide = step_to_hyperplane(x.float(), w.float(), missing.float(), 0.0, 1.0, norm)
    assert step.dtype == dtype
    assert torch.equal(step, wide.to(dtype))


@pytest.mark.parametrize("norm", P)
def test_rows_do_not_depend_on_each_other_and_inputs_are_untouched(norm):
    x, w, missing = draw(7, (6, 3, 8), 0.4, torch.float32)
    before = [t.clone() for t in (x, w, missing)]
    whole = step_to_hyperplane(x, w, missing, 0.0, 1.0, norm)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, w, missing), strict=True))
    for i in range(6):
        alone = step_to_hyperplane(x[i : i + 1], w[i : i + 1], missing[i : i + 1], 0.0, 1.0, norm)
        assert torch.equal(alone[0], whole[i])
