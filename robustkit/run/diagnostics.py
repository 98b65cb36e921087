"""Checks after the attacks: did they do all they could, and does what they stored hold?

Sources: "Indicators of attack failure" (https://arxiv.org/abs/2106.09947) and "On evaluating adversarial robustness"
(https://arxiv.org/abs/1902.06705). All of them run on a probe of the samples, except D3 and D17, which look at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from robustkit.core.attack import ATTACKS, Attack, AttackResult
from robustkit.core.diagnostic import Diagnostic, Status
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.nearest import MinimumNorm
from robustkit.core.objective import LabelObjective
from robustkit.core.threat import Threat
from robustkit.run.verification import Batch, verification

TITLES = {
    "D3": "no success was lost",
    "D4": "attacks have converged",
    "D5": "white-box beats transfer",
    "D6": "unbounded attacks succeed",
    "D7": "accuracy falls with eps",
    "D8": "many steps beat one",
    "D9": "gradients beat queries",
    "D10": "gradients beat random noise",
    "D11": "restarts add nothing",
}
POINT = 0.01
MOVING = 0.05
"""Rise of the loss of what stands, when the steps are doubled, above which an attack has not converged."""
NOISE_DRAWS = 100
BY_QUERIES = 0.002
"""Share of the samples, broken by queries and by no gradient, above which gradients are in doubt, as in AutoAttack."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the checks look at.

    Attributes:
        model, threat, attacks, seed: of the run.
        x, y, ids, target: a probe of the samples that are right when clean.
        success: for each attack's label, which samples of the probe it broke.
        silent: samples of the run called broken on the way that could not be returned.
        queried: samples of the run that attacks by queries broke and no gradient attack did; None unless both ran.
        total: samples of the run.
        stored: yields every stored adversarial input beside its clean one.
        chance: accuracy of guessing.
        surrogate: a second model to transfer from.
    """

    model: Model
    x: Tensor
    y: Tensor
    ids: Tensor
    target: Tensor | None
    attacks: tuple[Attack, ...]
    success: dict[str, Tensor]
    silent: int
    stored: Callable[[], Iterable[Batch]]
    threat: Threat
    seed: int
    chance: float
    surrogate: Model | None = None
    queried: int | None = None
    total: int = 0

    @property
    def broken(self) -> Tensor:
        """(N,) bool: broken by any attack of the run."""
        none = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        return torch.stack([none, *(s.to(self.x.device) for s in self.success.values())]).any(0)

    def run(
        self,
        attack: Attack,
        threat: Threat | None = None,
        *,
        which: Tensor | None = None,
        model: Model | None = None,
        seed: int | None = None,
    ) -> AttackResult:
        """Attack the probe, or some of it."""
        index = torch.arange(len(self.x)) if which is None else which.nonzero()[:, 0].cpu()
        target = None if self.target is None else self.target[index]
        return attack.with_threat(threat or self.threat)(
            model or self.model,
            self.x[index],
            self.y[index],
            target=target,
            ids=self.ids[index],
            seed=self.seed if seed is None else seed,
        )


def diagnose(evidence: Evidence) -> list[Diagnostic]:
    """A finding for every check, in the order of their ids; what cannot be run says why."""
    rows = [_silent(evidence)]
    if len(evidence.x) == 0:
        rows += [_row(key, "NOT RUN", "no sample is right when clean") for key in TITLES if key != "D3"]
    else:
        rows += _probe_checks(evidence)
    rows.append(verification(evidence.model, evidence.stored(), evidence.threat))
    return rows


def _probe_checks(e: Evidence) -> Iterator[Diagnostic]:
    iterative = _iterative(e)
    base = e.run(iterative)
    standing = ~e.broken & ~base.success
    yield _converged(e, iterative, base, standing)
    yield _transfer(e, iterative, standing)
    yield _unbounded(e, iterative)
    yield _monotone(e, iterative, base)
    yield _single_step(e, standing)
    yield _queries(e)
    yield _noise(e, standing)
    yield _restarts(e, iterative, standing)


def _row(
    key: str,
    status: Status,
    message: str,
    *,
    value: float | None = None,
    threshold: str = "",
    remedy: str = "",
    invalidates: bool = False,
) -> Diagnostic:
    return Diagnostic(
        id=key,
        title=TITLES[key],
        status=status,
        value=value,
        threshold=threshold,
        message=message,
        remedy=remedy,
        invalidates=invalidates,
    )


def _few(e: Evidence) -> float:
    """Shares above this are a FAIL: more than 2 points, and more than one sample of a small probe."""
    return max(2 * POINT, 1 / len(e.x) + 1e-9)


def _graded(
    key: str,
    value: float,
    warn: float,
    fail: float,
    message: str,
    threshold: str,
    remedy: str,
    *,
    invalidates: bool = False,
) -> Diagnostic:
    status: Status = "FAIL" if value > fail else "WARN" if value > warn else "PASS"
    return _row(
        key,
        status,
        message,
        value=value,
        threshold=threshold,
        remedy="" if status == "PASS" else remedy,
        invalidates=invalidates,
    )


def _iterative(e: Evidence) -> Attack:
    """The last attack of the run that takes steps and restarts; a PGD of 20 steps where there is none."""
    for attack in reversed(e.attacks):
        names = {f.name for f in fields(attack)}
        if {"steps", "restarts", "random_start"} <= names and not isinstance(attack, MinimumNorm):
            return attack
    built: Attack = ATTACKS.get("pgd").build({"steps": 20})
    return built


def _scaled(attack: Attack, factor: float) -> Attack:
    """The attack for a ball ``factor`` times as large: a step size that is given grows with it."""
    size = getattr(attack, "step_size", None)
    return attack if size is None else replace(attack, step_size=size * factor)  # type: ignore[call-arg]


def _silent(e: Evidence) -> Diagnostic:
    """D3: what was called broken on the way is returned; a random network may answer otherwise when asked again."""
    text = f"{e.silent} samples were called broken on the way but could not be returned"
    if not e.silent:
        return _row("D3", "PASS", text, value=0.0, threshold="0")
    if e.model.eot > 1:
        text, remedy = f"{text}: the network is random", "Average over more passes: a larger --eot."
        return _row("D3", "WARN", text, value=float(e.silent), threshold="0", remedy=remedy)
    remedy = "Please report this: the attack loses what it finds."
    return _row("D3", "FAIL", text, value=float(e.silent), threshold="0", remedy=remedy, invalidates=True)


def _converged(e: Evidence, attack: Attack, base: AttackResult, standing: Tensor) -> Diagnostic:
    """D4: many steps, and twice as many, break no more than the run did, and hardly raise the loss of what stands."""
    steps = int(attack.steps)  # type: ignore[attr-defined]
    missed = float((base.success & ~e.broken).double().mean())
    longer, rise = _longer(e, replace(attack, steps=2 * steps), base, standing)  # type: ignore[call-arg]
    gain = missed + longer
    status: Status = "FAIL" if gain > 5 * POINT else "WARN" if gain > POINT or rise > MOVING else "PASS"
    message = f"{2 * steps} steps instead of {steps} break {gain:.1%} more of the probe"
    message += f" and move the loss of the rest by {rise:+.0%}"
    remedy = f"Use more steps: steps={2 * steps}."
    if not any(attack is ran for ran in e.attacks):
        message = f"no attack of the run takes many steps: PGD with {2 * steps} breaks {gain:.1%} more of the probe"
        remedy = "Add --attack pgd:steps=40: one step says little about what an attacker can do."
    if not gain and not standing.any():
        message = "nothing is left standing on the probe"
    return _row(
        "D4",
        status,
        message,
        value=gain,
        threshold=f"<= {POINT:.0%} more broken, loss moved by <= {MOVING:.0%}",
        remedy="" if status == "PASS" else remedy,
    )


def _longer(e: Evidence, attack: Attack, base: AttackResult, standing: Tensor) -> tuple[float, float]:
    """Share of the probe that a longer attack breaks in addition, and the median rise of the loss of what stood."""
    if not standing.any():
        return 0.0, 0.0
    found, before = e.run(attack, which=standing), base.loss[standing]
    rise = float(((found.loss - before) / before.abs().clamp_min(1e-6)).median())
    return float(found.success.sum()) / len(standing), rise


def _transfer(e: Evidence, attack: Attack, standing: Tensor) -> Diagnostic:
    """D5: what fools another model fools this one no more often than attacks made for it."""
    if e.surrogate is None:
        return _row("D5", "NOT RUN", "no surrogate was given (--surrogate MODEL)")
    found = e.run(attack, model=e.surrogate)
    objective = LabelObjective(e.model.task, e.y, e.target)
    with e.model.frozen(e.seed), torch.no_grad():
        fooled = objective.reached(e.model(found.adversarial)) & standing
    share = float(fooled.double().mean())
    message = f"inputs made for {e.surrogate.name} break {int(fooled.sum())} samples that attacks on the model did not"
    return _graded(
        "D5",
        share,
        0.0,
        _few(e),
        message,
        "0",
        "Gradients of the model mislead: look at D1 and D2, try loss=margin and more restarts.",
    )


def _unbounded(e: Evidence, attack: Attack) -> Diagnostic:
    """D6: with the whole input free, accuracy must fall to what guessing reaches, if need be with more steps."""
    everything = e.threat.everything(e.x, e.model.bounds)
    threat, wide = e.threat.at(everything), _scaled(attack, everything / _radius(e)) if _radius(e) else attack
    stands = ~e.run(wide, threat).success
    left = float(stands.double().mean())
    message = f"with eps = {everything:g}, which allows any input, {left:.1%} of the probe still stand"
    threshold = f"<= chance ({e.chance:.1%})"
    if left <= e.chance:
        return _row("D6", "PASS", message, value=left, threshold=threshold)
    steps = max(50, 2 * int(attack.steps))  # type: ignore[attr-defined]
    more = e.run(replace(wide, steps=steps), threat, which=stands).success  # type: ignore[call-arg]
    rest = float((~more).sum()) / len(stands)
    if rest <= e.chance:
        message += f"; with {steps} steps {rest:.1%}"
        return _row("D6", "WARN", message, value=left, threshold=threshold, remedy=f"Use more steps: steps={steps}.")
    return _row(
        "D6",
        "FAIL",
        message,
        value=left,
        threshold=threshold,
        remedy="Even so the attack fails: its gradients are broken, and the robust accuracy means nothing. Look at D1 "
        "and D12, try loss=margin, restarts.",
        invalidates=True,
    )


def _radius(e: Evidence) -> float:
    """eps as one number; 0 where every sample has its own."""
    return float(e.threat.eps) if isinstance(e.threat.eps, float | int) else 0.0


def _monotone(e: Evidence, attack: Attack, base: AttackResult) -> Diagnostic:
    """D7: independent runs in smaller and larger balls."""
    eps = _radius(e)
    if eps == 0:
        return _row("D7", "NOT RUN", "there is no single eps above 0")
    half, double = (e.run(_scaled(attack, f), e.threat.at(eps * f)).success for f in (0.5, 2.0))
    left = [1 - float(s.double().mean()) for s in (half, base.success, double)]
    rise = max(left[1] - left[0], left[2] - left[1], 0.0)
    message = f"at eps/2, eps and 2 eps {left[0]:.1%}, {left[1]:.1%} and {left[2]:.1%} of the probe stand"
    one = 1 / len(base.success) + 1e-9
    return _graded(
        "D7",
        rise,
        one,
        max(one, 2 * POINT),
        message,
        "no rise by more than one sample",
        "A larger ball holds the smaller one: use more steps, restarts, or another loss.",
    )


def _single_step(e: Evidence, standing: Tensor) -> Diagnostic:
    """D8: one step breaks nothing that many steps did not."""
    if not standing.any():
        return _row("D8", "PASS", "nothing is left standing on the probe", value=0.0, threshold="0")
    found = e.run(ATTACKS.get("fgsm").build({}), which=standing).success
    share = float(found.sum()) / len(standing)
    return _graded(
        "D8",
        share,
        0.0,
        _few(e),
        f"a single step breaks {int(found.sum())} samples of the probe that many steps did not",
        "0",
        "Steps are too long or too few, or gradients mislead: vary step_size, add restarts.",
    )


def _queries(e: Evidence) -> Diagnostic:
    """D9: attacks that only ask for outputs break nothing that gradients did not."""
    if e.queried is None or not e.total:
        message = "this compares a gradient attack with one by queries, and the run does not hold both"
        return _row("D9", "NOT RUN", message, remedy="Add --attack square, or run --attack standard.")
    share = e.queried / e.total
    return _graded(
        "D9",
        share,
        BY_QUERIES,
        max(POINT, 2 / e.total + 1e-9),
        f"queries break {e.queried} of {e.total} samples that gradients did not",
        f"<= {BY_QUERIES:.1%}",
        "Gradients are masked: trust the attack by queries, adapt the gradient attack, and look at D1 and D2.",
        invalidates=True,
    )


def _noise(e: Evidence, standing: Tensor) -> Diagnostic:
    """D10: random points of the ball, inside and on its edge, break nothing that gradients did not."""
    if not standing.any():
        return _row("D10", "PASS", "nothing is left standing on the probe", value=0.0, threshold="0")
    index = standing.nonzero()[:, 0]
    x, bounds, draws = e.x[index], e.model.bounds, Draws(e.seed, e.ids[index.cpu()], "noise")
    objective = LabelObjective(e.model.task, e.y[index], None if e.target is None else e.target[index])
    count = max(10, min(NOISE_DRAWS, 3_000_000 // max(1, x.numel())))
    fooled = torch.zeros(len(index), dtype=torch.bool, device=e.x.device)
    with e.model.frozen(e.seed), torch.no_grad():
        for k in range(count):
            at = draws.again(k)
            edge = k % 2 == 1  # a step as long as the ball allows, in a random direction: the corners, in linf
            point = e.threat.step(x, x, at.normal(x), e.threat.eps, bounds) if edge else e.threat.start(x, bounds, at)
            fooled |= objective.reached(e.model(point))
    share = float(fooled.sum()) / len(standing)
    return _graded(
        "D10",
        share,
        0.0,
        _few(e),
        f"{count} random points of the ball break {int(fooled.sum())} samples of the probe that gradients did not",
        "0",
        "Gradients are masked: the robust accuracy is too high. Attack by queries, or adapt the attack.",
        invalidates=True,
    )


def _restarts(e: Evidence, attack: Attack, standing: Tensor) -> Diagnostic:
    """D11: four more restarts, from other random points, break no more."""
    if not standing.any():
        return _row("D11", "PASS", "nothing is left standing on the probe", value=0.0, threshold=f"<= {POINT:.0%}")
    fresh = replace(attack, restarts=4, random_start=True)  # type: ignore[call-arg]
    gain = float(e.run(fresh, which=standing, seed=e.seed + 1).success.sum()) / len(standing)
    return _graded(
        "D11",
        gain,
        POINT,
        5 * POINT,
        f"4 more restarts break {gain:.1%} more of the probe",
        f"<= {POINT:.0%} more broken",
        "Use more restarts: restarts=5.",
    )
