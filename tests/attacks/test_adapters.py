"""Attacks of other libraries: what they are handed, and that verdict, bounds and count are ours whatever they do.

Most of it is held against libraries made up here, so that no peer need be installed; the peers themselves follow where
they are.
"""

from __future__ import annotations

import random
import sys
import types
from importlib.metadata import distributions

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import robustkit as rk
from robustkit.attacks.art_adapter import ART
from robustkit.attacks.foolbox_adapter import Foolbox
from robustkit.core.attack import ATTACKS
from robustkit.core.errors import UsageError
from robustkit.core.seen import settled
from robustkit.core.specs import MethodSpec
from robustkit.core.threat import L1, L2, Linf
from robustkit.core.types import Bounds
from robustkit.run.config import load_config
from robustkit.run.plan import build_attacks, label_of
from robustkit.testing import HalfSpace

SHAPE, N, CLASSES = (1, 4, 4), 7, 5
MADE: list = []
"""Every attack of a made-up library, newest last."""


class Net(nn.Module):
    """Linear, five classes, with everything that a careless library disturbs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(16, CLASSES), nn.BatchNorm1d(CLASSES), nn.Dropout(0.5)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(0)))
            self.layer.bias.copy_(-self.layer.weight.sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.dropout(x.flatten(1))))


def problem(**options):
    """A model, samples and the model's own answers as labels."""
    model = rk.wrap(Net(), **options)
    share = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1))
    x = model.bounds.low + model.bounds.width * (0.3 + 0.4 * share)
    with model.frozen():
        return model, x, model(x).argmax(1)


# -- a made-up torchattacks ------------------------------------------------------------------------------------------


class Base:
    """What the classes of torchattacks have in common."""

    def keep(self, model, **given) -> None:
        self.model, self.given, self.targeted, self.seen = model, given, False, []
        self.device = next(model.parameters()).device
        MADE.append(self)

    def set_mode_targeted_by_label(self, quiet=False) -> None:
        assert quiet
        self.targeted = True

    def __call__(self, x, y):
        self.seen.append((x, y))
        return self.forward(x.clone(), y)


