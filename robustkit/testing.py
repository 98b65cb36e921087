"""Networks with known answers, and a check for your own test suite.

Every method can be held against these: what is right is known in closed form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.specs import ThreatSpec, parse_fraction
from robustkit.core.threat import threat_from

if TYPE_CHECKING:
    from robustkit.core.attack import Attack
    from robustkit.core.model import Model
    from robustkit.run.result import Result

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class HalfSpace(nn.Module):
    """Two classes divided by the hyperplane w.(x - 1/2) = 0: logits (-z, z).

    The distance of x to the other class in lp is |z| / ||w||_q with 1/p + 1/q = 1 (the bounds aside).

    Args:
        shape: of one input.
        seed: of the weights.
    """

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator).flatten())
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.dropout(x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-z, z], 1)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """Distance of each sample to the other class, (N,)."""
        z = (x.flatten(1) - 0.5) @ self.weight.detach()
        norms: Tensor = torch.linalg.vector_norm(self.weight.detach(), ord=DUAL[norm])
        return z.abs() / norms


class Bowl(nn.Module):
    """Two classes divided by the sphere ||x - 1/2||_2 = radius.

    The l2 distance of x to the other class is the absolute difference of ||x - 1/2||_2 and the radius.
    """

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius))

    def forward(self, x: Tensor) -> Tensor:
        z = (x.flatten(1) - 0.5).square().sum(1) - self.radius.square()
        return torch.stack([-z, z], 1)


def assert_robust(
    model: Model | nn.Module,
    data: Any,
    requirement: str,
    *,
    attacks: Sequence[Attack | str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Result:
    """Fail a test when a model is less robust than required.

    Args:
        model: wrapped or bare network.
        data: a DataLoader, a Dataset or (x, y).
        requirement: ``">=0.45@linf:8/255"``.
        attacks: attacks to run; PGD with 20 steps by default.
        limit: first samples to evaluate.
        seed: of all random draws.

    Raises:
        AssertionError: the worst-case accuracy is below the requirement, or a diagnostic says that it means nothing.
        UsageError: the requirement cannot be read.
    """
    import robustkit as rk

    bound, spec = parse_requirement(requirement)
    chosen = attacks or [rk.PGD(steps=20)]
    result = rk.evaluate(model, data, attacks=chosen, threat=threat_from(spec), limit=limit, seed=seed)
    low, high = result.interval
    assert result.valid, "the robustness number is invalid: " + "; ".join(
        d.message for d in result.diagnostics if d.fatal
    )
    assert result.robust_accuracy >= bound, (
        f"robust accuracy {result.robust_accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, n={result.n}) "
        f"at {spec} is below {bound:g}"
    )
    return result


def parse_requirement(text: str) -> tuple[float, ThreatSpec]:
    """Accuracy and threat of a requirement.

    >>> parse_requirement(">= 0.45 @ l2:0.5")
    (0.45, ThreatSpec(norm='l2', eps=0.5, text='l2:0.5'))
    """
    found = re.fullmatch(r"\s*>=\s*([^@]+?)\s*@\s*(\S+)\s*", text)
    if not found:
        raise UsageError(
            "cannot read the requirement",
            expected="'>=ACCURACY@NORM:EPS'",
            got=repr(text),
            where="assert_robust",
            fix='Write for example ">=0.45@linf:8/255".',
        )
    return parse_fraction(found[1], "accuracy"), ThreatSpec.parse(found[2])
