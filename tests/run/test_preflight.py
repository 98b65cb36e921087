"""No wrong number passes silently: each mistake is made on purpose, and each right set-up must pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import wrap
from robustkit.core.threat import Linf
from robustkit.run.interval import clopper_pearson, paired_p
from robustkit.run.preflight import preflight

CLASSES, CHANNELS = 6, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def centres() -> Tensor:
    """Patterns of unequal brightness: fed otherwise, the brightest wins."""
    patterns = torch.rand(CLASSES, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(0))
    return patterns * torch.linspace(0.25, 1.0, CLASSES).view(-1, 1, 1, 1)


def data(n: int = 120) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % CLASSES
    noise = 0.3 * torch.randn(n, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1))
    return (centres()[y] + noise).clamp(0, 1), y


class Patterns(nn.Module):
    """The nearest of six patterns, for images in [0, 1] after ``(z * std + mean)`` where these are given."""

    def __init__(self, mean: tuple[float, ...] = (0.0,), std: tuple[float, ...] = (1.0,), scale: float = 2.0) -> None:
        super().__init__()
        self.c = nn.Parameter(centres().flatten(1))
        self.mean, self.std, self.scale = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std, [scale]))

    def forward(self, z: Tensor) -> Tensor:
        x = (z * self.std + self.mean).flatten(1)
        return self.scale.view(()) * (2 * x @ self.c.T - self.c.square().sum(1))


def look(net, x: Tensor, y: Tensor, **options) -> dict[str, Diagnostic]:
    rows = preflight(wrap(net, **options), x, y, threat=Linf(8 / 255), seed=0)
    assert [row.id for row in rows] == ["D1", "D2", "D12", "D13", "D14", "D15", "D16"]
    return {row.id: row for row in rows}


def refused(rows: dict[str, Diagnostic]) -> list[str]:
    return [row.id for row in rows.values() if row.fatal]


def test_a_right_set_up_passes():
    for net, options in ((Patterns(), {}), (Patterns(MEAN, STD), {"mean": MEAN, "std": STD})):
        rows = look(net.eval(), *data(), **options)
        assert {row.status for row in rows.values()} == {"PASS"}, rows


# -- D14: ranges and preprocessing -----------------------------------------------------------------------------------


def test_normalised_inputs_before_unnormalised_bounds():
    x, y = data()
    z = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    row = look(Patterns(), z, y)["D14"]
    assert row.fatal and f"{float(z.min()):.4g} to {float(z.max()):.4g}" in row.message
    assert "undoing a normalisation by ImageNet" in row.message and "mean=" in row.remedy


def test_eight_bit_inputs():
    x, y = data()
    row = look(Patterns(), x * 255, y)["D14"]
    assert row.fatal and "dividing by 255" in row.message and "8-bit" in row.remedy


def test_range_that_nothing_explains():
    x, y = data()
    row = look(Patterns(), x * 1e4 - 77, y)["D14"]
    assert row.fatal and "bounds" in row.remedy


def test_normalised_twice_inside():
    row = look(Patterns(), *data(), mean=MEAN, std=STD)["D14"]
    assert row.fatal and "no normalisation" in row.message and "leave mean and std out" in row.remedy


def test_not_normalised_at_all():
    row = look(Patterns(MEAN, STD), *data())["D14"]
    assert row.fatal and "ImageNet mean and std" in row.message and "0.485" in row.remedy


def test_channel_order():
    net = Patterns()
    row = look(lambda x: net(x.flip(1)), *data())["D14"]
    assert row.fatal and "BGR" in row.message


def test_network_for_0_to_255():
    net = Patterns()
    row = look(lambda x: net(x / 255), *data())["D14"]
    assert row.fatal and "0 to 255" in row.message


def test_a_small_difference_is_flagged_and_not_refused():
    """0.5 was meant where ImageNet's mean and std are given: too little data to be sure, so a warning."""
    x, y = data(600)
    net = Patterns((0.5,), (0.5,))
    model = wrap(net, mean=MEAN, std=STD)
    right = wrap(net, mean=0.5, std=0.5)(x).argmax(1) == y
    wrong = model(x).argmax(1) == y
    gained = (right & ~wrong).nonzero()[:3, 0]
    both = (right & wrong).nonzero()[:60, 0]
    assert len(gained) >= 1
    index = torch.cat([gained, both])
    rows = look(net, x[index], y[index], mean=MEAN, std=STD)
    assert rows["D14"].status == "WARN" and "may be chance" in rows["D14"].message and not refused(rows)


@pytest.mark.parametrize(
    ("spoil", "word"), [(lambda x: x / 0 * 0, "NaN"), (lambda x: x + torch.inf, "NaN or infinity")]
)
def test_not_finite(spoil, word):
    x, y = data()
    x[5] = spoil(x[5])
    row = look(Patterns(), x, y)["D14"]
    assert row.fatal and word in row.message and row.value == pytest.approx(1 / 120)


