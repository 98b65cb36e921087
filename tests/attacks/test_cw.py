"""CW against a slow version written from the paper, closed forms, and the faults that others have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkit.attacks.cw import CW
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L2
from robustkit.testing import Bowl, HalfSpace


class Net(nn.Module):
    """Smooth, four classes; ``shift`` is added to all logits."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, 12, generator=g, dtype=torch.double))
        self.b = nn.Parameter(torch.randn(4, 20, generator=g, dtype=torch.double))
        self.shift = shift

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a.T) @ self.b.T + self.shift


def problem(n: int = 6, low: float = 0.0, high: float = 1.0, shift: float = 0.0):
    x = low + (high - low) * torch.rand(n, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    model = wrap(Net(shift), bounds=(low, high))
    return model, x, model(x).argmax(1)


def lead(model, x, y, target=None):
    """By how much the best wrong logit exceeds that of y, or that of the target all others, (N,)."""
    logits = model(x)
    label = y if target is None else target
    own = logits.gather(1, label[:, None])[:, 0]
    others = logits.masked_fill(nn.functional.one_hot(label, logits.shape[1]).bool(), -torch.inf).amax(1)
    return others - own if target is None else own - others


def slow_cw(
    model, x, y, *, target=None, search_steps, steps, c=1e-3, lr=0.01, kappa=0.0, abort=True, low=0.0, high=1.0
):
    """One sample x (*S), straight from the paper with torch's Adam and a graph through tanh.

    Returns the closest adversarial point (x where there is none), its distance, and the gradients taken.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    goal = None if target is None else target[None]
    best, nearest, taken, lower, upper = x, float("inf"), 0, 0.0, 1e10
    for turn in range(search_steps):
        if search_steps >= 10 and turn == search_steps - 1:
            c = upper
        w = torch.atanh((x - middle) / half * (1 - 1e-6)).requires_grad_()
        adam = torch.optim.Adam([w], lr=lr)
        before, broken = float("inf"), False
        for step in range(steps):
            adv = middle + half * torch.tanh(w)
            margin = lead(model, adv[None], y[None], goal)[0]
            square = (adv - x).square().sum()
            loss = square + c * torch.clamp(kappa - margin, min=0)
            distance, value = float(square.detach()) ** 0.5, float(loss.detach())
            taken += 1
            if margin > 0 and margin >= kappa:
                broken = True
                if distance < nearest:
                    best, nearest = adv.detach(), distance
            if abort and step % -(-steps // 10) == 0:
                if value > before * 0.9999:
                    break
                before = value
            adam.zero_grad()
            loss.backward()
            adam.step()
        if broken:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        c = (lower + upper) / 2 if upper < 1e9 else c * 10
    return best, nearest, taken


@pytest.mark.parametrize("options", [{}, {"kappa": 0.4}, {"low": -1.0, "high": 1.0}, {"abort": False}, {"lr": 0.05}])
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_the_paper_step_by_step(options, targeted):
    low, high = options.get("low", 0.0), options.get("high", 1.0)
    model, x, y = problem(3, low=low, high=high)
    target = (y + 1) % 4 if targeted else None
    names = {"kappa": "confidence", "abort": "abort_early", "lr": "lr"}
    own = {names[key]: value for key, value in options.items() if key in names}
    found = CW(search_steps=6, steps=40, initial_c=0.05, **own)(model, x, y, target=target)
    assert found.success.any()
    for i in range(len(x)):
        goal = None if target is None else target[i]
        best, nearest, taken = slow_cw(model, x[i], y[i], target=goal, search_steps=6, steps=40, c=0.05, **options)
        assert float(found.minimum[i]) == pytest.approx(nearest, abs=2e-6)
        torch.testing.assert_close(found.adversarial[i], best, atol=2e-6, rtol=0)
        assert int(found.backwards[i]) == taken


def test_the_last_of_ten_search_steps_takes_the_upper_end():
    model, x, y = problem(2)
    found = CW(search_steps=10, steps=20)(model, x, y)
    for i in range(len(x)):
        assert float(found.minimum[i]) == pytest.approx(
            slow_cw(model, x[i], y[i], search_steps=10, steps=20)[1], abs=2e-6
        )


def test_distance_of_a_half_space_and_of_a_bowl():
    net = HalfSpace((1, 6, 6), seed=2).double()
    x = 0.5 + 0.02 * torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    found = CW(search_steps=6, steps=250, lr=0.005, initial_c=0.01)(model, x, y)
    assert found.success.all()
    torch.testing.assert_close(found.minimum, net.distance(x, "l2"), atol=1e-3, rtol=1e-3)
    assert (found.minimum >= net.distance(x, "l2") * (1 - 1e-9)).all()
    bowl = wrap(Bowl(0.3).double())
    found = CW(search_steps=6, steps=250, lr=0.005, initial_c=0.01)(bowl, x, bowl(x).argmax(1))
    exact = ((x - 0.5).flatten(1).norm(dim=1) - bowl.net.radius.item()).abs()
    torch.testing.assert_close(found.minimum, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_at_the_bounds_move(dtype):
    """A fault of others: w is infinite there, and such a pixel never moves."""
    net = HalfSpace((64,), seed=1).to(dtype)
    x = (torch.rand(6, 64, generator=torch.Generator().manual_seed(2)) < 0.5).to(dtype)
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    slow = CW(search_steps=3, steps=900, initial_c=1.0)(model, x, y)  # hundreds of steps in which nothing is seen
    found = CW(search_steps=5, steps=100, initial_c=1.0, lr=0.1)(model, x, y)
    assert slow.success.all() and found.success.all()
    assert ((found.adversarial - x).abs().amax(1) > 0.05).all()


def test_negative_logits_change_nothing():
    """A fault of others: multiplied by the one-hot label instead of masked, logits below zero read as zero."""
    model, x, y = problem()
    below, *_ = problem(shift=-50.0)
    assert (below(x) < 0).all()
    one, two = (CW(search_steps=5, steps=50, initial_c=0.1)(net, x, y) for net in (model, below))
    assert one.success.any()
    torch.testing.assert_close(one.minimum, two.minimum, atol=1e-9, rtol=0)


def test_a_sample_ends_the_same_alone_and_in_a_batch():
    """A fault of others: one sum over the batch decides when all of it stops."""
    model, x, y = problem(12)
    attack = CW(search_steps=6, steps=60, initial_c=0.01)
    whole = attack(model, x, y)
    spent = set(whole.backwards.tolist())
    assert len(spent) > 3  # samples left at different times
    for i in range(len(x)):
        alone = attack(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(whole.adversarial[i], alone.adversarial[0], atol=1e-9, rtol=0)
        assert int(whole.backwards[i]) == int(alone.backwards[0]) and int(whole.forwards[i]) == int(alone.forwards[0])


def test_abort_saves_passes_and_loses_little():
    model, x, y = problem(12)
    full = CW(search_steps=6, steps=100, initial_c=0.01, abort_early=False)(model, x, y)
    short = CW(search_steps=6, steps=100, initial_c=0.01)(model, x, y)
    assert short.cost.backwards < 0.9 * full.cost.backwards
    assert torch.equal(short.success, full.success)
    assert (short.minimum[short.success] <= full.minimum[full.success] * 1.02).all()


def test_cost_is_exact():
    model, x, y = problem()
    found = CW(search_steps=3, steps=17, abort_early=False)(model, x, y)
    assert found.backwards.tolist() == [3 * 17] * len(x)
    assert torch.equal(found.forwards, 3 * 17 + found.success.long())
    assert (found.cost.forwards, found.cost.backwards) == (int(found.forwards.sum()), 3 * 17 * len(x))


def test_failure_returns_the_clean_input():
    model, x, y = problem()
    found = CW(search_steps=1, steps=2, initial_c=1e-6)(model, x, y)
    assert not found.success.any()
    assert torch.equal(found.adversarial, x)
    assert found.minimum.isinf().all() and (found.distance == 0).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kappa", [0.5, 1.5])
def test_confidence_is_part_of_the_verdict(kappa, targeted):
    """A fault of others: they ask for kappa and accept less."""
    model, x, y = problem()
    target = (y + 2) % 4 if targeted else None
    plain = CW(search_steps=5, steps=60, initial_c=0.1, lr=0.03)(model, x, y, target=target)
    sure = CW(search_steps=5, steps=60, initial_c=0.1, lr=0.03, confidence=kappa)(model, x, y, target=target)
    won = sure.success
    assert won.any()
    assert (lead(model, sure.adversarial, y, target)[won] >= kappa).all()
    assert (sure.minimum > plain.minimum)[won].all()
    assert (lead(model, plain.adversarial, y, target) < kappa)[plain.success].any()


def test_an_input_that_is_wrong_already_is_at_distance_zero():
    model, x, y = problem()
    wrong = (y + 1) % 4
    found = CW(search_steps=2, steps=5)(model, x, wrong)
    assert found.success.all() and (found.minimum == 0).all() and torch.equal(found.adversarial, x)


def test_inside_a_threat_only_near_points_count_and_samples_may_stop_there():
    model, x, y = problem(8)
    free = CW(search_steps=6, steps=80, initial_c=0.01)(model, x, y)
    eps = float(free.minimum.median())
    held = CW(search_steps=6, steps=80, initial_c=0.01, threat=L2(eps))(model, x, y)
    assert torch.equal(held.success, free.minimum <= eps) and torch.equal(held.minimum, free.minimum)
    quick = CW(search_steps=6, steps=80, initial_c=0.01, threat=L2(eps), stop_inside=True)(model, x, y)
    assert torch.equal(quick.success, held.success)
    assert quick.cost.backwards < held.cost.backwards


def test_half_precision_keeps_the_variable_in_single():
    net = HalfSpace((4, 8), seed=2).bfloat16()
    x = (0.5 + 0.05 * torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(1))).bfloat16()
    model = wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    found = CW(search_steps=6, steps=100)(model, x, y)
    assert found.adversarial.dtype == torch.bfloat16 and found.success.any()


def test_other_norms_are_refused():
    model, x, y = problem(1)
    from robustkit.core.threat import Linf

    with pytest.raises(UsageError, match="does not work in this norm"):
        CW(threat=Linf(0.1))(model, x, y)
