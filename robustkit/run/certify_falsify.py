"""An attack against certificates: the closest inputs that the smoothed classifier is shown to give another class.

The attack runs on a smoothed classifier with gradients (SmoothAdv's averaged softmax); what it proposes counts only
where fresh draws show that another class is in front. The first ball ends just inside the certified radius: an input
shown there contradicts the certificate. Then balls grow until something is found, and are halved between the last two:
the distance found bounds the radius of the sample from above. A certificate may be wrong with probability alpha, and so
may each of these tests: a run is refused where there are more contradictions than both explain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from robustkit.certify.randomized import Randomized
from robustkit.certify.refutation import confirms, refutes, resolution
from robustkit.certify.surrogate import differentiable, smoothed
from robustkit.core.attack import Attack
from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.threat import L2
from robustkit.core.types import Cost
from robustkit.kernels.balls import per_sample
from robustkit.run.certify_plan import CertifyPlan
from robustkit.run.directory import RunDirectory
from robustkit.run.plan import build_attacks, label_of
from robustkit.run.session import timed

FALSIFIED = "samples-falsify"
COPIES = 16
"""Noisy copies that the attack averages over, for each vote."""
LEAD = 2.0
"""What the attack aims at, in units of the lead that a test needs at worst."""
DRAWS = 1000
"""Draws of each vote that test one input."""
ERROR = 1e-4
"""Probability that one test refutes a class that is right; at most a tenth of alpha."""
INSIDE = 0.999
"""Where the first ball ends, as a share of the certified radius."""
TURNS = 8
"""Balls for each sample."""
GROWTH = 1.5
NARROW = 0.05
"""A sample is done when its distance is known up to this share."""
BEYOND = 1e-3
"""So improbable a number of contradictions, of certificates that hold, refuses the run."""

Row = dict[str, Any]


def attack_from(value: Attack | str | None) -> Attack | None:
    """The attack that a text stands for, without a threat: each sample gets balls of its own.

    Raises:
        UsageError: unknown name or option; an attack that does not work in L2, or has a threat of its own.
    """
    if value is None:
        return None
    if isinstance(value, Attack) and value.threat is not None:
        raise UsageError(
            "the attack on certificates brings a threat",
            expected="none: each sample is attacked around its own radius",
            got=value.threat.text,
            where=label_of(value),
            fix="Leave the threat out of the attack.",
        )
    (built,) = build_attacks([value], L2(1.0))
    return replace(built, threat=None)


def check_attack(plan: CertifyPlan) -> None:
    """Whether the attack of a plan can be run on its certifier.

    Raises:
        UsageError: not smoothing; dense outputs; an attack by gradients on a network that has none.
    """
    if plan.attack is None:
        return
    x, _ = plan.inputs([0])
    climbed = smoothed(_randomized(plan), plan.model, x, samples=1)
    plan.attack.check_task(climbed.task)
    plan.attack.check_shape(tuple(x.shape[1:]))
    plan.attack.objective(climbed.task, torch.empty(0, dtype=torch.long), None)
    if plan.attack.knowledge == "white-box" and not differentiable(plan.model, x):
        raise UsageError(
            "the attack needs gradients, and the network has none",
            expected="differentiable operations from its inputs to its outputs",
            got="none",
            where=f"--falsify {label_of(plan.attack)}",
            fix="Certificates need no gradients; leave the attack out, or take one by queries: --falsify square.",
        )


def falsify_stage(
    plan: CertifyPlan,
    run: RunDirectory,
    chunk: range,
    rows: Sequence[Row],
    tell: Callable[[str], None] | None = None,
) -> list[Row]:
    """Attack the certificates of a chunk; the rows that were computed now.

    Attacked are certified samples, whatever their class, and those that abstained where the class of the selection
    draws is the label. A row holds

    - ``tried``; ``found``: another class was shown at ``distance``, the smallest; None where nothing was;
    - ``inside``: one was shown inside the certified radius;
    - ``sure``: the class that was attacked is shown to be that of the sample itself;
    - ``checked``: inputs that were tested, and ``within`` how many of them inside the certified radius.
    """
    file = _file(chunk)
    if run.chunk_done(FALSIFIED, chunk, file):
        return []
    with timed(run, "falsify", start=chunk.start, n=len(chunk)):
        tried = [row for row in rows if row["prediction"] >= 0 or row["choice"] == row["label"]]
        found = {row["id"]: _untried(row["id"]) for row in rows}
        tensors: dict[str, Tensor] = {}
        if tried:
            hunt = _Hunt(plan, tried)
            hunt.run(tell)
            found.update({row["id"]: row for row in hunt.rows()})
            broken = hunt.high.isfinite()
            tensors = {"ids": hunt.ids[broken], "witness": hunt.witness[broken.to(hunt.witness.device)]}
            found[rows[0]["id"]]["cost"] = asdict(hunt.cost)
        run.write_tensors(file, tensors)
        run.append_rows(FALSIFIED, list(found.values()))
    return list(found.values())


def witnesses(plan: CertifyPlan, run: RunDirectory, ids: Sequence[int]) -> dict[int, Tensor]:
    """The closest inputs of another class, of those of these samples that have one; on the CPU, in float32."""
    found: dict[int, Tensor] = {}
    for chunk in plan.chunks:
        wanted = set(ids) & set(chunk)
        if wanted and run.file(_file(chunk)).is_file():
            stored = run.read_tensors(_file(chunk))
            pairs = zip(stored["ids"].tolist(), stored["witness"], strict=True) if stored else ()
            found |= {i: witness.float() for i, witness in pairs if i in wanted}
    return found


def counterexample(row: Row, asked: float | None) -> bool:
    """Whether a row refutes stability at the radius asked for; where none was, inside the certified radius.

    That takes two statements: the class of the sample, and another one at the witness.
    """
    if not (row["found"] and row["sure"]):
        return False
    return bool(row["distance"] <= asked if asked else row["inside"])


def judge(plan: CertifyPlan, attacked: Sequence[Row]) -> Row:
    """What the attack says of the certificates; ``invalid``: they are contradicted more often than alpha explains.

    A sample gets a wrong certificate with probability alpha at most, and each test inside a radius refutes a class that
    is right with probability ``error``; samples have draws of their own. So there are at most as many contradictions as
    successes of a binomial experiment over all samples, those that abstain among them; ``p_value`` is its tail.
    """
    assert plan.attack is not None
    certifier = _randomized(plan)
    tested = [row for row in attacked if row["within"]]
    distances = [row["distance"] for row in attacked if row["found"]]
    error, contradictions = error_of(certifier), sum(row["inside"] for row in tested)
    chance = min(1.0, certifier.alpha + max((row["within"] for row in tested), default=0) * error)
    p_value = float(binom.sf(contradictions - 1, len(attacked), chance)) if tested else 1.0
    return {
        "attack": label_of(plan.attack),
        "tried": sum(row["tried"] for row in attacked),
        "found": len(distances),
        "certificates": len(tested),
        "contradictions": contradictions,
        "expected": chance * len(attacked),
        "p_value": p_value,
        "invalid": p_value < BEYOND,
        "error": error,
        "samples": COPIES,
        "median_distance": float(median(distances)) if distances else None,
    }


def error_of(certifier: Randomized) -> float:
    """Of one test."""
    return min(ERROR, certifier.alpha / 10)


def _randomized(plan: CertifyPlan) -> Randomized:
    if not isinstance(plan.certifier, Randomized):
        raise UsageError(
            "this attack is made for randomized smoothing",
            expected="smoothing or dual-smoothing",
            got=plan.certifier.text,
            where="--falsify",
            fix="Leave it out.",
        )
    return plan.certifier


def _file(chunk: range) -> str:
    return f"falsify/{chunk.start:05d}.safetensors"


def _untried(sample: int) -> Row:
    none = {"found": False, "distance": None, "inside": False, "sure": False, "checked": 0, "within": 0}
    return {"id": sample, "tried": False, **none}


@dataclass(eq=False)
class _Hunt:
    """The search for the closest input of another class around every sample, all balls of a turn in one batch.

    Attributes:
        low: (N,), the largest ball in which nothing was found.
        high: (N,), the distance of the closest input that was; inf where there is none.
        witness: (N, *S), that input, on the device.
        last: (N, *S), where the attack ended: the next one begins there.
    """

    plan: CertifyPlan
    given: Sequence[Row]
    turn: int = 0
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        rows, self.certifier = self.given, _randomized(self.plan)
        self.ids = torch.tensor([row["id"] for row in rows])
        self.radius = torch.tensor([float(row["radius"]) for row in rows], dtype=torch.double)
        self.shown = torch.tensor([row["prediction"] >= 0 for row in rows])
        self.sure = self.shown.clone()
        self.x, _ = self.plan.inputs(self.ids.tolist())
        claimed = [row["prediction"] if row["prediction"] >= 0 else row["choice"] for row in rows]
        self.claimed = torch.tensor(claimed, device=self.x.device)
        self.low, self.high = torch.zeros_like(self.radius), torch.full_like(self.radius, torch.inf)
        self.witness, self.last = self.x.clone(), self.x.clone()
        self.checked = torch.zeros(len(rows), dtype=torch.long)
        self.within, self.inside = self.checked.clone(), torch.zeros(len(rows), dtype=torch.bool)
        self.error = error_of(self.certifier)

    def run(self, tell: Callable[[str], None] | None = None) -> None:
        """All turns."""
        passes = COPIES * self.certifier.parts
        with self.plan.model.metered() as tests:
            itself = (self.radius == 0).nonzero()[:, 0]
            self._test(itself, self.x[itself.to(self.x.device)])
            for turn in range(TURNS):
                if tell is not None:
                    tell(f"ball {turn + 1} of {TURNS} around {len(self.ids)} samples")
                spent = self._attack()
                self.cost += Cost(spent.forwards * passes, spent.backwards * passes)
            self._confirm()
        self.cost += tests

    def rows(self) -> list[Row]:
        """A row for each sample."""
        columns: dict[str, list[Any]] = {
            "id": self.ids.tolist(),
            "tried": [True] * len(self.ids),
            "found": self.high.isfinite().tolist(),
            "distance": [d if d < torch.inf else None for d in self.high.tolist()],
            "inside": self.inside.tolist(),
            "sure": self.sure.tolist(),
            "checked": self.checked.tolist(),
            "within": self.within.tolist(),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _attack(self) -> Cost:
        """One ball around every sample that is not done.

        The classifier that is climbed has new noise each time: an input that suits the old one alone is improved on.
        """
        assert self.plan.attack is not None
        todo = (self.high.isinf() | (self.high - self.low > NARROW * self.high)).nonzero()[:, 0]
        if len(todo) == 0:
            return Cost()
        climbed = self._climbed()
        eps, here = self._next(todo), todo.to(self.x.device)
        attack = self.plan.attack.with_threat(L2(eps.to(self.x.device, self.x.dtype)))
        ids, seed, start = self.ids[todo], self.plan.config.seed, self.last[here]
        found = attack(climbed, self.x[here], self.claimed[here], ids=ids, seed=seed, start=start)
        points = torch.where(per_sample(found.success, found.last), found.adversarial, found.last)
        self.last[here] = points
        failed = ~self._test(todo, points)
        self.low[todo[failed]] = torch.maximum(self.low[todo[failed]], eps[failed])
        return found.cost

    def _climbed(self) -> Model:
        """The classifier of this turn, with gradients."""
        plan, lead = self.plan, LEAD * resolution(self.certifier, DRAWS, self.error)
        noise = {"samples": COPIES, "seed": plan.config.seed, "turn": self.turn}
        return smoothed(self.certifier, plan.model, self.x, lead=lead, batch=plan.batch, **noise)

    def _next(self, todo: Tensor) -> Tensor:
        """Radii (M,): just inside the certificate, then larger until something is found, then halfway."""
        low, high, radius = self.low[todo], self.high[todo], self.radius[todo]
        wider = torch.maximum(GROWTH * low, low + self._step)
        wider = torch.where((low == 0) & (radius > 0), INSIDE * radius, wider)
        return torch.where(high.isfinite(), (low + high) / 2, wider)

    @property
    def _step(self) -> Tensor:
        """Least growth of a ball: something where the certified radius is next to nothing."""
        return torch.tensor(self.certifier.votes(self.plan.model)[0].sigma / 4, dtype=torch.double)

    def _test(self, index: Tensor, points: Tensor) -> Tensor:
        """Test a point (M, *S) of each of some samples (M,), and keep what is closer than before; (M,) bool."""
        self.turn += 1
        if len(index) == 0:
            return torch.zeros(0, dtype=torch.bool)
        here = index.to(self.x.device)
        claimed, asked = self.claimed[here], self._asked(index)
        refuted = refutes(self.certifier, self.plan.model, points, claimed, turn=self.turn, **asked)
        distance = (points.double() - self.x[here].double()).flatten(1).norm(dim=1).cpu()
        near = self.shown[index] & ((distance < self.radius[index]) | (distance == 0))
        self.checked[index] += 1
        self.within[index] += near.long()
        self.inside[index] |= near & refuted
        closer = refuted & (distance < self.high[index])
        self.high[index[closer]] = distance[closer]
        self.witness[here[closer.to(here.device)]] = points[closer.to(here.device)]
        return refuted

    def _confirm(self) -> None:
        """Whether the class is that of the sample itself, of those that abstained and were found."""
        index = (~self.sure & self.high.isfinite()).nonzero()[:, 0]
        if len(index) == 0:
            return
        here = index.to(self.x.device)
        x, claimed = self.x[here], self.claimed[here]
        self.sure[index] = confirms(self.certifier, self.plan.model, x, claimed, **self._asked(index))

    def _asked(self, index: Tensor) -> dict[str, Any]:
        """How statements about some samples are tested."""
        plan = self.plan
        return {
            "ids": self.ids[index],
            "seed": plan.config.seed,
            "alpha": self.error,
            "n": DRAWS,
            "batch": plan.batch,
        }