class Sign(Base):
    """Steps along the sign of the gradient.

    Distance Measure : Linf, L2
    """

    def __init__(self, model, norm="none", eps=8 / 255, steps=3, n_classes=10, seed=None) -> None:
        self.keep(model, norm=norm, eps=eps, steps=steps, n_classes=n_classes, seed=seed)

    def forward(self, x, y):
        adv, eps = x, self.given["eps"]
        for _ in range(self.given["steps"]):
            adv = adv.detach().requires_grad_()
            loss = nn.functional.cross_entropy(self.model(adv), y)
            (grad,) = torch.autograd.grad(-loss if self.targeted else loss, adv)
            adv = (x + (adv + eps / 2 * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        return adv


class Given(Base):
    """Returns what the test says, as a function of x, within no radius."""

    answer = staticmethod(lambda model, x, y: x)

    def __init__(self, model) -> None:
        self.keep(model)

    def forward(self, x, y):
        return type(self).answer(self.model, x, y)


class Sized(Given):
    """The same, with a radius."""

    def __init__(self, model, eps=8 / 255) -> None:
        self.keep(model, eps=eps)


class Euclid(Sized):
    """Distance Measure : L2"""


class Untargeted(Given):
    """Cannot aim."""

    def set_mode_targeted_by_label(self, quiet=False) -> None:
        raise ValueError("Targeted mode is not supported.")


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """The made-up libraries, where nobody has asked for the real ones."""
    MADE.clear()
    fake = types.ModuleType("torchattacks")
    for cls in (Sign, Given, Sized, Euclid, Untargeted):
        setattr(fake, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "torchattacks", fake)
    monkeypatch.setattr(Given, "answer", Given.answer)


def answer(function) -> None:
    """What Given and Sized return from now on: a function of the model, x in [0, 1] and y."""
    Given.answer = staticmethod(function)


def attack(text: str, threat=None):
    return build_attacks([text], threat or Linf(0.1))[0]


def run(text: str, threat=None, model=None, **options):
    net, x, y = problem()
    return attack(text, threat)(model or net, x, y, **options)


# -- what is handed over ---------------------------------------------------------------------------------------------


def test_radius_norm_classes_and_seed_are_handed_over_and_what_is_given_wins():
    run("torchattacks:Sign", Linf(0.1))
    first = MADE[-1].given
    assert first["eps"] == pytest.approx(0.1) and first["norm"] == "Linf" and first["n_classes"] == CLASSES
    assert isinstance(first["seed"], int) and first["steps"] == 3
    run("torchattacks:Sign,eps=8/255,steps=2,norm=L2", L2(0.5))
    assert MADE[-1].given == {**first, "eps": 8 / 255, "norm": "L2", "steps": 2, "seed": MADE[-1].given["seed"]}


def test_the_library_sees_images_in_0_1_whatever_the_bounds():
    """The same network behind another range: the same points, in the other units."""
    wide, x, y = problem(bounds=(-1.0, 3.0))
    plain = rk.wrap(lambda z: wide.module.eval()(z * 4 - 1))
    there = attack("torchattacks:Sign", Linf(0.4))(wide, x, y)
    seen, labels = MADE[-1].seen[0]
    assert seen.min() >= 0 and seen.max() <= 1 and torch.equal(labels, y)
    assert MADE[-1].given["eps"] == pytest.approx(0.1)
    here = attack("torchattacks:Sign", Linf(0.1))(plain, (x + 1) / 4, y)
    torch.testing.assert_close(there.adversarial, here.adversarial * 4 - 1, rtol=0, atol=1e-5)
    assert torch.equal(there.success, here.success) and there.success.any()
    assert (there.distance <= 0.4).all()


def test_pixels_that_were_not_moved_stay_bit_for_bit():
    model, x, y = problem(bounds=(-1.0, 2.0))

    def one_pixel(_, z, __):
        z[:, 0, 0, 0] = 1
        return z

    answer(one_pixel)
    moved = attack("torchattacks:Given", Linf(3.0))(model, x, y).last
    assert (moved[:, 0, 0, 0] == 2).all()
    assert torch.equal(moved.flatten(1)[:, 1:], x.flatten(1)[:, 1:])


def test_double_precision():
    model, x, y = problem()
    model = rk.wrap(Net().double())
    found = attack("torchattacks:Sign")(model, x.double(), y)
    assert found.adversarial.dtype == torch.float64 and MADE[-1].seen[0][0].dtype == torch.float64


@pytest.mark.parametrize(("threat", "what"), [(Linf(torch.tensor([0.1] * 6 + [0.2])), "one radius"), (Linf(0.1), "")])
def test_one_radius_for_all(threat, what):
    if what:
        with pytest.raises(UsageError, match=what):
            run("torchattacks:Sign", threat)
    same = run("torchattacks:Sign", Linf(torch.full((N,), 0.1)))
    assert torch.equal(same.adversarial, run("torchattacks:Sign", Linf(0.1)).adversarial)


def test_a_radius_of_zero_asks_nobody():
    found = run("torchattacks:Sign", Linf(0.0))
    assert not MADE and not found.success.any() and found.cost.forwards == N


# -- the count -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"eot": 3}])
def test_every_pass_is_counted_once(options):
    model, x, y = problem(**options)
    found = attack("torchattacks:Sign,steps=4")(model, x, y)
    assert int(found.forwards.sum()) * model.eot == found.cost.forwards
    assert int(found.backwards.sum()) * model.eot == found.cost.backwards == 4 * N * model.eot
    assert found.cost.forwards == (4 * N + N + int(found.success.sum())) * model.eot  # and the verdict, twice if won


def test_uneven_passes_are_spread_evenly():
    def few(model, x, y):
        for k in (3, 4, 2):
            model(x[:k])  # no gradient asked for, none counted
        z = x[:5].requires_grad_()
        outputs = model(z)
        for column in range(2):
            torch.autograd.grad(outputs[:, column].sum(), z, retain_graph=True)
        return x

    answer(few)
    found = run("torchattacks:Given")
    assert found.cost.forwards == 14 + N and found.cost.backwards == 10
    assert found.forwards.tolist() == [3] * N and found.backwards.tolist() == [2, 2, 2, 1, 1, 1, 1]


# -- the verdict -----------------------------------------------------------------------------------------------------


def test_the_network_is_asked_not_the_library():
    """The same image for all: wrong for some, right for others, and far from everybody."""
    answer(lambda model, x, y: torch.zeros_like(x))
    model, x, y = problem()
    with model.frozen():
        wrong = model(torch.zeros_like(x)).argmax(1) != y
    assert wrong.any() and not wrong.all()
    far = attack("torchattacks:Given", Linf(0.1))(model, x, y)
    assert not far.success.any() and torch.equal(far.adversarial, x) and (far.distance == 0).all()
    assert torch.equal(far.minimum.isfinite(), wrong)
    assert torch.equal(far.minimum[wrong], x.flatten(1).amax(1)[wrong])
    near = attack("torchattacks:Given", Linf(0.9))(model, x, y)
    assert torch.equal(near.success, wrong) and (near.adversarial[wrong] == 0).all()
    assert torch.equal(near.first_success_step >= 0, wrong) and not near.silent.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_the_clean_input(value):
    answer(lambda model, x, y: torch.where(torch.arange(N).view(-1, 1, 1, 1) == 2, value, x))
    found = run("torchattacks:Given")
    assert found.last.isfinite().all() and found.adversarial.isfinite().all() and not found.success.any()


def test_points_are_brought_into_the_bounds():
    answer(lambda model, x, y: x + 5)
    assert (run("torchattacks:Given", Linf(1.0)).last == 1).all()


def test_another_shape_is_refused():
    answer(lambda model, x, y: x[:-1])
    with pytest.raises(UsageError, match="another shape"):
        run("torchattacks:Given")


@given(
    kind=st.sampled_from([Linf, L2, L1]),
    eps=st.floats(1e-4, 0.25),
    over=st.floats(1e-7, 9e-6),
    seed=st.integers(0, 99),
    wide=st.booleans(),
)
def test_points_outside_by_rounding_are_put_back(kind, eps, over, seed, wide):
    bounds = Bounds(-1.0, 2.0) if wide else Bounds()
    g = torch.Generator().manual_seed(seed)
    x = bounds.low + bounds.width * (0.5 + 0.1 * torch.rand(5, 3, 4, generator=g))
    delta = torch.randn(5, 3, 4, generator=g)
    length = torch.linalg.vector_norm(delta.flatten(1), ord=kind.p, dim=1).view(-1, 1, 1)
    threat = kind(eps)
    adv = x + delta / length * eps * (1 + over)
    adv[4] = x[4] + (delta / length)[4] * eps * 1.5  # this one is outside by more
    inside = threat.distance(adv, x) <= eps
    found = settled(adv, x, threat, bounds)
    distance = threat.distance(found, x)
    assert (distance[:4] <= eps).all() and (distance[:4] >= eps * (1 - 1e-2)).all() and distance[4] > eps * 1.4
    assert torch.equal(found[inside], adv[inside])


def test_a_point_that_keeps_to_the_radius_counts():
    """On the boundary, where x + eps - x is more than eps in half of all cases."""
    net = HalfSpace((1, 6, 6), seed=2)
    x = 0.3 + 0.4 * torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    model = rk.wrap(net)
    with model.frozen():
        y = model(x).argmax(1)
    eps = float(net.distance(x, "linf").max()) * 1.01
    found = attack("torchattacks:Sign,n_classes=2", Linf(eps))(model, x, y)
    assert found.success.all() and (found.distance <= eps).all()


# -- another norm, another radius ------------------------------------------------------------------------------------


def test_a_norm_that_is_not_the_declared_one_is_refused_before_anything_runs():
    with pytest.raises(UsageError, match=r"Euclid of torchattacks works in another norm.*threat in l2, got linf:0.1"):
        attack("torchattacks:Euclid", Linf(0.1))
    with pytest.raises(UsageError, match="threat in l2"):
        attack("torchattacks:Sign,norm=L2", Linf(0.1))
    with pytest.raises(UsageError, match="threat in linf or l2"):
        attack("torchattacks:Sign", L1(0.1))
    assert not MADE


def test_points_that_leave_the_threat_are_refused_with_where_they_fit():
    answer(lambda model, x, y: x + 0.1)
    with pytest.raises(UsageError, match=r"7 of 7 outside; they fit in linf:0.1, l2:0.4, l1:1.6"):
        run("torchattacks:Sized", L2(0.1))
    with pytest.raises(UsageError, match="does not search in the threat"):
        run("torchattacks:Sized,eps=0.1", Linf(0.05))


def test_points_in_a_much_smaller_ball_are_refused():
    """Steps of l2 length 0.1 in an l-infinity ball of 0.1: honest points, and a figure that says nothing."""
    answer(lambda model, x, y: x + 0.1 / 4)
    with pytest.raises(UsageError, match=r"keep to l2 of the same radius.*linf:0.025, l2:0.1"):
        run("torchattacks:Sized", Linf(0.1))
    assert run("torchattacks:Given", Linf(0.1)).minimum is not None  # it never was given a radius


def test_steps_that_cannot_reach_the_radius_are_refused():
    """Three steps of 0.01 in a ball of 0.1 break little, and say little about that ball."""
    answer(lambda model, x, y: x + 0.03)
    with pytest.raises(
        UsageError, match=r"most of the threat unsearched: expected points up to linf:0.1, got none.*0.03"
    ):
        run("torchattacks:Sized", Linf(0.1))
    for reach in (0.0, 0.06):  # what was given back unmoved has failed, too, but not for want of reach
        answer(lambda model, x, y, reach=reach: x + reach)
        assert not run("torchattacks:Sized", Linf(0.1)).silent.any()


def test_a_few_points_outside_do_not_count_and_do_no_harm():
    answer(lambda model, x, y: x + torch.where(torch.arange(N).view(-1, 1, 1, 1) < 2, 0.3, 0.1))
    found = run("torchattacks:Sized", Linf(0.1))
    assert not found.success[:2].any() and (found.distance <= 0.1).all()


# -- targets ---------------------------------------------------------------------------------------------------------


def test_targets():
    model, x, y = problem()
    target = (y + 1) % CLASSES
    found = attack("torchattacks:Sign,steps=9", Linf(0.3))(model, x, y, target=target)
    assert MADE[-1].targeted and torch.equal(MADE[-1].seen[0][1], target)
    with model.frozen():
        assert torch.equal(model(found.last).argmax(1) == target, found.success)
    assert found.success.any()


def test_what_cannot_aim_says_so():
    _, _, y = problem()
    with pytest.raises(UsageError, match=r"Untargeted.*ValueError: Targeted mode is not supported.*torchattacks:Unta"):
        run("torchattacks:Untargeted", target=y)


def test_dense_tasks_are_refused():
    model = rk.wrap(nn.Conv2d(1, 3, 1), task="segmentation")
    with pytest.raises(UsageError, match="not made for this task"):
        attack("torchattacks:Sign")(model, torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))


# -- no trace --------------------------------------------------------------------------------------------------------


def vandal(model, x, y):
    """Does what peers do, and worse."""
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    np.random.rand(), random.random(), torch.rand(1)
    model.train().requires_grad_(True)
    nn.functional.cross_entropy(model(x.requires_grad_()), y).backward()
    x.detach_().add_(1)
    if len(y) == 3:
        raise RuntimeError("on purpose")
    return x


@pytest.mark.parametrize("n", [N, 3])
def test_nothing_is_left_behind(n):
    answer(vandal)
    model, x, y = problem()
    net = model.net.train()
    net.layer.bias.requires_grad_(False)
    state, kept = model.state_sha256(), x.clone()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    call = attack("torchattacks:Given")
    if n == 3:
        with pytest.raises(UsageError, match="RuntimeError: on purpose"):
            call(model, x[:3], y[:3])
    else:
        call(model, x, y)
    assert all(m.training for m in net.modules()) and model.state_sha256() == state
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in net.parameters()) and torch.equal(x, kept) and not x.requires_grad
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_it_runs_where_gradients_are_off():
    with torch.no_grad():
        assert run("torchattacks:Sign", Linf(0.3)).success.any()
    assert torch.is_grad_enabled()


