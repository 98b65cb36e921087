"""What every attack that is made for pixels promises, tried on all of them, with a few general ones beside."""

from __future__ import annotations

import pytest
import torch

from robustkit.core.attack import ATTACKS
from robustkit.core.specs import MethodSpec
from robustkit.core.threat import L1, L2, Linf
from tests.dense import regression, segmentation

THREATS = {"linf": Linf(0.05), "l2": L2(0.5), "l1": L1(3.0)}
TASKS = {"segmentation": segmentation, "regression": lambda **options: regression(2, **options)}
GENERAL = ("fgsm", "pgd", "pgd:loss=cospgd", "apgd:loss=cospgd,steps=20")
"""Attacks for any task that are held to the same."""


def cases() -> list[tuple[str, str]]:
    made = [(name, task) for name in ATTACKS.names() for task in ATTACKS.get(name).cls.tasks if task in TASKS]
    return made + [(name, task) for name in GENERAL for task in TASKS]


@pytest.fixture(params=cases(), ids="-".join)
def case(request):
    return request.param


def attack(text: str, norm: str = "linf", **options):
    spec = MethodSpec.parse(text)
    return ATTACKS.get(spec.name).build({**spec.options, **options}).with_threat(THREATS[norm])


def test_the_attacks_for_pixels_are_here():
    assert {("cospgd", "segmentation"), ("cospgd", "regression"), ("segpgd", "segmentation")} <= set(cases())


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sample_gets_a_point_in_threat_and_bounds_and_success_is_true(case, norm, dtype):
    name, task = case
    model, x, y = TASKS[task](dtype=dtype)
    found = attack(name, norm)(model, x, y)
    assert found.adversarial.dtype == dtype and found.adversarial.shape == x.shape
    assert (found.adversarial >= 0).all() and (found.adversarial <= 1).all()
    far = THREATS[norm].distance(found.adversarial.double(), x.double())
    assert (far <= THREATS[norm].eps * (1 + 1e-6) + 1e-7).all() and (far > 0).all()
    torch.testing.assert_close(found.distance, THREATS[norm].distance(found.adversarial, x))
    with model.frozen():
        assert torch.equal(model.task.failed(model(found.adversarial), y), found.success)
    assert (found.first_success_step[found.success] >= 0).all()
    assert (found.first_success_step[~found.success] == -1).all() and not found.silent.any()


@pytest.mark.parametrize("norm", THREATS)
def test_it_hurts_more_than_nothing_and_more_than_its_last_iterate(case, norm):
    name, task = case
    model, x, y = TASKS[task]()
    found = attack(name, norm)(model, x, y)
    with model.frozen():
        clean, last, worst = (model.task.harm(model(p), y) for p in (x, found.last, found.adversarial))
    assert (worst > clean).float().mean() >= 0.8
    assert ((worst >= last - 1e-12) | found.success).all()


def test_more_restarts_never_hurt_less(case):
    name, task = case
    if "restarts" not in ATTACKS.get(MethodSpec.parse(name).name).cls.__dataclass_fields__:
        pytest.skip("no restarts")
    model, x, y = TASKS[task](**({"fraction": 1.0} if task == "segmentation" else {"tolerance": 1e9}))
    once, often = (attack(name, restarts=r, steps=4)(model, x, y) for r in (1, 3))
    with model.frozen():
        assert (model.task.harm(model(often.adversarial), y) >= model.task.harm(model(once.adversarial), y)).all()
    assert torch.equal(often.forwards, 3 * once.forwards)


def test_leaves_no_trace(case):
    name, task = case
    model, x, y = TASKS[task](dtype=torch.float32)
    net = model.net
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes, copies, rng = [m.training for m in net.modules()], (x.clone(), y.clone()), torch.get_rng_state()
    attack(name)(model, x, y)
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])


def test_row_by_row_and_again(case):
    """Keyed draws: on a float64 network, a sample alone and in a batch end at the same place, every time."""
    name, task = case
    model, x, y = TASKS[task]()
    ids = torch.tensor([11, 5, 8, 2, 30])
    whole, again = (attack(name)(model, x, y, ids=ids, seed=7) for _ in range(2))
    assert torch.equal(whole.adversarial, again.adversarial)
    for i in range(len(x)):
        alone = attack(name)(model, x[i : i + 1], y[i : i + 1], ids=ids[i : i + 1], seed=7)
        torch.testing.assert_close(alone.adversarial[0], whole.adversarial[i], rtol=0, atol=1e-9)


def test_towards_a_target(case):
    name, task = case
    model, x, y = TASKS[task]()
    target = torch.where(y == 255, y, model(x).topk(2, 1).indices[:, 1]) if task == "segmentation" else y + 0.5
    found = attack(name)(model, x, y, target=target)
    with model.frozen():
        before, after = (model.task.harm(model(p), target) for p in (x, found.adversarial))
        assert torch.equal(~model.task.failed(model(found.adversarial), target), found.success)
    assert (after < before).all()


def test_small_batches_of_the_network_change_nothing(case):
    """The network in slices, as when memory runs out."""
    name, task = case
    model, x, y = TASKS[task]()
    whole = attack(name)(model, x, y)
    model.chunk = 2
    sliced = attack(name)(model, x, y)
    torch.testing.assert_close(sliced.adversarial, whole.adversarial, rtol=0, atol=1e-9)


def test_nothing_to_attack(case):
    name, task = case
    model, x, y = TASKS[task]()
    found = attack(name)(model, x[:0], y[:0])
    assert len(found.adversarial) == 0 and found.cost.forwards == 0
