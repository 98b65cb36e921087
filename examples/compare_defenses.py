"""Train every defense at one price, attack all of them hard, and say which claims hold.

    python examples/compare_defenses.py    # a look: few gradients, few points, nothing that could be believed
    python examples/compare_defenses.py --budget 1500000 --seeds 20 --points 700 --page docs/defenses/comparison.md

Every training may spend the same number of example-gradients (a forward alone counts a third of one) and gets the same
initial weights, order of the data and seed of the draws; only the method differs. Differences are taken within a seed,
on the same test points. Every finished run is one line of a file in --out, so that a script that was killed goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comparison.page import page, table, write
from torch import Tensor, nn

import robustkit as rk
from robustkit.core.defense import Defense, defense_from
from robustkit.core.heap import kept
from robustkit.core.lesson import TrainState
from robustkit.core.model import Model
from robustkit.core.types import Cost
from robustkit.demo.networks import DigitNet, initialise
from robustkit.run.train_schedule import rate, strength

METHODS = (
    "erm",
    "noise",
    "pgd-at",
    "pgd-at:label_smoothing=0.1",
    "fgsm-rs",
    "free",
    "trades",
    "mart",
    "awp+pgd-at",
    "awp+trades",
    "rat",
    "rat:smoothing=0",
    "amp",
    "amp+pgd-at",
    "concurrent",
)
RAMP = 0.2
"""Share of the training over which the radius grows from nothing."""


@dataclass(frozen=True)
class Task:
    """Where the methods are compared."""

    eps: float
    rate: float
    network: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels: 1,097 to train on and 700 to judge on, split by seed 0."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("scikit-learn is missing: install the extra `demo`, whose mlxtend brings it along") from None
    found = load_digits()
    x = torch.as_tensor(found.images, dtype=torch.float32)[:, None] / 16
    y = torch.as_tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[700:], order[:700]
    return x[train], y[train], x[test], y[test]


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 4,000 digits of demo:mnist-train and the 1,000 of demo:mnist."""
    train, test = rk.open_data("demo:mnist-train"), rk.open_data("demo:mnist")
    return *train.take(range(4000)), *test.take(range(1000))


def mlp() -> nn.Module:
    """64-128-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


TASKS = {"digits": Task(0.15, 0.1, mlp, digits), "mnist": Task(0.2, 0.05, DigitNet, mnist)}


def gradients(cost: Cost) -> float:
    """What a cost amounts to in example-gradients: a forward and a backward are one, a forward alone a third."""
    return cost.backwards + (cost.forwards - cost.backwards) / 3


def batches(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Rows of the data, shuffled anew in every epoch, whole batches alone, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(n, generator=generator).split(size):
            if len(rows) == size:
                yield rows


def train(task: Task, defense: Defense, seed: int, budget: float, batch: int = 100) -> tuple[Model, TrainState]:
    """The plain loop: the defense fills the gradients, and all else is torch's."""
    x, y, *_ = task.data()
    net = task.network()
    initialise(net, torch.Generator().manual_seed(seed))
    model = defense.prepare(rk.wrap(net))
    optimizer = torch.optim.SGD(net.parameters(), lr=task.rate, momentum=0.9, weight_decay=5e-4)
    state = TrainState(seed=seed)
    net.train()
    for rows in batches(len(x), batch, seed):
        for _ in range(defense.replays):
            spent = gradients(state.cost) / budget
            state.strength = strength(RAMP, spent)
            optimizer.param_groups[0]["lr"] = task.rate * rate("cosine", min(spent, 1.0))
            defense.step(model, x[rows], y[rows], state, ids=rows)
            optimizer.step()
            if state.step == 1:  # now the price of a step is known, and so is their number
                state.total = max(1, round(budget / gradients(state.cost)))
        if gradients(state.cost) >= budget:
            break
    net.eval()
    return model, state


