"""What direct search maximises: f(Phi(x)) less a penalty for broken constraints, in a box, with gradients on demand.

``value = f(y) - ||scale * relu(c(x, y))||^2`` with y = Phi(x) (https://arxiv.org/abs/2510.01461, the penalised form);
behind a barrier f(y) where c <= 0 and minus infinity elsewhere. Points are flat, (k, n). A gradient reuses the forward
that gave the value: it costs one backward and no evaluation of Phi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.attacks.hybrid import require
from robustkit.core.errors import UsageError
from robustkit.core.model import Model, wrap

Goal = Callable[[Tensor], Tensor]
Constraints = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Trials:
    """Evaluated points.

    Attributes:
        points: (k, n).
        values: (k,), penalised; minus infinity where f or a constraint is not finite, or behind the barrier.
        goals: (k,), f alone.
        violations: (k,), the largest constraint, unscaled; negative where all hold with room to spare.
    """

    points: Tensor
    values: Tensor
    goals: Tensor
    violations: Tensor
    _live: Tensor
    _broken: Tensor

    @staticmethod
    def none(like: Tensor) -> Trials:
        """No points at all, of the length of ``like`` (n,)."""
        empty = like.new_zeros(0)
        return Trials(like[None][:0], empty, empty, empty, empty, empty)

    def mildest(self) -> int:
        """The point with the largest penalised value, barrier or not."""
        return int(torch.nan_to_num(self._live.detach(), nan=-torch.inf).argmax())

    def gradient(self, i: int) -> Tensor:
        """Of the penalised value of point ``i``, (n,). One backward through the batch.

        Raises:
            UsageError: the value does not depend on x through differentiable operations.
        """
        if not self._live.requires_grad:
            raise UsageError(
                "attack steps need a gradient, and none leads from f(Phi(x)) back to x",
                where="phi",
                fix='Without one, leave the attack out: Hybrid(steps=("covering", "search", "poll")).',
            )
        return self._back(self._live[i], i)

    def restoration(self, i: int) -> Tensor:
        """The Gauss-Newton step from point ``i`` towards the constraints that it breaks, (n,). One backward.

        With z = relu(c) and p = J^T z the step is ``-p ||z||^2 / ||p||^2``: exact for one linear constraint.
        """
        half = self._broken[i].square().sum() / 2
        if not half.requires_grad:
            return torch.zeros_like(self.points[i])
        p = self._back(half, i)
        length = torch.linalg.vector_norm(p)
        return torch.zeros_like(p) if float(length) == 0 else -2 * half.detach() * (p / length) / length

    def _back(self, value: Tensor, i: int) -> Tensor:
        (grad,) = torch.autograd.grad(value, self.points, allow_unused=True, materialize_grads=True)
        return torch.nan_to_num(grad[i], nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, eq=False)
class Penalised:
    """The problem: maximise f(Phi(x)) subject to c(x, Phi(x)) <= 0 and lower <= x <= upper.

    Attributes:
        goal: f, from outputs (k, *O) to (k,).
        model: Phi, wrapped.
        constraints: c, from points (k, *S) and outputs to (k, m), or None.
        scale: factor of the constraints in the penalty.
        barrier: points that break a constraint are worth nothing.
        lower, upper: (n,); infinite where there is no bound.
        shape: *S, of one point.
    """

    goal: Goal
    model: Model
    constraints: Constraints | None
    scale: float
    barrier: bool
    lower: Tensor
    upper: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def of(
        f: Goal,
        phi: Model | nn.Module | Callable[[Tensor], Tensor],
        x0: Tensor,
        constraints: Constraints | None,
        scale: float,
        barrier: bool,
        lower: float | Tensor | None,
        upper: float | Tensor | None,
    ) -> Penalised:
        """The problem as a person states it, x0 being a point of it.

        Raises:
            UsageError: x0 is not finite, empty, or outside the box; a bound does not fit it.
        """
        model = phi if isinstance(phi, Model) else wrap(phi, task="regression")
        model.check(x0)
        require(bool(x0.isfinite().all()) and x0.numel() > 0, "x0", "finite numbers, at least one", x0.tolist())
        require(0 <= scale < float("inf"), "scale", "a number >= 0", scale)
        low = _bound(-torch.inf if lower is None else lower, x0, "lower")
        high = _bound(torch.inf if upper is None else upper, x0, "upper")
        outside = (x0.detach().flatten() < low) | (x0.detach().flatten() > high)
        require(not bool(outside.any()), "x0", "lower <= x0 <= upper", f"{int(outside.sum())} variables outside")
        return Penalised(f, model, constraints, scale, barrier, low, high, tuple(x0.shape))

    def clip(self, points: Tensor) -> Tensor:
        """The nearest points of the box."""
        return points.clamp(self.lower, self.upper)

    def evaluate(self, points: Tensor, *, graph: bool) -> Trials:
        """Values of points (k, n): k evaluations of Phi. ``graph`` keeps what gradients need."""
        leaf = points.detach().requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            x = leaf.view(-1, *self.shape)
            outputs = self.model(x)
            goals = self._goals(outputs, len(points))
            broken, worst = self._constrained(x, outputs)
            live = goals - (self.scale * broken).square().sum(1)
        counts = live.isfinite() & (worst <= 0) if self.barrier else live.isfinite()
        values = torch.where(counts, live, -torch.inf).detach()
        return Trials(leaf, values, goals.detach(), worst, live, broken)

    def _goals(self, outputs: Tensor, k: int) -> Tensor:
        goals = self.goal(outputs)
        if not isinstance(goals, Tensor) or goals.shape != (k,):
            got = f"shape {tuple(goals.shape)}" if isinstance(goals, Tensor) else type(goals).__name__
            raise UsageError(
                "f must give one number per point",
                expected=f"a tensor of shape ({k},) from outputs of shape {tuple(outputs.shape)}",
                got=got,
                where="f",
                fix="The first dimension counts points: sum or average over the others only.",
            )
        return goals

    def _constrained(self, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """relu(c), (k, m), and the largest of c, (k,)."""
        if self.constraints is None:
            return x.new_zeros(len(x), 1), x.new_zeros(len(x))
        c = self.constraints(x, outputs)
        if not isinstance(c, Tensor) or c.ndim < 1 or len(c) != len(x):
            got = f"shape {tuple(c.shape)}" if isinstance(c, Tensor) else type(c).__name__
            raise UsageError(
                "constraints must give one row per point", expected=f"({len(x)}, m)", got=got, where="constraints"
            )
        c = c.reshape(len(x), -1)
        return c.relu(), c.detach().amax(1)


def _bound(bound: float | Tensor, x0: Tensor, name: str) -> Tensor:
    """One side of the box, (n,)."""
    value = torch.as_tensor(bound, dtype=x0.dtype, device=x0.device)
    try:
        flat = value.expand(x0.shape).flatten()
    except RuntimeError:
        raise UsageError(
            f"{name} does not fit x0",
            expected=f"a number or a tensor that broadcasts to {tuple(x0.shape)}",
            got=f"shape {tuple(value.shape)}",
            where=name,
        ) from None
    require(not bool(flat.isnan().any()), name, "no NaN", value.tolist())
    return flat
