"""The journey: what is reported is the per-sample worst case, whoever computed it and in how many goes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robustkit as rk
from robustkit.core.errors import Refused, UsageError
from robustkit.run.verify import verify
from robustkit.testing import HalfSpace, assert_robust

CLASSES, N = 4, 60


def data(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy copies of four patterns."""
    g = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, 1, 5, 5, generator=g)
    y = torch.arange(n) % CLASSES
    return (centres[y] + 0.6 * torch.randn(n, 1, 5, 5, generator=g)).clamp(0, 1), y


def net() -> nn.Module:
    """The nearest pattern wins."""
    centres = torch.rand(CLASSES, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    made = nn.Sequential(nn.Flatten(), nn.Linear(25, CLASSES))
    with torch.no_grad():
        made[1].weight.copy_(centres.flatten(1) * 8)
        made[1].bias.copy_(-4 * centres.flatten(1).square().sum(1))
    return made


ATTACKS = [rk.FGSM(), rk.PGD(steps=5)]
THREAT = rk.Linf(0.12)


def evaluate(**options) -> rk.Result:
    return rk.evaluate(net(), data(), **{"attacks": ATTACKS, "threat": THREAT, "batch_size": 16, **options})


def figures(result: rk.Result) -> dict:
    return {key: value for key, value in result.data.items() if key != "times"}


def test_figures_equal_a_slow_count():
    result = evaluate()
    model, (x, y) = rk.wrap(net()), data()
    right = broken = 0
    for i in range(N):
        if int(model(x[i : i + 1]).argmax()) != int(y[i]):
            continue
        right += 1
        found = [
            a.with_threat(THREAT)(model, x[i : i + 1], y[i : i + 1], ids=torch.tensor([i])).success for a in ATTACKS
        ]
        broken += bool(torch.cat(found).any())
    assert 0 < broken < right < N
    assert result.clean_accuracy == right / N and result.robust_accuracy == (right - broken) / N
    interval = binomtest(right - broken, N).proportion_ci(0.95, "exact")
    assert result.interval == pytest.approx((interval.low, interval.high))
    assert result.complete and result.n == N


def test_per_class_confusion_and_cost_add_up():
    found = evaluate().data
    assert sum(c["n"] for c in found["per_class"]) == N
    assert sum(round(c["robust_accuracy"] * c["n"]) for c in found["per_class"]) == round(found["robust_accuracy"] * N)
    broken = round((found["clean_accuracy"] - found["robust_accuracy"]) * N)
    assert sum(pair["count"] for pair in found["confusion"]) == broken == sum(a["gain"] for a in found["attacks"])
    parts = ("clean", "attacks", "curve", "preflight", "diagnostics")
    assert found["cost"]["forwards"] == sum(found["cost"][p]["forwards"] for p in parts)
    assert found["cost"]["attacks"]["backwards"] == sum(a["backwards"] for a in found["attacks"])


def test_batch_size_changes_no_verdict():
    one, other = evaluate(batch_size=7), evaluate(batch_size="auto")
    assert (one.to_frame()["robust"] == other.to_frame()["robust"]).all()


@pytest.mark.parametrize("kind", ["loader", "shuffled loader", "dataset", "pairs"])
def test_data_of_every_form(kind):
    x, y = data()
    dataset = TensorDataset(x, y)
    forms = {
        "loader": DataLoader(dataset, batch_size=9),
        "shuffled loader": DataLoader(dataset, batch_size=9, shuffle=True),
        "dataset": dataset,
        "pairs": [(x[:30], y[:30]), (x[30:], y[30:])],
    }
    result = rk.evaluate(net(), forms[kind], attacks=ATTACKS, threat=THREAT, batch_size=16)
    assert result.robust_accuracy == evaluate().robust_accuracy


def test_the_same_command_again_computes_nothing(tmp_path):
    first = evaluate(out=tmp_path / "run")
    model = rk.wrap(net())
    again = rk.evaluate(model, data(), attacks=ATTACKS, threat=THREAT, batch_size=16, out=tmp_path / "run")
    assert again.data == first.data and model.cost.forwards == 0


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"threat": rk.Linf(0.1)}, "threat: linf:0.12 -> linf:0.1"),
        ({"limit": 20}, "limit: not set -> 20"),
        ({"attacks": [rk.FGSM()]}, "attacks: fgsm, pgd:steps=5 -> fgsm"),
    ],
)
def test_other_options_are_refused_with_the_difference(tmp_path, change, difference):
    evaluate(out=tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(UsageError, match="started otherwise") as error:
        evaluate(out=tmp_path, **change)
    assert difference in str(error.value)
    assert (tmp_path / "results.json").read_bytes() == before


def test_other_weights_and_other_data_are_refused(tmp_path):
    evaluate(out=tmp_path)
    changed = net()
    with torch.no_grad():
        changed[1].bias.add_(torch.tensor([0.01, 0, 0, 0]))
    with pytest.raises(UsageError, match="contents of model"):
        rk.evaluate(changed, data(), attacks=ATTACKS, threat=THREAT, batch_size=16, out=tmp_path)
    x, y = data()
    with pytest.raises(UsageError, match="contents of data"):
        rk.evaluate(net(), (x.flip(0), y.flip(0)), attacks=ATTACKS, threat=THREAT, batch_size=16, out=tmp_path)


def test_out_of_time_is_partial_says_so_and_goes_on(tmp_path, monkeypatch):
    from robustkit.run import engine

    whole = evaluate(out=tmp_path / "other")
    ticks = iter(range(100))
    monkeypatch.setattr(engine, "_deadline", lambda plan: lambda: next(ticks) > 4)
    part = evaluate(out=tmp_path / "run", max_minutes=1)
    assert not part.complete and 0 < part.n < N
    assert part.interval[1] - part.interval[0] > whole.interval[1] - whole.interval[0]
    monkeypatch.undo()
    assert figures(evaluate(out=tmp_path / "run")) == figures(whole)


def test_curve_is_the_closed_form_on_a_half_space():
    half = HalfSpace((1, 4, 4), seed=1).eval()
    x = (0.5 + 0.1 * torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(2))).clamp(0.25, 0.75)
    y = rk.wrap(half)(x).argmax(1)
    distance = half.distance(x, "linf")
    eps = float(distance.median())
    result = rk.evaluate(half, (x, y), attacks=[rk.PGD(steps=10)], threat=rk.Linf(eps), curve=True)
    points = result.data["curve"]["points"]
    assert len(points) >= 8 and points[-1]["robust_accuracy"] <= 0.5
    for point in points:
        slack = 1e-4 * max(point["eps"], eps)
        low, high = (float((distance > point["eps"] + s).double().mean()) for s in (slack, -slack))
        if point["eps"] <= 0.25:  # inside the box the half-space is all there is
            assert low <= point["robust_accuracy"] <= high
    assert next(p for p in points if p["eps"] == eps)["robust_accuracy"] == result.robust_accuracy
    accuracies = [p["robust_accuracy"] for p in points]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.parametrize("mode", ["random", "least-likely", "next"])
