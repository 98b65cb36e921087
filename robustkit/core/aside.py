"""An attack beside the update of a training: on a stream of its own, or on another device.

The attack reads parameters of earlier steps and nothing that the update writes, so that neither waits for the other.
Everything is launched by one thread, in one order: accelerators compute what they are given while the thread goes on,
and random draws stay the same. On the CPU nothing overlaps: an operation there is done when its call returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.lesson import Lesson, Mode
from robustkit.core.model import Model
from robustkit.core.stale import swapped, twin
from robustkit.kernels.noise import key_of

Attacked = Callable[[Lesson], Tensor]
Pending = Callable[[], Tensor]
"""Waits for an attack and gives its end, (N, *S), where the network lies."""


def attack_aside(attack: Attacked, lesson: Lesson, stale: Mapping[str, Tensor], place: str) -> Pending:
    """Start an attack on a network with stale parameters.

    Args:
        attack: what to do with a lesson.
        lesson: the step at work.
        stale: parameters by name; those left out are the present ones.
        place: ``same`` for here and now, ``stream`` for a CUDA stream of its own, or a device, which gets a private
            copy of the network.
    """
    if place == "same":
        with swapped(lesson.model.net, stale):
            found = attack(lesson)
        return lambda: found
    if place == "stream":
        return _on_stream(attack, lesson, stale)
    return _elsewhere(attack, lesson, stale, torch.device(place))


def _on_stream(attack: Attacked, lesson: Lesson, stale: Mapping[str, Tensor]) -> Pending:
    """Kernels know the addresses of stale parameters once they are launched: the network has its own back at once."""
    main, side = torch.cuda.current_stream(lesson.model.device), _stream(lesson.model.device)
    side.wait_stream(main)
    with torch.cuda.stream(side), swapped(lesson.model.net, stale):
        found = attack(lesson)

    def wait() -> Tensor:
        main.wait_stream(side)
        found.record_stream(main)
        return found

    return wait


def _elsewhere(attack: Attacked, lesson: Lesson, stale: Mapping[str, Tensor], device: torch.device) -> Pending:
    """Copies between accelerators are ordered by torch: they wait for what they read, and nothing else does."""
    other = twin(lesson.model, device, stale)
    there = replace(lesson, model=other, x=lesson.x.to(device), y=lesson.y.to(device))
    with _random(lesson, other.device):
        found = attack(there)
    return lambda: found.to(lesson.x.device)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, so that its memory is used again."""
    return torch.cuda.Stream(device)


@contextmanager
def _random(lesson: Lesson, device: torch.device) -> Iterator[None]:
    """Dropout on a second accelerator draws by (seed, step) as well; its generator is as before afterwards."""
    if device.type != "cuda" or device == lesson.model.device:
        yield
        return
    with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
        torch.cuda.manual_seed(key_of(lesson.state.seed, lesson.state.step, "aside", lesson.state.engine.rank, 0))
        yield


def check_device(place: str, model: Model, mode: Mode, tau: int, name: str) -> None:
    """Whether an attack can run there, beside the update.

    Raises:
        UsageError: no such device; an attack that reads what the update writes.
    """
    where = f"{name}:device={place}"
    if tau == 0:
        raise UsageError(
            "the attack needs the present parameters, so it cannot run beside their update",
            expected="tau of 1 or more",
            got="tau=0",
            where=where,
            fix="Use device=same.",
        )
    if mode != "train_frozen_stats":
        raise UsageError(
            "an attack beside the update can neither read nor write running statistics",
            expected="attack_mode=train_frozen_stats",
            got=f"attack_mode={mode}",
            where=where,
            fix="Use device=same.",
        )
    if not _there(place, model):
        raise UsageError(
            "there is no such device for the attack",
            expected=_known(model),
            got=place,
            where=where,
            fix="Use device=same.",
        )


def _there(place: str, model: Model) -> bool:
    if place == "stream":
        return model.device.type == "cuda"
    try:
        device = torch.device(place)
    except RuntimeError:
        return False
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu"


def _known(model: Model) -> str:
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ", ".join(["same", *(["stream"] if model.device.type == "cuda" else []), "cpu", *cards])
