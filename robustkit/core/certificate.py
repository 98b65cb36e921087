"""The result of a certifier: what was shown of each sample, with which probability, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from robustkit.core.types import Cost

ABSTAIN = -1
"""The prediction where a certifier does not commit itself to a class."""
Outcome = Literal["certified", "falsified", "unknown"]


@dataclass(frozen=True, eq=False)
class Certificate:
    """Certificates of a batch.

    Attributes:
        method, settings: name and options of the method.
        prediction: (N,), or (N, H, W) of dense outputs: the class that is certified; -1 where the method abstains.
        radius: as ``prediction``, float64: no input closer than this, in ``norm``, gets another class; 0 where nothing
            was shown. Where a radius was asked for in advance, that one.
        certified: as ``prediction``, bool: shown for the radius asked for, or for any where none was.
        reasons: of each sample that is not certified, in words; empty for the others.
        norm: of the radius.
        asked: the radius that was asked for; None where the largest that can be shown was wanted.
        alpha: probability that a certificate is wrong, for each sample (an image of dense outputs counts as one); None
            of deterministic methods.
        n: (N,), draws that each certificate counts, those of all its votes together.
        arithmetic: of which function, in which arithmetic, the certificate speaks.
        dimension: values of one input.
        witness, witness_distance: (N, *S) and (N,), the closest input that an attack showed to get another class; NaN
            and inf where it found none. None where no attack was made, as ``falsified``: (N,) bool, the witness lies
            within the radius that was asked for, or else inside the certified one.
        extras: further tensors of the method by name, each (N, ...), such as counts.
        notes: what the reader must know.
        cost: forwards and backwards, in samples.
    """

    method: str
    settings: dict[str, Any]
    prediction: Tensor
    radius: Tensor
    certified: Tensor
    reasons: tuple[str, ...]
    norm: str
    arithmetic: str
    dimension: int
    cost: Cost
    n: Tensor
    asked: float | None = None
    alpha: float | None = None
    falsified: Tensor | None = None
    witness: Tensor | None = None
    witness_distance: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def abstained(self) -> Tensor:
        """As ``prediction``, bool."""
        return self.prediction == ABSTAIN

    @property
    def radius_linf(self) -> Tensor:
        """The radius in the maximum norm that follows from ``||d||_2 <= sqrt(dimension) * ||d||_inf``, and no more."""
        return self.radius / math.sqrt(self.dimension) if self.norm == "l2" else self.radius

    @property
    def outcome(self) -> tuple[Outcome, ...]:
        """Of each sample: certified (dense outputs: at every pixel), falsified (by a witness), or unknown."""
        broken = self.falsified.tolist() if self.falsified is not None else [False] * len(self)
        shown = self.certified.flatten(1).all(1) if self.certified.ndim > 1 else self.certified
        pairs = zip(broken, shown.tolist(), strict=True)
        return tuple("falsified" if wrong else "certified" if right else "unknown" for wrong, right in pairs)

    def accuracy(self, y: Tensor, radius: float = 0.0) -> float:
        """Share of samples (of pixels, of dense outputs) whose class is ``y`` and certified at least at ``radius``.

        Pixels without a label count as wrong: choose those that have one, or see the results of a run.

        >>> import torch
        >>> shown = torch.tensor([True, True])
        >>> found = Certificate("smoothing", {}, torch.tensor([1, 2]), torch.tensor([0.5, 0.2]), shown, ("", ""),
        ...                     "l2", "float32", 4, Cost(), torch.tensor([100, 100]))
        >>> found.accuracy(torch.tensor([1, 2])), found.accuracy(torch.tensor([1, 2]), 0.4)
        (1.0, 0.5)
        """
        right = (self.prediction == y.to(self.prediction.device)) & ~self.abstained & (self.radius >= radius)
        return float(right.double().mean())

    def __repr__(self) -> str:
        count = {name: self.outcome.count(name) for name in dict.fromkeys(self.outcome)}
        return f"Certificate({self.method}, {self.norm}: {', '.join(f'{n} {name}' for name, n in count.items())})"
