"""Each check after the attacks fires on a case built for it, and passes on an honest one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

import robustkit as rk
from robustkit.core.attack import ATTACKS
from robustkit.core.diagnostic import Diagnostic
from robustkit.core.options import method
from robustkit.core.registry import Entry
from robustkit.core.search import Search
from robustkit.core.threat import L2, Linf, Threat
from robustkit.run.diagnostics import Evidence, diagnose
from robustkit.run.verification import verification

N = 40


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    centres = torch.rand(4, 1, 6, 6, generator=g)
    y = torch.arange(N) % 4
    return (centres[y] + 0.3 * torch.randn(N, 1, 6, 6, generator=g)).clamp(0, 1), y


class Patterns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (2 * x.flatten(1) @ self.c.T - self.c.square().sum(1))


class Reversed(torch.autograd.Function):
    """The identity, with a gradient that points the wrong way."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Masked(Patterns):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Reversed.apply(x))


@method
class Fickle(rk.Attack):
    """PGD that gives up where it is told to."""

    steps: int = Field(default=10, ge=1, description="steps")
    restarts: int = Field(default=1, ge=1, description="restarts")
    random_start: bool = Field(default=True, description="random start")
    above: float = Field(default=9.0, description="gives up at radii above this")
    lazy: bool = Field(default=False, description="only later restarts try")
    size: float = Field(default=0.02, description="length of a step")

    def perturb(self, search: Search) -> None:
        for restart in range(self.restarts):
            adv = search.begin(restart, random=True)
            if search.done or search.threat.eps > self.above or (self.lazy and self.restarts == 1):
                search.score(adv)
                continue
            for _ in range(self.steps):
                adv, grad = search.compact(adv, search.gradient(adv))
                if search.done:
                    return
                adv = search.advance(adv, grad, self.size)
            search.score(adv)


@pytest.fixture(autouse=True)
def fickle(monkeypatch):
    monkeypatch.setitem(ATTACKS._entries, "fickle", Entry("fickle", Fickle, "https://example.org", 1))


def evidence(
    net: nn.Module | None = None, attack: rk.Attack | None = None, threat: Threat | None = None, **changes
) -> Evidence:
    model = rk.wrap(net or Patterns())
    threat = threat or Linf(0.2)
    attack = (attack or rk.PGD(steps=10)).with_threat(threat)
    x, y = data()
    with model.frozen():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    ids = torch.arange(len(x))
    found = attack(model, x, y, ids=ids)
    won = found.success
    stored = [(ids[won], x[won], y[won], None, found.adversarial[won])] if won.any() else []
    made = Evidence(
        model=model,
        x=x,
        y=y,
        ids=ids,
        target=None,
        attacks=(attack,),
        success={"it": won},
        silent=0,
        stored=lambda: stored,
        threat=threat,
        seed=0,
        chance=0.25,
    )
    return replace(made, **changes)


def rows(e: Evidence) -> dict[str, Diagnostic]:
    found = diagnose(e)
    assert [row.id for row in found] == ["D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D11", "D17"]
    return {row.id: row for row in found}


def test_an_honest_evaluation_passes():
    found = rows(evidence(attack=rk.PGD(steps=40), threat=Linf(0.12)))
    expected = dict.fromkeys(found, "PASS") | {"D5": "NOT RUN", "D9": "NOT RUN"}
    assert {k: row.status for k, row in found.items()} == expected, found


def test_d3_lost_success():
    row = rows(evidence(silent=2))["D3"]
    assert row.fatal and row.value == 2


def test_d4_not_converged():
    row = rows(evidence(attack=rk.PGD(steps=2, step_size=0.06, random_start=False)))["D4"]
    assert row.status in ("WARN", "FAIL") and row.value > 0.01 and "steps=4" in row.remedy and not row.invalidates


def test_d4_loss_still_moves():
    row = rows(evidence(attack=rk.PGD(steps=2, step_size=0.005, random_start=False)))["D4"]
    assert row.status == "WARN" and "loss" in row.message


