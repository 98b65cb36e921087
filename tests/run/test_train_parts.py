"""Schedules, optimisers, averages, augmentations and batches against torch's own, closed forms and slow copies."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from robustkit.core.augment import AUGMENTATIONS, augmentation
from robustkit.core.errors import UsageError
from robustkit.core.types import Bounds
from robustkit.data.batches import batches, held_out, held_out_size, order
from robustkit.data.samples import Data, TensorData
from robustkit.run.train_log import csv_of
from robustkit.run.train_optim import Average, optimizer, optimizer_tensors, restore_optimizer
from robustkit.run.train_schedule import SCHEDULES, rate, strength

STEPS = 40

# -- schedules ---------------------------------------------------------------------------------------------------------


def _torch_rates(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    engine = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(engine)
    rates = []
    for _ in range(steps):
        rates.append(float(engine.param_groups[0]["lr"]))
        engine.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", lambda engine: lr_scheduler.ConstantLR(engine, factor=1)),
        ("cosine", lambda engine: lr_scheduler.CosineAnnealingLR(engine, T_max=STEPS)),
        ("piecewise", lambda engine: lr_scheduler.MultiStepLR(engine, [STEPS // 2, 3 * STEPS // 4], gamma=0.1)),
        ("poly", lambda engine: lr_scheduler.PolynomialLR(engine, total_iters=STEPS, power=2)),
    ],
)
def test_schedules_are_torch_s(name: str, make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> None:
    ours = [rate(name, step / STEPS) for step in range(STEPS)]
    assert ours == pytest.approx(_torch_rates(make, STEPS), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.25, 0.5])
def test_one_cycle_is_torch_s(share: float) -> None:
    """Torch counts steps from the first to the last: its peak lies at share * steps - 1 of steps - 1."""
    theirs = _torch_rates(
        lambda engine: lr_scheduler.OneCycleLR(engine, 1.0, total_steps=STEPS, pct_start=share), STEPS - 1
    )
    peak = (share * STEPS - 1) / (STEPS - 1)
    ours = [rate("one-cycle", step / (STEPS - 1), warmup=peak) for step in range(STEPS - 1)]
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert rate("one-cycle", 0.3) == 1.0


def test_cyclic_is_two_lines() -> None:
    shares = np.linspace(0, 1, 21)
    ours = [rate("cyclic", float(share)) for share in shares]
    assert ours == pytest.approx(np.interp(shares, [0, 0.4, 1], [0.04, 1, 0]))
    assert rate("cyclic", 0.2, warmup=0.2) == 1.0


def test_warmup_is_a_line_before_the_schedule() -> None:
    rise = STEPS // 4

    def make(engine: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        parts = [
            lr_scheduler.LinearLR(engine, start_factor=1 / 25, total_iters=rise),
            lr_scheduler.CosineAnnealingLR(engine, T_max=STEPS - rise),
        ]
        return lr_scheduler.SequentialLR(engine, parts, milestones=[rise])

    ours = [rate("cosine", step / STEPS, warmup=rise / STEPS) for step in range(STEPS)]
    assert ours == pytest.approx(_torch_rates(make, STEPS), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_rates_are_shares_with_one_peak(name: str, warmup: float) -> None:
    rates = [rate(name, step / 100, warmup) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="cosine"):
        rate("cosin", 0.5)


def test_strength_is_a_line_up_to_one() -> None:
    assert [strength(0.4, p / 10) for p in range(6)] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1, 1])
    assert strength(0.0, 0.0) == 1.0


# -- optimisers --------------------------------------------------------------------------------------------------------


def _net(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        return nn.Sequential(*layers).to(dtype=dtype, memory_format=torch.channels_last)


def _learn(net: nn.Module, engine: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        engine.zero_grad()
        net(x.to(next(net.parameters()).dtype)).square().sum().backward()
        engine.step()


def _through_a_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return load(save({key: value.detach().contiguous().clone() for key, value in tensors.items()}))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lars", "lamb", "madgrad", "lookahead_sgd"])
def test_optimisers_go_on_bit_for_bit(name: str) -> None:
    def made(net: nn.Module) -> torch.optim.Optimizer:
        return optimizer(net, name, lr=0.01, weight_decay=0.01, momentum=0.9)

    first, second = _net(), _net()
    engine = made(first)
    _learn(first, engine, range(3))
    stored = _through_a_file(optimizer_tensors(engine))
    second.load_state_dict(_through_a_file(first.state_dict()))
    again = made(second)
    restore_optimizer(again, stored)
    _learn(first, engine, range(3, 6))
    _learn(second, again, range(3, 6))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_restored_state_is_the_stored_one() -> None:
    """Values, kinds and dtypes, also those that load_state_dict converts; None and numbers among them."""
    net = _net()
    engine = optimizer(net, "sgd", lr=0.1, weight_decay=0.0, momentum=0.9)
    wide = torch.tensor([1 / 3], dtype=torch.float64)
    state = {
        "buffer": wide,
        "step": 7,
        "share": 0.1,
        "far": float("inf"),
        "none": None,
        "on": True,
        "q": [wide, (1, 2)],
    }
    for parameter in net.parameters():
        engine.state[parameter] = dict(state)
    other = optimizer(_net(), "sgd", lr=0.5, weight_decay=0.0, momentum=0.1)
    restore_optimizer(other, _through_a_file(optimizer_tensors(engine)))
    assert other.param_groups[0]["lr"] == 0.1
    assert other.param_groups[0]["momentum"] == 0.9
    for found in other.state.values():
        assert {key: value for key, value in found.items() if key not in ("buffer", "q")} == {
            key: value for key, value in state.items() if key not in ("buffer", "q")
        }
        assert found["buffer"].dtype == torch.float64
        assert torch.equal(found["buffer"], wide)
        assert found["q"][1] == (1, 2)
    assert len(other.state) == len(list(net.parameters()))


def test_decay_is_of_weights_alone_and_sgd_is_nesterov() -> None:
    engine = optimizer(_net(), "sgd", lr=0.1, weight_decay=0.5, momentum=0.8)
    for group in engine.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.5) for p in group["params"])
        assert group["nesterov"]
        assert group["momentum"] == 0.8
    assert not optimizer(_net(), "momentum", lr=0.1, weight_decay=0.5).param_groups[0]["nesterov"]


def test_one_step_of_sgd_is_nesterov_s() -> None:
    """Two steps at gradient g from 0: v1 = g, v2 = 1.9 g; the weight moves by lr (g + 0.9 v)."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    engine = optimizer(net, "sgd", lr=0.1, weight_decay=0.0, momentum=0.9)
    for _ in range(2):
        net.weight.grad = torch.full_like(net.weight, 2.0)
        engine.step()
    assert net.weight.item() == pytest.approx(-0.1 * 2 * ((1 + 0.9) + (1 + 0.9 * 1.9)))