def test_targets(mode):
    result = evaluate(targeted=mode, threat=rk.Linf(0.3))
    x, y = data()
    logits = rk.wrap(net())(x)
    ids, adversarial = result.adversarial("pgd:steps=5")
    reached = rk.wrap(net())(adversarial).argmax(1)
    assert len(ids) > 10 and (reached != y[ids]).all()
    if mode == "next":
        assert torch.equal(reached, (y[ids] + 1) % CLASSES)
    if mode == "least-likely":
        assert torch.equal(reached, logits[ids].argmin(1))
    if mode == "random":
        assert len(Counter(((reached - y[ids]) % CLASSES).tolist())) == CLASSES - 1


def test_result_speaks():
    result = evaluate(fail_under=["robust_accuracy=0.99"])
    assert "robust" in repr(result) and not result.passed
    frame = result.to_frame()
    assert len(frame) == N and frame["robust"].mean() == result.robust_accuracy
    ids, adversarial = result.adversarial("fgsm")
    assert (rk.wrap(net())(adversarial).argmax(1) != data()[1][ids]).all()
    assert frame["fgsm success"].sum() == len(ids)
    assert "Linf" in result._repr_html_() or "linf" in result._repr_html_()
    with pytest.raises(UsageError, match="no such attack"):
        result.adversarial("cw")