def test_inputs_the_network_cannot_take():
    x, y = data()
    row = look(nn.Conv2d(1, 4, 3), x, y)["D14"]
    assert row.fatal and "does not run" in row.message


def raises(kind: type[Exception]):
    def net(x: Tensor) -> Tensor:
        raise kind("made for other inputs")

    return net


@pytest.mark.parametrize("kind", [AssertionError, KeyError, AttributeError, NotImplementedError])
def test_whatever_a_network_raises_is_told(kind):
    row = look(raises(kind), *data())["D14"]
    assert row.fatal and "made for other inputs" in row.message


def test_normalised_inputs_of_a_network_that_wants_them():
    """The commonest mistake: as accurate as can be, and eps and bounds in the wrong units."""
    x, y = data()
    x = (x * 255).round() / 255
    z = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for given in ({}, {"mean": 0.0, "std": 1.0}):
        row = look(Patterns(MEAN, STD), z, y, **given)["D14"]
        assert row.fatal and "ImageNet" in row.message and "if the wrapper does that step" in row.message
        assert "wrap(net, mean=[0.485, 0.456, 0.406]" in row.remedy


def test_normalised_vectors():
    x, y = data()
    net = nn.Sequential(nn.Unflatten(1, (3, 6, 6)), Patterns((0.5,), (0.5,)))
    row = look(net, ((x - 0.5) / 0.5).flatten(1), y)["D14"]
    assert row.fatal and "0.5/0.5" in row.message
    right = look(net, x.flatten(1), y, mean=0.5, std=0.5)
    assert right["D14"].status == "NOT RUN" and not refused(right)


@pytest.mark.parametrize("given", [{}, {"mean": MEAN, "std": STD}])
def test_bounds_of_0_to_255_before_a_network_for_0_to_1(given):
    x, y = data()
    net = Patterns(MEAN, STD) if given else Patterns()
    row = look(net, x * 255, y, bounds=(0, 255), **given)["D14"]
    assert row.fatal and "values of 0 to 1" in row.message and "bounds (0, 1)" in row.remedy
    right = look(lambda v: Patterns()(v / 255), x * 255, y, bounds=(0, 255))
    assert right["D14"].status == "PASS"


def test_inputs_changed_in_place():
    def net(x: Tensor) -> Tensor:
        x -= 0.001
        return Patterns()(x)

    x, y = data()
    before = x.clone()
    row = look(net, x, y)["D14"]
    assert row.fatal and "in place" in row.message and torch.equal(x, before)


# -- D12: outputs ----------------------------------------------------------------------------------------------------


def test_probabilities():
    row = look(nn.Sequential(Patterns(), nn.Softmax(1)), *data())["D12"]
    assert row.fatal and "probabilities" in row.message and "softmax" in row.remedy


def test_saturated_logits():
    rows = look(Patterns(scale=1e4), *data())
    assert rows["D12"].status == "WARN" and "loss=margin" in rows["D12"].remedy and not refused(rows)


def test_probabilities_in_few_digits():
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES), nn.Softmax(1)).bfloat16()
    x, y = data()
    assert look(net, x.bfloat16(), y)["D12"].fatal


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_without_value(value):
    def net(x: Tensor) -> Tensor:
        return torch.cat([Patterns()(x)[:, 1:], x.new_full((len(x), 1), value)], 1)

    row = look(net, *data())["D12"]
    assert row.fatal and "120 of 120" in row.message


def test_a_masked_class_is_no_mistake():
    def net(x: Tensor) -> Tensor:
        return torch.cat([Patterns()(x), x.new_full((len(x), 1), -torch.inf)], 1)

    assert not refused(look(net, *data()))


def test_whole_numbers_have_no_gradient():
    row = look(lambda x: Patterns()(x).round().long(), *data())["D1"]
    assert row.fatal and "means nothing here" in row.message


# -- D1: gradients ---------------------------------------------------------------------------------------------------


def quantised(x: Tensor) -> Tensor:
    return Patterns()((x * 8).round() / 8)


def detached(x: Tensor) -> Tensor:
    return Patterns()(x.detach())


def argmax_inside(x: Tensor) -> Tensor:
    return nn.functional.one_hot(Patterns()(x).argmax(1), CLASSES).float() * 3


def not_a_number(x: Tensor) -> Tensor:
    return Patterns()(x) + 0 * (x - x).flatten(1).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("net", [quantised, detached, argmax_inside])
def test_no_gradient(net):
    frozen = wrap(net)
    for p in frozen.net.parameters():
        p.requires_grad_(False)
    row = look(net, *data())["D1"]
    assert row.fatal and "gradient-based robust accuracy means nothing here" in row.message and row.value == 1.0


