"""Minimum-norm attacks: the smallest perturbation that succeeds, at no radius given in advance.

Against a threat a sample counts as broken where its distance is at most eps, so that one run gives the whole curve of
robust accuracy over eps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.attack import Attack
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.search import Problem, Search
from robustkit.core.threat import THREATS, Threat
from robustkit.kernels.balls import per_sample

Norm = Literal["linf", "l2", "l1"]


class Nearest(Search):
    """The state of a minimum-norm attack on a batch: the closest adversarial point of every sample.

    Points may lie anywhere in the bounds. Samples stay in the computation after a success, until the attack lets them
    leave, or, with ``stop_inside``, until they are broken inside the threat.

    Attributes:
        nearest: (N,), distance of the closest adversarial point seen; inf where there is none.
        reached: (M,) bool, the verdicts on the last points that were recorded.
    """

    def __init__(self, model: Model, problem: Problem, *, exact: bool = False, stop_inside: bool = False) -> None:
        self.nearest = problem.x.new_full((len(problem.x),), torch.inf)
        self._stop_inside = stop_inside
        self._left: Tensor
        self.reached: Tensor
        super().__init__(model, problem, exact=exact)

    @property
    def won(self) -> Tensor:
        """(N,) bool: broken inside the threat, where that is enough."""
        inside = self.found & (self.nearest <= self.problem.threat.eps)
        return inside if self._stop_inside else torch.zeros_like(inside)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """The closest adversarial point of each active sample (M, *S), x where there is none, and its distance (M,)."""
        return self._kept, self._near

    def leave(self, which: Tensor) -> None:
        """Say of which active samples (M,) bool the attack wants no more; the next ``compact`` drops them."""
        self._left = self._left | which

    def drop(self, which: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Let the active samples ``which`` (M,) bool go until the next start, here and in the tensors of the attack.

        Unlike ``leave`` at once and whatever their share, so that what a sample ends with depends on no other. Waits
        for the device.
        """
        keep = (~which).nonzero()[:, 0]
        if len(keep) == len(which):
            return tensors
        self._flush()
        self._activate(self.index[keep], self.active.take(keep))
        return tuple(tensor[keep] for tensor in tensors)

    def _activate(self, index: Tensor, active: Problem | None = None) -> None:
        super()._activate(index, active)
        self._kept, self._near = self.adversarial[index], self.nearest[index]
        self._broken = self.found[index]
        self._left = self.reached = torch.zeros_like(self._broken)

    def _gone(self) -> Tensor:
        return self._left | (self._near <= self.threat.eps) if self._stop_inside else self._left

    def _record(self, adv: Tensor, value: Tensor, outputs: Tensor) -> None:
        reached = self.active.objective.reached(outputs)
        distance = self.threat.distance(adv, self.x)
        staying = ~self._gone()  # samples that are still here because too few wanted to leave end as if they had
        closer = reached & (distance < self._near) & staying
        self._kept = torch.where(per_sample(closer, adv), adv, self._kept)
        self._near = torch.where(closer, distance, self._near)
        self._when = torch.where(reached & ~self._broken, self.taken, self._when)
        self._best = torch.where(staying, torch.fmax(self._best, value.to(self._best.dtype)), self._best)
        self._broken = self._broken | reached
        self.reached = reached

    def _flush(self) -> None:
        super()._flush()
        self.nearest[self.index] = self._near


@method
class MinimumNorm(Attack):
    """The smallest perturbation that succeeds, sample by sample.

    ``norms`` are those that the method can minimise, the usual one first. Without a threat any distance counts.

    Raises, when called:
        UsageError: what :class:`Attack` raises; a norm that the method cannot minimise, or another than the threat's.
    """

    norm: Norm | None = Field(
        default=None, description="what is minimised: linf, l2 or l1; by default the norm of the threat"
    )
    stop_inside: bool = Field(
        default=False,
        description="a sample leaves as soon as it is broken inside the threat: quicker, but no smallest distance",
    )

    def inside(self, x: Tensor, model: Model) -> Threat:
        """The threat; without one, the ball that holds every input, in the norm that is minimised."""
        if self.threat is None:
            kind = THREATS[self.norm or self.norms[0]](0.0)
            return kind.at(kind.everything(x, model.bounds))
        return self.threat

    def check_threat(self, threat: Threat | None) -> None:
        super().check_threat(threat)
        if self.norm is not None and self.norm not in self.norms:
            raise UsageError(
                "the attack cannot minimise this norm", expected=" or ".join(self.norms), got=self.norm, where="norm"
            )
        if threat is not None and self.norm not in (None, threat.norm):
            raise UsageError(
                "the attack minimises another norm than that of the threat",
                expected=threat.norm,
                got=str(self.norm),
                where="norm",
                fix="Leave the norm out: it is then that of the threat.",
            )

    def searched(self, model: Model, problem: Problem, exact: bool = False) -> Search:
        search = Nearest(model, problem, exact=exact, stop_inside=self.stop_inside)
        self.perturb(search)
        search.finish()
        search.adversarial = model.bounds.clamp(search.adversarial)
        return search

    def counts(self, distance: Tensor, threat: Threat) -> Tensor:
        return distance <= threat.eps

    @final
    def perturb(self, search: Search) -> None:
        assert isinstance(search, Nearest)
        self.minimise(search)

    @abstractmethod
    def minimise(self, search: Nearest) -> None:
        """Propose points to the search until the budget of the method is spent."""
