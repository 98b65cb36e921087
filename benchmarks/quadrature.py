"""What steps and rules buy integrated gradients: ``python -m benchmarks.quadrature [--photos 4]``.

EfficientNet-Lite0 on ``demo:photos``, the logit of the predicted class, from the lowest value of each image. Printed
are, over the photos, the mean size of the residual relative to the difference of the outputs and the mean cosine to the
map of many midpoints. Nothing is timed.
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import robustkit as rk
from benchmarks.common import THREADS
from robustkit.explain.integrated import IntegratedGradients

REFERENCE = 320
RULES = (
    *((rule, steps) for rule in ("gauss-legendre", "midpoint", "trapezoid", "linspace") for steps in (25, 50, 100)),
    *(("auto", most) for most in (33, 49, 97, 257)),
)
console = Console(width=120)


def method(rule: str, steps: int) -> IntegratedGradients:
    """Rule and steps; ``auto`` with that many steps at most."""
    if rule == "auto":
        return IntegratedGradients(steps="auto", max_steps=steps, baseline="min")
    return IntegratedGradients(rule=rule, steps=steps, baseline="min")  # type: ignore[arg-type]


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over samples."""
    return float(torch.cosine_similarity(one.flatten(1).double(), other.flatten(1).double()).mean())


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quadrature", description=__doc__)
    parser.add_argument("--photos", type=int, default=4, help="of the four")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = rk.load("demo:efficientnet_lite0")
    x, _ = rk.open_data("demo:photos", preprocessing=model.preprocessing).take(range(arguments.photos))
    reference = method("midpoint", REFERENCE)(model, x).values
    table = Table("rule", "steps", "gradients a photo", "residual", "cosine")
    for rule, steps in track(RULES, console=Console(stderr=True)):
        found = method(rule, steps)(model, x)
        assert found.residual is not None
        residual = float((found.residual / found.extras["difference"]).abs().mean())
        taken = f"{found.cost.backwards / len(x):.0f}"
        table.add_row(rule, str(steps), taken, f"{residual:.1%}", f"{cosine(found.values, reference):.4f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
