"""ConAdv with its attack beside the update, and after one another: ``python -m benchmarks.concurrent``.

On CUDA: the same steps with the attack on the spot, on a stream of its own, and on every other card, in alternating
rounds. On the CPU a worker thread attacks a private copy with half of the threads while the other half learns from the
clean inputs: what could be had there, though the defense has no such option, since threads share torch's generator.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import timm
import torch
from rich.console import Console
from rich.table import Table

import robustkit as rk
from robustkit.core.keyed import default_ids
from robustkit.core.lesson import Lesson, TrainState
from robustkit.core.model import Model
from robustkit.core.splitnorm import branch

THREAT = rk.Linf(9 / 255)
SPOT = "same"
console = Console()
Step = Callable[[], object]


def subject(place: str, args: argparse.Namespace) -> Step:
    """A step of training, update included, with the attack at a place."""
    torch.manual_seed(0)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    defense = rk.Concurrent(threat=THREAT, device=SPOT if place == "thread" else place)
    model = defense.prepare(rk.wrap(timm.create_model(args.network, num_classes=10).to(device).train()))
    x = torch.rand(args.batch, 3, args.size, args.size, device=device)
    y = torch.arange(args.batch, device=device) % 10
    state, optimizer = TrainState(), torch.optim.SGD(model.net.parameters(), lr=0.01)
    one = partial(threaded if place == "thread" else rk.Concurrent.step, defense, model, x, y, state)

    def step() -> None:
        one()
        optimizer.step()

    return step


def threaded(defense: rk.Concurrent, model: Model, x: torch.Tensor, y: torch.Tensor, state: TrainState) -> None:
    """The attack on a private copy in a worker thread, each side with half of the threads."""
    lesson = Lesson(model, x, y, default_ids(len(x)), state, "bench", THREAT, "split")
    lesson.forget()
    beside = rk.Concurrent(threat=THREAT, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(_begin, beside, lesson, max(1, threads // 2))
        with branch(model.module, 0):
            defense.fit(lesson, {"clean": x})
        adversarial = job.result()()
    torch.set_num_threads(threads)
    with branch(model.module, 1):
        defense.fit(lesson, {"adversarial": adversarial})
    state.step += 1


def _begin(defense: rk.Concurrent, lesson: Lesson, threads: int) -> Callable[[], torch.Tensor]:
    torch.set_num_threads(threads)  # of the worker: the number is each thread's own
    return defense.begin(lesson)


def seconds(steps: dict[str, Step], rounds: int, each: int) -> dict[str, float]:
    """Median time of a step, in alternating rounds; the first two steps of each are not counted."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in [*steps.values()] * 2:
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            _wait()
            before = time.perf_counter()
            for _ in range(each):
                step()
            _wait()
            found[name].append((time.perf_counter() - before) / each)
    return {name: statistics.median(times) for name, times in found.items()}


def _wait() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def main() -> None:
    """One row for every place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18", help="of timm")
    parser.add_argument("--batch", type=int, default=128 if torch.cuda.is_available() else 16)
    parser.add_argument("--size", type=int, default=64, help="pixels on a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=10 if torch.cuda.is_available() else 1, help="steps in a round")
    args = parser.parse_args()
    others = [f"cuda:{index}" for index in range(1, torch.cuda.device_count())]
    places = [SPOT, *(["stream", *others] if torch.cuda.is_available() else ["thread"])]
    found = seconds({place: subject(place, args) for place in places}, args.rounds, args.each)
    table = Table("attack", "ms a step", f"against {SPOT}", title=f"{args.network}, {args.batch} x {args.size}^2")
    for place, value in found.items():
        table.add_row(place, f"{1e3 * value:.1f}", f"{value / found[SPOT]:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
