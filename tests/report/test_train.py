"""The page of a training: what it says, what it carries, and what it refuses."""

import html
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from robustkit.core.errors import Incomplete, UsageError
from robustkit.report import plots_training
from robustkit.report.files import RunFiles
from robustkit.report.plots_training import accuracy, apart, loss, small
from robustkit.report.train import fragment, gradients, load_schema, render
from robustkit.report.write import write, write_page
from tests.report.conftest import make_run
from tests.report.explanation import make_explanation
from tests.report.test_browser import BROWSER, browse
from tests.report.training import make_epoch, make_evaluation, make_results, make_training, refused

HOSTILE = "<script>alert(1)</script>$\\frac$'\"><img src=x>"
OVERFITTING = {"epoch": 17, "before": 0.61, "after": 0.02, "action": "warn"}


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Equal curves are drawn once: most runs here have the same."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("accuracy", "loss", "small"):
            patch.setattr(plots_training, name, remembered(getattr(plots_training, name)))
        yield


def remembered(draw):
    found = {}

    def again(*args, **options):
        key = repr((args, options))
        if key not in found:
            found[key] = draw(*args, **options)
        return found[key]

    return again


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run, and its page."""
    folder = make_training(tmp_path_factory.mktemp("plain") / "run")
    return folder, render(folder)


def faults(value):
    return [error.message for error in Draft202012Validator(load_schema()).iter_errors(value)]


def words(page):
    """The text of the page."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.S)))


def drawn(svg, name):
    """The words of a plot."""
    return name in html.unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg)))


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_made_up_runs_fit():
    Draft202012Validator.check_schema(load_schema())
    unfinished = {**make_results(), "complete": False, "best": None, "last": None, "epochs": [], "evaluations": []}
    turned_away = {**make_results(), "evaluations": [refused("best")], "overfitting": OVERFITTING}
    for found in (make_results(), make_results(threat=None), make_results(epochs=1), unfinished, turned_away):
        assert faults(found) == []
    text = json.dumps(load_schema())
    assert {part.split('"')[0] for part in text.split("#/$defs/")[1:]} == set(load_schema()["$defs"])


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("kind",), "evaluation"),
        (("schema_version",), "2.0"),
        (("model", "parameters"), "many"),
        (("model", "bounds"), [0]),
        (("data", "held_out"), -1),
        (("defense", "text"), None),
        (("threat", "norm"), "l7"),
        (("recipe", "epochs"), 0),
        (("recipe", "extra"), {"nested": 1}),
        (("epochs", 0, "held_out"), {"clean": 1.1, "robust": None}),
        (("epochs", 0, "accuracy", "clean"), "good"),
        (("epochs", 0, "forwards"), None),
        (("best", "epoch"), 0),
        (("last", "sha256"), None),
        (("overfitting",), {**OVERFITTING, "action": "shrug"}),
        (("evaluations", 0, "weights"), "middle"),
        (("evaluations", 0, "interval"), [0.1]),
        (("evaluations", 0, "robust_accuracy"), 61.2),
        (("notes",), [1]),
        (("surprise",), 1),
    ],
)
def test_what_is_wrong_does_not_fit(tmp_path, where, value):
    changed = make_results()
    part = changed
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    assert faults(changed)
    folder = make_training(tmp_path / "run", changed)
    if where == ("surprise",):
        assert "61.2 %" in render(folder)  # later minor versions may say more
    else:
        with pytest.raises(UsageError, match=r"not the results of a training|results of another version"):
            render(folder)


def test_every_key_is_needed():
    whole = make_results()
    for key in load_schema()["required"]:
        assert len(faults({k: v for k, v in whole.items() if k != key})) == 1
    assert set(load_schema()["required"]) == set(load_schema()["properties"])


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_what_it_shows(plain):
    text = words(plain[1])
    for said in (
        "cnn, trained by trades:beta=6",
        "To withstand linf:0.2, on 3,000 samples of demo:mnist-train.",
        "best weights, those of epoch 13, on data that neither the training nor the choice of the weights has seen, "
        "attacked by standard.",
        "robust accuracy 61.2 % 95 % interval 58.1 to 64.2 % clean accuracy 96.8 %",
        "samples 1,000 demo:mnist, unseen best epoch 13 of 20",
        "best epoch 13 last epoch 20",
        "robust accuracy 95 % interval 61.2 % 58.1 to 64.2 % 57.4 % 54.3 to 60.5 %",
        "attacked by pgd:steps=10 and pgd:loss=margin,steps=10",
        "81,434 parameters",
        "ramp of eps 25 % of the steps",
        "averaged weights decay 0.995",
        "first weights drawn at random",
        "robustkit train demo:mnist-train \\ --model cnn",
        "Wall time 6 min 0 s: training 5 min 8 s, evaluation 52.0 s, on cpu",
        "robustkit 0.1.0, results schema 1.0",
        "model: cnn defense: trades:beta=6",
    ):
        assert said in text, said
    assert "optimistic; those on demo:mnist are not" in text and 'class="stamp' not in plain[1]
    assert "<title>cnn by trades:beta=6: robust accuracy 61.2 % under linf:0.2</title>" in plain[1]


