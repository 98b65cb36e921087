"""Directional attacks against closed forms, poll sets against their definition, and searches against their books."""

from __future__ import annotations

import resource
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from robustkit.attacks.ascent import _Halving
from robustkit.attacks.directional import (
    Hybrid,
    directional_attack,
    directional_queries,
    directional_step,
    maximise,
)
from robustkit.attacks.penalised import Penalised
from robustkit.attacks.polling import PollSet
from robustkit.core.direction import DirectionObjective
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L1, L2, Linf

THREATS = [Linf(0.1), L2(0.25), L1(0.4)]
DSM = ("covering", "search", "poll")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


class Affine(nn.Module):
    def __init__(self, outputs: int, inputs: int = 6) -> None:
        super().__init__()
        self.a = nn.Parameter(draw(outputs, inputs, seed=3))

    def forward(self, x):
        return x.flatten(1) @ self.a.T + 1


class Curved(Affine):
    def forward(self, x):
        return torch.tanh(3 * super().forward(x - 0.5)) @ draw(4, 3, seed=4)


def affine(outputs: int = 3, n: int = 5):
    x = 0.5 + 0.02 * draw(n, 6, seed=1)
    return wrap(Affine(outputs), task="regression"), x, draw(n, outputs, seed=2)


def dual(g: torch.Tensor, threat) -> torch.Tensor:
    """max <g, d> over the ball: eps times the dual norm."""
    q = {"linf": 1, "l2": 2, "l1": torch.inf}[threat.norm]
    return threat.eps * torch.linalg.vector_norm(g, ord=q, dim=1)


# -- the direction ---------------------------------------------------------------------------------------------------


def test_the_objective_is_the_inner_product_and_its_gradient_the_vjp():
    model, x, u = affine()
    value, grad, outputs = model.value_and_grad(x, DirectionObjective(u))
    torch.testing.assert_close(value, torch.tensor([float(a @ b) for a, b in zip(u, outputs, strict=True)]).double())
    torch.testing.assert_close(grad, u @ model.net.a.detach())
    assert not DirectionObjective(u).reached(outputs).any()
    assert torch.equal(DirectionObjective(u).take(slice(1, 3)).u, u[1:3])
    assert DirectionObjective(u).at(0.5)(outputs).equal(DirectionObjective(u)(outputs))


def test_it_serves_any_shape_of_outputs():
    u = draw(2, 3, 4, 5)
    outputs = draw(2, 3, 4, 5, seed=1)
    torch.testing.assert_close(DirectionObjective(u)(outputs), (u * outputs).sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (torch.ones(3), "batch of real"),
        (torch.ones(2, 3, dtype=torch.long), "batch of real"),
        ("u", "batch of real"),
        (torch.full((2, 3), torch.nan), "NaN"),
    ],
)
def test_bad_directions_are_named(u, message):
    with pytest.raises(UsageError, match=message):
        DirectionObjective(u)


def test_a_direction_of_the_wrong_shape_or_an_aim_is_named():
    with pytest.raises(UsageError, match="different shapes"):
        DirectionObjective(torch.ones(2, 3))(torch.ones(2, 4))
    with pytest.raises(UsageError, match="no classes"):
        DirectionObjective(torch.ones(2, 3)).aimed(torch.zeros(2, dtype=torch.long))


# -- attacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("outputs", [1, 3])
def test_one_step_solves_an_affine_network_exactly(threat, outputs):
    """Also for a single output, where a soft cross-entropy has no gradient at all."""
    model, x, u = affine(outputs)
    found = directional_step(model, x, u, threat)
    torch.testing.assert_close(found.gain, dual(u @ model.net.a.detach(), threat))
    torch.testing.assert_close(found.perturbation, found.adversarial - x)
    torch.testing.assert_close(((model(found.adversarial) - model(x)) * u).sum(1).detach(), found.gain)
    assert (threat.distance(found.adversarial, x) <= threat.eps + 1e-12).all()


