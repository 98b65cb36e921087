"""Suites and minimum-norm attacks in a run: stages resume on their own, and one run gives the whole curve."""

from __future__ import annotations

import pytest
import torch

import robustkit as rk
from robustkit.core.errors import UsageError
from robustkit.run import stages
from robustkit.run.config import load_config
from tests.run.test_evaluate import N, data, evaluate, figures, net

SUITE = ["standard:stages=apgd-ce+fab-t+square"]
SHORT = {"apgd-ce": "apgd:steps=5", "fab-t": "fab:steps=5,targets=2", "square": "square:queries=30"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The stages of the suite with fewer steps."""
    monkeypatch.setattr(rk.Standard, "composition", lambda self, norm: SHORT)


class Killed(Exception):
    """Stands in for a kill."""


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_stopped_at_any_stage_and_continued_gives_the_same(after, tmp_path, monkeypatch):
    whole = evaluate(attacks=SUITE, out=tmp_path / "whole")
    calls, original = [], stages.attack_rows

    def failing(*arguments):
        if len(calls) == after:
            raise Killed
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(stages, "attack_rows", failing)
    with pytest.raises(Killed):
        evaluate(attacks=SUITE, out=tmp_path / "parts")
    monkeypatch.setattr(stages, "attack_rows", original)
    assert figures(evaluate(attacks=SUITE, out=tmp_path / "parts")) == figures(whole)
    rows = whole.data["attacks"]
    assert [r["label"] for r in rows] == ["standard/apgd-ce", "standard/fab-t", "standard/square"]
    assert sum(r["gain"] for r in rows) == round(N * (whole.clean_accuracy - whole.robust_accuracy))
    assert rows[-1]["robust_accuracy"] == whole.robust_accuracy
    seen = round(N * whole.clean_accuracy)
    for row in rows:
        assert row["attacked"] == seen
        seen -= row["broken"]
    assert rk.verify(tmp_path / "whole", model=net(), data=data())


def test_a_suite_beside_another_attack_still_sees_all_samples():
    both = evaluate(attacks=["fgsm", *SUITE])
    assert both.data["attacks"][1]["attacked"] == round(N * both.clean_accuracy)


def test_minimum_norm_attacks_give_the_curve_and_the_median():
    result = evaluate(attacks=["fmn:steps=60"], threat="l2:0.4")
    model, (x, y) = rk.wrap(net()), data()
    with model.frozen():
        right = model(x).argmax(1) == y
    found = rk.FMN(steps=60, threat=rk.L2(0.4))(model, x[right], y[right], ids=right.nonzero()[:, 0])
    (row,) = result.data["attacks"]
    assert row["minimum"]["found"] == int(found.minimum.isfinite().sum())
    assert row["minimum"]["median"] == pytest.approx(float(found.minimum.double().quantile(0.5)), abs=1e-6)
    for point in row["minimum"]["points"]:
        stands = (found.minimum > point["eps"] + 1e-6).sum() if point["eps"] else right.sum()
        assert point["robust_accuracy"] == pytest.approx(float(stands) / N, abs=1.5 / N)
    assert result.robust_accuracy == float((found.minimum > 0.4).sum()) / N


def test_stages_option_cuts_suites_and_needs_one():
    base = {"model": "demo:mnist-plain", "data": "demo:mnist", "threat": "linf:0.1"}
    config = load_config(None, {**base, "attacks": ["standard"], "stages": ["apgd-ce", "square"]})
    from robustkit.run.evaluate import plan_from

    assert plan_from(config).labels == ("standard/apgd-ce", "standard/square")
    with pytest.raises(UsageError, match="parts of a suite"):
        plan_from(load_config(None, {**base, "attacks": ["pgd"], "stages": ["apgd-ce"]}))
    with pytest.raises(UsageError, match="cannot run the stage 'fab'"):
        plan_from(load_config(None, {**base, "attacks": ["standard"], "stages": ["fab"]}))


def test_targets_of_suites_follow_the_stored_ranking():
    """The ranking of the clean stage is the network's own."""
    outputs = torch.tensor([[0.1, 3.0, 2.0, -1.0]])
    assert stages.ranked(outputs).tolist() == [[1, 2, 0, 3]]
    assert stages.ranked(torch.rand(2, 40)).shape == (2, stages.RANKED)
