"""DRS: both recipes written out in float64, its limits, what becomes of the network, and the way back from a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

import robustkit as rk
from robustkit.core.defense import defense_from
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.lesson import Engine, TrainState
from robustkit.defenses.drs import DRS, disagreement, halved
from robustkit.defenses.erm import Noise
from robustkit.zoo import load_into, read_state
from tests.defenses.lessons import assert_close, batch, conv_net, gradients_of, grads, mlp
from tests.dense import segmentation
from tests.run.training import TinyNet, patterns, short

RIGHT = torch.tensor([[(row + column) % 2 == 1 for column in range(5)] for row in range(5)])
"""The pixels of the right half, (5, 5)."""


def prepared(defense: DRS, net: nn.Module | None = None, apart: bool = True) -> rk.Model:
    """Ready to step; the halves' weights differ, so that they cannot be mixed up."""
    model = defense.prepare(rk.wrap((conv_net() if net is None else net).train()))
    if apart:
        with torch.no_grad():
            for p in model.net.right.parameters():
                p.mul_(0.7).add_(0.05)
    return model


def noise(step: int = 0, view: int = 0, n: int = 6) -> torch.Tensor:
    draws = Draws(5, torch.arange(n), "train" + (f"/view{view}" if view else ""), step)
    return draws.normal(batch(n)[0])