def judge(task: Task, model: Model, points: int, detect: bool) -> dict[str, Any]:
    """Accuracies on the test points, and which of them stand against everything; what queries break beyond that.

    Each attack gets the points that stood against those before it: the worst case, point by point.
    """
    *_, x, y = task.data()
    x, y = x[:points], y[:points]
    threat = rk.Linf(task.eps)
    stands = model(x).argmax(1) == y
    found: dict[str, Any] = {"clean": stands.float().mean().item()}

    def withstand(attack: rk.Attack) -> float:
        rows = stands.nonzero()[:, 0]
        stands[rows] = ~attack(model, x[rows], y[rows], ids=rows).success
        return stands.float().mean().item()

    found["pgd20"] = withstand(rk.PGD(threat=threat, steps=20))
    found["ce"] = withstand(rk.PGD(threat=threat, steps=100, restarts=3))
    found["strong"] = withstand(rk.PGD(threat=threat, steps=100, restarts=3, loss="margin"))
    found["standing"] = "".join(str(int(stood)) for stood in stands)
    if detect:  # signs of masked gradients: queries find more than gradients do, or an unbounded attack fails
        found["square"] = found["strong"] - withstand(rk.Square(threat=threat, queries=1000))
        everything = rk.PGD(threat=rk.Linf(1.0), steps=100)(model, x, y)
        found["unbounded"] = ((model(x).argmax(1) == y) & ~everything.success).float().mean().item()
    return found


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One method with one seed, trained and judged: a line of the file."""
    task, began = TASKS[job["data"]], time.perf_counter()
    defense = defense_from(job["method"]).with_threat(rk.Linf(task.eps))
    with kept():  # memory stays between the steps, which the CPU is grateful for
        model, state = train(task, defense, job["seed"], job["budget"])
        trained = time.perf_counter() - began
        found = judge(task, model, job["points"], detect=job["seed"] == 0)
    spent = {"gradients": gradients(state.cost), "steps": state.step, "seconds": trained}
    return job | found | spent | {"seconds_judged": time.perf_counter() - began - trained}


def key(job: dict[str, Any]) -> tuple[Any, ...]:
    """What a line is the result of."""
    return tuple(job[name] for name in ("data", "method", "seed", "budget", "points"))


def stored(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; one that a kill cut short does not count."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def all_runs(jobs: list[dict[str, Any]], path: Path, processes: int) -> list[dict[str, Any]]:
    """The results of all jobs, those from the file and those that are run now, each written down at once."""
    wanted = {key(job): job for job in jobs}
    done = {key(line): line for line in stored(path) if key(line) in wanted}
    left = [job for name, job in wanted.items() if name not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with (
        path.open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool,
    ):
        if path.stat().st_size:
            file.write("\n")  # after a line that was cut short
        for number, future in enumerate(as_completed([pool.submit(run, job) for job in left]), 1):
            line = future.result()
            file.write(json.dumps(line) + "\n")
            file.flush()
            done[key(line)] = line
            print(
                f"{number}/{len(left)} {line['method']} seed {line['seed']}: clean {line['clean']:.1%}, "
                f"PGD-20 {line['pgd20']:.1%}, strong {line['strong']:.1%} ({line['seconds']:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return [done[name] for name in wanted]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, default=2, help="0 .. seeds - 1")
    parser.add_argument("--budget", type=float, default=30000, help="example-gradients that each training may spend")
    parser.add_argument("--points", type=int, default=50, help="test points that are attacked")
    parser.add_argument("--only", help="methods, separated by semicolons; pgd-at is always among them")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each of one thread")
    parser.add_argument("--out", type=Path, default=Path("runs/compare-defenses"), help="folder of the raw results")
    parser.add_argument("--page", type=Path, help="page whose part on these data is written anew")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, print the table, write the page."""
    given = options()
    names = METHODS if given.only is None else tuple(dict.fromkeys(["pgd-at", *given.only.split(";")]))
    settings = {"data": given.data, "budget": given.budget, "points": given.points}
    jobs = [settings | {"method": name, "seed": seed} for seed in range(given.seeds) for name in names]
    lines = all_runs(jobs, given.out / f"{given.data}.jsonl", given.jobs)
    print(table(lines))
    if given.page is not None:
        write(given.page, given.data, page(lines, TASKS[given.data].eps, shlex.join(sys.argv[1:])), lines)


if __name__ == "__main__":
    main()