@pytest.mark.parametrize("outputs", [1, 4])
def test_equal_entries_ascend_where_the_cross_entropy_trick_cannot(outputs):
    """The logit gradient of CE with label u is mean(u) - u at equal logits: nothing for u proportional to 1."""
    model, x, _ = affine(outputs)
    u = torch.ones(len(x), outputs, dtype=torch.double)
    point = x.clone().requires_grad_()
    moved = model.module(point) - model.module(x).detach()  # zero logits at the start, as the published operator has
    trick = -(u * F.log_softmax(moved, 1)).sum()
    assert torch.autograd.grad(trick, point)[0].abs().max() < 1e-12
    found = directional_step(model, x, u, Linf(0.1))
    assert (found.gain > 0.1).all()
    torch.testing.assert_close(found.gain, dual(u @ model.net.a.detach(), Linf(0.1)))


def test_one_direction_for_all_samples():
    model, x, u = affine()
    shared = directional_step(model, x, u[0], Linf(0.1))
    assert torch.equal(shared.adversarial, directional_step(model, x, u[:1].expand(len(x), -1), Linf(0.1)).adversarial)


def test_all_radii_share_one_backward_and_the_best_counts():
    """Along the gradient the inner product rises and falls: the best radius is neither the least nor the largest."""
    model = wrap(lambda x: -(x - 0.6).square().sum(1, keepdim=True), task="regression")
    x = torch.full((4, 6), 0.5, dtype=torch.double)
    model = wrap(lambda x: -(x - 0.6).square().sum(1, keepdim=True), task="regression")
    radii = [0.01, 0.1, 0.3]
    found = directional_step(model, x.float(), torch.ones(1), Linf(0.3), radii=radii)
    assert (found.cost.forwards, found.cost.backwards) == (4 * (1 + len(radii)), 4)
    torch.testing.assert_close(found.perturbation, torch.full((4, 6), 0.1))
    assert found.queries.tolist() == [4] * 4


def test_what_does_not_gain_is_the_input():
    model = wrap(lambda x: -(x - 0.5).abs().sum(1, keepdim=True), task="regression")
    x = torch.full((3, 6), 0.5)
    for attack in (directional_step, directional_attack, directional_queries):
        found = attack(model, x, torch.ones(1), Linf(0.1))
        assert torch.equal(found.adversarial, x) and not found.gain.any() and not found.perturbation.any()


@pytest.mark.parametrize("rule", ["pgd", "apgd"])
@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_ascent_beats_one_step_stays_inside_and_keeps_its_books(rule, threat):
    model = wrap(Curved(4), task="regression")
    x, u = affine(n=40)[1], draw(40, 3, seed=8)
    one = directional_step(model, x, u, threat)
    found = directional_attack(model, x, u, threat, rule=rule, steps=30, restarts=2)
    assert (threat.distance(found.adversarial, x) <= threat.eps + 1e-9).all()
    assert float(found.gain.sum()) > 1.02 * float(one.gain.sum())
    measured = ((model(found.adversarial) - model(x)) * u).sum(1).detach()
    torch.testing.assert_close(found.gain, measured)
    assert (found.cost.forwards, found.cost.backwards) == (2 * 31 * 40, 2 * 30 * 40)
    assert found.queries.tolist() == [62] * 40


def test_apgd_reaches_the_optimum_of_a_concave_problem():
    """max -(a.x - b)^2 has its maximum 0 inside the ball; steps of one length cannot get as near as halved ones."""
    a = draw(6, seed=3)
    model = wrap(lambda x: -((x - 0.5) @ a - 0.05).square()[:, None], task="regression")
    x = torch.full((1, 6), 0.5, dtype=torch.double)
    u = torch.ones(1, dtype=torch.double)
    gain = {r: float(directional_attack(model, x, u, Linf(0.2), rule=r, steps=50).gain) for r in ("pgd", "apgd")}
    assert 0.05**2 - gain["apgd"] < 1e-6 and gain["apgd"] >= gain["pgd"]


def test_checkpoints_are_those_of_the_apgd_paper():
    """p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06), at ceil(p_j steps)."""
    steps, p = 100, [0.0, 0.22]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    rule, seen = _Halving(torch.ones(1, dtype=torch.double), steps), []
    for k in range(1, steps):
        if rule.halved(k, torch.zeros(1, dtype=torch.bool), torch.zeros(1)):
            seen.append(k)
    assert seen == [int(np.ceil(steps * v - 1e-9)) for v in p[1:] if v < 0.995][: len(seen)] and len(seen) >= 8
    assert float(rule.size) == 0.5 ** len(seen)