def test_d5_transfer_beats_white_box():
    fooled = rows(evidence(Masked(), threat=Linf(0.15), surrogate=rk.wrap(Patterns())))["D5"]
    assert fooled.status == "FAIL" and fooled.value > 0.1
    honest = rows(evidence(surrogate=rk.wrap(Masked())))["D5"]
    assert honest.status == "PASS"


def test_d6_unbounded_attack_fails():
    row = rows(evidence(Masked()))["D6"]
    assert row.fatal and row.value > 0.5 and "means nothing" in row.remedy


def test_d7_accuracy_rises_with_eps():
    row = rows(evidence(attack=Fickle(above=0.25)))["D7"]
    assert row.status == "FAIL" and row.value > 0.05


def test_d8_one_step_beats_many():
    row = rows(evidence(attack=Fickle(above=0.0)))["D8"]
    assert row.status == "FAIL" and row.value > 0.02


@pytest.mark.parametrize(
    ("queried", "total", "status"),
    [(None, 0, "NOT RUN"), (0, 500, "PASS"), (1, 500, "PASS"), (2, 500, "WARN"), (6, 500, "FAIL"), (2, 40, "WARN")],
)
def test_d9_queries_beat_gradients(queried, total, status):
    row = rows(evidence(queried=queried, total=total))["D9"]
    assert row.status == status
    assert row.fatal == (status == "FAIL")


def test_d10_random_noise_beats_gradients():
    row = rows(evidence(Masked(), threat=Linf(0.9)))["D10"]
    assert row.fatal and "masked" in row.remedy


def test_d11_restarts_matter():
    row = rows(evidence(attack=Fickle(lazy=True)))["D11"]
    assert row.status == "FAIL" and "restarts=5" in row.remedy and not row.invalidates


def batch(threat: Threat, scale: float = 1.0):
    model = rk.wrap(Patterns())
    x, y = data()
    found = rk.PGD(threat=threat.at(threat.eps * scale))(model, x, y)
    won = found.success
    assert won.any()
    return model, x[won], y[won], found.adversarial[won]


@pytest.mark.parametrize("threat", [Linf(0.12), L2(0.7), rk.L1(4.0)], ids=lambda t: t.norm)
def test_d17_stored_inputs(threat):
    model, x, y, adv = batch(threat)
    ids = torch.arange(len(x))
    assert verification(model, [(ids, x, y, None, adv)], threat).status in ("PASS", "WARN")
    far = verification(model, [(ids, x, y, None, adv)], threat.at(threat.eps * 0.9))
    assert far.fatal and "outside" in far.message
    clean = verification(model, [(ids, x, y, None, x)], threat)
    assert clean.fatal and "do not fool" in clean.message
    out = verification(model, [(ids, x, y, None, adv + 2)], threat)
    assert out.fatal
    assert verification(model, [], threat).status == "NOT RUN"


def test_d17_tells_what_eight_bits_keep():
    """A third of a grey level flips the network, and is gone after rounding."""

    def net(x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :1] - 127.8 / 255
        return torch.cat([-z, z], 1)

    x, y = torch.full((3, 1, 2, 2), 128 / 255), torch.ones(3, dtype=torch.long)
    adversarial = torch.full((3, 1, 2, 2), 127.7 / 255)
    row = verification(rk.wrap(net), [(torch.arange(3), x, y, None, adversarial)], Linf(0.4 / 255))
    assert row.status == "WARN" and row.value == 0.0 and "8 bits" in row.message


def test_d17_random_networks_are_warned_about():
    class Noisy(Patterns):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 30 * torch.randn(len(x), 4)

    _, x, y, adv = batch(Linf(0.4))
    assert len(x) > 20
    row = verification(rk.wrap(Noisy(), eot=2), [(torch.arange(len(x)), x, y, None, adv)], Linf(0.4))
    assert row.status == "WARN" and "random" in row.message


