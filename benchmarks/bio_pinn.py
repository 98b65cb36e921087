"""The biodiesel problem of *Optimization by Directional Attacks*: ``python -m benchmarks.bio_pinn FOLDER``.

FOLDER (or ROBUSTKIT_DATA) holds ``models/bio_pinn/mlp.safetensors``, a tanh network 2-64-64-64-6 from time and
microwave power (t, Q) to the concentrations TG, DG, MG, G of the reactants, ME of the product, and the temperature T
(https://github.com/PierreYvesBouchet/Optimization-by-Directional-Attacks, MIT). Variables x in [0, 1]^2, t = 120 x_1,
Q = 20 x_2. Phi stacks the outputs at (t i / 100, Q), i = 1 .. 100. Maximised is the mean over i of
ME / (TG + DG + MG), subject to t Q <= 500, concentrations >= 0, 20 <= T <= 65, all scaled by 1000 in the penalty.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustkit.attacks.directional import Hybrid, MaximiseResult, maximise
from robustkit.zoo import load_into, read_state

console = Console()
SEEDS, POINTS = 11, 100
GOAL = 1.5248
START, AT_START = (1 / 3, 0.3), 0.513101
DIRECT = ("covering", "search", "poll")
RADII = Hybrid(radius=1e-3, attack_radii=(1e-6, 1.0), poll_radii=(1e-6, 0.1))
"""The radii that the authors publish for this problem; all else is the default."""


@dataclass(frozen=True)
class Row:
    """One way to search, with the published figures of its kind, one run each."""

    title: str
    how: Hybrid
    budget: int
    best: float
    spent: int
    barrier: bool = False


ROWS = (
    Row("hybrid", RADII, 259, 1.52484, 259),
    Row("hybrid behind a barrier", RADII, 259, 1.52484, 259, barrier=True),
    Row("hybrid, no corrections", replace(RADII, corrections=0), 259, 1.52484, 259),
    Row("direct search alone, n+1", replace(RADII, steps=DIRECT), 383, 1.51003, 383),
    Row("direct search alone, 2n", replace(RADII, steps=DIRECT, poll="2n"), 383, 1.51003, 383),
    Row("attacks alone", replace(RADII, steps=("attack",)), 94, 1.50228, 94),
    Row("attacks alone, no corrections", replace(RADII, steps=("attack",), corrections=0), 94, 1.50228, 94),
)


class Reactor(nn.Module):
    """The network, from its description."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.f3 = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.out = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        """x (k, 2) in the unit square -> the course of the reaction (k, 100, 6)."""
        share = torch.arange(1, POINTS + 1, dtype=x.dtype, device=x.device) / POINTS
        time, power = 120 * x[:, :1] * share, (20 * x[:, 1:]).expand(-1, POINTS)
        z = torch.stack([time, power], 2)
        for layer in (self.f1, self.f2, self.f3):
            z = layer(z).tanh()
        course: Tensor = self.out(z)
        return course


def yields(y: Tensor) -> Tensor:
    """f: the mean over time of the product for what is left of the reactants, (k,)."""
    return (y[..., 4] / y[..., :3].sum(-1)).mean(1)


def constraints(x: Tensor, y: Tensor) -> Tensor:
    """c <= 0: energy, concentrations, temperature; (k, 701)."""
    energy = 120 * x[:, :1] * 20 * x[:, 1:] - 500
    return torch.cat([energy, -y[..., :5].flatten(1), 20 - y[..., 5], y[..., 5] - 65], 1)


def reactor(folder: Path) -> Reactor:
    """In double precision: the penalty multiplies squares of rounding errors by a million."""
    weights = folder / "models/bio_pinn/mlp.safetensors"
    net = Reactor()
    load_into(net, read_state(weights), str(weights))
    return net.double()


def search(net: Callable[[Tensor], Tensor], row: Row, seed: int) -> MaximiseResult:
    """One run."""
    return maximise(
        yields,
        net,
        torch.tensor(START, dtype=torch.double),
        constraints=constraints,
        scale=1000,
        barrier=row.barrier,
        lower=0.0,
        upper=1.0,
        how=row.how,
        evaluations=row.budget,
        seed=seed,
    )


def reached(counts: list[int | None]) -> str:
    """Median of the runs that reached the goal, and how many did."""
    found = [count for count in counts if count is not None]
    return f"{statistics.median(found):g} ({len(found)} of {len(counts)})" if found else f"- (0 of {len(counts)})"


def main() -> None:
    """All ways, all seeds, one table."""
    place = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ROBUSTKIT_DATA")
    if not place:
        raise SystemExit("give the folder of the networks: python -m benchmarks.bio_pinn FOLDER")
    net = reactor(Path(place))
    start = float(yields(net(torch.tensor([START], dtype=torch.double))).detach())
    if abs(start - AT_START) > 1e-6:
        raise SystemExit(f"f at the start is {start:.6f}, published {AT_START}: another network or another problem")
    table = Table(
        "search",
        "best value: median",
        "min .. max",
        f"evaluations to {GOAL}",
        "evaluations, backwards",
        "largest violation",
        "published",
        title=f"{SEEDS} seeds, medians",
    )
    for row in ROWS:
        table.add_row(*cells(row, [search(net, row, seed) for seed in range(SEEDS)]))
    console.print(table)


def cells(row: Row, runs: list[MaximiseResult]) -> tuple[str, ...]:
    """One line of the table."""
    best = sorted(run.value for run in runs)
    spent = statistics.median(run.evaluations for run in runs)
    return (
        row.title,
        f"{statistics.median(best):.5f}",
        f"{best[0]:.5f} .. {best[-1]:.5f}",
        reached([run.history.reaches(GOAL) for run in runs]),
        f"{spent:g}, {statistics.median(run.backwards for run in runs):g}",
        f"{max(0.0, *(run.violation for run in runs)):.1e}",
        f"{row.best} in {row.spent}",
    )


if __name__ == "__main__":
    main()