def test_nothing_is_left_behind_without_a_folder():
    result = evaluate()
    folder = result.path
    assert folder.is_dir()
    del result
    assert not folder.exists()


def test_memory_back_off_is_remembered(tmp_path):
    body = net()

    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x):
            if torch.is_grad_enabled() and len(x) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return self.body(x)

    result = rk.evaluate(Hungry(), data(), attacks=ATTACKS, threat=THREAT, batch_size=16, out=tmp_path)
    assert result.robust_accuracy == evaluate().robust_accuracy
    assert json.loads((tmp_path / "batch.json").read_text())["chunk"] <= 4


def test_random_networks_need_eot():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x):
            return self.body(x + 0.05 * torch.randn_like(x))

    with pytest.raises(Refused, match="eot"):
        rk.evaluate(Noisy(), data(), attacks=ATTACKS, threat=THREAT)
    one, two = (
        rk.evaluate(rk.wrap(Noisy(), eot=10), data(), attacks=[rk.PGD(steps=3)], threat=THREAT) for _ in range(2)
    )
    assert figures(one) == figures(two)


def test_refusal_writes_nothing_and_force_is_stamped(tmp_path):
    soft = nn.Sequential(net(), nn.Softmax(1))
    with pytest.raises(Refused, match="D12"):
        rk.evaluate(soft, data(), attacks=ATTACKS, threat=THREAT, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    forced = rk.evaluate(soft, data(), attacks=ATTACKS, threat=THREAT, force=True)
    assert forced.data["forced"] and not forced.valid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": []}, "attacks"),
        ({"attacks": ["pgd", "pgd"]}, "attacks"),
        ({"attacks": ["pgdd"]}, "Did you mean pgd"),
        ({"attacks": [3]}, "not an attack"),
        ({"attacks": [rk.PGD(threat=rk.L2(1.0))]}, "another threat"),
        ({"threat": rk.Linf(torch.ones(60))}, "one eps"),
        ({"threat": "l3:1"}, "unknown norm"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        evaluate(**options)


def test_assert_robust():
    assert assert_robust(net(), data(), ">=0.2@linf:0.02", limit=40).robust_accuracy >= 0.2
    with pytest.raises(AssertionError, match=r"below 0\.9"):
        assert_robust(net(), data(), ">= 0.9 @ linf:0.3")
    with pytest.raises(UsageError, match="requirement"):
        assert_robust(net(), data(), "0.9 at linf")


# -- verify ----------------------------------------------------------------------------------------------------------


def failed(folder: Path, model: nn.Module | None = None) -> list[str]:
    return [row.id for row in verify(folder, model=rk.wrap(model or net()), data=data()) if row.status == "FAIL"]


def test_verify_accepts_an_honest_run(tmp_path):
    evaluate(out=tmp_path, curve=True)
    assert failed(tmp_path) == []


def test_verify_sees_another_model_and_changed_files(tmp_path):
    evaluate(out=tmp_path)
    other = net()
    with torch.no_grad():
        other[1].weight.mul_(1.001)
    assert failed(tmp_path, other) == ["V2"]
    results = json.loads((tmp_path / "results.json").read_text())
    results["robust_accuracy"] = 0.99
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert failed(tmp_path) == ["V1", "V5"]


def test_verify_sees_a_false_adversarial(tmp_path):
    from safetensors.torch import load_file, save_file

    evaluate(out=tmp_path)
    file = sorted((tmp_path / "adversarial").glob("1-*/*.safetensors"))[0]
    tensors = load_file(file)
    tensors["adversarial"] = data()[0][tensors["ids"]]
    save_file(tensors, file)
    assert failed(tmp_path) == ["V1", "D17"]