def test_the_order_is_that_of_importance(plain):
    places = [plain[1].index(f'id="{name}"') for name in ("weights", "curves", "recipe", "cost", "use", "reproduce")]
    assert places == sorted(places) and plain[1].index("61.2 %") < places[0]


def test_cost_is_in_samples_and_in_example_gradients(plain):
    row = re.search(r"training</td>(.*?)</tr>", plain[1], flags=re.S)[1]
    forwards, backwards = 12 * 20 * 3000, 11 * 20 * 3000
    wanted = [forwards, backwards, backwards + (forwards - backwards) // 3]
    assert re.findall(r">([\d,]+)<", row) == [f"{value:,}" for value in wanted]
    assert gradients({"forwards": 3, "backwards": 0}) == 1 == gradients({"forwards": 1, "backwards": 1})


def test_the_commands_name_the_run(plain):
    folder, page = plain
    text = words(page)
    assert f"robustkit evaluate run:{folder} \\ --data demo:mnist \\ --attack standard \\ --threat linf:0.2" in text
    assert f'model = rk.load("run:{folder}")' in text
    assert f'load_file("{folder / "best.safetensors"}")' in text and "append :last" in text


def test_a_network_from_python_is_loaded_in_python(tmp_path):
    results = make_results()
    results["model"]["spec"] = "python:Net"
    text = words(render(make_training(tmp_path / "run", results)))
    assert "network.load_state_dict(load_file(" in text and "robustkit evaluate run:" not in text


def test_a_path_of_any_name_is_quoted(tmp_path):
    text = words(render(make_training(tmp_path / "a 'run' \"x\"")))
    line = next(part for part in text.split("import robustkit as rk") if "model = rk.load(" in part)
    found = re.search(r'rk\.load\(("(?:[^"\\]|\\.)*")\)', line)[1]
    assert json.loads(found) == f"run:{tmp_path}/a 'run' \"x\""
    assert f"'run:{tmp_path}/a '\"'\"'run'\"'\"' \"x\"'" in text


def test_nothing_is_asked_of_anybody(plain):
    page = plain[1]
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert "default-src 'none'" in policy and "script-src" not in policy and "<script" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    outside = [link for link in links if not link.startswith(("data:,", "#"))]
    assert outside == [
        "evaluation-best/report.html",
        "evaluation-last/report.html",
        "https://arxiv.org/abs/1901.08573",
    ]
    assert "url(http" not in page and "@import" not in page and len(page) < 400_000


def test_names_are_text(tmp_path):
    results = make_results()
    results["model"] |= {"name": HOSTILE, "spec": HOSTILE}
    results["data"] |= {"name": HOSTILE, "test": HOSTILE}
    results["defense"] |= {"text": HOSTILE, "summary": HOSTILE, "paper": f"javascript:{HOSTILE}"}
    results["recipe"] |= {HOSTILE: HOSTILE, "optimizer": HOSTILE}
    results["notes"] = [HOSTILE]
    results["selection"]["attacks"] = [HOSTILE]
    results["evaluations"] = [make_evaluation("best", data=HOSTILE, attack=HOSTILE), refused("last", HOSTILE)]
    for row in results["epochs"]:
        row["accuracy"] = {HOSTILE: 0.5}
        row["terms"] = {HOSTILE: 1.0, "ünïcode \U0001f600 $x$ #010101": 2.0, "kl": 0.5}
    folder = make_training(tmp_path / "run", results)
    (folder / "config.yaml").write_text(HOSTILE, encoding="utf-8")
    for page in (render(folder), fragment(folder)):
        assert "<script>alert" not in page and "<img src=x" not in page and 'href="javascript' not in page
        assert HOSTILE in html.unescape(page)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_asks_nothing_of_the_network(tmp_path):
    results = make_results()
    results["defense"]["text"] = HOSTILE
    page = write_page(make_training(tmp_path / "run", results))
    dom, requested = browse(page, tmp_path)
    assert requested == set() and "<script" not in dom and dom.count("<svg") == 5 and "&lt;script&gt;alert(1)" in dom


def test_links_lead_to_reports_inside_the_run_alone(tmp_path):
    (tmp_path / "report.html").write_text("x")
    for folder in ("..", "javascript:alert(1)", "/etc", "evaluation-gone", "a/../.."):
        found = [make_evaluation("best", folder=folder), make_evaluation("last", folder=None)]
        run = make_training(tmp_path / "run", evaluations=[])
        results = {**make_results(), "evaluations": found}
        (run / "results.json").write_text(json.dumps(results))
        assert "full report" not in render(run)


# -- what limits the figures -------------------------------------------------------------------------------------------


def test_without_a_threat_clean_accuracy_stands_first(tmp_path):
    page = render(make_training(tmp_path / "run", threat=None))
    text = words(page)
    assert "cnn, trained by erm On 3,000 samples" in text
    assert "clean accuracy 96.8 % 95 % interval 95.5 to 97.8 % robust accuracy not measured no threat was given" in text
    assert "highest clean accuracy on the held-out part" in text and "attacked by" not in text
    assert "--threat NORM:EPS" in text and "eps by epoch" not in page and 'class="stamp' not in page


def test_a_refused_evaluation_says_why(tmp_path):
    folder = make_training(tmp_path / "run", evaluations=[refused("best"), refused("last")])
    text = words(render(folder))
    assert "The evaluation of the best and the last weights was refused: no gradient reaches the input" in text
    assert "robust accuracy 61.1 % held-out part; its evaluation was refused" in text
    assert text.count("REFUSED") == 2 and 'figure main void"' in render(folder)
    assert "also chose the weights: optimistic" in text and "<title>cnn by trades:beta=6 under linf" in render(folder)
    one = words(render(make_training(tmp_path / "b", evaluations=[make_evaluation("best"), refused("last")])))
    assert "The evaluation of the last weights was refused" in one and "robust accuracy 61.2 % 95 %" in one


def test_an_invalid_evaluation_is_void(tmp_path):
    bad = make_evaluation("best", valid=False)
    page = render(make_training(tmp_path / "run", evaluations=[bad, make_evaluation("last")]))
    assert "figures of the best weights mean nothing" in words(page) and 'figure main void"' in page
    assert words(page).count("INVALID") == 1


def test_the_held_out_part_is_called_optimistic(tmp_path):
    rows = [make_evaluation(w, unseen=False, data="held out of demo:mnist-train") for w in ("best", "last")]
    text = words(render(make_training(tmp_path / "run", evaluations=rows)))
    assert "held-out part that also chose the weights: optimistic" in text and "unseen" not in text
    assert "on the 1,000 samples held out to choose them" in text and "61.2 %" in text


def test_without_an_evaluation_the_selection_speaks_and_says_so(tmp_path):
    text = words(render(make_training(tmp_path / "run", evaluations=[])))
    assert "robust accuracy 61.1 % held-out part" in text and "No evaluation was made" in text
    assert "They are by pgd:steps=10 and pgd:loss=margin,steps=10, which is weaker" in text


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("warn", "The best weights are those of epoch 13."),
        ("rollback", "The training ended with the weights before it."),
    ],
)
def test_a_collapse_is_stamped_and_marked(tmp_path, action, said):
    page = render(make_training(tmp_path / "run", overfitting={**OVERFITTING, "action": action}))
    stamp = f"Catastrophic overfitting in epoch 17: robust accuracy fell from 61.0 % to 2.0 %. {said}"
    assert stamp in words(page) and "collapse in epoch 17: 61.0 to 2.0 % robust" in page


