"""How often a network gives which answer to noisy copies of inputs: batched, keyed, in memory that n does not change.

Draws come in blocks of 32: block ``j`` of a sample is a function of (seed, sample id, purpose, j) alone, so counts do
not depend on the batch, on the other samples, or on where a run was cut. A batch is filled with blocks across samples.
Counts are whole numbers and stay where the network lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from scipy.stats import binom
from torch import Tensor

from robustkit.certify.noise import Noise
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.model import Model

BLOCK = 32
"""Draws that have a key together."""
VALUES, MOST = 10_000_000, 512
"""Input values in a batch unless told otherwise: 64 photos of 224x224; and the most copies."""
NAN_SHARE, CHANCE = 0.01, 1e-6
"""Share of answers that may be NaN before that is an error, and how sure it must be that they are more."""


@dataclass(frozen=True, eq=False)
class Vote:
    """One smoothed classifier.

    Attributes:
        name: of the vote.
        model: what answers to a noisy input.
        sigma: standard deviation of the noise, in units of the input.
    """

    name: str
    model: Model
    sigma: float


@dataclass(eq=False)
class Sampler:
    """Answers to noisy copies.

    Votes of equal noise see the same copies.

    Attributes:
        x: (N, *S).
        votes: the classifiers.
        outputs: shape of the outputs, (C,) or (C, H, W).
        noise: how copies are made.
        draws: keys of the N samples.
        batch: most copies in a network at once.
        tell: takes the number of copies passed so far.
        undefined: (N,), answers of each sample that were NaN so far; on the device.
    """

    x: Tensor
    votes: tuple[Vote, ...]
    outputs: tuple[int, ...]
    noise: Noise
    draws: Draws
    batch: int
    tell: Callable[[int], None]
    passed: int = 0
    undefined: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.undefined = torch.zeros(len(self.x), dtype=torch.int64, device=self.x.device)

    @property
    def together(self) -> int:
        """Blocks in a batch."""
        return max(1, self.batch // BLOCK)

    def counts(self, purpose: str, n: int) -> Tensor:
        """How often each vote gave which answer to n copies of every sample: (V, N, C + 1, *P) int32.

        The last of the C + 1 answers is none: outputs that hold NaN.
        """
        per, samples = -(-n // BLOCK), len(self.x)
        places = math.prod(self.outputs[1:])
        shape = (len(self.votes), samples, self.outputs[0] + 1, *self.outputs[1:])
        found = torch.zeros(shape, dtype=torch.int32, device=self.x.device)
        at = torch.arange(places, device=self.x.device)
        for first in range(0, samples * per, self.together):
            pair = torch.arange(first, min(first + self.together, samples * per))
            rows, blocks = pair // per, pair % per
            wanted = (n - blocks * BLOCK).clamp_max(BLOCK)
            for v, answers in enumerate(self.answers(purpose, rows, blocks, wanted)):
                sample = rows.repeat_interleave(wanted).to(self.x.device)
                place = (sample[:, None] * (self.outputs[0] + 1) + answers.reshape(len(sample), -1)) * places + at
                # whole numbers: the order of additions, which differs on accelerators, changes nothing
                one = torch.ones((), dtype=torch.int32, device=self.x.device).expand(place.numel())
                found[v].view(-1).scatter_add_(0, place.flatten(), one)
        self.check()
        return found

    def answers(self, purpose: str, rows: Tensor, blocks: Tensor, wanted: Tensor) -> Iterator[Tensor]:
        """Of each vote, the classes (D, *P) of the first ``wanted[i]`` draws of block ``blocks[i]`` of a sample.

        D is the sum of ``wanted``; the class C stands for NaN.
        """
        copies: dict[float, Tensor] = {}
        draws = self.draws.child(purpose)
        for vote in self.votes:
            if vote.sigma not in copies:
                blocky = self.noise.noisy(self.x, rows, blocks, draws, vote.sigma, BLOCK)
                copies = {vote.sigma: _first(blocky, wanted)}
            found = self._classes(vote.model, copies[vote.sigma])
            nothing = (found == self.outputs[0]).reshape(len(found), -1).sum(1)
            self.undefined.scatter_add_(0, rows.repeat_interleave(wanted).to(self.x.device), nothing)
            yield found

    def check(self) -> None:
        """Whether nearly all answers are numbers.

        Raises:
            UsageError: more than 1 % of them are NaN.
        """
        bad, answers = int(self.undefined.sum()), self.passed * math.prod(self.outputs[1:])
        if bad > NAN_SHARE * answers and binom.sf(bad - 1, answers, NAN_SHARE) < CHANCE:
            raise UsageError(
                "the network answers NaN to noisy inputs",
                expected=f"numbers, but for {100 * NAN_SHARE:g} % at most",
                got=f"NaN in {100 * bad / answers:.3g} % of {answers:,} answers",
                where="the network's outputs",
                fix="Noisy inputs leave the bounds on purpose: look for log, sqrt and division, or use clip=true.",
            )

    def _classes(self, model: Model, copies: Tensor) -> Tensor:
        parts = [self._argmax(model(copies[i : i + self.batch])) for i in range(0, len(copies), self.batch)]
        self.passed += len(copies)
        self.tell(self.passed)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def _argmax(outputs: Tensor) -> Tensor:
        return torch.where(outputs.isnan().any(1), outputs.shape[1], outputs.argmax(1))


def batch_for(values: int) -> int:
    """Copies of an input of so many values that go through a network at once: whole blocks.

    >>> batch_for(784), batch_for(3 * 224 * 224)
    (512, 64)
    """
    return max(1, min(MOST, VALUES // max(1, values)) // BLOCK) * BLOCK


def _first(blocky: Tensor, wanted: Tensor) -> Tensor:
    """The first draws of every block (P, BLOCK, *S) as one batch."""
    flat = blocky.flatten(0, 1)
    if bool((wanted == blocky.shape[1]).all()):
        return flat
    keep = (torch.arange(blocky.shape[1])[None] < wanted[:, None]).flatten()
    return flat[keep.to(flat.device)]
