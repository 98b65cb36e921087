"""Optimise through a network: climb by attacks, slide along a constraint, and draw the way.

Without an argument the network is a small formula in the place of a chemical reactor. With the folder of the
biodiesel network (see benchmarks/bio_pinn.py) it is the real one: python examples/directional_search.py FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from robustkit.attacks.directional import Hybrid, maximise

START = torch.tensor([1 / 3, 0.3], dtype=torch.double)
BUDGET = 259


def reaction(x):
    """Time x[:, 0] and power x[:, 1] in [0, 1] -> what has formed and what is left, (k, 2)."""
    time, power = 1.2 * x[:, 0], x[:, 1]
    heat = power * (1.3 - 0.55 * power)
    formed = 1 - torch.exp(-4.5 * time * heat) + 0.25 * time * torch.sin(9 * power + 1.5 * time)
    return torch.stack([formed, torch.exp(-1.2 * time * heat) + 0.35 * (power - 0.35) ** 2], 1)


def ratio(y):
    """Formed for what is left."""
    return y[:, 0] / y[:, 1]


def energy(x, y):
    """At most so much energy, and a product that exists."""
    return torch.stack([4.8 * x[:, 0] * x[:, 1] - 1, -y[:, 0]], 1)


def problem():
    """Phi, f, c and their words: the formula, or the network of the folder on the command line."""
    if len(sys.argv) < 2:
        return reaction, ratio, energy, ("time (share of 120 s)", "power (share of 20 W)", "formed / left")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.bio_pinn import constraints, reactor, yields

    net = reactor(Path(sys.argv[1])).requires_grad_(False)
    return (
        net,
        yields,
        constraints,
        ("time (share of 120 s)", "power (share of 20 W)", "product / reactants, mean over time"),
    )


def draw(phi, f, c, words, runs, path):
    """Landscape, feasible set, and the ways of some searches."""
    side = torch.linspace(0.002, 1, 320, dtype=torch.double)
    grid = torch.cartesian_prod(side, side)
    outputs = phi(grid)
    shape = (len(side), len(side))
    height, worst = f(outputs).view(shape).T, c(grid, outputs).amax(1).view(shape).T
    kept = height[worst <= 0]
    levels = MaxNLocator(24).tick_values(float(kept.min()), float(kept.max()))
    figure, axes = plt.subplots(figsize=(8.4, 6.6), layout="constrained")
    filled = axes.contourf(side, side, height, levels, cmap="viridis", extend="both")
    axes.contour(side, side, height, levels[::3], colors="white", linewidths=0.5, alpha=0.45)
    axes.contourf(side, side, worst, [0, float("inf")], colors=["white"], alpha=0.62)
    axes.contour(side, side, worst, [0], colors=["black"], linewidths=1.4)
    handles = [Line2D([], [], color="black", linewidth=1.4, label="edge of the feasible set (pale: infeasible)")]
    for (title, run), colour in zip(runs.items(), ("#ff8c1a", "#e0218a"), strict=True):
        way = run.history.points
        axes.plot(*way.T, color="white", linewidth=4.2, solid_capstyle="round", alpha=0.9, zorder=3)
        axes.plot(*way.T, color=colour, linewidth=2.2, marker="o", markersize=4, zorder=4)
        axes.scatter(*run.x, s=210, marker="*", color=colour, edgecolors="black", linewidths=0.9, zorder=6)
        label = f"{title}: {run.value:.4f} after {run.history.evaluations[-1]} evaluations"
        handles.append(Line2D([], [], color=colour, linewidth=2.2, marker="*", markersize=11, label=label))
    axes.scatter(*START, s=90, marker="s", color="white", edgecolors="black", zorder=5)
    handles.insert(1, Line2D([], [], color="white", marker="s", markeredgecolor="black", linestyle="", label="start"))
    axes.set(xlabel=words[0], ylabel=words[1], xlim=(0, 1), ylim=(0, 1), title="Directional attacks and direct search")
    axes.legend(handles=handles, loc="upper right", framealpha=0.95)
    figure.colorbar(filled, ax=axes, label=words[2], pad=0.02)
    figure.savefig(path, dpi=150)


def main():
    """Search with and without attacks, and draw both."""
    phi, f, c, words = problem()
    hybrid = Hybrid(radius=1e-3, poll_radii=(1e-6, 0.1))
    direct = replace(hybrid, steps=("covering", "search", "poll"))
    runs = {}
    for title, how in (("direct search alone", direct), ("attacks and direct search", hybrid)):
        run = maximise(
            f, phi, START, constraints=c, scale=1000, barrier=True, lower=0.0, upper=1.0, how=how, evaluations=BUDGET
        )
        runs[title] = run
        print(f"{title}: {run.value:.4f} at {[round(v, 4) for v in run.x.tolist()]}, {run.evaluations} evaluations,")
        print(f"  {run.backwards} backwards; better points by {run.won}")
    path = Path("directional_search.png")
    draw(phi, f, c, words, runs, path)
    print(f"picture: {path.resolve()}")


if __name__ == "__main__":
    main()