def test_one_epoch(tmp_path):
    text = words(render(make_training(tmp_path / "run", make_results(epochs=1))))
    assert "best epoch 1 of 1" in text and "The last weights are the best ones." in text


def test_epochs_that_were_not_measured(tmp_path):
    results = make_results()
    for row in results["epochs"][::2]:
        row["held_out"] = None
    text = words(render(make_training(tmp_path / "run", results)))
    assert "best: epoch 13" in text
    for row in results["epochs"]:
        row |= {"held_out": None, "accuracy": {}, "terms": {}, "loss": None, "lr": None, "eps": None}
    assert "No epoch is finished" in words(render(make_training(tmp_path / "b", results)))


def test_an_unfinished_run_says_so(tmp_path):
    changes = {"complete": False, "best": None, "last": None, "evaluations": []}
    folder = make_training(tmp_path / "run", **changes)
    (folder / "run.json").unlink()
    (folder / "config.yaml").unlink()
    text = words(render(folder))
    assert "Incomplete: 20 of 20 epochs are done" in text and "Nothing has been measured yet" in text
    assert "not recorded" in text


def test_a_fragment_for_notebooks(plain):
    found = fragment(plain[0])
    assert "61.2 %" in found and "<svg" in found and "<script" not in found and "<html" not in found
    assert "<body" not in found and "full report" in found