def test_draws_depend_on_the_seed_and_the_samples_alone():
    def drawn(model, x, y):
        return x + 0.05 * (torch.rand_like(x) + torch.tensor(np.random.rand(), dtype=x.dtype) + random.random()) / 3

    answer(drawn)
    first = run("torchattacks:Given").last
    torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(first, run("torchattacks:Given").last)
    for other in ({"seed": 1}, {"ids": torch.arange(10, 10 + N)}):
        assert not torch.equal(first, run("torchattacks:Given", **other).last)


# -- names, text and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("torchattacks:Sign,steps=20", "torchattacks:Sign,steps=20"),
        (" TorchAttacks: Sign , steps = 3", "torchattacks:Sign,steps=3"),
        ("torchattacks:steps=2,name=Sign,eps=8/255", "torchattacks:Sign,steps=2,eps=8/255"),
    ],
)
def test_the_text_form(text, label):
    built = attack(text)
    assert label_of(built) == label == str(MethodSpec.parse(text))
    assert label_of(attack(label)) == label
    assert load_config(None, {"model": "m", "data": "d", "threat": "linf:0.1", "attacks": [text]}).attacks == (label,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("torchattacks:Sing", "torchattacks has no class 'Sing'.*Did you mean Sign"),
        ("torchattacks:Sign,step=3", "Sign of torchattacks has no option 'step'.*Did you mean steps"),
        ("torchattacks:sign", "cannot read.*torchattacks:PGD,steps=20"),
        ("torchattacks:Sign,Given", "cannot read"),
        ("torchattacks:Sign,name=Given", "each key once"),
        ("pgd:Steps", "cannot read a method's options: expected NAME:key=value.*got 'Steps'"),
        ("pgd:20", "cannot read"),
    ],
)
def test_what_the_text_form_refuses(text, says):
    with pytest.raises(UsageError, match=says):
        attack(text)