@pytest.mark.parametrize(
    ("name", "lr", "words"),
    [
        ("adamm", 0.1, "Did you mean"),
        ("sgd", 0.0, "not positive"),
        ("sgd", -1.0, "not positive"),
        ("sgd", float("nan"), "not positive"),
        ("adahessian", 0.1, "second derivatives"),
        pytest.param("kron", 0.1, "global generator", marks=pytest.mark.filterwarnings("ignore:It is highly")),
    ],
)
def test_optimisers_that_cannot_be(name: str, lr: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        optimizer(_net(), name, lr=lr, weight_decay=0.0)


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        optimizer(nn.ReLU(), "sgd", lr=0.1, weight_decay=0.0)
    with pytest.raises(UsageError, match="nothing to train"):
        optimizer(_net().requires_grad_(False), "sgd", lr=0.1, weight_decay=0.0)


def test_checkpoints_of_another_optimiser_are_refused() -> None:
    net = _net()
    engine = optimizer(net, "sgd", lr=0.1, weight_decay=0.0)
    _learn(net, engine, range(1))
    stored = optimizer_tensors(engine)
    small = optimizer(nn.Linear(2, 2), "sgd", lr=0.1, weight_decay=0.0)
    for damaged in ({}, {"layout": torch.zeros(3, dtype=torch.uint8)}, {"layout": stored["layout"]}):
        with pytest.raises(UsageError, match="does not fit"):
            restore_optimizer(engine, damaged)
    with pytest.raises(UsageError, match="does not fit"):
        restore_optimizer(small, stored)


# -- averages ----------------------------------------------------------------------------------------------------------


def test_average_without_decay_is_the_network() -> None:
    net = _net()
    engine, average = optimizer(net, "sgd", lr=0.1, weight_decay=0.0), Average(net, 0.0)
    for step in range(3):
        _learn(net, engine, range(step, step + 1))
        average.update(net)
        for ours, theirs in zip(average.net.state_dict().values(), net.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() != theirs.data_ptr()


def test_average_is_the_sum_written_out() -> None:
    """First the weight itself, then d_t a + (1 - d_t) w with d_t = min(0.4, (1 + t) / (10 + t)) after t updates."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average, weights, expected = Average(net, 0.4), [1.0, -2.0, 5.0, 3.0, 0.5, 7.0, -4.0, 2.0, 9.0], 1.0
    for t, weight in enumerate(weights):
        nn.init.constant_(net.weight, weight)
        average.update(net)
        decay = min(0.4, (1 + t) / (10 + t)) if t else 0.0
        expected = decay * expected + (1 - decay) * weight
        assert next(average.net.parameters()).item() == pytest.approx(expected, rel=1e-12)
    assert decay == 0.4


def test_average_has_its_own_buffers_and_goes_on() -> None:
    net = _net()
    engine, average = optimizer(net, "sgd", lr=0.1, weight_decay=0.0), Average(net, 0.9)
    _learn(net, engine, range(2))
    average.update(net)
    before = average.net[1].running_mean.clone()
    assert torch.equal(before, net[1].running_mean)
    other = Average(_net(), 0.9)
    other.restore(_through_a_file(average.tensors()))
    _learn(net, engine, range(2, 4))
    assert torch.equal(average.net[1].running_mean, before)
    average.update(net)
    other.update(net)
    for ours, theirs in zip(average.tensors().values(), other.tensors().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(average.net[1].running_mean, net[1].running_mean)
    assert not any(p.requires_grad for p in average.net.parameters())


def test_averages_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="not a decay"):
        Average(_net(), 1.0)
    with pytest.raises(UsageError, match="no average"):
        Average(_net(), 0.9).restore({})


# -- augmentations -----------------------------------------------------------------------------------------------------

NAMES = [name for name in AUGMENTATIONS if name != "none"]


def _pictures(n: int = 6, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_augmentations_depend_on_image_and_key_alone(name: str) -> None:
    change, x, keys = augmentation(name), _pictures(), [11, 12, 13, 14, 15, 16]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    found = change(x, keys)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states[1:]
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert 0 <= found.min() <= found.max() <= 1
    torch.manual_seed(99)
    assert torch.equal(change(x[[4, 1]], [15, 12]), found[[4, 1]])
    assert not torch.equal(found, x)
    assert torch.equal(x, _pictures())
    assert change(x[:0], []).shape == x[:0].shape


def test_flips_are_flips_half_of_the_time() -> None:
    x = _pictures(1).expand(400, -1, -1, -1)
    found = augmentation("flip")(x, range(400))
    flipped = (found == x.flip(-1)).flatten(1).all(1)
    assert ((found == x).flatten(1).all(1) ^ flipped).all()
    assert 160 < int(flipped.sum()) < 240


@pytest.mark.parametrize("name", ["crop", "crop-flip"])
def test_crops_are_all_shifts_of_the_padded_image(name: str) -> None:
    x = _pictures(1, size=4) * 2 - 1
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    shifts = [padded[..., i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    shifts += [shift.flip(-1) for shift in shifts] if name == "crop-flip" else []
    found = augmentation(f"{name}:padding=1", Bounds(-1, 1))(x.expand(300, -1, -1, -1), range(300))
    seen = [[torch.equal(one, shift[0]) for shift in shifts].index(True) for one in found]
    assert set(seen) == set(range(len(shifts)))


def test_digits_move_turn_and_scale_a_little() -> None:
    x = torch.zeros(200, 1, 28, 28)
    x[..., 12:16, 6:22] = 1.0  # a bar around the middle
    found = augmentation("digits")(x, range(200))
    place = torch.arange(28.0) - 13.5
    mass = found.sum((1, 2, 3))
    down, right = ((found.sum(d) * place).sum((1, 2)) / mass for d in (3, 2))
    assert down.abs().max() < 2.2
    assert right.abs().max() < 2.2
    assert {round(float(v)) for v in down} == {round(float(v)) for v in right} == {-2, -1, 0, 1, 2}
    assert 0.8 < (mass / 64).min() < 0.9
    assert 1.1 < (mass / 64).max() < 1.25
    both = torch.einsum("nhw,h,w->n", found[:, 0], place, place) / mass - down * right
    wide = torch.einsum("nhw,w->n", found[:, 0], place**2) / mass - right**2
    degrees = torch.rad2deg(torch.atan2(both, wide))
    assert 7 < degrees.abs().max() < 10.5


@pytest.mark.parametrize("name", ["trivial", "randaugment:magnitude=15,operations=1"])
def test_pictures_in_other_bounds_are_changed_alike(name: str) -> None:
    x, keys = _pictures(40), range(40)
    plain = augmentation(name)(x, keys)
    other = augmentation(name, Bounds(-1, 1))(x * 2 - 1, keys)
    close = ((other + 1) / 2 - plain).abs().flatten(1).amax(1) < 1e-3
    assert close.float().mean() > 0.7  # steps of rounding (posterize, equalize, solarize) may fall on the other side
    assert -1 <= other.min() <= other.max() <= 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flp", "Did you mean flip"),
        ("crop:pad=2", "unknown option 'pad'"),
        ("crop:padding=-1", "whole number"),
        ("crop:padding=true", "whole number"),
        ("randaugment:magnitude=31", "1 to 30"),
        ("flip:p=0.5", "It has none"),
    ],
)
def test_texts_that_name_no_augmentation(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        augmentation(text)


def test_inputs_that_are_no_pictures() -> None:
    assert augmentation("none") is None
    for name, shape in (("flip", (2, 5)), ("trivial", (2, 4, 8, 8)), ("digits", (2, 1, 3, 3))):
        with pytest.raises(UsageError):
            augmentation(name)(torch.zeros(shape), [0, 1])
    with pytest.raises(UsageError, match="uint8"):
        augmentation("crop")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1])


# -- batches -----------------------------------------------------------------------------------------------------------


class Broken(Data):
    """Data whose sample 3 cannot be read."""

    name = "broken"

    def __len__(self) -> int:
        return 6

    def take(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        if 3 in ids:
            raise UsageError("a sample is broken", got="sample 3", where="broken")
        return torch.zeros(len(ids), 1), torch.zeros(len(ids), dtype=torch.int64)

    def fingerprint(self) -> str:
        return "0"


@pytest.mark.parametrize("n", [1, 2, 9, 39, 40, 999, 4000, 4001, 10_000, 10_001, 60_000])
def test_held_out_size_is_the_larger_of_two_rules(n: int) -> None:
    assert held_out_size(n) == max(1, -(-n // 10), 1000 if n >= 4000 else n // 4)


@pytest.mark.parametrize("count", [1, 2, 10, 20, 29])
def test_held_out_is_balanced_whole_and_repeatable(count: int) -> None:
    labels = [0] * 14 + [1] * 10 + [2] * 5 + [3]
    train, held = held_out(torch.tensor(labels), count, seed=3)
    assert sorted([*train, *held]) == list(range(30))
    assert train == sorted(train)
    assert len(held) == count
    assert (train, held) == held_out(labels, count, seed=3)
    given = [[labels[i] for i in held].count(c) for c in range(4)]
    if count <= 6:
        assert max(given[:3]) - min(given[:3]) <= 1
    if count <= 26:  # each class keeps a sample to be learnt
        assert given[3] == 0
        assert {labels[i] for i in train} == {0, 1, 2, 3}
    if count > 1:
        assert held != held_out(labels, count, seed=4)[1]


def test_fewer_than_there_are_classes_are_not_the_first_classes() -> None:
    _, held = held_out(torch.arange(100).repeat(2), 50, seed=0)
    labels = [i % 100 for i in held]
    assert len(set(labels)) == 50
    assert 15 < sum(label >= 50 for label in labels) < 35


def test_a_small_class_keeps_half() -> None:
    labels = [0] * 100 + [1] * 4
    _, held = held_out(labels, 40, seed=0)
    assert sum(labels[i] for i in held) == 2


def test_dense_labels_are_drawn_without_classes() -> None:
    train, held = held_out(torch.zeros(10, 4, 4, dtype=torch.int64), 3, seed=0)
    assert (len(train), len(held)) == (7, 3)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_held_out_leaves_something(count: int) -> None:
    with pytest.raises(UsageError, match="1 to 2"):
        held_out([0, 1, 1], count, seed=0)


def test_order_is_a_permutation_of_its_own_in_each_epoch() -> None:
    ids = list(range(100, 130))
    rows = order(ids, 10, seed=5, epoch=0)
    assert sorted(sample for row in rows for sample in row) == ids
    assert rows == order(ids, 10, seed=5, epoch=0)
    assert rows != order(ids, 10, seed=5, epoch=1)
    assert rows != order(ids, 10, seed=6, epoch=0)
    assert [len(row) for row in order(ids, 8, seed=5, epoch=0)] == [8, 8, 8]
    assert [len(row) for row in order(ids, 64, seed=5, epoch=0)] == [30]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_samples_with_their_ids(workers: int) -> None:
    data, change = TensorData(_pictures(12), torch.arange(12)), augmentation("crop-flip")
    rows = order(range(12), 4, seed=1, epoch=2)
    state = torch.get_rng_state()
    found = list(batches(data, rows, augment=None, seed=1, epoch=2, workers=workers))
    assert torch.equal(state, torch.get_rng_state())
    for (ids, x, y), row in zip(found, rows, strict=True):
        assert ids.tolist() == row
        assert ids.dtype == torch.int64
        assert torch.equal(x, _pictures(12)[ids])
        assert torch.equal(y, ids)
    changed = list(batches(data, rows, augment=change, seed=1, epoch=2, workers=workers))
    rest = list(batches(data, rows[1:], augment=change, seed=1, epoch=2))
    for one, other in zip(changed[1:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    again = list(batches(data, [[row] for row in rows[0]], augment=change, seed=1, epoch=2))
    assert torch.equal(torch.cat([x for _, x, _ in again]), changed[0][1])
    other = list(batches(data, rows, augment=change, seed=1, epoch=3))
    assert not torch.equal(other[0][1], changed[0][1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named(workers: int) -> None:
    read = batches(Broken(), [[0, 1], [2, 3]], workers=workers)
    next(read)
    with pytest.raises(UsageError, match=r"^a sample is broken: got sample 3 \(broken\)$"):
        next(read)


def test_labels_of_pixels_are_not_augmented() -> None:
    data = TensorData(_pictures(2), torch.zeros(2, 8, 8, dtype=torch.int64))
    with pytest.raises(UsageError, match="labels of pixels"):
        next(batches(data, [[0, 1]], augment=augmentation("flip")))


def test_columns_of_the_log_do_not_depend_on_the_order_of_the_keys() -> None:
    row = {"epoch": 1, "step": 4, "lr": 0.1, "eps": 0.1, "loss": 2.0, "terms": {"kl": 1.0, "clean": 1.0}}
    row |= {"accuracy": {"clean": 1.0}, "held_out": {"clean": 1.0, "robust": None}, "seconds": 1.0, "forwards": 9}
    back = dict(sorted(row.items()))  # as a checkpoint gives it back
    assert csv_of([row]) == csv_of([back])
    assert csv_of([row]).splitlines()[0].split(",") == [
        *("epoch", "step", "lr", "eps", "loss", "accuracy/clean", "terms/clean", "terms/kl"),
        *("held_out/clean", "seconds", "forwards"),
    ]