# -- plots -------------------------------------------------------------------------------------------------------------


def test_the_curve_has_a_line_for_all_that_was_measured():
    rows = [make_epoch(k) for k in range(1, 21)]
    svg = accuracy(rows, best={"epoch": 13, "clean": 0.9, "robust": 0.6}, overfitting=OVERFITTING)
    assert all(drawn(svg, name) for name in ("robust", "clean", "attacked batches", "clean batches", "best: epoch 13"))
    assert "var(--robust)" in svg and "var(--broken)" in svg and "#02" not in svg
    noisy = [{**row, "accuracy": {"noisy": 0.5, **row["accuracy"]}} for row in rows]
    assert drawn(accuracy(noisy), "noisy batches") and not drawn(svg, "noisy batches")
    bare = accuracy([{**row, "held_out": None} for row in rows])
    assert drawn(bare, "clean batches") and not drawn(bare, "best")
    assert accuracy([]) is None and loss([]) is None and small([], "lr", "rate") is None


def test_the_loss_is_shown_with_its_terms_where_there_are_several():
    two, one = loss([make_epoch(1), make_epoch(2)]), loss([make_epoch(k, threat=None) for k in (1, 2)])
    assert all(drawn(two, name) for name in ("loss", "kl", "clean"))
    assert drawn(one, "cross-entropy") and one.count("<path") < two.count("<path")


def test_odd_values_are_drawn():
    flat = [{**make_epoch(k), "loss": 0.0, "terms": {"a": 0.0, "b": None, "c": -1.5}, "lr": 1e-9} for k in (1, 2, 3)]
    assert drawn(loss(flat), "c") and small(flat, "lr", "learning rate")
    many = [make_epoch(k, epochs=300) for k in range(1, 301)]
    assert len(accuracy(many)) < 120_000 and accuracy(many).count("<use") < 60  # no dot for each epoch


@pytest.mark.parametrize("places", [[5, 1, 5.5], [0, 0, 0, 0], [10, 9.9, 9.95], [3], [], [0.2, 9.9, 5, 5.1]])
def test_names_keep_apart(places):
    found = apart(places, 1.0, 0.0, 10.0)
    order = sorted(range(len(places)), key=lambda k: places[k])
    ordered = [found[k] for k in order]
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(ordered))
    assert all(-1e-9 <= y <= 10 + 1e-9 for y in found)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_page_is_written_by_the_kind_of_the_run(tmp_path):
    training = make_training(tmp_path / "training")
    page = write_page(training)
    assert page == training / "report.html" and page.read_text(encoding="utf-8") == render(training)
    explained = make_explanation(tmp_path / "explanation", images=1)
    assert "Explanation" in write_page(explained).read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="this run is an evaluation"):
        write_page(make_run(tmp_path / "evaluation"))


def test_other_reports_name_the_evaluation_inside(tmp_path):
    folder = make_training(tmp_path / "run")
    with pytest.raises(UsageError, match=r"this run is a training") as plainly:
        write(folder, ["md"])
    assert "evaluation-best" not in str(plainly.value)
    make_run(folder / "evaluation-best")
    with pytest.raises(UsageError, match=r"evaluation-best"):
        RunFiles.open(folder).checked()


def test_folders_that_hold_no_training(tmp_path):
    with pytest.raises(UsageError, match="no run there"):
        render(tmp_path)
    with pytest.raises(UsageError, match="not the results of a training"):
        render(make_explanation(tmp_path / "explained", images=1))
    folder = make_training(tmp_path / "run")
    (folder / "run.json").write_text('{"command": "robustkit"}')
    with pytest.raises(UsageError, match="cannot read a file of the run"):
        render(folder)
    (folder / "results.json").unlink()
    with pytest.raises(Incomplete):
        render(folder)


def test_the_same_run_gives_the_same_page(plain):
    assert render(Path(plain[0])) == plain[1]