def test_nothing_right_when_clean():
    e = evidence()
    none = replace(e, x=e.x[:0], y=e.y[:0], ids=e.ids[:0], success={"it": torch.zeros(0, dtype=torch.bool)})
    found = diagnose(none)
    assert {row.status for row in found if row.id not in ("D3", "D17")} == {"NOT RUN"}


def test_single_step_runs_are_checked_with_pgd():
    assert rows(evidence(attack=rk.FGSM()))["D11"].status in ("PASS", "WARN")


def test_d3_random_networks_are_warned_about():
    e = evidence(silent=2)
    row = rows(replace(e, model=rk.wrap(Patterns(), eot=2)))["D3"]
    assert row.status == "WARN" and "random" in row.message


def test_d4_single_step_runs_that_miss_are_told_so():
    """FGSM broke nothing, as the evidence has it, and PGD does: the number is too high."""
    e = evidence(attack=rk.FGSM())
    row = rows(replace(e, success={"fgsm": torch.zeros(len(e.x), dtype=torch.bool)}))["D4"]
    assert row.status == "FAIL" and "no attack of the run takes many steps" in row.message and "pgd" in row.remedy


def test_d6_step_sizes_grow_with_the_ball():
    """Five steps of 0.02 cannot cross the input; that is no sign of broken gradients."""
    assert rows(evidence(attack=rk.PGD(steps=5, step_size=0.02)))["D6"].status == "PASS"


def test_d6_too_few_steps_are_no_broken_gradients():
    row = rows(evidence(attack=rk.PGD(steps=1, step_size=0.002, random_start=False)))["D6"]
    assert row.status == "WARN" and "steps=50" in row.remedy


def test_d8_one_sample_of_a_small_probe_is_a_warning():
    e = evidence(attack=Fickle(above=0.0))
    one_step = rk.FGSM(threat=e.threat)(e.model, e.x, e.y, ids=e.ids).success
    some = torch.cat([one_step.nonzero()[:1, 0], (~one_step).nonzero()[:9, 0]])
    small = replace(
        e, x=e.x[some], y=e.y[some], ids=e.ids[some], success={"it": torch.zeros(len(some), dtype=torch.bool)}
    )
    row = rows(small)["D8"]
    assert row.status == "WARN" and row.value == pytest.approx(1 / len(some))


def test_d10_looks_into_the_corners():
    """Breaks only near the corners of the ball, which uniform points of its inside never reach."""

    def net(x: Tensor) -> Tensor:
        z = (x - 0.5).flatten(1).norm(dim=1).detach() - 0.5 + 0 * x.flatten(1).sum(1)
        return torch.stack([-z, z], 1)

    x, y = torch.full((8, 1, 6, 6), 0.5), torch.zeros(8, dtype=torch.long)
    e = replace(evidence(), model=rk.wrap(net), x=x, y=y, ids=torch.arange(8), threat=Linf(0.1), stored=lambda: [])
    row = rows(replace(e, success={"it": torch.zeros(8, dtype=torch.bool)}))["D10"]
    assert row.fatal and row.value == 1.0


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5), rk.L1(12.0)], ids=lambda t: t.norm)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_d17_forgives_rounding_and_no_more(threat, dtype):
    """On inputs of the size of a photo, where the rounding of 150,000 values adds up."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 224, 224, generator=g).to(dtype)
    model = rk.wrap(lambda v: torch.stack([v.flatten(1)[:, 0] - 9, v.flatten(1)[:, 0]], 1))
    y, ids = torch.zeros(2, dtype=torch.long), torch.arange(2)
    noise = torch.randn(x.shape, generator=g).to(dtype)
    adv = threat.project(x + noise, x, model.bounds)
    assert verification(model, [(ids, x, y, None, adv)], threat).status == "PASS"
    if dtype == torch.float32:
        assert verification(model, [(ids, x, y, None, adv)], threat.at(threat.eps * 0.998)).fatal