@pytest.mark.parametrize("attack", [directional_attack, directional_queries])
def test_batches_and_order_change_nothing(attack):
    model, x, u = affine()
    options = {"queries": 30} if attack is directional_queries else {"steps": 5, "restarts": 3}
    whole = attack(model, x, u, Linf(0.1), seed=4, **options)
    for i in range(len(x)):
        part = slice(i, i + 1)
        alone = attack(model, x[part], u[part], Linf(0.1), seed=4, ids=torch.tensor([i]), **options)
        torch.testing.assert_close(alone.adversarial, whole.adversarial[part], rtol=0, atol=1e-12)
    again = attack(model, x, u, Linf(0.1), seed=4, **options)
    assert torch.equal(again.adversarial, whole.adversarial)


def test_queries_solve_an_affine_network_coordinate_by_coordinate():
    """Two questions at most for each coordinate, and the vertex of the ball is found; no gradient is asked for."""
    model, x, u = affine()
    found = directional_queries(model, x, u, Linf(0.1), queries=1 + 2 * 6)
    torch.testing.assert_close(found.gain, dual(u @ model.net.a.detach(), Linf(0.1)))
    assert (found.cost.forwards, found.cost.backwards) == (13 * 5, 0)
    assert found.queries.tolist() == [13] * 5
    with torch.no_grad():
        rounding = wrap(lambda v: torch.from_numpy(np.round(v.detach().numpy() * 50)), task="regression")
    assert (directional_queries(rounding, x, torch.ones(6), Linf(0.1), queries=40).gain > 0).all()


@pytest.mark.parametrize(
    "threat", [L2(0.25), L1(0.6), Linf(torch.linspace(0.01, 0.2, 5).double())], ids=["l2", "l1", "each"]
)
def test_queries_gain_in_every_norm_and_only_grow(threat):
    model, x, u = affine()
    gains = [directional_queries(model, x, u, threat, queries=q, block=2).gain for q in (1, 10, 100)]
    assert not gains[0].any() and (gains[1] <= gains[2]).all() and (gains[2] > 0).all()
    found = directional_queries(model, x, u, threat, queries=100, block=2)
    assert (threat.distance(found.adversarial, x) <= threat.eps + 1e-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.Flatten()}, "wrapped model"),
        ({"x": torch.full((2, 6), 2.0).double()}, "bounds"),
        ({"x": torch.full((2, 6), torch.nan).double()}, "NaN"),
        ({"x": torch.zeros(2, 6)}, "do not match"),
        ({"u": torch.ones(2, 4).double()}, "different shapes"),
        ({"u": None}, "must be a tensor"),
        ({"u": torch.full((3,), torch.inf).double()}, "infinity"),
    ],
)
@pytest.mark.parametrize("attack", [directional_step, directional_attack, directional_queries])
def test_bad_inputs_are_named(attack, change, message):
    model, x, u = affine(n=2)
    with pytest.raises(UsageError, match=message):
        attack(**{"model": model, "x": x, "u": u, "threat": Linf(0.1), **change})


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (directional_step, {"radii": [0.2]}, "leaves the threat"),
        (directional_step, {"radii": []}, "no radius"),
        (directional_attack, {"steps": 0}, "steps"),
        (directional_attack, {"restarts": True}, "restarts"),
        (directional_attack, {"rule": "sgd"}, "rule"),
        (directional_attack, {"step_size": 0.1}, "own step sizes"),
        (directional_queries, {"queries": 0}, "queries"),
        (directional_queries, {"block": 1.5}, "block"),
        (directional_queries, {"step_size": -1.0}, "length"),
    ],
)
def test_bad_options_are_named(attack, options, message):
    model, x, u = affine()
    with pytest.raises(UsageError, match=message):
        attack(model, x, u, Linf(0.1), **options)


@pytest.mark.parametrize("attack", [directional_step, directional_attack, directional_queries])
def test_an_empty_batch_and_an_untouched_network(attack):
    model, x, u = affine()
    model.net.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    attack(model, x, u, Linf(0.1))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.net.training and model.net.a.grad is None and model.net.a.requires_grad
    assert len(attack(model, x[:0], u[:0], Linf(0.1)).gain) == 0


