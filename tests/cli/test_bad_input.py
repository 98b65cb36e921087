"""Bad input: one clear message, exit 2, no traceback, nothing written, nothing executed, nothing hanging."""

import re
import shutil
from pathlib import Path

import pytest

from tests.cli import toys

GOOD = {"model": "nets.py:good", "--data": "npz:good.npz", "--attack": "fgsm", "--threat": "linf:0.01",
        "--progress": "none", "--out": "out"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad")
    toys.build(path)
    return path


@pytest.fixture
def evaluate(robustkit, folder, monkeypatch):
    """``evaluate(**{"--data": "npz:x.npz"})``: the good command with some options changed."""
    monkeypatch.chdir(folder)

    def run(**changes):
        options = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        model = options.pop("model", None)
        return robustkit("evaluate", *([model] if model else []), *(word for pair in options.items() for word in pair))

    yield run
    shutil.rmtree(folder / "out", ignore_errors=True)  # what a case left that should have left nothing


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("changes", "says"), [
    # what names a model
    ({"model": None}, "no model given"),
    ({"model": "resnet50"}, r"unknown model.*'resnet50'"),
    ({"model": "demo:mnist-robus"}, "Did you mean demo:mnist-robust"),
    ({"model": "demo:../../etc/passwd"}, "unknown model"),
    ({"model": "timm:resnet5000"}, "resnet5000"),
    ({"model": "torchvision:resnt18"}, "Did you mean resnet18"),
    ({"model": "absent.py:good"}, r"absent\.py"),
    ({"model": "nets.py:goood"}, "Did you mean good"),
    ({"model": "nets.py"}, "which function"),
    ({"model": "syntax.py:good"}, "SyntaxError"),
    ({"model": "imports.py:good"}, "a_module_that_is_not_there"),
    ({"model": "nets.py:fails"}, "no such checkpoint"),
    ({"model": "nets.py:forgot_return"}, "returned nothing"),
    ({"model": "nets.py:is_a_number"}, "not a model|int"),
    ({"model": "nets.py:wants_arguments"}, "depth"),
    # what a network does
    ({"model": "nets.py:returns_none"}, "None"),
    ({"model": "nets.py:returns_text"}, "str"),
    ({"model": "nets.py:returns_one_logit"}, "logits|1 outputs"),
    ({"model": "nets.py:returns_probabilities"}, "softmax|probabilities"),
    ({"model": "nets.py:returns_nan"}, "NaN|nan|finite"),
    ({"model": "nets.py:has_no_gradient"}, "gradient"),
    ({"model": "nets.py:is_detached"}, "gradient"),
    ({"model": "nets.py:is_random"}, "random"),
    ({"model": "nets.py:raises_inside"}, "the matrix is not a matrix"),
    ({"model": "nets.py:wants_color"}, "channel"),
    ({"model": "nets.py:on_meta"}, "meta"),
    ({"model": "nets.py:split_over_devices"}, "meta"),
    # weights
    ({"--weights": "absent.safetensors"}, "no such weights file"),
    ({"--weights": "keys.safetensors"}, r"layer\.weight"),
    ({"--weights": "shapes.safetensors"}, r"layer\.weight"),
    ({"--weights": "cut.safetensors"}, r"cut\.safetensors"),
    ({"--weights": "payload.pt"}, r"payload\.pt"),
    ({"--weights": "whole_model.pt"}, "Linear|tensors"),
    ({"--weights": "noise.pt"}, r"noise\.pt"),
    ({"--weights": "weights.h5"}, "safetensors"),
    ({"--weights": "holiday"}, "holiday"),
    # preprocessing and device
    ({"--mean": "0.5"}, "mean and std"),
    ({"--mean": "0.5,0.5,0.5", "--std": "0.5,0.5,0.5"}, "channel"),
    ({"--mean": "a", "--std": "1"}, "not a number"),
    ({"--bounds": "1,0"}, "low < high"),
    ({"--device": "gpu"}, "cpu, mps, cuda"),
    ({"--device": "cuda:97"}, "cuda"),
    # data
    ({"--data": None}, "no data given"),
    ({"--data": "good.npz"}, "npz:"),
    ({"--data": "npz:absent.npz"}, "no such file"),
    ({"--data": "npz:cut.npz"}, "cannot be read|no plain numbers"),
    ({"--data": "npz:noise.npz"}, "no plain numbers|cannot be read"),
    ({"--data": "npz:nothing.npz"}, "cannot be read"),
    ({"--data": "npz:objects.npz"}, "no plain numbers"),
    ({"--data": "npz:single.npy"}, "single array"),
    ({"--data": "npz:only_x.npz"}, "no array 'y'"),
    ({"--data": "npz:unequal.npz"}, "40.*39|39.*40"),
    ({"--data": "npz:nan.npz"}, "NaN"),
    ({"--data": "npz:bytes.npz"}, "255"),
    ({"--data": "npz:normalised.npz"}, "range|bounds|normalis"),
    ({"--data": "npz:float_labels.npz"}, "label"),
    ({"--data": "npz:negative_labels.npz"}, "-1"),
    ({"--data": "npz:many_labels.npz"}, "10"),
    ({"--data": "npz:two_labels.npz"}, "label|y"),
    ({"--data": "npz:shuffled.npz"}, "label|chance"),
    ({"--data": "npz:empty.npz"}, "empty"),
    ({"--data": "npz:color.npz"}, "channel|shape"),
    ({"--data": "npz:wide.npz"}, "shape"),
    ({"--data": "npz:text.npz"}, "numbers|dtype|str|<U"),
    ({"--data": "npz:complex.npz"}, "complex"),
    ({"--data": "sets.py:empty"}, "empty"),
    ({"--data": "sets.py:unequal"}, "8.*7|7.*8"),
    ({"--data": "sets.py:not_pairs"}, "pair|x, y"),
    ({"--data": "sets.py:a_number"}, "int"),
    ({"--data": "sets.py:broken"}, r"0\.raw is gone"),
    ({"--data": "folder:absent"}, "no such folder"),
    ({"--data": "folder:no_pictures"}, "no class folders|no pictures"),
    ({"--data": "folder:bomb"}, "too large"),
    ({"--data": "folder:fake"}, "not a picture|cannot be read"),
    ({"--data": "folder:escapes"}, "leads out"),
    ({"--data": "demo:mnst"}, "Did you mean demo:mnist"),
    # attacks and threats
    ({"--attack": None}, "no attacks given"),
    ({"--attack": "pdg"}, "Did you mean pgd"),
    ({"--attack": "pgd:step=3"}, "Did you mean steps"),
    ({"--attack": "pgd:steps=many"}, "steps"),
    ({"--attack": "pgd:steps=0"}, "steps"),
    ({"--attack": "pgd:steps"}, "key=value"),
    ({"--attack": "pgd:step_size=-1"}, "step_size"),
    ({"--attack": "pgd:loss=hinge"}, "loss"),
    ({"--threat": None}, "no threat given"),
    ({"--threat": "linf:-8/255"}, "eps is negative"),
    ({"--threat": "l7:0.1"}, "unknown norm"),
    ({"--threat": "linf:much"}, "not a number"),
    ({"--eps-scale": "0"}, "eps_scale"),
    # how it runs
    ({"--limit": "0"}, "limit"),
    ({"--limit": "some"}, "limit"),
    ({"--batch-size": "-4"}, "batch_size"),
    ({"--seed": "-1"}, "seed"),
    ({"--targeted": "worst"}, "random, least-likely or next"),
    ({"--fail-under": "robust=0.5"}, "robust_accuracy"),
    ({"--max-minutes": "0"}, "max_minutes"),
    ({"--out": "taken"}, "is a file"),
    ({"--out": "taken/run"}, "cannot write"),
    ({"--out": "holiday"}, "holds something else"),
    ({"--sede": "1"}, "No such option"),
    # configuration files
    ({"--config": "absent.yaml"}, "cannot read the configuration"),
    ({"--config": "bomb.yaml"}, "anchors"),
    ({"--config": "unknown_key.yaml"}, "Did you mean seed"),
    ({"--config": "wrong_type.yaml"}, "whole number"),
    ({"--config": "code.yaml"}, "plain YAML"),
    ({"--config": "broken.yaml"}, "plain YAML"),
], ids=lambda value: " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else None)
def test_bad_input(evaluate, folder, changes, says):
    before = contents(folder)
    found = evaluate(**changes)
    message = " ".join(found.stderr.replace("│", " ").split())
    assert found.exit_code == 2, (found.exit_code, found.stderr, found.exception)
    assert "Traceback" not in found.output and message.count("Error") >= 1
    assert re.search(says, message), message
    new = contents(folder) - before
    assert not new - {"out", "out/log.jsonl"}, new


@pytest.mark.parametrize(("threat", "says"), [("linf:8", "8/255"), ("linf:0", "8/255")])
def test_an_odd_radius_is_a_warning(evaluate, tmp_path, threat, says):
    found = evaluate(**{"--threat": threat, "--out": str(tmp_path / "out"), "--limit": "20"})
    assert f"Did you mean {says}" in found.stderr and found.exit_code in (0, 4)


def test_the_good_command_is_good(evaluate, tmp_path):
    found = evaluate(**{"--out": str(tmp_path / "out")})
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[-1] == str(tmp_path / "out")
