"""The configuration: what is refused and how, which options matter, and that files and the command line agree."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robustkit.core.errors import UsageError
from robustkit.run.config import EvaluateConfig, config_digest, config_warnings, difference, dump_config, load_config

BASE = {"model": "demo:mnist-robust", "data": "demo:mnist", "attacks": ["pgd:steps=20"], "threat": "linf:8/255"}


def config(**changes):
    return load_config(None, {**BASE, **changes})


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("option", "value", "says"), [
    ("seed", -1, r"0 to 2\^63 - 1"),
    ("seed", 2**63, r"0 to 2\^63 - 1"),
    ("seed", True, "whole number"),
    ("limit", 0, ">= 1"),
    ("limit", 10.0, "whole number"),
    ("limit", "1e3", "whole number"),
    ("batch_size", "many", "auto or a whole number"),
    ("batch_size", 0, ">= 1"),
    ("model", " ", "timm:NAME"),
    ("model", 7, "timm:NAME"),
    ("attacks", [], "a list of attacks"),
    ("attacks", "pgd", r"Write a list: attacks: \[...\]"),
    ("attacks", ["pgd", "PGD"], "twice"),
    ("attacks", ["pgd:steps"], "key=value"),
    ("attacks", ["pgd:steps=[1, 2]"], "number or a word"),
    ("threat", "linf:-1/255", "eps is negative"),
    ("threat", "l3:0.1", "unknown norm"),
    ("threat", "linf", "needs a radius"),
    ("threat", "linf:1/0", "not a number"),
    ("threat", "linf:nan", "not a number"),
    ("threat", {"linf": 0.1}, "norm and a radius"),
    ("targeted", "nearest", "random, least-likely or next"),
    ("task", "ranking", "classification"),
    ("device", "gpu", "cpu, mps, cuda"),
    ("curve", "yes", "true or false"),
    ("force", 1, "true or false"),
    ("eot", 0, ">= 1"),
    ("max_minutes", 0, "> 0"),
    ("progress", "loud", "none, plain or rich"),
    ("bounds", [1, 0], "low < high"),
    ("bounds", [0, 1, 2], "two numbers"),
    ("mean", [0.5], "mean and std go together"),
    ("fail_under", ["robust_accuracy"], "METRIC=VALUE"),
    ("fail_under", ["robust_acuracy=0.5"], "Did you mean robust_accuracy"),
    ("fail_under", ["robust_accuracy=45"], "shares, not percentages"),
    ("eps_scale", 0, "eps_scale"),
    ("sede", 1, "Did you mean seed"),
    ("attack", ["pgd"], "Did you mean attacks"),
])
def test_what_is_refused(option, value, says):
    with pytest.raises(UsageError, match=says) as caught:
        config(**{option: value})
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


@pytest.mark.parametrize("missing", BASE)
def test_what_is_missing_is_named_with_the_fix(missing):
    with pytest.raises(UsageError, match=f"no {missing} given.*robustkit list"):
        load_config(None, {**BASE, missing: None})


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5, 0.5]), ([0.5], [0]), ([0.5], [-0.1]), (["x"], [1]), ([], [])])
def test_mean_and_std_must_fit_each_other(mean, std):
    with pytest.raises(UsageError, match=r"mean|std"):
        config(mean=mean, std=std)


def test_values_are_canonical():
    found = config(attacks=["PGD: steps = 20, loss=margin"], threat=" Linf : 8/255", mean=["127/255"], std=["128/255"],
                   fail_under=["robust_accuracy = 1/2"])
    assert found.attacks == ("pgd:steps=20,loss=margin",)
    assert found.threat == "linf:8/255" and found.threat_spec.eps == 8 / 255
    assert found.mean == (127 / 255,) and found.std == (128 / 255,)
    assert found.fail_under == ("robust_accuracy=0.5",)
    assert found.method_specs[0].options == {"steps": 20, "loss": "margin"}


def test_eps_scale_divides_once_wherever_it_stands(tmp_path):
    assert config(threat="linf:8", eps_scale=255).threat == "linf:8/255"
    file = written(tmp_path, yaml.safe_dump({**BASE, "threat": "linf:8", "eps_scale": 255}))
    assert load_config(file, {}).threat == "linf:8/255"
    assert load_config(file, {"threat": "linf:4/255"}).threat == "linf:4/255"
    assert load_config(file, {"threat": "linf:4", "eps_scale": 255}).threat == "linf:4/255"


def test_the_command_line_wins_and_none_means_not_given(tmp_path):
    file = written(tmp_path, yaml.safe_dump({**BASE, "seed": 3, "limit": 10}))
    found = load_config(file, {"seed": 4, "limit": None})
    assert (found.seed, found.limit) == (4, 10)


def test_stored_and_read_again_it_is_the_same(tmp_path):
    first = config(seed=5, mean=["1/3"], std=[1e-5], bounds=[-1, 1], fail_under=["robust_accuracy=0.45"], curve=True,
                   weights="w.safetensors", model="net.py:build", data="folder:photos", max_minutes="1/3", limit=7)
    again = load_config(written(tmp_path, dump_config(first)), {})
    assert again == first and dump_config(again) == dump_config(first) and config_digest(again) == config_digest(first)
    assert list(yaml.safe_load(dump_config(first))) == list(EvaluateConfig.model_fields)


def test_paths_start_at_the_file_or_at_the_current_folder(tmp_path, monkeypatch):
    away = tmp_path / "elsewhere"
    away.mkdir()
    monkeypatch.chdir(away)
    file = written(tmp_path, yaml.safe_dump({**BASE, "model": "net.py:build", "data": "folder:a/../photos",
                                             "weights": "w.pt", "surrogate": "hf:./local"}))
    found = load_config(file, {})
    assert found.model == f"{tmp_path / 'net.py'}:build"
    assert found.data == f"folder:{tmp_path / 'photos'}"
    assert found.weights == tmp_path / "w.pt"
    assert found.surrogate == f"hf:{tmp_path / 'local'}"
    over = load_config(file, {"data": "npz:x.npz", "weights": "v.pt", "surrogate": "timm:resnet18"})
    assert over.data == f"npz:{away / 'x.npz'}" and over.weights == away / "v.pt" and over.surrogate == "timm:resnet18"


@pytest.mark.parametrize(("changes", "matters"), [
    ({"seed": 1}, True), ({"limit": 5}, True), ({"batch_size": 8}, True), ({"device": "cpu"}, True),
    ({"force": True}, True), ({"curve": True}, True), ({"threat": "linf:4/255"}, True), ({"eot": 2}, True),
    ({"max_minutes": 1}, False), ({"progress": "none"}, False), ({"fail_under": ["robust_accuracy=0.1"]}, False),
])
def test_the_digest_covers_what_changes_results(changes, matters):
    old, new = config(), config(**changes)
    assert (config_digest(old) != config_digest(new)) is matters
    assert bool(difference(old, new)) is matters


def test_differences_read_like_sentences():
    lines = difference(config(), config(seed=1, limit=9, attacks=["fgsm", "pgd"]))
    assert lines == ["attacks: pgd:steps=20 -> fgsm, pgd", "limit: not set -> 9", "seed: 0 -> 1"]


@pytest.mark.parametrize(("changes", "says"), [
    ({"threat": "linf:8"}, "Did you mean 8/255"),
    ({"threat": "linf:1"}, "Did you mean 1/255"),
    ({"threat": "linf:0"}, "Did you mean 8/255"),
    ({"threat": "l2:0"}, "Did you mean 8/255"),
    ({"threat": "linf:8/255", "eps_scale": 255}, "divided by 255 twice"),
])
def test_a_likely_slip_is_a_warning(changes, says):
    (warning,) = config_warnings(config(**changes))
    assert says in warning


@pytest.mark.parametrize("changes", [
    {}, {"threat": "l2:3"}, {"threat": "l1:12"}, {"threat": "linf:8", "bounds": [0, 255]}, {"threat": "linf:1/255"},
])
def test_what_is_right_raises_no_warning(changes):
    assert config_warnings(config(**changes)) == []


def bomb(levels=12):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(("text", "says"), [
    (bomb(), "anchors"),
    ("model: &m demo:x", "anchors"),
    ("model: *m", "aliases"),
    ("seed: 1\nseed: 2", "'seed' stands there twice"),
    ("model: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ("model: [", "plain YAML"),
    ("[" * 20000, "plain YAML"),
    ("- a\n- b", "mapping of options"),
    ("just text", "mapping of options"),
    ("? [1, 2]\n: 3", "plain YAML"),
    ("1: 2", "unknown option 1"),
    ("seed: 2001-99-99", "plain YAML"),
    ("# " + "x" * 1_000_001, "too large"),
    ("seed: \x07", "plain YAML"),
])
def test_files_that_are_refused(tmp_path, text, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_config(written(tmp_path, text), BASE)
    assert "run.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("model: caf\xe9".encode("latin-1"))
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(UsageError, match="cannot read the configuration"):
            load_config(path, BASE)


def test_an_empty_file_is_an_empty_configuration(tmp_path):
    assert load_config(written(tmp_path, "# nothing yet\n"), BASE) == config()


def test_importing_it_needs_no_torch():
    modules = "sys, robustkit.run.config, robustkit.run.directory, robustkit.run.progress"
    code = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