def test_nan_gradient():
    row = look(not_a_number, *data())["D1"]
    assert row.fatal and "NaN" in row.message and "means nothing here" in row.message


def test_some_dead_samples_are_tolerated():
    """Three dead samples of 32 are refused, one is a warning."""

    def partly(dead: int):
        def net(x: Tensor) -> Tensor:
            z = Patterns()(x)
            return torch.cat([z[:dead].detach(), z[dead:]])

        return net

    assert look(partly(3), *data())["D1"].status == "FAIL"
    assert look(partly(1), *data())["D1"].status == "WARN"


# -- D2, D13, D15: behaviour -----------------------------------------------------------------------------------------


class Noisy(Patterns):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z + 0.05 * torch.randn_like(z))


def test_random_networks():
    row = look(Noisy(), *data())["D2"]
    assert row.fatal and "random" in row.message and "--eot" in row.remedy
    rows = look(Noisy(), *data(), eot=8)
    assert rows["D2"].status == "WARN" and not refused(rows)


def test_noise_that_a_large_offset_hides():
    class Lifted(Patterns):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) + 1e4 + 0.05 * torch.randn(len(z), CLASSES)

    assert look(Lifted(), *data())["D2"].fatal


def test_jumpy_loss_is_flagged():
    def jumpy(x: Tensor) -> Tensor:
        return Patterns()(x) * (1 + 3 * torch.sin(1e5 * x.flatten(1).sum(1, keepdim=True)) ** 2)

    assert look(jumpy, *data())["D2"].status == "WARN"


def test_train_mode_is_reported_and_restored():
    net = nn.Sequential(Patterns(), nn.Dropout(0.5))
    net.eval()
    net[1].train()
    rows = look(net, *data())
    assert rows["D15"].status == "WARN" and "1 (Dropout)" in rows["D15"].message and "net.eval()" in rows["D15"].remedy
    assert net[1].training and not net.training and not refused(rows)


class Normed(nn.Module):
    """BatchNorm that changes next to nothing in evaluation mode, before the patterns."""

    def __init__(self, track: bool = True, force: bool = False) -> None:
        super().__init__()
        self.bn, self.patterns, self.force = (
            nn.BatchNorm2d(CHANNELS, track_running_stats=track),
            Patterns(),
            force,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.force:
            self.bn.train()
        return self.patterns(self.bn(x))


def test_batchnorm_in_train_mode_is_set_to_evaluation():
    net = Normed().eval()
    net.bn.train()
    rows = look(net, *data())
    assert rows["D15"].status == "WARN" and "bn (BatchNorm2d)" in rows["D15"].message and not refused(rows)
    assert net.bn.training and not net.patterns.training and torch.equal(net.bn.running_mean, torch.zeros(CHANNELS))
    assert look(Normed().eval(), *data())["D15"].status == "PASS"


def test_batchnorm_on_the_statistics_of_the_batch():
    """Nothing is random and no flag is wrong, and yet each answer depends on the other samples."""
    hidden = Normed().train()
    for net in (Normed(track=False).eval(), lambda x: hidden(x)):
        row = look(net, *data())["D15"]
        assert row.fatal and "other samples" in row.message and "track_running_stats" in row.remedy


def test_batchnorm_that_refuses_single_values():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(108, track_running_stats=False), nn.Linear(108, CLASSES)).eval()
    x, y = data()
    assert look(net, x[:2], y[:2])["D15"].fatal


def test_a_network_that_trains_itself_while_it_predicts():
    net = Normed(force=True).eval()
    rows = look(net, *data())
    assert rows["D15"].fatal and "bn.running_mean" in rows["D15"].message
    assert torch.equal(net.bn.running_mean, torch.zeros(CHANNELS)) and int(net.bn.num_batches_tracked) == 0


def test_plain_functions_are_in_no_mode():
    net = Patterns().eval()
    rows = look(lambda x: net(x), *data())
    assert {row.status for row in rows.values()} == {"PASS"}


