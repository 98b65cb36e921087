"""Suites: the same as their stages one after the other, in Python and in a run."""

from __future__ import annotations

import pytest
import torch

import robustkit as rk
from robustkit.attacks.apgd import APGD
from robustkit.attacks.fab import FAB
from robustkit.attacks.square import Square
from robustkit.attacks.suite import Plus, Rand, Standard
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.threat import L1, L2, Linf
from tests.attacks.test_square import Net

SHAPE = (1, 6, 6)


def problem(n: int = 24):
    model = wrap(Net(SHAPE))
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with model.frozen():
        y = model(x).argmax(1)
    return model, x, y


def test_composition_is_autoattacks():
    stages = Standard().parts(Linf(0.1))
    assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [type(a) for a in stages.values()] == [APGD, APGD, FAB, Square]
    ce, t, fab, square = stages.values()
    assert (ce.loss, ce.restarts, ce.targets, ce.steps) == ("ce", 1, 0, 100)
    assert (t.loss, t.targets, t.steps) == ("dlr", 9, 100)
    assert (fab.targets, fab.steps, fab.stop_inside) == (9, 100, True)
    assert (square.queries, square.p, square.rescale_schedule) == (5000, 0.8, False)
    one = Standard().parts(L1(1.0))
    assert (one["apgd-ce"].restarts, one["apgd-t"].targets, one["apgd-t"].large_eps) == (5, 5, True)
    assert list(Plus().parts(L2(1.0))) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert list(Rand().parts(L2(1.0))) == ["apgd-ce", "apgd-dlr"] and Rand.passes == 20


def test_is_its_stages_one_after_the_other():
    model, x, y = problem()
    threat = Linf(0.04)
    suite = Standard(threat=threat, stages="apgd-ce+fab-t+square")
    whole = suite(model, x, y, seed=2)
    standing = torch.ones(len(x), dtype=torch.bool)
    forwards = torch.zeros(len(x), dtype=torch.long)
    for part in suite.parts(threat).values():
        index = standing.nonzero()[:, 0]
        found = part(model, x[index], y[index], ids=index, seed=2)
        forwards[index] += found.forwards - found.success.long()  # the verdict of the suite is taken once
        assert torch.equal(whole.adversarial[index[found.success]], found.adversarial[found.success])
        standing[index[found.success]] = False
    assert torch.equal(whole.success, ~standing)
    assert torch.equal(whole.first_success_step >= 0, whole.success)
    assert whole.loss.isfinite().all()
    assert 0 < int(whole.success.sum()) < len(x)
    ranked = 1  # fab-t asks for the ranking of the clean input, once for what it sees
    assert (whole.forwards - whole.success.long() - forwards).abs().max() <= ranked


def test_cost_of_a_sample_that_stands_is_the_bound():
    model, x, y = problem(500)
    with model.frozen():
        margins = model(x).topk(2, 1).values
    sure = (margins[:, 0] - margins[:, 1]).argsort(descending=True)[:2]
    found = Standard(threat=Linf(1e-4))(model, x[sure], y[sure])
    assert not found.success.any()
    targets = 3  # of four classes
    assert (found.backwards == 100 + targets * 100 + targets * 100).all()
    bound = 101 + targets * 101 + targets * 100 + 5000 + 1
    assert (found.forwards <= bound + targets).all()


def test_a_broken_sample_is_not_attacked_again():
    model, x, y = problem()
    cheap = Standard(threat=Linf(0.9), stages="apgd-ce")(model, x, y)
    whole = Standard(threat=Linf(0.9))(model, x, y)
    assert cheap.success.all()
    assert torch.equal(cheap.forwards, whole.forwards)


@pytest.mark.parametrize("stages", ["apgd", "apgd-ce+apgd-ce", "apgd-ce+nonsense"])
def test_unknown_stages_are_named(stages):
    with pytest.raises(UsageError, match="cannot run the stage"):
        Standard(stages=stages).with_threat(Linf(0.1))


def test_targeted_suite_reaches_targets():
    model, x, y = problem()
    target = (y + 1) % 4
    found = Standard(threat=Linf(0.8), stages="apgd-ce+apgd-t+fab-t+square")(model, x, y, target=target)
    with model.frozen():
        assert torch.equal(model(found.adversarial).argmax(1) == target, found.success)
    assert found.success.all()


def test_a_run_takes_the_suite_apart_and_gives_the_same_verdicts(tmp_path):
    model, x, y = problem()
    result = rk.evaluate(
        model, (x, y), attacks=["standard:stages=apgd-ce+square"], threat="linf:0.04", out=tmp_path / "run"
    )
    direct = Standard(threat=Linf(0.04), stages="apgd-ce+square")(model, x, y)
    rows = result.data["attacks"]
    assert [row["label"] for row in rows] == ["standard/apgd-ce", "standard/square"]
    assert [row["suite"] for row in rows] == ["standard", "standard"]
    assert sum(row["gain"] for row in rows) == int(direct.success.sum())
    assert rows[1]["attacked"] == len(x) - rows[0]["broken"]
    assert rows[1]["robust_accuracy"] == result.robust_accuracy == 1 - float(direct.success.double().mean())
    assert rows[0]["alone"] is None


def test_random_networks_are_refused_but_by_rand():
    class Noisy(torch.nn.Module):
        def forward(self, x):
            z = (x.flatten(1) - 0.5).sum(1) * 3 + 0.3 * torch.randn(len(x))
            return torch.stack([-z, z], 1)

    x = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(3))
    y = ((x.flatten(1) - 0.5).sum(1) > 0).long()
    with pytest.raises(rk.RobustkitError, match="D2"):
        rk.evaluate(Noisy(), (x, y), attacks=["standard:stages=apgd-ce"], threat="linf:0.02")
    result = rk.evaluate(Noisy(), (x, y), attacks=["rand:stages=apgd-ce"], threat="linf:0.02")
    assert result.data["model"]["eot"] == 20
    assert result.data["attacks"][0]["forwards"] % 20 == 0


def test_queries_beat_masked_gradients_and_d9_says_so():
    class Rounded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(SHAPE).float()

        def forward(self, x):
            return self.net((x * 20).round() / 20 + 0 * x)

    x = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(3))
    model = wrap(Rounded())
    with model.frozen():
        y = model(x).argmax(1)
    result = rk.evaluate(model, (x, y), attacks=["standard:stages=apgd-ce+square"], threat="linf:0.08", force=True)
    (row,) = [d for d in result.diagnostics if d.id == "D9"]
    assert row.status == "FAIL" and row.invalidates and not result.valid
