"""A training: resuming to the bit, honest selection, what is written, and what stops it."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import robustkit as rk
from robustkit.core import files
from robustkit.core.defense import Defense
from robustkit.core.errors import Incomplete, UsageError
from robustkit.core.splitnorm import split
from robustkit.run import train_checkpoint, train_loop
from robustkit.run.train_monitor import Measured
from tests.run.training import SHORT, TinyNet, patterns, short

RESUMED = ["erm", "noise", "pgd-at:steps=2", "free:replays=2", "awp+trades:steps=1", "amp+mart:steps=1", "concurrent"]


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Its plots take longer than a training; tests/report looks at it."""
    monkeypatch.setattr("robustkit.report.write.write_page", lambda folder: folder)


def stop_at(monkeypatch, step: int) -> None:
    """Press Ctrl-C while this step is made."""
    plain = Defense.step

    def pressing(self, model, x, y, state=None, *, ids=None):
        if state.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, model, x, y, state, ids=ids)

    monkeypatch.setattr(Defense, "step", pressing)


@pytest.mark.parametrize("defense", RESUMED)
def test_a_stopped_training_goes_on_to_the_same_bits(defense, tmp_path, monkeypatch):
    options = {"epochs": 4 if defense.startswith("free") else 2, "ema": 0.9, "augment": "flip", "ramp": 0.5}
    whole = short(defense, out=tmp_path / "whole", **options)
    for step in (1, 3, 6):
        with monkeypatch.context() as patched:
            stop_at(patched, step)
            with pytest.raises(Incomplete, match="stopped in epoch"):
                short(defense, out=tmp_path / "cut", **options)
    cut = short(defense, out=tmp_path / "cut", **options)
    for which in ("best", "last"):
        assert cut.weights(which).read_bytes() == whole.weights(which).read_bytes()
    timeless = [{**row, "seconds": 0} for row in cut.data["epochs"]]
    assert timeless == [{**row, "seconds": 0} for row in whole.data["epochs"]]
    assert {**cut.data, "times": 0, "epochs": 0} == {**whole.data, "times": 0, "epochs": 0}


def test_the_best_weights_are_those_of_the_best_measurement(tmp_path):
    net = TinyNet()
    found = short(net=net, out=tmp_path / "run", epochs=5)
    rows = found.data["epochs"]
    ranks = [(row["held_out"]["robust"], row["held_out"]["clean"]) for row in rows]
    assert found.best["epoch"] == 1 + ranks.index(max(ranks)) and found.last["epoch"] == 5
    stored = load_file(found.weights())
    assert all(torch.equal(stored[key], value) for key, value in net.state_dict().items())
    assert not net.training and found.model.net is net


def test_measurements_can_be_made_again_from_the_stored_weights(tmp_path):
    from robustkit.data.batches import held_out, held_out_size

    found = short(out=tmp_path / "run", threat=rk.Linf(0.3))
    x, y = patterns()
    train, held = held_out(y, held_out_size(len(y)), 0)
    assert not set(train) & set(held) and sorted([*train, *held]) == list(range(len(y)))
    attack = rk.PGD(steps=2, threat=rk.Linf(0.3))
    with found.model.frozen():
        right = found.model(x[held]).argmax(1) == y[held]
    broken = attack(found.model, x[held], y[held], ids=torch.tensor(held)).success
    assert found.best["clean"] == float(right.float().mean())
    assert found.best["robust"] == pytest.approx(float((right & ~broken).float().mean()))


@pytest.mark.parametrize("action", ["warn", "rollback"])
def test_catastrophic_overfitting(action, tmp_path, monkeypatch):
    from robustkit.core.types import Cost

    said = iter([0.5, 0.6, 0.3, 0.35])
    weights = []

    def measured(plan, model):
        weights.append({key: value.clone() for key, value in model.net.state_dict().items()})
        return Measured(0.9, next(said), Cost(1, 1))

    monkeypatch.setattr(train_loop, "measure", measured)
    found = short(out=tmp_path / "run", epochs=4, on_overfitting=action)
    event = found.data["overfitting"]
    assert event == {"epoch": 3, "before": pytest.approx(0.6), "after": 0.3, "action": action}
    assert found.best["epoch"] == 2
    ends = 2 if action == "rollback" else 4
    assert found.last["epoch"] == ends and len(found.data["epochs"]) == (3 if action == "rollback" else 4)
    last = load_file(found.weights("last"))
    assert all(torch.equal(last[key], value) for key, value in weights[ends - 1].items())


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_checkpoint(tmp_path):
    class Breaking(TinyNet):
        passes = 0

        def forward(self, x):
            self.passes += self.training
            return super().forward(x) * (torch.nan if self.training and self.passes > 6 else 1)

    with pytest.raises(Incomplete, match=r"the loss is nan in step 7, epoch 2") as error:
        short("erm", Breaking(), out=tmp_path / "run", threat=None)
    assert error.value.exit_code == 3
    position = json.loads((tmp_path / "run" / "training.json").read_text())
    stored = load_file(tmp_path / "run" / position["file"])
    assert position["epoch"] == 1 and all(value.isfinite().all() for value in stored.values())