def test_other_methods_keep_their_words():
    with pytest.raises(UsageError, match=r"pgd has no option 'stpes'. Did you mean steps|pgd has no option 'stpes'"):
        attack("pgd:stpes=3")
    assert label_of(attack("pgd:steps=3")) == "pgd:steps=3"
    with pytest.raises(UsageError, match="cannot read"):
        rk.wrap(Net(), task="segmentation:Fraction")


def test_results_hold_the_options_flat():
    model, x, y = problem()
    result = rk.evaluate(model, (x, y), attacks=["torchattacks:Sign,steps=2,eps=8/255"], threat=Linf(0.1))
    (row,) = result.data["attacks"]
    assert row["label"] == "torchattacks:Sign,steps=2,eps=8/255" and row["name"] == "torchattacks"
    assert row["options"] == {"name": "Sign", "steps": 2, "eps": "8/255"}
    assert row["minimum"] is None  # a search in one ball says nothing about smaller ones
    assert row["forwards"] >= 3 * N and row["backwards"] == 2 * N


@pytest.mark.parametrize(
    ("name", "modules", "fix"),
    [
        ("torchattacks", ("torchattacks",), r"pip install '\.\[torchattacks\]'"),
        ("foolbox", ("foolbox", "foolbox.attacks"), r"pip install '\.\[foolbox\]'"),
        ("art", ("art", "art.attacks", "art.attacks.evasion"), r"pip install '\.\[art\]'"),
    ],
)
def test_a_library_that_is_missing(monkeypatch, name, modules, fix):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    built = ATTACKS.get(name).build({})  # listing and showing it needs no library
    assert label_of(built).startswith(f"{name}:")
    with pytest.raises(UsageError, match=f"is not installed.*{fix}"):
        attack(name)