def seen(x: torch.Tensor, right: bool, fill: str) -> torch.Tensor:
    """What a half's network sees, pixel by pixel."""
    out = torch.zeros_like(x)
    size = x.shape[-1]
    for row in range(size):
        for column in range(size):
            if (row + column) % 2 != right:
                if fill == "mean":
                    places = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
                    inside = [x[..., a, b] for a, b in places if 0 <= a < size and 0 <= b < size]
                    out[..., row, column] = sum(inside) / len(inside)
                continue
            out[..., row, column] = x[..., row, column]
            if fill == "paper":
                cells = [(row // 2 * 2 + a, column // 2 * 2 + b) for a in (0, 1) for b in (0, 1)]
                kept = [
                    x[..., a, b] if (a + b) % 2 == right else torch.zeros_like(x[..., 0, 0])
                    for a, b in cells
                    if a < size and b < size
                ]
                out[..., row, column] += torch.stack(kept).amax(0)
    return out


def slow_ce(logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> torch.Tensor:
    target = (1 - smoothing) * torch.eye(logits.shape[1], dtype=logits.dtype)[y] + smoothing / logits.shape[1]
    return -(target * logits.softmax(1).log()).sum(1).mean()


def slow_disagreement(views: list[torch.Tensor], entropy: float) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.double)
    for i in range(len(views[0])):
        each = [logits[i].softmax(0) for logits in views]
        mean = sum(each) / len(each)
        total = total + sum((mean * (mean.log() - p.log())).sum() for p in each) / len(each)
        total = total - entropy * (mean * mean.log()).sum()
    return total / len(views[0])


@pytest.mark.parametrize("fill", ["paper", "mean", "zero"])
@pytest.mark.parametrize("make", [conv_net, mlp])
def test_org_written_out(make, fill):
    defense = DRS(sigma=0.3, fill=fill, label_smoothing=0.1)
    model, (x, y) = prepared(defense, make()), batch()
    found = defense.step(model, x, y, TrainState(seed=5))
    terms = {}
    for net, right in ((model.net.left, False), (model.net.right, True)):
        terms["right" if right else "left"] = slow_ce(net(seen(x + 0.3 * noise(), right, fill)), y, 0.1)
    assert {name: float(value) for name, value in found.terms.items()} == pytest.approx(
        {name: float(value.detach()) for name, value in terms.items()}, abs=1e-12
    )
    assert_close(grads(model.net), gradients_of(terms["left"] + terms["right"], model.net))


def test_consistency_written_out():
    defense = DRS(sigma=0.2, sigma_right=0.5, recipe="consistency", views=3, weight=2.5, entropy=0.3)
    model, (x, y) = prepared(defense, mlp()), batch()
    found = defense.step(model, x, y, TrainState(seed=5, step=4))
    size = torch.where(RIGHT, 0.5, 0.2).double()
    views = [x + size * noise(4, number) for number in range(3)]
    ce, agree = [], []
    for net, right in ((model.net.left, False), (model.net.right, True)):
        logits = [net(seen(view, right, "paper")) for view in views]
        ce.append(sum(slow_ce(one, y, 0.0) for one in logits) / 3)
        agree.append(2.5 * slow_disagreement(logits, 0.3))
    assert [float(term) for term in found.terms.values()] == pytest.approx(
        [float(t.detach()) for t in (*ce, sum(agree))]
    )
    assert list(found.terms) == ["left", "right", "consistency"]
    assert_close(grads(model.net), gradients_of(sum(ce) + sum(agree), model.net))


def test_each_half_learns_as_noise_training_on_that_half_does():
    """The sum of both losses trains each network as if alone, batch statistics included."""
    defense, (x, y) = DRS(sigma=0.4, fill="mean"), batch()
    model = prepared(defense)
    alone = {side: halved(getattr(model.net, side), "mean").of(side).train() for side in ("left", "right")}
    defense.step(model, x, y, TrainState(seed=5))
    for side, half in alone.items():
        Noise(sigma=0.4).step(rk.wrap(half), x, y, TrainState(seed=5))
        ours, theirs = getattr(model.net, side), half.net
        assert_close(grads(ours), grads(theirs))
        assert torch.equal(ours.bn.running_mean, theirs.bn.running_mean)


def test_consistency_without_its_weight_is_the_mean_of_org_over_views():
    both = [DRS(recipe="consistency", views=1, weight=0), DRS()]
    models, (x, y) = [prepared(defense) for defense in both], batch()
    losses = [float(d.step(m, x, y, TrainState(seed=5))) for d, m in zip(both, models, strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert_close(*(grads(model.net) for model in models))


def test_views_that_agree_cost_their_entropy_alone():
    logits = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.double)
    p = logits.softmax(1)
    assert float(disagreement(logits.expand(4, 1, 3), 0.0)) == pytest.approx(0, abs=1e-12)
    assert float(disagreement(logits.expand(4, 1, 3), 0.5)) == pytest.approx(float(-0.5 * (p * p.log()).sum()))
    certain = torch.tensor([[[900.0, 0.0]], [[0.0, 900.0]]])  # KL(p || p_j) is about 450 nats, and no NaN
    assert float(disagreement(certain, 0.05)) == pytest.approx(450, rel=0.01)


def test_shared_is_one_network_that_learns_from_both_halves():
    one, two, (x, y) = DRS(shared=True), DRS(), batch()
    shared, apart = prepared(one, mlp(), apart=False), prepared(two, mlp(), apart=False)
    assert shared.net.left is shared.net.right and apart.net.left is not apart.net.right
    for defense, model in ((one, shared), (two, apart)):
        defense.step(model, x, y, TrainState(seed=5))
    total = {k: v + grads(apart.net.right)[k] for k, v in grads(apart.net.left).items()}
    assert_close(grads(shared.net.left), total)


def test_dense_networks_learn_by_their_own_loss():
    """Unlabelled pixels do not count for cross-entropy."""
    model, x, y = segmentation()
    assert (y == 255).any()
    defense = DRS(sigma=0.1, recipe="consistency", views=2)
    ready = defense.prepare(model)
    ready.net.train()
    found = defense.step(ready, x, y)
    assert all(bool(term.isfinite()) for term in found.terms.values()) and set(found.accuracy) == {"left", "right"}


def test_the_network_that_was_given_stays_and_a_split_one_is_taken_as_it_is():
    net = conv_net().eval()
    model = DRS(fill="zero").prepare(rk.wrap(net, bounds=(-1, 2)))
    assert model.net.fill == "zero" and not any(m.training for m in model.net.modules()) and model.bounds.high == 2
    assert model.net.left is not net and model.net.right is not net
    for half in (model.net.left, model.net.right):
        assert all(torch.equal(v, half.state_dict()[k]) for k, v in net.state_dict().items())
    assert DRS(fill="mean").prepare(model) is model and model.net.fill == "zero"


def test_noise_comes_before_the_normaliser_and_passes_the_engine():
    """What trains in several processes wraps the whole module: mean and std, then the halves."""

    class Watching(Engine):
        calls = 0

        def wrapper(self, model):
            def forward(x):
                self.calls += 1
                assert torch.equal(x, x0 + 0.5 * noise())
                return model.module(x)

            return forward

        def backward(self, loss):
            self.calls += 10
            loss.backward()

    defense, (x0, y), engine = DRS(sigma=0.5), batch(), Watching()
    plain = prepared(defense, mlp())
    model = rk.wrap(plain.net, mean=[0.4, 0.4], std=[0.2, 0.2])
    found = defense.step(model, x0, y, TrainState(seed=5, engine=engine))
    assert engine.calls == 11 and (found.cost.forwards, found.cost.backwards) == (12, 12)
    terms = [slow_ce(net(seen((x0 + 0.5 * noise() - 0.4) / 0.2, right, "paper")), y, 0.0) for net, right in
             ((model.net.left, False), (model.net.right, True))]  # fmt: skip
    assert float(found) == pytest.approx(float(sum(terms).detach()))
    assert "forward" not in vars(model.net)


def test_mistakes_are_one_clear_message():
    x, y = batch()
    with pytest.raises(UsageError, match=r"no halves yet.*ConvNet"):
        DRS().step(rk.wrap(conv_net().train()), x, y)
    flat = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(UsageError, match="takes images apart"):
        DRS().step(DRS().prepare(rk.wrap(flat)), x[:, 0, 0, :4], y.clamp_max(2))
    depth = rk.wrap(nn.Conv2d(2, 1, 1).double(), task="regression")
    with pytest.raises(UsageError, match=r"vote for classes.*regression"):
        DRS().step(DRS().prepare(depth), x, x[:, :1])
    stuck = mlp()
    stuck.kept = (stuck[1](torch.ones(1, 50).double()),)  # deepcopy refuses tensors with a graph
    with pytest.raises(UsageError, match="cannot be copied"):
        DRS().prepare(rk.wrap(stuck))
    for text in ("drs:sigma=0", "drs:recipe=best", "drs:views=0", "drs:fill=black", "drs:weight=inf", "drs:loss=org"):
        with pytest.raises(UsageError, match="drs"):
            defense_from(text)
    with pytest.raises(ValidationError):
        DRS(sigma_right=-1)


# -- trainings, and what they leave ------------------------------------------------------------------------------------


@pytest.fixture
def no_page(monkeypatch):
    """Its plots take longer than a training."""
    monkeypatch.setattr("robustkit.report.write.write_page", lambda folder: folder)


def test_a_training_gives_back_a_split_network_and_leaves_the_given_one(no_page, tmp_path):
    net = TinyNet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = short("drs:fill=mean", net, threat=None, epochs=2, out=tmp_path / "run", eval="pgd")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    split = found.model.net
    assert isinstance(split, rk.SplitModel) and split.fill == "mean" and not split.training
    assert found.data["model"]["parameters"] == 2 * sum(p.numel() for p in net.parameters())
    again = rk.SplitModel(TinyNet(), TinyNet(), fill="mean")
    load_into(again, read_state(found.weights()), "best")
    x = patterns()[0]
    assert torch.equal(rk.wrap(again.eval())(x), found.model(x))
    assert found.evaluation["clean_accuracy"] is not None
    short("drs:fill=mean", split, threat=None, epochs=1)  # a SplitModel is trained in place
    assert not all(torch.equal(v, again.state_dict()[k]) for k, v in split.state_dict().items())
    with pytest.raises(UsageError, match=r"built in Python.*") as error:
        rk.load(f"run:{tmp_path / 'run'}")
    assert 'SplitModel(net, copy.deepcopy(net), fill="mean")' in str(error.value)


def run(out: Path, data: str, **options: object) -> dict:
    from robustkit.run.train import run as train
    from robustkit.run.train_config import TrainConfig

    given = {"epochs": 1, "lr": 0.01, "eval": "none", "holdout": 10, **options}
    return train(TrainConfig(data=data, **given), out, command=["test"])


def test_runs_load_again_and_are_trained_further(no_page, tmp_path, monkeypatch):
    """From a network trained on whole images to a split one, on to another training of it, and back each time."""
    monkeypatch.chdir(tmp_path)
    data = "demo:mnist-train"
    run(tmp_path / "whole", data, model="cnn", defense="erm", limit=60)
    whole = load_file(tmp_path / "whole" / "best.safetensors")
    options = {"defense": "drs:fill=zero", "limit": 60, "lr": 1e-12}
    run(tmp_path / "split", data, model="run:whole", **options)
    facts = json.loads((tmp_path / "split" / "model.json").read_text())
    assert facts["spec"] == "cnn" and facts["split"] == {"fill": "zero", "shared": False}
    found = rk.load("run:split")
    assert isinstance(found.net, rk.SplitModel) and found.net.fill == "zero" and found.class_names
    for half in (found.net.left, found.net.right):  # the rate is next to nothing
        for key, value in whole.items():
            torch.testing.assert_close(half.state_dict()[key], value, atol=1e-6, rtol=0)
    run(tmp_path / "further", data, model="run:split", defense="noise", limit=60)
    run(tmp_path / "last", data, model="run:further:last", defense="awp+drs:fill=mean", limit=60)
    last = rk.load("run:last:last")
    assert isinstance(last.net, rk.SplitModel) and last.net.fill == "zero"  # its own
    stored = load_file(tmp_path / "last" / "last.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in last.net.state_dict().items())
    instead = rk.load("run:split", weights=tmp_path / "last" / "best.safetensors")
    best = load_file(tmp_path / "last" / "best.safetensors")
    assert all(torch.equal(value, best[key]) for key, value in instead.net.state_dict().items())


def test_a_shared_network_is_shared_again_and_damage_is_named(no_page, tmp_path):
    run(tmp_path / "run", "demo:mnist-train", model="cnn", defense="drs:shared=true", limit=60)
    found = rk.load(f"run:{tmp_path / 'run'}")
    assert found.net.left is found.net.right
    file = tmp_path / "run" / "model.json"
    facts = json.loads(file.read_text())
    for damage in ({"fill": "black", "shared": True}, {"fill": "mean"}, "mean"):
        file.write_text(json.dumps({**facts, "split": damage}))
        with pytest.raises(UsageError, match="halves of an image cannot be read"):
            rk.load(f"run:{tmp_path / 'run'}")


def test_a_stopped_training_goes_on_to_the_same_bits(no_page, tmp_path, monkeypatch):
    from robustkit.core.errors import Incomplete
    from tests.run.test_train import stop_at

    options = {"threat": None, "epochs": 2, "ema": 0.9}
    defense = "drs:recipe=consistency,views=2"
    whole = short(defense, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Incomplete, match="stopped in epoch"):
            short(defense, out=tmp_path / "cut", **options)
    cut = short(defense, out=tmp_path / "cut", **options)
    assert cut.weights().read_bytes() == whole.weights().read_bytes()