class Spoilt(torch.autograd.Function):
    """The values as they are, and gradients that are no numbers."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


@pytest.mark.parametrize("step", [8, 12])
def test_weights_that_are_no_numbers_are_neither_measured_nor_written(step, tmp_path):
    """A finite loss with such gradients in the last step of an epoch, and in the very last."""

    class Breaking(TinyNet):
        passes = 0

        def forward(self, x):
            self.passes += self.training
            return Spoilt.apply(super().forward(x)) if self.training and self.passes == step else super().forward(x)

    with pytest.raises(Incomplete, match=rf"weights are not finite after step {step}, epoch {step // 4}"):
        short("erm", Breaking(), out=tmp_path / "run", threat=None)
    position = json.loads((tmp_path / "run" / "training.json").read_text())
    assert position["step"] == step - 4
    for file in (position["file"], "last.safetensors"):
        assert all(value.isfinite().all() for value in load_file(tmp_path / "run" / file).values())


def test_ctrl_c_while_the_last_epoch_is_measured_stops_before_the_evaluation(tmp_path, monkeypatch):
    plain, count = train_loop.measure, iter(range(1, 9))

    def pressing(plan, model):
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(plan, model)

    with monkeypatch.context() as patched:
        patched.setattr(train_loop, "measure", pressing)
        with pytest.raises(Incomplete, match="stopped in epoch 3, after step 12"):
            short(out=tmp_path / "run")
    assert short(out=tmp_path / "run").data["epochs"][-1]["epoch"] == 3


def test_a_stop_without_a_folder_does_not_promise_a_checkpoint(monkeypatch):
    stop_at(monkeypatch, 1)
    with pytest.raises(Incomplete, match=r"nothing of it is kept: got stopped in epoch 1, after step 2 \(out\)"):
        short()


def test_a_full_disk_at_the_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    plain = files.replace_file

    def full(path, content):
        if "checkpoints" in str(path) and "00000008" in path.name:
            raise Incomplete("the disk is full", where=str(path))
        plain(path, content)

    whole = short(out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("robustkit.run.directory.replace_file", full)
        with pytest.raises(Incomplete, match="the disk is full"):
            short(out=tmp_path / "cut")
    cut = short(out=tmp_path / "cut")
    assert cut.weights("last").read_bytes() == whole.weights("last").read_bytes()


def test_a_real_full_disk_is_said(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(Incomplete, match="the disk is full"):
            short(out=tmp_path / "run")


def test_only_the_training_forward_is_in_bfloat16():
    seen = {True: set(), False: set()}

    class Looking(TinyNet):
        def forward(self, x):
            out = super().forward(x)
            seen[self.training].add(out.dtype)
            return out

    short(net=Looking(), precision="bfloat16", epochs=1)
    assert seen[True] == {torch.bfloat16} and torch.bfloat16 not in seen[False]


def test_log_holds_every_epoch(tmp_path):
    found = short("trades:steps=1", out=tmp_path / "run", schedule="cosine")
    lines = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert [int(line["epoch"]) for line in lines] == [1, 2, 3]
    for line, row in zip(lines, found.data["epochs"], strict=True):
        assert float(line["loss"]) == row["loss"] == pytest.approx(sum(row["terms"].values()))
        assert float(line["held_out/robust"]) == row["held_out"]["robust"]
    assert found.to_frame().loc[2, "step"] == 2 * found.data["recipe"]["steps"] / 3


def test_a_network_that_is_split_already_is_refused_before_the_training():
    model = rk.wrap(TinyNet())
    split(model, 2)
    with pytest.raises(UsageError, match=r"expected plain layers, got 2 branches.*merge"):
        short("concurrent", model)


def test_cost_is_that_of_the_attack_and_the_step(tmp_path):
    found = short("pgd-at:steps=3", out=tmp_path / "run")
    samples = found.data["recipe"]["steps"] * 12
    assert found.data["cost"] == {"forwards": 4 * samples, "backwards": 4 * samples}


def test_free_makes_fewer_epochs_with_more_steps_each(tmp_path):
    found = short("free:replays=3", out=tmp_path / "run", epochs=6)
    assert len(found.data["epochs"]) == 2
    per_epoch = found.data["data"]["trained_on"] // 12
    assert found.data["recipe"]["steps"] == 2 * 3 * per_epoch


def test_the_network_is_touched_only_at_the_end(tmp_path, monkeypatch):
    net = TinyNet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    stop_at(monkeypatch, 4)
    with pytest.raises(Incomplete):
        short(net=net, out=tmp_path / "run")
    assert net.training and all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_other_options_and_another_network_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Incomplete):
            short(out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"lr: 0\.05 -> 0\.1"):
        short(out=tmp_path / "run", lr=0.1)
    with pytest.raises(UsageError, match="contents of model"):
        short(net=TinyNet(seed=1), out=tmp_path / "run")


def test_a_finished_training_is_not_made_again(tmp_path):
    first = short(out=tmp_path / "run")
    net = TinyNet()
    again = short(net=net, out=tmp_path / "run")
    assert again.data == first.data
    assert all(torch.equal(load_file(first.weights())[key], value) for key, value in net.state_dict().items())


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Incomplete):
            short(out=tmp_path / "run")
    position = json.loads((tmp_path / "run" / "training.json").read_text())
    (tmp_path / "run" / position["file"]).write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot read stored tensors"):
        short(out=tmp_path / "run")


def test_checkpoints_give_shared_tensors_memory_of_their_own():
    tied = torch.ones(3)
    found = train_checkpoint.apart({"a": tied, "b": tied, "c": tied[:2]})
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 3


def test_the_plain_loop():
    net = TinyNet()
    model, (x, y) = rk.wrap(net), patterns()
    defense = rk.TRADES(beta=6, steps=2, threat=rk.Linf(0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    state, losses = rk.TrainState(seed=0), []
    net.train()
    for _ in range(10):
        losses.append(float(defense.step(model, x, y, state)))
        optimizer.step()
    assert state.step == 10 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.long)), {}, "one class only"),
        ((torch.rand(20, 1, 4, 4), torch.arange(20) % 7), {}, "labels are out of range"),
        ((torch.rand(20, 1, 4, 4) + 1, torch.arange(20) % 4), {}, "inputs leave the bounds"),
        (patterns(), {"batch_size": 1}, "batch normalisation needs more than one sample"),
        (patterns(), {"threat": rk.Linf(8)}, "the threat allows every input"),
        (patterns(), {"lr": 0}, "lr cannot be used"),
        (patterns(), {"defense": "tardes"}, "Did you mean trades"),
        (patterns(), {"defense": "trades:bta=6"}, "Did you mean beta"),
        (patterns(), {"defense": "pgd-at+trades"}, "wraps no other defense"),
        (patterns(), {"schedule": "cosin"}, "cosine"),
        (patterns(), {"optimizer": "sdg"}, "sgd"),
        (patterns(), {"augment": "flop"}, "flip"),
        (patterns(), {"holdout": 64}, "too few samples"),
        (patterns(), {"select": ["cospgd"]}, "task"),
        (patterns(), {"test": patterns()}, "test and training data are the same"),
        (
            patterns(),
            {"test": (torch.rand(8, 1, 9, 9), torch.arange(8) % 4)},
            r"does not accept these inputs.*\(test\)",
        ),
        (patterns(), {"test": (torch.rand(8, 1, 4, 4), torch.arange(8))}, r"labels are out of range.*\(test\)"),
        ((patterns()[0], torch.arange(64) % 4 + 3 * (torch.arange(64) == 50)), {}, "got 0 .. 5"),
        (patterns(), {"threat": 0.1}, "this is not a threat"),
        (patterns(), {"defense": rk.TRADES}, "this is not a defense"),
    ],
)
def test_bad_input(data, options, message, tmp_path):
    given = {"defense": "pgd-at", **SHORT, **options}
    with pytest.raises(UsageError, match=message):
        rk.train(TinyNet(), data, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()  # or the right options would be refused there


def test_a_network_without_gradient_is_named():
    class Rounded(TinyNet):
        def forward(self, x):
            return super().forward((4 * x.detach()).round() / 4)

    with pytest.raises(UsageError, match="the network has no gradient"):
        short(net=Rounded())


def test_weights_without_a_gradient_are_named():
    class Hard(TinyNet):
        def forward(self, x):
            return torch.nn.functional.one_hot(super().forward(x).argmax(1), 4).float()

    with pytest.raises(UsageError, match="the network cannot be trained"):
        short("erm", Hard(), threat=None)


def test_a_network_that_fails_in_train_mode_alone_is_named_with_the_step():
    class Failing(TinyNet):
        passes = 0

        def forward(self, x):
            self.passes += self.training
            if self.passes == 3:
                raise RuntimeError("no more\nof this")
            return super().forward(x)

    with pytest.raises(UsageError, match=r"fails on a training batch.*RuntimeError: no more \(step 3\)"):
        short("erm", Failing(), threat=None)


def test_one_attack_to_choose_by_needs_no_list():
    assert short(select="pgd:steps=2").data["selection"]["attacks"] == ["pgd:steps=2"]


def test_a_network_that_attacks_cannot_move_is_noted():
    class Stepped(TinyNet):
        def forward(self, x):
            return super().forward(x.round() + 0 * x)

    found = short(net=Stepped(), epochs=1)
    assert "exactly 0 at 32 of 32 samples" in found.data["notes"][0]
    assert not short("erm", net=Stepped(), epochs=1).data["notes"] and not short(epochs=1).data["notes"]


def test_a_folder_in_which_no_step_was_made_takes_other_options(tmp_path):
    class Failing(TinyNet):
        def forward(self, x):
            if self.training:
                raise RuntimeError("only in train mode")
            return super().forward(x)

    with pytest.raises(UsageError, match=r"the network fails on a training batch.*only in train mode"):
        short(net=Failing(), out=tmp_path / "run")
    assert short(out=tmp_path / "run", epochs=1).data["complete"]


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_at(monkeypatch, 2)
        assert short(epochs=1).data["complete"]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
