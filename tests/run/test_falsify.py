"""The attack on certificates: a plane, whose distances are known, and certificates that lie."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom
from torch import nn

import robustkit as rk
from robustkit.core import files
from robustkit.core.errors import UsageError
from robustkit.run import certify_falsify as falsify

SIGMA = 0.5
METHOD = f"smoothing:sigma={SIGMA},n=1000"


class Plane(nn.Module):
    """Class 1 where the mean of four pixels, times two, is positive: x is as far from the other class as that."""

    def forward(self, x):
        total = x.flatten(1).sum(1) / 2
        return torch.stack([-total, total], 1)


@pytest.fixture(autouse=True)
def unsynced():
    """Power cuts are tested elsewhere."""
    with files.unsynced():
        yield


def model():
    return rk.wrap(Plane(), bounds=(-8, 8), name="plane")


def samples(n=10):
    """Distances 0.08 .. 1.2 from the plane, on both sides; all labels right but the last."""
    distance = torch.linspace(0.08, 1.2, n) * (-1) ** torch.arange(n)
    x = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)) / 4
    x += (2 * distance - x.flatten(1).sum(1)).view(-1, 1, 1, 1) / 4
    y = (distance > 0).long()
    y[-1] = 1 - y[-1]
    return (x, y), distance.abs()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with files.unsynced():
        out = tmp_path_factory.mktemp("runs") / "a"
        return rk.certify(model(), samples()[0], METHOD, falsify="pgd:steps=10", seed=1, out=out)


def attacked(found):
    return [json.loads(line) for line in (found.path / "samples-falsify.jsonl").read_text().splitlines()]


def test_distances_are_those_of_the_plane(found):
    """Never below the truth, and above it by what draws cannot tell and the last halving leaves open."""
    _, distance = samples()
    for row, true in zip(attacked(found), distance.tolist(), strict=True):
        assert row["tried"] and row["found"] and row["checked"] >= 2 and not row["inside"]
        assert true <= row["distance"] <= 1.1 * true + SIGMA / 2


def test_an_honest_method_is_not_contradicted(found):
    judged = found.data["falsification"]
    assert judged["tried"] == judged["found"] == 10 and judged["contradictions"] == 0 and judged["p_value"] == 1
    assert not judged["invalid"] and found.valid
    assert judged["certificates"] == int((~found.certificate().abstained).sum()) > 5
    assert judged["median_distance"] == pytest.approx(sorted(r["distance"] for r in attacked(found))[5], rel=0.2)
    assert found.data["outcomes"]["falsified"] == 0 and found.data["cost"]["backwards"] > 1000


def test_the_attack_bounds_the_curve_from_above(found):
    """The empirical curve again, from the witnesses: they lie where the rows say, in the other class."""
    rows, (x, _) = attacked(found), samples()[0]
    witness = falsify.witnesses(SimpleNamespace(chunks=[range(10)]), _folder(found), list(range(10)))
    assert set(witness) == set(range(10))
    assert set(falsify.witnesses(SimpleNamespace(chunks=[range(10)]), _folder(found), [3])) == {3}
    for row in rows:
        at = witness[row["id"]]
        assert float((at - x[row["id"]]).norm()) == pytest.approx(row["distance"], rel=1e-5)
        assert int(Plane()(at[None]).argmax()) != int(Plane()(x[row["id"]][None]).argmax())
    for point in found.data["curve"]:
        held = sum(r["distance"] > point["radius"] for r in rows[:-1]) / 10  # the last has another label
        assert point["empirical"] == pytest.approx(held) and held >= point["certified_accuracy"]


def _folder(found):
    from safetensors.torch import load_file

    return SimpleNamespace(file=lambda name: found.path / name, read_tensors=lambda name: load_file(found.path / name))


@pytest.mark.parametrize("name", ["Smoothing", "DualSmoothing"])
def test_certificates_that_lie_are_caught(monkeypatch, name):
    kind = getattr(rk, name)
    honest = kind.radius_of
    monkeypatch.setattr(kind, "radius_of", lambda self, lower: 3 * honest(self, lower))
    found = rk.certify(model(), samples(8)[0], kind(sigma=SIGMA, n=500), falsify="pgd:steps=5")
    judged = found.data["falsification"]
    assert judged["contradictions"] >= 4 and judged["invalid"] and not found.valid
    assert judged["p_value"] < 1e-3 and found.data["outcomes"]["falsified"] == judged["contradictions"]
    inside = torch.tensor([row["inside"] for row in attacked(found)])
    assert torch.equal(found.certificate().falsified, inside)


def test_a_radius_that_does_not_hold_is_refuted():
    """Asked for 0.6: where it is neither certified nor refuted the attack has found nothing that close."""
    _, distance = samples()
    found = rk.certify(model(), samples()[0], f"{METHOD},mode=decide,radius=0.6", falsify="pgd:steps=10", seed=1)
    outcomes = found.certificate()
    assert (
        outcomes.falsified[(distance > 0.2) & (distance < 0.4)].all() and not outcomes.falsified[distance > 0.6].any()
    )
    assert (outcomes.falsified & outcomes.certified).sum() == 0 and found.valid
    assert found.data["outcomes"]["falsified"] == int(outcomes.falsified.sum()) > 0


def test_the_class_of_the_sample_must_be_known_too():
    """Next to the plane another class is shown at the witness; that it is another one is not."""
    rows = [{"found": True, "sure": sure, "distance": 0.3, "inside": False} for sure in (True, False)]
    assert [falsify.counterexample(row, 0.5) for row in rows] == [True, False]
    assert not falsify.counterexample(rows[0], 0.2) and not falsify.counterexample(rows[0], None)
    assert falsify.counterexample({**rows[0], "inside": True}, None)
    assert not falsify.counterexample({**rows[0], "found": False, "distance": None}, 0.5)


def test_wrong_samples_without_a_certificate_are_left_alone():
    (x, _), _ = samples(4)
    sides = (Plane()(x).argmax(1) == 0).long()
    found = rk.certify(model(), (x, sides), "smoothing:n=9,n0=9,sigma=0.01", falsify="pgd:steps=2", force=True)
    assert [row["tried"] for row in attacked(found)] == [False] * 4
    assert found.data["falsification"]["tried"] == 0 and found.data["falsification"]["median_distance"] is None


def test_a_run_that_was_cut_gives_the_same(found, tmp_path, monkeypatch):
    """In the stage of the attack: rows and tensors of its chunk are computed again, to the byte."""

    class Cut(Exception):
        pass

    def cut(*given):
        raise Cut

    call = (model(), samples()[0], METHOD)
    options = {"falsify": "pgd:steps=10", "seed": 1, "out": tmp_path / "a"}
    with monkeypatch.context() as patched:
        patched.setattr(falsify._Hunt, "_confirm", cut)
        with pytest.raises(Cut):
            rk.certify(*call, **options)
    again = rk.certify(*call, **options)
    for name in ("samples-falsify.jsonl", "samples-certify.jsonl", "falsify/00000.safetensors"):
        assert (again.path / name).read_bytes() == (found.path / name).read_bytes(), name
    assert {**again.data, "times": 0} == {**found.data, "times": 0}


def test_contradictions_are_judged_by_what_alpha_explains():
    """The tail of the binomial, over all samples: those that abstain may hide no lucky ones."""
    row = {"tried": True, "found": True, "distance": 0.1, "sure": True, "checked": 4, "within": 2, "inside": False}
    plan = SimpleNamespace(attack=rk.PGD(), certifier=rk.Smoothing(alpha=0.01))
    rows = [{**row, "inside": i < 6} for i in range(100)] + [{**row, "within": 0}] * 100
    judged = falsify.judge(plan, rows)
    assert (judged["certificates"], judged["contradictions"], judged["error"]) == (100, 6, 1e-4)
    assert judged["p_value"] == pytest.approx(binom.sf(5, 200, 0.0102)) and not judged["invalid"]
    assert judged["expected"] == pytest.approx(2.04)
    more = falsify.judge(plan, [{**row, "inside": i < 9} for i in range(200)])
    assert more["invalid"] and more["p_value"] < 1e-3
    assert falsify.judge(plan, [])["p_value"] == 1


@pytest.mark.parametrize("attack", ["square:queries=30", "ddn:steps=10"])
def test_attacks_of_other_kinds(attack):
    """By queries, on a network without gradients; by the smallest norm."""
    net = rk.wrap(lambda x: torch.from_numpy(Plane()(x).numpy()), bounds=(-8, 8)) if "square" in attack else model()
    found = rk.certify(net, samples(3)[0], METHOD, falsify=attack)
    assert found.data["falsification"]["found"] >= 1 and found.valid


def test_what_does_not_fit_is_refused():
    data = samples(2)[0]
    numpy_net = rk.wrap(lambda x: torch.from_numpy(Plane()(x).numpy()), bounds=(-8, 8))
    dense = rk.wrap(lambda x: torch.cat([x, -x], 1), task="segmentation", bounds=(-8, 8))
    cases = [
        (numpy_net, data, "pgd", "needs gradients.*square"),
        (dense, (data[0], torch.zeros(2, 2, 2, dtype=torch.long)), "pgd", "one class for each input"),
        (model(), data, rk.PGD(threat=rk.L2(0.5)), "Leave the threat out"),
        (model(), data, "cospgd", "task"),
        (model(), data, "pdg", "pgd"),
    ]
    for net, given, attack, words in cases:
        with pytest.raises(UsageError, match=f"(?s){words}"):
            rk.certify(net, given, METHOD, falsify=attack)
    assert falsify.attack_from(None) is None
    assert falsify.attack_from("pgd:steps=3") == rk.PGD(steps=3)