# -- poll sets -------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), seed=st.integers(0, 10_000), kind=st.sampled_from(["n+1", "2n"]))
@settings(max_examples=60, deadline=None)
def test_every_poll_set_spans_space_positively(n, seed, kind):
    """Rank n, zero is a strictly positive combination (together that is the definition), and the cone test."""
    directions = PollSet.of(draw(n, seed=seed), kind)
    rows = directions.rows(torch.arange(len(directions))).numpy()
    assert rows.shape == ((n + 1, n) if kind == "n+1" else (2 * n, n))
    np.testing.assert_allclose(np.abs(rows).max(1), 1)
    assert np.linalg.matrix_rank(rows) == n
    weights = linprog(np.ones(len(rows)), A_eq=rows.T, b_eq=np.zeros(n), bounds=[(1, None)] * len(rows))
    assert weights.status == 0
    for v in draw(50, n, seed=seed + 1).numpy():
        assert (rows @ v).max() > 0


@given(n=st.integers(1, 30), seed=st.integers(0, 10_000), kind=st.sampled_from(["n+1", "2n"]))
@settings(max_examples=40, deadline=None)
def test_slopes_and_parts_agree_with_the_whole_reflection(n, seed, kind):
    q = draw(n, seed=seed)
    q = q / q.norm()
    h = torch.eye(n, dtype=torch.double) - 2 * torch.outer(q, q)
    whole = torch.cat([h, -h]) if kind == "2n" else torch.cat([h, -h.sum(0, keepdim=True)])
    whole = whole / whole.abs().amax(1, keepdim=True)
    directions, v = PollSet(q, kind), draw(n, seed=seed + 1)
    index = torch.arange(len(directions)).flip(0)
    torch.testing.assert_close(directions.rows(index), whole[index])
    torch.testing.assert_close(directions.slopes(v), whole @ v)


def test_fifty_thousand_variables_in_flat_memory():
    """A matrix would be 10 GB; the whole search may not grow by more than a few hundred vectors."""
    n = 50_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target = torch.linspace(0, 1, n)
    found = maximise(
        lambda y: y, lambda x: -(x - target).abs().mean(1), torch.full((n,), 0.5), how=Hybrid(batch=8), evaluations=400
    )
    assert found.value > -0.25 and found.evaluations == 400 and found.spent["poll"] > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB


# -- the search ------------------------------------------------------------------------------------------------------


class Counted:
    """Phi that counts the points it sees, forward and backward."""

    def __init__(self) -> None:
        self.points, self.back = 0, 0

    def __call__(self, x):
        self.points += len(x)
        y = torch.stack([x.sin().sum(1), (x * x).sum(1)], 1)
        if y.requires_grad:
            y.register_hook(lambda grad: setattr(self, "back", self.back + len(grad)))
        return y


def wavy(y):
    return y[:, 0] - 0.3 * y[:, 1]


def disc(x, y):
    """Inside a disc of radius 1, and x_0 <= 1/2."""
    return torch.stack([y[:, 1] - 1, x[:, 0] - 0.5], 1)


