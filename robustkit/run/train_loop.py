"""The loop of a training: steps, a look at the held-out part after every epoch, checkpoints.

Everything random is a function of seed, step and sample, and the rates are functions of the step, so a training that
was cut goes on from its last checkpoint to the very bits of one that was not.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from robustkit.core.defense import Step
from robustkit.core.errors import Incomplete, RobustkitError, UsageError
from robustkit.core.heap import kept
from robustkit.core.lesson import TrainState
from robustkit.core.model import Model
from robustkit.core.types import Cost
from robustkit.data.batches import batches, order
from robustkit.run import train_checkpoint as checkpoint
from robustkit.run.directory import RunDirectory
from robustkit.run.progress import Progress
from robustkit.run.train_log import Board, csv_of, line_of
from robustkit.run.train_monitor import collapse, measure
from robustkit.run.train_optim import Average, optimizer, optimizer_tensors, restore_optimizer
from robustkit.run.train_plan import TrainPlan
from robustkit.run.train_schedule import rate, strength

SAVE_EVERY = 300.0
"""Seconds between two checkpoints inside an epoch."""
LOOK_EVERY = 20
"""Steps between two looks at the loss on an accelerator, each of which waits for the device."""
STAGE = "training"


class Trainer:
    """A training at work in the folder of its run."""

    def __init__(self, plan: TrainPlan, run: RunDirectory, progress: Progress) -> None:
        self.plan, self.run, self.progress = plan, run, progress
        config = plan.config
        self.model: Model = plan.prepared
        net = self.model.net
        self.optimizer = optimizer(
            net, config.optimizer, lr=plan.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.average = None if config.ema is None else Average(net, config.ema)
        self.state = TrainState(seed=config.seed, total=plan.steps, precision=config.precision)
        self.position = checkpoint.Position()
        self.board = Board(run.path, config.tensorboard)
        self._losses: list[tuple[int, Tensor]] = []
        self._saved = self._ticked = time.monotonic()
        self._restore()

    def fit(self) -> checkpoint.Position:
        """Train to the end.

        Raises:
            Incomplete: stopped by Ctrl-C, after a checkpoint; a loss that is no number; the disk is full.
        """
        self.progress.start(STAGE, self.plan.steps - self.position.step)
        with kept(), interruptible() as stop, self.board:
            while not self.position.ended:
                self._epoch(stop)
            if stop.asked:  # while the last epoch was measured
                raise self._stopped()
        return self.position

    @property
    def evaluated(self) -> Model:
        """The network that is measured and kept: the average, if there is one."""
        return self.model if self.average is None else self.model.around(self.average.net)

    # -- an epoch ------------------------------------------------------------------------------------------------------

    def _epoch(self, stop: Stop) -> None:
        plan, position = self.plan, self.position
        seed, epoch = plan.config.seed, position.epoch
        rows = order(plan.rows[0], plan.batch, seed=seed, epoch=epoch)[position.batch :]
        self._ticked = time.monotonic()
        for ids, x, y in batches(
            plan.data, rows, augment=plan.augmentation, seed=seed, epoch=epoch, workers=plan.config.workers
        ):
            for _ in range(plan.defense.replays):
                self._step(ids, *plan.placed(x, y))
            position.batch += 1
            if stop.asked:
                self._save()
                raise self._stopped()
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save()
        self._close()

    def _step(self, ids: Tensor, x: Tensor, y: Tensor) -> None:
        plan, config, state = self.plan, self.plan.config, self.state
        now, state.strength = self._rates(state.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * now
        self.model.net.train()
        with network_errors(state.step + 1):
            step = plan.defense.step(self.model, x, y, state, ids=ids)
        self._losses.append((state.step, step.loss))
        if not step.loss.is_cuda or len(self._losses) >= LOOK_EVERY:
            self._look()
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.net.parameters(), config.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model.net)
        self.position.step = state.step
        self._add(step)
        self.progress.advance(STAGE, 1)

    def _rates(self, step: int) -> tuple[float, float]:
        """Shares of the peak rate and of the radius at a step: functions of its number alone."""
        config, share = self.plan.config, step / self.plan.steps
        return rate(config.schedule, share, config.warmup), strength(config.ramp, share)

    def _look(self) -> None:
        """Stop at the first loss that is no number: the checkpoint before is whole."""
        for number, loss in self._losses:
            if not torch.isfinite(loss):
                raise self._broken(f"the loss is {float(loss)} in step {number}")
        self._losses.clear()

    def _check(self) -> None:
        """Stop before anything that is no number is measured or written: a gradient may spoil weights before a loss."""
        self._look()
        if not all(bool(p.isfinite().all()) for p in self.model.net.parameters() if p.requires_grad):
            raise self._broken(f"weights are not finite after step {self.position.step}")

    def _broken(self, what: str) -> Incomplete:
        return Incomplete(
            f"{what}, epoch {min(self.position.epoch + 1, self.plan.epochs)}",
            expected="a finite number",
            where=str(self.run.path),
            fix="Lower --lr, add --grad-clip 1, --warmup 0.1 or --ramp 0.3, and give another --out; the last "
            "checkpoint and the best weights so far are kept.",
        )

    def _stopped(self) -> Incomplete:
        epoch = min(self.position.epoch + 1, self.plan.epochs)
        return Incomplete(
            f"stopped in epoch {epoch}, after step {self.position.step}",
            where=str(self.run.path),
            fix="A checkpoint is written: give the same command again to go on.",
        )

    def _add(self, step: Step) -> None:
        """The sums of which the epoch's means are made; on an accelerator read when they are needed."""
        found = {"loss": step.loss, **{f"terms/{k}": v for k, v in step.terms.items()}}
        found |= {f"accuracy/{k}": v for k, v in step.accuracy.items()}
        for key, value in found.items():
            self._pending.setdefault(key, []).append(value.detach())
        if not step.loss.is_cuda or len(self._pending["loss"]) >= LOOK_EVERY:
            self._collect()

    def _collect(self) -> None:
        sums = self.position.sums
        for key, values in self._pending.items():
            for value in torch.stack(values).tolist():
                sums[key] = sums.get(key, 0.0) + value
                if key == "loss":
                    sums["count"] = sums.get("count", 0.0) + 1
        self._pending.clear()

    # -- its end -------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        plan, position, config = self.plan, self.position, self.plan.config
        self._check()
        self._collect()
        position.epoch, position.batch = position.epoch + 1, 0
        final = position.epoch == plan.epochs
        row = self._row()
        if final or position.epoch % config.select_every == 0:
            self._select(row)
        self._tick()
        row["seconds"] = position.seconds
        self.run.log("chunk", stage=STAGE, seconds=position.seconds, epoch=position.epoch)
        position.epochs.append(row)
        position.sums, position.seconds = {}, 0.0
        position.ended = position.ended or final
        self.run.write_text("log.csv", csv_of(position.epochs))
        self.board.add(row)
        self.progress.note(line_of(row, plan.epochs))
        self._save()

    def _row(self) -> dict[str, Any]:
        sums, threat = self.position.sums, self.plan.threat
        count = sums["count"]
        mean = {key: value / count for key, value in sums.items() if key != "count"}
        now, share = self._rates(self.position.step - 1)
        return {
            "epoch": self.position.epoch,
            "step": self.position.step,
            "lr": self.peaks[0] * now,
            "eps": None if threat is None else float(threat.eps) * share,
            "loss": mean["loss"],
            "terms": {key.removeprefix("terms/"): v for key, v in mean.items() if key.startswith("terms/")},
            "accuracy": {key.removeprefix("accuracy/"): v for key, v in mean.items() if key.startswith("accuracy/")},
            "held_out": None,
            "seconds": 0.0,
            **asdict(self.state.cost),
        }

    def _select(self, row: dict[str, Any]) -> None:
        """Measure, keep the weights, and see whether robustness has collapsed."""
        position = self.position
        self.progress.status(STAGE, f"epoch {position.epoch}: measuring the held-out part")
        found = measure(self.plan, self.evaluated)
        position.spent = asdict(Cost(**position.spent) + found.cost)
        row["held_out"] = {"clean": found.clean, "robust": found.robust}
        fall = collapse(position.last, found)
        if fall is not None and self._collapsed(row, fall):
            return
        weights = checkpoint.plain_weights(self.evaluated.net)
        record = {"epoch": position.epoch, "clean": found.clean, "robust": found.robust}
        best = position.best
        if best is None or found.rank > (best["clean"] if best["robust"] is None else best["robust"], best["clean"]):
            self.run.write_tensors("best.safetensors", weights)
            position.best = record
        self.run.write_tensors("last.safetensors", weights)
        position.last = record

    def _collapsed(self, row: dict[str, Any], fall: float) -> bool:
        """Note catastrophic overfitting; whether the weights before it are what the training ends with."""
        position, action = self.position, self.plan.config.on_overfitting
        now = row["held_out"]["robust"]
        if position.overfitting is None:
            position.overfitting = {"epoch": position.epoch, "before": now + fall, "after": now, "action": action}
        advice = (
            "the weights before it are kept, and training ends"
            if action == "rollback"
            else ("--on-overfitting rollback would end with the weights before")
        )
        self.progress.note(
            f"catastrophic overfitting in epoch {position.epoch}: robust accuracy on the held-out part fell from "
            f"{now + fall:.1%} to {now:.1%}; {advice}"
        )
        position.ended = action == "rollback"
        return position.ended

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self.position.seconds += now - self._ticked
        self._ticked = now

    def _save(self) -> None:
        self._check()
        self._tick()
        self._collect()
        self.position.cost = asdict(self.state.cost)
        groups = {
            "model": self.model.net.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "average": {} if self.average is None else self.average.tensors(),
            "memory": self.state.memory,
        }
        checkpoint.save(self.run, self.position, groups)
        self._saved = time.monotonic()

    def _restore(self) -> None:
        self._pending: dict[str, list[Tensor]] = {}
        found = checkpoint.restore(self.run)
        if found is None:
            return
        self.position, groups = found
        checkpoint.load(self.model.net, groups.get("model", {}))
        restore_optimizer(self.optimizer, groups.get("optimizer", {}))
        if self.average is not None:
            self.average.restore(groups.get("average", {}))
        self.state.step, self.state.cost = self.position.step, Cost(**self.position.cost)
        device = self.model.device
        self.state.memory.update({key: value.to(device) for key, value in groups.get("memory", {}).items()})
        if not self.position.ended:
            self.progress.note(f"going on after step {self.position.step:,} of {self.plan.steps:,}")


@contextmanager
def network_errors(step: int) -> Iterator[None]:
    """What the user's network raises in train mode, as one message.

    Raises:
        UsageError: whatever it is; our own errors and a lack of memory pass through.
    """
    try:
        yield
    except (RobustkitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            "the network fails on a training batch",
            expected="a forward in train mode, with gradients",
            got=f"{type(error).__name__}: {error}".partition("\n")[0][:200],
            where=f"step {step}",
            fix="In eval mode it ran: look at what it does in train mode, and in the precision that was chosen.",
        ) from error


class Stop:
    """Whether somebody has asked to stop."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """The first Ctrl-C asks to stop after the step at work, the second interrupts it as usual."""
    stop, before = Stop(), signal.getsignal(signal.SIGINT)
    foreign = before in (None, signal.SIG_IGN)  # not Python's, or ignored on purpose, as under nohup
    if threading.current_thread() is not threading.main_thread() or foreign:
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