def test_what_a_library_misses_itself_is_its_own_error(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr("robustkit.core.foreign.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        attack("torchattacks:Sign")


# -- a made-up Foolbox -----------------------------------------------------------------------------------------------


class Distance:
    """In some lp."""

    def __init__(self, p: float) -> None:
        self.p = p


class FixedEpsilonAttack:
    """Foolbox's base of attacks inside a radius."""


class Fixed(FixedEpsilonAttack):
    """Moves every pixel by eps towards the middle."""

    distance = Distance(torch.inf)

    def __init__(self, *, steps=40, random_start=True, rule=None) -> None:
        self.steps, self.random_start, self.calls = steps, random_start, []

    def __call__(self, model, x, criterion, *, epsilons):
        self.calls.append((model, x, criterion, epsilons))
        points = x + (epsilons or 0) * (0.5 - x).sign()
        return points + 1, points, torch.ones(len(x), dtype=torch.bool)  # raw, clipped, and a claim

    def repeat(self, times):
        return self


class Nearby:
    """Looks for the nearest point; here: black."""

    distance = Distance(2)

    def __call__(self, model, x, criterion, *, epsilons):
        assert epsilons is None
        return torch.zeros_like(x), torch.zeros_like(x), torch.ones(len(x), dtype=torch.bool)

    def repeat(self, times):
        return self


@pytest.fixture
def foolbox(monkeypatch):
    fake, attacks = types.ModuleType("foolbox"), types.ModuleType("foolbox.attacks")
    base = types.ModuleType("foolbox.attacks.base")
    attacks.Fixed, attacks.Nearby, base.FixedEpsilonAttack = Fixed, Nearby, FixedEpsilonAttack
    fake.attacks = attacks
    fake.criteria = types.SimpleNamespace(
        Misclassification=lambda labels: ("any", labels), TargetedMisclassification=lambda labels: ("to", labels)
    )
    fake.PyTorchModel = lambda net, bounds, device: (net, bounds, device)
    for module in (fake, attacks, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


def test_foolbox_at_a_fixed_eps(foolbox):
    model, x, y = problem(bounds=(0.0, 2.0))
    theirs = Fixed(steps=7)
    ours = rk.from_foolbox(theirs)
    found = build_attacks([ours], Linf(0.2))[0](model, x, y)
    (_, bounds, _), seen, (kind, labels), eps = theirs.calls[-1]
    assert bounds == (0, 1) and kind == "any" and torch.equal(labels, y) and eps == pytest.approx(0.1)
    torch.testing.assert_close(seen, x / 2)
    torch.testing.assert_close(found.last, x + 0.2 * (1 - x).sign())
    assert label_of(ours) == "foolbox:Fixed,steps=7" and ours.options == {"steps": 7}
    build_attacks([ours], Linf(0.2))[0](model, x, y, target=(y + 1) % CLASSES)
    assert theirs.calls[-1][2][0] == "to" and torch.equal(theirs.calls[-1][2][1], (y + 1) % CLASSES)


def test_foolbox_by_name_and_its_norms(foolbox):
    assert type(attack("foolbox:Fixed,steps=3")) is Foolbox
    with pytest.raises(UsageError, match="threat in linf, got l2"):
        attack("foolbox:Fixed", L2(0.1))
    with pytest.raises(UsageError, match=r"no option 'stepz'.*Did you mean steps"):
        attack("foolbox:Fixed,stepz=3")
    with pytest.raises(UsageError, match=r"no class 'Fixt'.*Did you mean Fixed"):
        attack("foolbox:Fixt")


def test_a_black_image_that_foolbox_calls_a_success_does_not_count(foolbox):
    found = run("foolbox:Nearby", Linf(0.1))
    assert not found.success.any() and torch.equal(found.adversarial, problem()[1])


@pytest.mark.parametrize("wrong", [Fixed, lambda x: x, "LinfPGD", 3])
def test_from_foolbox_takes_instances(wrong):
    with pytest.raises(UsageError, match="instance such as"):
        rk.from_foolbox(wrong)


# -- a made-up ART ---------------------------------------------------------------------------------------------------


class Evasion:
    """Moves every pixel by eps towards the middle."""

    def __init__(
        self, estimator, norm=None, eps=0.3, eps_step=0.1, targeted=False, batch_size=32, verbose=True
    ) -> None:
        self.given = {"norm": norm, "eps": eps, "eps_step": eps_step, "targeted": targeted, "verbose": verbose}
        self.estimator, self.batch_size, self.calls = estimator, batch_size, []
        MADE.append(self)

    def generate(self, x, y):
        self.calls.append((x, y))
        return x + np.float32(self.given["eps"]) * np.sign(0.5 - x)


class Blind:
    """Cannot aim, and takes nothing."""

    def __init__(self, estimator) -> None:
        MADE.append(self)

    def generate(self, x, y):
        return x * 0


@pytest.fixture
def art(monkeypatch):
    names = ("art", "art.attacks", "art.attacks.evasion", "art.estimators", "art.estimators.classification")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    evasion, classification = sys.modules[names[2]], sys.modules[names[4]]
    evasion.Evasion, evasion.Blind = Evasion, Blind
    classification.PyTorchClassifier = lambda *given, **more: (given, more)
    return evasion


def test_art(art):
    model, x, y = problem(bounds=(0.0, 2.0))
    ours = rk.from_art(Evasion, eps_step=0.05)
    found = build_attacks([ours], Linf(0.2))[0](model, x, y)
    assert MADE[-1].given == {
        "norm": torch.inf, "eps": pytest.approx(0.1), "eps_step": 0.05, "targeted": False, "verbose": False
    }  # fmt: skip
    images, labels = MADE[-1].calls[0]
    assert images.dtype == labels.dtype == np.float32 and labels.shape == (N, CLASSES)
    assert (labels.argmax(1) == y.numpy()).all() and (labels.sum(1) == 1).all() and MADE[-1].batch_size == N
    torch.testing.assert_close(found.last, x + 0.2 * (1 - x).sign())
    (_, _, shape, classes), more = MADE[-1].estimator
    assert shape == SHAPE and classes == CLASSES and more["clip_values"] == (0.0, 1.0) and more["device_type"] == "cpu"
    assert label_of(ours) == "art:Evasion,eps_step=0.05"


def test_art_by_name_and_its_targets(art):
    model, x, y = problem()
    target = (y + 1) % CLASSES
    assert type(attack("art:Evasion")) is ART
    attack("art:Evasion", Linf(0.2))(model, x, y, target=target)
    assert MADE[-1].given["targeted"] and (MADE[-1].calls[0][1].argmax(1) == target.numpy()).all()
    with pytest.raises(UsageError, match="Blind of ART cannot aim"):
        attack("art:Blind")(model, x, y, target=target)
    with pytest.raises(UsageError, match=r"expected targeted=False, got targeted=True"):
        attack("art:Evasion,targeted=true")(model, x, y)
    with pytest.raises(UsageError, match="threat in l2"):
        attack("art:Evasion,norm=2", Linf(0.2))


def test_options_that_are_no_words_are_spelt_out(art):
    assert label_of(rk.from_art(Evasion, eps=(1, 2.5), norm=np.inf)) == "art:Evasion,eps=1 2.5,norm=inf"


@pytest.mark.parametrize("wrong", [Evasion(None), Net, "PGD"])
def test_from_art_takes_classes(wrong):
    with pytest.raises(UsageError, match="a class such as"):
        rk.from_art(wrong)


# -- the libraries themselves ----------------------------------------------------------------------------------------


def needs(package: str):
    """Run where the package is; its own warnings are not ours."""
    missing = package not in {distribution.name for distribution in distributions()}
    skip = pytest.mark.skipif(missing, reason=f"{package} is not installed; the environment of `make bench` has it")
    return lambda test: skip(pytest.mark.filterwarnings("ignore")(test))


@pytest.fixture
def real(libraries, monkeypatch):
    """The real torchattacks in place of the made-up one."""
    monkeypatch.delitem(sys.modules, "torchattacks")


def quiet(model):
    """The network as one hands it to a peer: in evaluation mode, without gradients of its own."""
    return model.module.eval().requires_grad_(False)


@needs("torchattacks")
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_points_are_those_of_torchattacks(real, bounds):
    import torchattacks

    model, x, y = problem(bounds=bounds)
    low, width = bounds[0], bounds[1] - bounds[0]
    found = attack("torchattacks:PGD,steps=5,alpha=0.05,random_start=false", Linf(0.1 * width))(model, x, y)
    net = nn.Sequential(nn.Identity(), quiet(model))
    net[0].forward = lambda z: low + width * z
    net.place = nn.Parameter(torch.zeros(()))
    theirs = torchattacks.PGD(net.eval(), eps=0.1, alpha=0.05, steps=5, random_start=False)((x - low) / width, y)
    torch.testing.assert_close(found.last, low + width * theirs, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(net(theirs).argmax(1) != y, found.success) and found.success.any()


EVERY = """
    VANILA GN FGSM BIM RFGSM PGD EOTPGD FFGSM TPGD MIFGSM UPGD APGD APGDT DIFGSM TIFGSM Jitter NIFGSM PGDRS SINIFGSM
    VMIFGSM VNIFGSM SPSA,lr=0.05 CW DeepFool EADEN,max_iterations=20 EADL1,max_iterations=20 SparseFool,steps=2
    OnePixel,steps=2 Pixle,restarts=2 JSMA FAB Square,n_queries=20 AutoAttack PIFGSM PIFGSMPP
"""


@needs("torchattacks")
@pytest.mark.parametrize("text", EVERY.split())
def test_every_class_of_torchattacks(real, text):
    """On images with three channels: what it returns is inside, counted and true, or it says why it cannot."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, CLASSES))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    model, x = rk.wrap(net, bounds=(-1.0, 1.0)), torch.rand(4, 3, 8, 8, generator=g) * 2 - 1
    with model.frozen():
        y = model(x).argmax(1)
    state = torch.get_rng_state()
    found = attack(f"torchattacks:{text}", Linf(0.1))(model, x, y)
    assert (found.distance <= 0.1).all() and found.adversarial.abs().max() <= 1 and not found.silent.any()
    assert int(found.forwards.sum()) == found.cost.forwards and int(found.backwards.sum()) == found.cost.backwards
    with model.frozen():
        assert torch.equal(model(found.adversarial).argmax(1) != y, found.success)
    again = attack(f"torchattacks:{text}", Linf(0.1))(model, x, y)
    assert torch.equal(found.last, again.last) and found.cost == again.cost
    assert torch.equal(state, torch.get_rng_state()) and net.training and all(p.grad is None for p in net.parameters())


@needs("torchattacks")
def test_torchattacks_knows_its_norms(real):
    attack("torchattacks:PGDL2", L2(0.5))
    for text in ("PGDL2", "PGDRSL2"):
        with pytest.raises(UsageError, match="threat in l2"):
            attack(f"torchattacks:{text}", Linf(0.1))
    with pytest.raises(UsageError, match="LGV"):
        run("torchattacks:LGV")


@needs("foolbox")
def test_points_are_those_of_foolbox():
    import foolbox

    model, x, y = problem()
    theirs = foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.4, random_start=False)
    with model.frozen():
        _, points, claimed = theirs(foolbox.PyTorchModel(model.module, (0, 1), "cpu"), x, y, epsilons=0.1)
    for ours in (rk.from_foolbox(theirs), "foolbox:LinfPGD,steps=5,rel_stepsize=0.4,random_start=false"):
        found = build_attacks([ours], Linf(0.1))[0](model, x, y)
        torch.testing.assert_close(found.last, points, rtol=0, atol=1e-6)
        assert torch.equal(found.success, claimed) and int(found.backwards.sum()) == found.cost.backwards == 5 * N
    aimed = build_attacks([rk.from_foolbox(theirs)], Linf(0.4))[0](model, x, y, target=(y + 1) % CLASSES)
    with model.frozen():
        assert torch.equal(model(aimed.last).argmax(1) == (y + 1) % CLASSES, aimed.success) and aimed.success.any()


class Stubborn(nn.Module):
    """The answer of a black image is wrong, that of any other right, and no gradient leads there."""

    def forward(self, x: Tensor) -> Tensor:
        black = (x.flatten(1).amax(1) == 0).float()
        slope = 1e-6 * x.flatten(1).mean(1)
        return torch.stack([2 - 4 * black, slope, -slope], 1)


@needs("foolbox")
def test_where_foolbox_calls_a_black_image_a_success(real=None):
    """Its CW starts from zeros and returns them where nothing was found: far outside any ball that one asks about."""
    import foolbox

    model, x, y = rk.wrap(Stubborn()), problem()[1], torch.zeros(N, dtype=torch.long)
    theirs = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=1, steps=5)
    _, points, claimed = theirs(foolbox.PyTorchModel(Stubborn().eval(), (0, 1), "cpu"), x, y, epsilons=None)
    assert claimed.all() and (points == 0).all()
    found = build_attacks([rk.from_foolbox(theirs)], L2(0.5))[0](model, x, y)
    assert not found.success.any() and torch.equal(found.adversarial, x)


@needs("adversarial-robustness-toolbox")
def test_points_are_those_of_art():
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, x, y = problem()
    net = PyTorchClassifier(model.module, nn.CrossEntropyLoss(), SHAPE, CLASSES, clip_values=(0, 1), device_type="cpu")
    theirs = ProjectedGradientDescentPyTorch(net, eps=0.1, eps_step=0.03, max_iter=5, verbose=False)
    with model.frozen():
        points = torch.from_numpy(theirs.generate(x.numpy(), y.numpy()))
    for ours in (
        rk.from_art(ProjectedGradientDescentPyTorch, eps_step=0.03, max_iter=5),
        "art:ProjectedGradientDescentPyTorch,eps_step=0.03,max_iter=5",
    ):
        found = build_attacks([ours], Linf(0.1))[0](model, x, y)
        torch.testing.assert_close(found.last, points, rtol=0, atol=1e-6)
        assert int(found.forwards.sum()) == found.cost.forwards and found.cost.backwards == 5 * N
    for threat in (L2(1.0), L1(2.0)):
        again = build_attacks([rk.from_art(FastGradientMethod)], threat)[0](model, x, y)
        assert (again.distance <= threat.eps).all()


@needs("adversarial-robustness-toolbox")
def test_art_in_another_norm_and_without_a_norm():
    with pytest.raises(UsageError, match=r"does not search in the threat.*outside"):
        run("art:BasicIterativeMethod", L2(0.1))
    with pytest.raises(UsageError, match="stopped with an error"):
        run("art:DPatch")