@pytest.mark.parametrize("steps", [("attack",), DSM, ("attack", *DSM), ("poll",)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("budget", [37, 400])
def test_evaluations_are_counted_exactly(steps, batch, budget):
    phi = Counted()
    found = maximise(
        wavy,
        phi,
        torch.zeros(4),
        constraints=disc,
        scale=10,
        how=Hybrid(steps=steps, batch=batch, multipliers=(1.0, 0.5)),
        evaluations=budget,
    )
    assert found.evaluations == phi.points <= budget
    assert found.evaluations == sum(found.spent.values()) and found.spent["start"] == 1
    assert found.stopped == "radii" or found.evaluations > budget - batch
    assert found.opportunistic <= found.evaluations and (batch > 1 or found.opportunistic == found.evaluations)
    assert found.backwards >= phi.back and ("attack" in steps or found.backwards == 0)
    assert sum(found.won.values()) == len(found.history.values)
    assert all(found.spent[step] == 0 for step in {"attack", *DSM} - set(steps))


def test_the_history_rises_and_says_who_won():
    def run(keep: bool = True):
        flat, how = Counted(), Hybrid(radius=0.05)
        x0 = torch.zeros(3, 2)
        return maximise(wavy, lambda x: flat(x.flatten(1)), x0, how=how, evaluations=200, keep_points=keep)

    found = run()
    history = found.history
    assert (history.values.diff() > 0).all() and (history.evaluations.diff() > 0).all()
    assert history.points.shape == (len(history.steps), 3, 2) and history.steps[0] == "start"
    torch.testing.assert_close(wavy(Counted()(history.points.flatten(1))).double(), history.values, atol=1e-6, rtol=0)
    assert torch.equal(found.x, history.points[-1]) and found.value == float(history.values[-1])
    assert history.reaches(float(history.values[3])) == int(history.evaluations[3])
    assert history.reaches(99.0) is None
    short = run(keep=False)
    assert short.history.points.shape == (1, 3, 2) and torch.equal(short.x, found.x)
    assert torch.equal(short.history.values, history.values)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_along_an_affine_function_is_its_steepest_step(norm):
    g = draw(5, seed=6)
    how = Hybrid(steps=("attack",), norm=norm, radius=0.2)
    found = maximise(lambda y: y[:, 0], lambda x: (x @ g)[:, None], torch.zeros_like(g), how=how, evaluations=2)
    unit = g.sign() if norm == "linf" else g / g.norm()
    torch.testing.assert_close(found.x, 0.2 * unit)
    assert (found.evaluations, found.backwards, found.won["attack"]) == (2, 2, 1)


@pytest.mark.parametrize("steps", [DSM, ("poll",), ("attack", *DSM)])
@pytest.mark.parametrize("kind", ["n+1", "2n"])
def test_a_smooth_problem_is_solved(steps, kind):
    """An ill-conditioned concave quadratic with its maximum inside: every poll set gets there."""
    a = torch.diag(torch.tensor([1.0, 10.0, 0.3]).double())
    best = torch.tensor([0.3, -0.2, 0.6]).double()
    found = maximise(
        lambda y: -y.square().sum(1),
        lambda x: (x - best) @ a,
        torch.ones(3).double(),
        how=Hybrid(steps=steps, poll=kind),
    )
    assert found.stopped == "radii" and found.value > -1e-6
    torch.testing.assert_close(found.x, best, atol=3e-3, rtol=0)


def test_a_direct_search_needs_no_gradient_and_an_attack_says_so():
    def phi(x):
        return torch.from_numpy(-np.abs(x.detach().numpy() - 0.3))

    found = maximise(lambda y: y.sum(1), phi, torch.ones(3), how=Hybrid(steps=DSM))
    torch.testing.assert_close(found.x, torch.full((3,), 0.3), atol=1e-3, rtol=0)
    with pytest.raises(UsageError, match=r"leave the attack out.*covering"):
        maximise(lambda y: y.sum(1), phi, torch.ones(3))


def test_constraints_and_box_are_respected():
    """max x_0 + x_1 in the disc of radius 1 with x_0 <= 1/2 and x_1 <= 3/4: a constraint and the box meet there."""
    found = maximise(
        lambda y: y[:, 0],
        lambda x: torch.stack([x[:, 0] + x[:, 1], x.square().sum(1)], 1),
        torch.zeros(2).double(),
        constraints=disc,
        scale=1000,
        lower=-2.0,
        upper=torch.tensor([2.0, 0.75]),
        evaluations=4000,
    )
    assert float(found.x[1]) <= 0.75 and found.violation < 1e-5
    torch.testing.assert_close(found.x, torch.tensor([0.5, 0.75]).double(), atol=2e-3, rtol=0)
    assert found.value == pytest.approx(found.goal - (1000 * max(found.violation, 0)) ** 2, abs=1e-4)


def test_a_barrier_lets_no_point_through_and_needs_a_feasible_start():
    def run(x0, **options):
        return maximise(
            lambda y: y.sum(1),
            lambda x: x,
            torch.tensor(x0).double(),
            constraints=lambda x, y: x.square().sum(1) - 1,
            scale=30,
            how=Hybrid(radius=0.05),
            evaluations=600,
            **options,
        )

    assert 0 < run([0.1, 0.6]).violation < 1e-3  # the penalised maximum: 900 * 2 c dc = df
    kept = run([0.1, 0.6], barrier=True)
    assert (kept.history.violations <= 0).all() and torch.equal(kept.history.values, kept.history.goals)
    assert 2**0.5 - kept.value < 1e-4
    with pytest.raises(UsageError, match=r"cannot start.*constraints <= 0.*largest constraint 1\.0"):
        run([1.0, 1.0], barrier=True)


def test_the_penalty_is_the_published_one():
    problem = Penalised.of(wavy, Counted(), torch.zeros(2).double(), disc, 7.0, False, None, None)
    x = draw(20, 2, seed=9)
    y = Counted()(x)
    expected = wavy(y) - (7 * disc(x, y).relu()).square().sum(1)
    found = problem.evaluate(x, graph=True)
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(found.violations, disc(x, y).amax(1))
    leaf = x.clone().requires_grad_()
    y = Counted()(leaf)
    (grad,) = torch.autograd.grad((wavy(y) - (7 * disc(leaf, y).relu()).square().sum(1)).sum(), leaf)
    torch.testing.assert_close(found.gradient(11), grad[11])


def test_a_correction_solves_a_linear_constraint_exactly():
    a = draw(4, seed=2)
    problem = Penalised.of(
        lambda y: y.sum(1),
        lambda x: x,
        torch.zeros(4).double(),
        lambda x, y: (x @ a - 1)[:, None],
        1.0,
        False,
        None,
        None,
    )
    point = (3 * a / (a @ a))[None]
    found = problem.evaluate(point, graph=True)
    assert float(found.violations) == pytest.approx(2)
    torch.testing.assert_close((point[0] + found.restoration(0)) @ a, torch.tensor(1.0).double())


def test_corrections_slide_along_a_curved_boundary():
    """max x_0 + 0.2 x_1 outside no circle of radius 1: an attack leaves it at once, a corrected one follows it."""

    def value(corrections: int) -> float:
        how = Hybrid(steps=("attack",), radius=0.05, norm="l2", corrections=corrections)
        return maximise(
            lambda y: y[:, 0] + 0.2 * y[:, 1],
            lambda x: x,
            torch.tensor([0.0, -0.9]).double(),
            constraints=lambda x, y: x.square().sum(1)[:, None] - 1,
            scale=1000,
            how=how,
            evaluations=300,
        ).value

    best = (1 + 0.2**2) ** 0.5
    assert best - value(2) < 1e-3 < 0.05 < best - value(0)


def test_both_norms_pass_where_one_is_stuck():
    """On x_0 + x_1 <= 1 the step (r, r) is normal to the constraint: pulled back, it ends where it began."""

    def value(norm: str) -> float:
        return maximise(
            lambda y: y @ torch.tensor([1.0, 0.5]).double(),
            lambda x: x,
            torch.full((2,), 0.3).double(),
            constraints=lambda x, y: x.sum(1) - 1,
            barrier=True,
            lower=0.0,
            upper=1.0,
            how=Hybrid(steps=("attack",), norm=norm),
            evaluations=400,
        ).value

    assert value("linf") == pytest.approx(0.75, abs=1e-6)
    assert value("both") == pytest.approx(1.0, abs=1e-4)


def test_seeds_repeat_and_differ_and_the_global_generator_is_left_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()

    def run(seed: int):
        return maximise(wavy, Counted(), torch.zeros(3), evaluations=150, seed=seed).history.points

    assert torch.equal(run(0), run(0))
    assert run(0).shape != run(1).shape or not torch.equal(run(0), run(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_in_training_mode_is_evaluated_and_left_as_it_was():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    maximise(lambda y: -y[:, 0].square(), net, torch.zeros(3), evaluations=40)
    assert net.training and all(p.grad is None and p.requires_grad for p in net.parameters())


def same(one, other) -> bool:
    plain = ("value", "goal", "violation", "evaluations", "opportunistic", "backwards", "spent", "won", "stopped")
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and torch.equal(one.history.points, other.history.points)
        and torch.equal(one.history.evaluations, other.history.evaluations)
        and one.history.steps == other.history.steps
    )


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("steps", [DSM, ("attack", *DSM)])
def test_a_stopped_search_goes_on_bit_for_bit(tmp_path, steps, keep, batch):
    def run(budget, file=None):
        how = Hybrid(radius=0.03, steps=steps, batch=batch)
        return maximise(
            wavy,
            Counted(),
            draw(5).float(),
            constraints=disc,
            scale=30,
            how=how,
            evaluations=budget,
            keep_points=keep,
            checkpoint=file,
            every=3,
        )

    whole, file = run(200), tmp_path / "search.safetensors"
    for budget in (1, 2, 40, 41, 155):
        assert run(budget, file).evaluations <= budget
    assert same(run(200, file), whole)
    assert same(run(200, file), whole)


class Killed(Exception):
    pass


def test_a_search_killed_inside_phi_goes_on_bit_for_bit(tmp_path):
    def dying(x):
        if phi.points > 61:
            raise Killed
        return phi(x)

    file, phi = tmp_path / "search.safetensors", Counted()
    arguments = {"constraints": disc, "evaluations": 200, "how": Hybrid(radius=0.03)}
    with pytest.raises(Killed):
        maximise(wavy, dying, torch.zeros(3), checkpoint=file, every=1, **arguments)
    resumed = maximise(wavy, phi := Counted(), torch.zeros(3), checkpoint=file, **arguments)
    assert same(resumed, maximise(wavy, Counted(), torch.zeros(3), **arguments))
    assert phi.points < 150
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_saved_search_refuses_another_and_a_damaged_file(tmp_path):
    file = tmp_path / "search.safetensors"
    maximise(wavy, Counted(), torch.zeros(3), evaluations=50, checkpoint=file)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(file, copy)
    for change, name in (({"seed": 1}, "seed"), ({"scale": 2.0}, "scale"), ({"how": Hybrid(radius=0.2)}, "radius")):
        with pytest.raises(UsageError, match=f"another one.*{name}="):
            maximise(wavy, Counted(), torch.zeros(3), evaluations=50, checkpoint=file, **change)
    with pytest.raises(UsageError, match="x0"):
        maximise(wavy, Counted(), torch.ones(3), evaluations=50, checkpoint=file)
    for content in (b"", b"nonsense", copy.read_bytes()[:200]):
        copy.write_bytes(content)
        with pytest.raises(UsageError, match="cannot read a saved search"):
            maximise(wavy, Counted(), torch.zeros(3), evaluations=50, checkpoint=copy)


@pytest.mark.parametrize("how", [Hybrid(), Hybrid(steps=("covering",)), Hybrid(steps=("attack",))])
def test_searches_without_anywhere_to_go_end(how):
    """A box of one point, and a function that is flat."""
    closed = maximise(wavy, Counted(), torch.zeros(3), lower=0.0, upper=0.0, how=how, evaluations=500)
    assert (closed.stopped, closed.evaluations, len(closed.history.values)) == ("radii", 1, 1)
    flat = maximise(lambda y: 0 * y[:, 0], Counted(), torch.zeros(3), how=how, evaluations=500)
    assert flat.evaluations <= 500 and len(flat.history.values) == 1


def test_points_where_phi_is_not_finite_are_never_accepted():
    found = maximise(
        lambda y: y[:, 0], lambda x: (1 - x.abs().sum(1)).log()[:, None] + x, torch.zeros(2), evaluations=300
    )
    assert np.isfinite(found.value) and float(found.x.abs().sum()) < 1
    with pytest.raises(UsageError, match="cannot start here"):
        maximise(lambda y: y[:, 0], lambda x: x.log(), torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": torch.tensor([0.0, torch.nan])}, "x0"),
        ({"x0": torch.zeros(2, dtype=torch.long)}, "floating-point"),
        ({"x0": torch.zeros(0)}, "x0"),
        ({"lower": 0.5}, r"2 variables outside"),
        ({"upper": torch.zeros(3)}, "upper does not fit"),
        ({"upper": torch.nan}, "NaN"),
        ({"scale": -1.0}, "scale"),
        ({"evaluations": 0}, "evaluations"),
        ({"every": 0}, "every"),
        ({"f": lambda y: y.sum()}, "one number per point"),
        ({"f": lambda y: 3.0}, "one number per point"),
        ({"constraints": lambda x, y: y.sum()}, "one row per point"),
        ({"constraints": lambda x, y: None}, "one row per point"),
    ],
)
def test_bad_problems_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        maximise(**{"f": wavy, "phi": Counted(), "x0": torch.zeros(2), "evaluations": 20, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ("attack", "pol")}, "Did you mean poll"),
        ({"steps": ()}, "at least one"),
        ({"norm": "l1"}, "norm"),
        ({"poll": "3n"}, "poll"),
        ({"radius": 0.0}, "radius"),
        ({"attack_radii": (1.0, 0.1)}, "attack_radii"),
        ({"poll_radii": (0.0, 0.1)}, "poll_radii"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1.0, -1.0)}, "multipliers"),
        ({"grow": 0.9}, "grow"),
        ({"shrink": 1.0}, "shrink"),
        ({"poll_factor": 1.0}, "poll_factor"),
        ({"min_gain": -1.0}, "min_gain"),
        ({"corrections": -1}, "corrections"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        Hybrid(**options)