def test_optimisation_inside_the_forward():
    def purify(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(leaf.square().sum(), leaf)
        return Patterns()(x - 0.0 * grad)

    before = torch.autograd.grad
    rows = look(purify, *data())
    assert rows["D13"].status == "WARN" and rows["D13"].value >= 1
    assert torch.autograd.grad is before


def test_optimisation_under_another_name():
    from torch.autograd import grad

    def purify(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (step,) = grad(leaf.square().sum(), leaf)
        return Patterns()(x - 0.0 * step)

    rows = look(purify, *data())
    assert rows["D13"].status == "WARN" and not refused(rows)


def test_optimisation_that_needs_gradients_switched_on():
    def purify(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (step,) = torch.autograd.grad(leaf.square().sum(), leaf)
        return Patterns()(x - 0.0 * step)

    row = look(purify, *data())["D13"]
    assert row.fatal and "enable_grad" in row.remedy


# -- D16: labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1, -1])
def test_labels_offset_by_one(offset):
    x, y = data()
    index = ((y + offset >= 0) & (y + offset < CLASSES)).nonzero()[:, 0]
    row = look(Patterns(), x[index], y[index] + offset)["D16"]
    assert row.fatal and "offset" in row.message and f"y {'-' if offset > 0 else '+'} 1" in row.remedy


def test_more_labels_than_outputs():
    x, y = data()
    row = look(Patterns(), x, y + 1)["D16"]
    assert row.fatal and "6 outputs" in row.message and "y - 1" in row.remedy
    row = look(Patterns(), x, y * 300)["D16"]
    assert row.fatal and "class map" in row.remedy


@pytest.mark.parametrize("offset", [5, -3, 994])
def test_the_offset_that_fits_is_named(offset):
    x, y = data()
    row = look(Patterns(), x, y + offset)["D16"]
    assert row.fatal and f"y {'-' if offset > 0 else '+'} {abs(offset)}:" in row.remedy and "98.3%" in row.remedy


def test_only_offsets_into_the_range_are_named():
    """As they are more labels agree, but one of them is out of range."""
    x, y = data()
    y = y.clamp_min(1)
    y[0] = CLASSES
    row = look(Patterns(), x, y)["D16"]
    assert row.fatal and "y - 1" in row.remedy


def test_two_classes_the_wrong_way_round():
    x, y = data()
    row = look(lambda v: Patterns()(v)[:, :2], x[y < 2], 1 - y[y < 2])["D16"]
    assert row.fatal and "another order" in row.message


def test_what_explains_more_is_named():
    """Inverted colours make a consistent mess of the classes: it is not the class map that is wrong."""
    net = Patterns()
    rows = look(lambda x: net(1 - x), *data())
    assert rows["D14"].fatal and "inverted" in rows["D14"].message and "another order" not in rows["D16"].message


def test_very_many_classes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 21_841))
    x, y = data()
    row = look(net, x, y * 3_000)["D16"]
    assert row.fatal and "guessing" in row.message


def test_shuffled_classes():
    x, y = data()
    order = torch.tensor([3, 5, 1, 4, 2, 0])
    row = look(Patterns(), x, order[y])["D16"]
    assert row.fatal and "another order" in row.message


def test_guessing_is_refused_but_three_photos_refuse_nothing():
    x, _ = data()
    y = torch.randint(CLASSES, (120,), generator=torch.Generator().manual_seed(3))
    row = look(Patterns(), x, y)["D16"]
    assert row.fatal and "no better than guessing" in row.message
    few = look(Patterns(), x[:3], (torch.arange(3) + 2) % CLASSES)
    assert not refused(few)


@pytest.mark.parametrize("labels", [lambda y: y.float(), lambda y: nn.functional.one_hot(y, CLASSES)])
def test_labels_of_the_wrong_form(labels):
    x, y = data()
    assert look(Patterns(), x, labels(y))["D16"].fatal


# -- other tasks -----------------------------------------------------------------------------------------------------


def dense(x: Tensor) -> Tensor:
    """Dark and bright pixels."""
    z = x.mean(1) - 0.5
    return torch.stack([-z, z], 1)


def test_dense_tasks():
    x, _ = data()
    y = dense(x).argmax(1)
    rows = look(dense, x, y, task="segmentation")
    assert not refused(rows) and rows["D16"].status == "NOT RUN" and rows["D1"].status == "PASS"
    assert look(dense, x, y + 9, task="segmentation")["D16"].fatal
    assert look(dense, x, y[:, 0, 0], task="segmentation")["D16"].fatal
    assert look(dense, x, y[:, 0, 0])["D16"].fatal  # dense outputs, wrapped as a classifier
    assert look(dense, 255 * x, y[:, 0, 0])["D14"].fatal


def test_regression_that_fits_exactly_has_gradients():
    x, y = data()
    net = Patterns()
    assert not refused(look(net, x, net(x).detach(), task="regression"))
    assert look(net, x, y, task="regression")["D16"].fatal


def test_nothing_is_left_behind():
    net = Patterns()
    net.c.grad = torch.ones_like(net.c)
    state = torch.get_rng_state()
    look(net, *data())
    assert torch.equal(net.c.grad, torch.ones_like(net.c)) and net.training and net.c.requires_grad
    assert torch.equal(state, torch.get_rng_state())


def test_interval_and_paired_test():
    low, high = clopper_pearson(10, 10)
    assert high == 1 and low == pytest.approx(0.025 ** (1 / 10))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert paired_p(0, 5) == pytest.approx(2 * 0.5**5) and paired_p(0, 0) == 1.0
