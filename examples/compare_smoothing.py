"""Does dual smoothing certify more than plain smoothing, at equal noise, equal draws and equal training?

    python examples/compare_smoothing.py    # a look: few gradients, few digits, nothing that could be believed
    python examples/compare_smoothing.py --budget 150000 --points 250 --n 1000 --page docs/certify/comparison.md

For each noise level and seed the arms spend the same number of example-gradients from the same initial weights. `noise`
trains one network on noisy digits, and is smoothed plainly, with as many draws as each half has (n) and with as many as
both halves have together (2 n). The `drs` arms spend half of their gradients like `noise` does, and the rest on the two
halves. With --long the network of `noise` is smoothed plainly with 10 n draws, too. Certificates are of the same digits
with the same seed. Every finished arm is one line of a file in --out, so that a script that was killed goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from compare_defenses import batches, gradients, stored
from comparison.certified import page, table, write

import robustkit as rk
from robustkit.core.defense import Defense
from robustkit.core.heap import kept
from robustkit.core.lesson import TrainState
from robustkit.core.model import Model
from robustkit.core.types import Cost
from robustkit.demo.networks import DigitNet, initialise
from robustkit.run.train_schedule import rate

ARMS = ("noise", "org", "consistency")
LONG = "long"
RATE, BATCH = 1e-3, 100
"""Peak of Adam's rate, which falls by a cosine in each stage of a training; digits in a batch."""


def train(model: Model, defense: Defense, seed: int, budget: float) -> tuple[Model, Cost]:
    """The plain loop until the budget is spent; the network is prepared for the defense, and left in eval mode."""
    x, y = rk.open_data("demo:mnist-train").take(range(4000))
    model = defense.prepare(model)
    optimizer = torch.optim.Adam(model.net.parameters(), lr=RATE)
    state = TrainState(seed=seed)
    model.net.train()
    for rows in batches(len(x), BATCH, seed):
        spent = gradients(state.cost) / budget
        if spent >= 1:
            break
        optimizer.param_groups[0]["lr"] = RATE * rate("cosine", spent)
        defense.step(model, x[rows], y[rows], state, ids=rows)
        optimizer.step()
    model.net.eval()
    return model, state.cost


def trained(arm: str, sigma: float, seed: int, budget: float) -> tuple[Model, float]:
    """The network of an arm, and the example-gradients that it took."""
    net = DigitNet()
    initialise(net, torch.Generator().manual_seed(seed))
    whole = budget if arm in ("noise", LONG) else budget / 2
    model, cost = train(rk.wrap(net), rk.Noise(sigma=sigma), seed, whole)
    if whole < budget:
        model, more = train(model, rk.DRS(sigma=sigma, recipe=arm), seed, budget - whole)
        cost = cost + more
    return model, gradients(cost)


def certified(model: Model, certifier: rk.Certifier, points: int) -> list[float]:
    """Of every digit the certified radius; 0 where nothing is certified, -1 where the class is the wrong one."""
    x, y = rk.open_data("demo:mnist").take(range(points))
    found = certifier(model, x)
    wrong = (found.prediction != y) & ~found.abstained
    return [round(radius, 4) for radius in torch.where(wrong, -1.0, found.radius).tolist()]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One arm, trained and certified: a line of the file."""
    sigma, n, points = job["sigma"], job["n"], job["points"]
    methods: dict[str, rk.Certifier] = {"dual, n a half": rk.DualSmoothing(sigma=sigma, n=n, fill="paper")}
    if job["arm"] == "noise":
        methods |= {"plain, n": rk.Smoothing(sigma=sigma, n=n), "plain, 2 n": rk.Smoothing(sigma=sigma, n=2 * n)}
    if job["arm"] == LONG:
        filled = rk.DualSmoothing(sigma=sigma, n=n, fill="mean")
        methods = {"plain, 10 n": rk.Smoothing(sigma=sigma, n=10 * n), "dual, fill=mean, n a half": filled}
    with kept():  # memory stays between the steps, which the CPU is grateful for
        began = time.perf_counter()
        model, spent = trained(job["arm"], sigma, job["seed"], job["budget"])
        seconds = time.perf_counter() - began
        radii = {name: certified(model, method, points) for name, method in methods.items()}
        limits = {name: round(method.limit(), 4) for name, method in methods.items()}
    x, y = rk.open_data("demo:mnist").take(range(points))
    clean = (model(x).argmax(1) == y).double().mean().item()
    times = {"seconds": seconds, "seconds_certified": time.perf_counter() - began - seconds}
    return job | {"clean": clean, "gradients": spent, "radii": radii, "limits": limits} | times


def key(job: dict[str, Any]) -> tuple[Any, ...]:
    """What a line is the result of."""
    return tuple(job[name] for name in ("arm", "sigma", "seed", "budget", "points", "n"))


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
            name = f"{line['arm']} at sigma {line['sigma']:g}, seed {line['seed']}"
            seconds = line["seconds"] + line["seconds_certified"]
            print(f"{number}/{len(left)} {name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return [done[name] for name in wanted]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.25, 0.5], help="noise, of training and smoothing")
    parser.add_argument("--seeds", type=int, default=1, help="0 .. seeds - 1")
    parser.add_argument("--budget", type=float, default=2000, help="example-gradients that each arm may spend")
    parser.add_argument("--points", type=int, default=10, help="digits that are certified, of 1,000")
    parser.add_argument("--n", type=int, default=100, help="draws of each half")
    parser.add_argument("--long", action="store_true", help="plain smoothing with 10 n draws, dual of means")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each of one thread")
    parser.add_argument("--out", type=Path, default=Path("runs/compare-smoothing"), help="folder of the raw results")
    parser.add_argument("--page", type=Path, help="page whose table is written anew")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, print the table, write the page."""
    given = options()
    settings = {"budget": given.budget, "points": given.points, "n": given.n}
    wanted = (*ARMS, LONG) if given.long else ARMS
    arms = [(seed, sigma, arm) for seed in range(given.seeds) for sigma in given.sigmas for arm in wanted]
    jobs = [settings | {"arm": arm, "sigma": sigma, "seed": seed} for seed, sigma, arm in arms]
    lines = all_runs(jobs, given.out / "mnist.jsonl", given.jobs)
    print(table(lines))
    if given.page is not None:
        write(given.page, page(lines, shlex.join(sys.argv[1:])), lines)


if __name__ == "__main__":
    main()
