"""The page of a certification: what it says, what it never says, what it carries, and what it refuses."""

import base64
import html
import io
import json
import math
import re

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from matplotlib.figure import Figure
from PIL import Image
from safetensors.numpy import load_file, save_file

from robustkit.core.errors import Incomplete, UsageError
from robustkit.report import plots_certify
from robustkit.report.certify import fragment, load_schema, render
from robustkit.report.certify_pictures import radii
from robustkit.report.files import RunFiles
from robustkit.report.write import write, write_page
from tests.report.certification import ATTACK, NAMES, make_certification, make_check, make_dense, make_results
from tests.report.conftest import make_run
from tests.report.test_browser import BROWSER, browse
from tests.report.test_train import HOSTILE, drawn, remembered, words

CONTRADICTED = {**ATTACK, "contradictions": 9, "expected": 0.2, "p_value": 1.3e-9, "invalid": True}


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Equal curves are drawn once: most runs here have the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots_certify, "curve", remembered(plots_certify.curve))
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run, and its page."""
    folder = make_certification(tmp_path_factory.mktemp("plain") / "run")
    return folder, render(folder)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = make_certification(tmp_path_factory.mktemp("dense") / "run", make_dense())
    return folder, render(folder)


def text_of(path, results=None, **changes):
    return words(render(make_certification(path / "run", results, **changes)))


def faults(value):
    return [error.message for error in Draft202012Validator(load_schema()).iter_errors(value)]


def pictures(page, name):
    """The pixels of each picture of this name, in their order."""
    found = re.findall(rf'alt="{name}" src="data:image/png;base64,([^"]*)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in found]


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_made_up_runs_fit():
    Draft202012Validator.check_schema(load_schema())
    runs = [make_results(), make_results(radius=None, attack=None), make_results(decide=True), make_dense()]
    for found in (*runs, {**make_results(), "falsification": CONTRADICTED, "valid": False}):
        assert faults(found) == []
    text = json.dumps(load_schema())
    assert {part.split('"')[0] for part in text.split("#/$defs/")[1:]} == set(load_schema()["$defs"])


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("kind",), "training"),
        (("schema_version",), "2.0"),
        (("valid",), None),
        (("model", "bounds"), [0]),
        (("verifier", "alpha"), 1.5),
        (("verifier", "mode"), "guess"),
        (("verifier", "max_radius"), -0.1),
        (("property", "radius"), -1),
        (("certified_accuracy",), 79.5),
        (("interval",), [0.1]),
        (("curve", 0, "certified"), None),
        (("per_class", 0, "abstained"), "few"),
        (("outcomes", "unknown"), None),
        (("reasons", 0), "too few draws"),
        (("draws", "votes"), -1),
        (("falsification", "contradictions"), None),
        (("gallery", 0, "outcome"), "proved"),
        (("gallery", 0, "prediction"), -2),
        (("cost", "forwards"), 0.5),
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
    folder = make_certification(tmp_path / "run", changed)
    if where == ("surprise",):
        assert "79.5 %" in render(folder)  # later minor versions may say more
    else:
        with pytest.raises(UsageError, match=r"not the results of a certification|results of another version"):
            render(folder)


def test_every_key_is_needed():
    assert set(load_schema()["required"]) == set(load_schema()["properties"]) == set(make_results())


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_what_it_shows(plain):
    text = words(plain[1])
    for said in (
        "demo:mnist-smooth Evidence by dual-smoothing:sigma=0.25,n=10000,radius=0.25 on 200 samples of demo:made-up",
        "certified accuracy at L2 radius 0.25 79.5 % 95 % interval 73.5 to 85.5 %",
        "abstained 5.5 % of the samples: no certificate at any radius",
        "accuracy without noise 96.5 % 92.9 to 98.6 %",
        "n = 200 of 1000: for testing, not a benchmark.",
        "In the words of ISO/IEC 24029-2.",
        "165 proved",
        "0 counter-example",
        "35 inconclusive",
        "Property stability: every input gets the class of its sample",
        "Domain the open L2 ball of radius 0.25 around each of 200 samples of demo:made-up. Inputs in it may lie",
        "Verifier probabilistic, incomplete, closed box: dual-smoothing",
        "Alpha = 0.001 for each sample: of 200 at most 0.2 are expected to be wrong.",
        "Arithmetic the network as it computes in float32",
        "With so many draws no sample can show more than 0.7997",
        "14 abstained: no class is shown to be the most likely one 30 certified, but not up to the radius asked for",
        "right on 95.0 % of the samples: more cannot be certified and right",
        "averaged over 64 noisy copies",
        "certificates that it tried to contradict 178 contradictions: inside a certified radius 0",
        "D16 answers are steady",
        "100 × 2 votes",
        "certify 5 min 0 s, falsify 1 min 0 s",
        "robustkit certify demo:mnist-smooth \\ --data demo:made-up \\ --method dual-smoothing",
        "robustkit 0.1.0, results schema 1.0",
    ):
        assert said in text, said
    assert "<title>demo:mnist-smooth by dual-smoothing: certified accuracy 79.5 % at L2 radius 0.25</title>" in plain[1]


def test_the_order_is_that_of_importance(plain):
    ids = ("claim", "curve", "attack", "classes", "unknown", "gallery", "preflight", "cost", "reproduce")
    places = [plain[1].index(f'id="{name}"') for name in ids]
    assert places == sorted(places) and plain[1].index("79.5 %</div>") < places[0]


@pytest.mark.parametrize("grid", [False, True])
def test_the_caveat_of_floats_is_always_there(tmp_path, grid):
    results = make_results()
    results["method"]["options"]["grid"] = grid
    text = text_of(tmp_path, results)
    assert ("rounding of the noise cannot break" in text) == grid == ("The option grid=true closes" not in text)
    assert "on another device or with other kernels it is another function" in text
    assert "arxiv.org/abs/2207.07209" in text


def test_it_is_evidence_and_nothing_more(plain, dense):
    for _, page in (plain, dense):
        text = words(page).lower()
        assert "evidence" in text
        assert not [word for word in ("complian", "certified to", "guarantee", "conforms", "safe") if word in text]


def test_the_maximum_norm_follows_from_the_norm_bound(plain):
    text = words(plain[1])
    small = 0.25 / math.sqrt(784)
    assert f"The L2 radius asked for, 0.25, becomes {small:.4g}, or {255 * small:.3g} of 255 grey levels." in text
    assert "from the norm bound alone" in text and "Nothing was tested in that norm" in text
    rows = re.findall(r'<tr(?: class="asked")?><td class="num">([\d.]+)</td><td class="num">([\d.]+)</td>', plain[1])
    assert len(rows) == 9  # eight, but for one beside the radius asked for; that one, and the last
    assert all(float(b) == pytest.approx(float(a) / 28, rel=2e-3, abs=1e-9) for a, b in rows)
    assert re.findall(r'class="asked"><td class="num">([\d.]+)', plain[1]) == ["0.25"]


def test_classes_come_from_the_weakest_on(plain):
    part = plain[1].split('id="classes"')[1].split('id="unknown"')[0]
    shares = [float(s) for s in re.findall(r'<i class="robust" style="width:([\d.]+)%"', part)]
    assert len(shares) == 10 and shares == sorted(shares)


def test_many_classes_are_cut(tmp_path):
    row = make_results()["per_class"][0]
    many = [{**row, "class": c, "name": f"c{c}", "certified_accuracy": c / 1000} for c in range(1000)]
    text = text_of(tmp_path, per_class=many)
    assert "960 stronger ones are left out" in text and "c39" in text and "c40" not in text


def test_nothing_is_asked_of_anybody(plain, dense):
    for _, page in (plain, dense):
        policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
        assert "default-src 'none'" in policy and "script-src" not in policy and "<script" not in page
        outside = [x for x in re.findall(r'(?:src|href)="([^"]*)"', page) if not x.startswith(("data:", "#"))]
        assert outside == ["https://arxiv.org/abs/2404.09586", "https://arxiv.org/abs/2207.07209"]
        assert "url(http" not in page and "@import" not in page and len(page) < 400_000


def hostile(value):
    """Every text that has no set form made hostile, but for the keys."""
    if isinstance(value, dict):
        fixed = {"kind", "schema_version", "mode", "outcome", "status", "norm", "colour"}
        return {k: v if k in fixed else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("results", [make_results(), make_dense()], ids=["flat", "dense"])
def test_names_are_text(tmp_path, results):
    kind = results["verifier"]["kind"]
    results = hostile(results)
    results["verifier"]["kind"] = kind
    page = render(make_certification(tmp_path / "run", results))
    assert "<script" not in page and "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_asks_nothing_of_the_network(tmp_path):
    results = make_results()
    results["method"]["label"] = HOSTILE
    results["falsification"]["attack"] = HOSTILE
    dom, requested = browse(write_page(make_certification(tmp_path / "run", results)), tmp_path)
    assert requested == set() and "<script" not in dom and dom.count("<svg") == 2 and "&lt;script&gt;alert(1)" in dom
    assert dom.rstrip().endswith("</html>")


def test_the_same_run_gives_the_same_page(plain):
    assert render(plain[0]) == plain[1]


def test_a_fragment_for_notebooks(plain):
    found = fragment(plain[0])
    assert "79.5 %" in found and "165" in found and "<svg" in found
    assert not [part for part in ("<script", "<html", "<body", "<nav") if part in found]


# -- what limits the figures -------------------------------------------------------------------------------------------


def test_contradictions_beyond_chance_are_stamped(tmp_path):
    page = render(make_certification(tmp_path / "run", falsification=CONTRADICTED, valid=False))
    text = words(page)
    said = "Invalid: pgd:steps=20 showed another class inside the certified radius of 9 samples, of 178 certificates"
    assert said in text and 'class="stamp fail"' in page and 'figure main void"' in page
    assert "INVALID 9" in text and "expected by chance, at most 0.2" in text and "1.3e-09" in text
    assert "<title>demo:mnist-smooth by dual-smoothing</title>" in page


def test_one_contradiction_may_be_chance(tmp_path):
    page = render(make_certification(tmp_path / "run", falsification={**ATTACK, "contradictions": 1, "p_value": 0.18}))
    assert "of 1 sample, of 178 certificates that it tried. Chance may explain it" in words(page)
    assert 'class="stamp fail"' not in page and "void" not in page.split("<nav>")[0].split("</style>")[-1]


def test_without_an_attack_none_is_spoken_of(tmp_path):
    page = render(make_certification(tmp_path / "run", make_results(attack=None)))
    assert 'id="attack"' not in page and "no attack looked for one" in words(page) and "not broken by" not in page


def test_what_limits_it_is_said(tmp_path):
    bad, failed = {"count": 1200, "share": 0.0003}, [make_check("D16", "FAIL")]
    text = text_of(tmp_path / "a", complete=False, nan_answers=bad, notes=["n = 7 draws are few"], diagnostics=failed)
    for said in (
        "Incomplete: 200 samples are done; the same command goes on.",
        "1,200 answers (0.03 %) were NaN. They count for no class.",
        "n = 7 draws are few",
        "FAIL D16",
    ):
        assert said in text, said
    text = text_of(tmp_path / "b", forced=True, valid=False, reasons=[], diagnostics=[], gallery=[])
    for said in (
        "Forced: the preflight refused this certification.",
        "None is: the property was decided for every sample.",
        "Nothing was recorded.",
        "No sample was kept.",
    ):
        assert said in text, said
    assert "Invalid" not in text
    assert "Invalid: a check says that these certificates mean nothing. See the" in text_of(tmp_path / "c", valid=False)


def test_without_a_radius_the_largest_is_meant(tmp_path):
    text = text_of(tmp_path, make_results(radius=None))
    assert "certified accuracy, at some radius" in text and "asked:" not in text
    assert "open L2 balls around each of 200 samples of demo:made-up; the radius is the largest that was shown" in text
    assert "The L2 radius on average" in text


def test_a_decision_says_nothing_beyond_its_radius(tmp_path):
    page = render(make_certification(tmp_path / "run", make_results(decide=True, attack=None)))
    text = words(page)
    assert "draws for a sample 448 median, of at most 20,000" in text and "the radius was not shown" in text
    assert "so the line says nothing beyond" in text and "Stopping early saved 89.7 % of the draws." in text
    assert drawn(page, "not asked") and not drawn(page, "out of reach")


def test_too_few_draws_and_no_samples_are_shown(tmp_path):
    nothing = {"curve": [make_results()["curve"][0]], "average_certified_radius": 0.0}
    changed = {**make_results(radius=None, attack=None, limit=0.0), **nothing}
    assert "There is no radius to draw" in text_of(tmp_path / "few", changed)
    shares = dict.fromkeys(("certified_accuracy", "clean_accuracy", "smoothed_accuracy", "abstained"))
    empty = {**shares, "curve": [], "per_class": [], "reasons": [], "gallery": [], "draws": None, "n": 0}
    text = text_of(tmp_path / "none", **empty, average_certified_radius=None)
    assert "not measured" in text and "Nothing was certified yet." in text


def test_a_proof_has_no_alpha(tmp_path):
    results = make_results(attack=None)
    results["verifier"] |= {"kind": "deterministic", "alpha": None, "max_radius": None, "text": ""}
    text = text_of(tmp_path, {**results, "draws": None})
    assert "deterministic, incomplete, closed box" in text
    assert "lpha" not in text and "draws of a certificate" not in text


# -- the curve ---------------------------------------------------------------------------------------------------------


def test_the_steps_are_on_the_safe_side():
    """Between two points the certified share is at least that of the larger radius, the attack's at most the other."""
    axes = Figure().add_subplot()
    points = make_results()["curve"]
    plots_certify._attacked(axes, points, "pgd")
    plots_certify._lines(axes, points)
    found = {line.get_label(): line for line in axes.get_lines()}
    right, either, attacked = (
        found[name] for name in ("certified and right", "certified, right or wrong", "right, not broken by pgd")
    )
    assert right.get_drawstyle() == either.get_drawstyle() == "steps-pre"
    assert attacked.get_drawstyle() == "steps-post"
    assert right.get_xdata().tolist() == [p["radius"] for p in points]
    assert right.get_ydata().tolist() == [100 * p["certified_accuracy"] for p in points]


def test_the_curve_names_what_it_holds(plain):
    page = plain[1]
    names = ("certified and right", "right, not broken by pgd:steps=20", "asked: 0.25", "out of reach of n = 10,000")
    assert all(drawn(page, name) for name in (*names, "abstained: no radius was shown"))
    assert "var(--robust)" in page and "var(--broken)" in page and "#01010" not in page


def test_odd_curves_are_drawn():
    options = {"abstained": 0.0, "asked": 2.0, "end": 0.5, "beyond": "", "norm": "L2", "attack": "é$\\frac$" * 40}
    points = make_results(attack=None)["curve"]
    svg = plots_certify.curve(points, **options)
    assert drawn(svg, "asked: 2") and not drawn(svg, "abstained") and not drawn(svg, "broken")
    attacked = plots_certify.curve([{**p, "empirical": 0.5} for p in points], **options)
    assert drawn(attacked, "right, not broken by $\\frac$")
    assert plots_certify.curve([], **options) is None and plots_certify.curve(points[:1], **options) is None
    assert plots_certify.curve(points, **{**options, "asked": None, "end": 0.0}) is None


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_the_gallery_shows_each_sample_beside_a_noisy_copy(plain):
    folder, page = plain
    stored = load_file(folder / "gallery.safetensors")
    assert len(pictures(page, "original")) == len(stored["original"]) == 5 == len(pictures(page, "a noisy copy"))
    wanted = np.rint(255 * stored["noisy"].clip(0, 1)).astype(np.uint8)[:, 0]
    assert all((got[..., 0] == one).all() for got, one in zip(pictures(page, "a noisy copy"), wanted, strict=True))
    assert len(pictures(page, "another class")) == 4  # the abstention was not attacked
    text = words(page)
    assert "abstains" in text and ", mostly " in text and ": wrong; " in text and "; another class at distance" in text


def test_dense_pixels_without_a_certificate_have_a_colour_of_their_own(dense):
    folder, page = dense
    stored = load_file(folder / "gallery.safetensors")
    for k, got in enumerate(pictures(page, "certified class")):
        nothing = stored["prediction"][k] == -1
        assert ((got == 255).all(-1) == nothing).all() and 0 < nothing.mean() < 0.5
    for k, got in enumerate(pictures(page, "certified radius")):
        assert ((got == 255).all(-1) == (stored["radius"][k] == 0)).all()
    label = pictures(page, "label")[0]
    assert (label[:2] == [0xD8, 0xDC, 0xE2]).all() and not (label[2:] == 255).all(-1).any()
    text = words(page)
    assert "of the labelled pixels" in text and "by holm" in text
    assert all(name in text for name in (*NAMES, "abstained"))
    assert "one is proved where every one of its pixels is" in text and "mean IoU 66.0 %" in text
    assert "88.8 % of its labelled pixels are certified" in text


def test_radii_rise_in_lightness():
    found = pictures(f'<img alt="x" src="{radii(np.linspace(0, 1, 32, dtype=np.float32)[None], 1.0)}">', "x")[0][0]
    lightness = found[1:].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= 0).all() and (found[0] == 255).all()
    assert radii(np.zeros((2, 2), np.float32), 0.0)


def test_inputs_that_are_no_pictures_are_left_out(tmp_path):
    results = make_results()
    folder = make_certification(tmp_path / "run", results)
    flat = np.zeros((len(results["gallery"]), 7), np.float32)
    save_file(dict.fromkeys(("original", "noisy", "witness"), flat), folder / "gallery.safetensors")
    assert "The inputs are no pictures of one or three channels." in words(render(folder))


def test_large_pictures_are_not_all_shown(tmp_path):
    results = make_results()
    folder = make_certification(tmp_path / "run", results)
    noise = np.random.default_rng(0).random((len(results["gallery"]), 3, 400, 400), np.float32)
    save_file(dict.fromkeys(("original", "noisy", "witness"), noise), folder / "gallery.safetensors")
    assert 0 < render(folder).count('alt="original"') < 5


@pytest.mark.parametrize("damage", ["missing", "cut", "name", "few"])
def test_a_damaged_gallery_is_named(tmp_path, damage):
    folder = make_certification(tmp_path / "run")
    file = folder / "gallery.safetensors"
    stored = load_file(file)
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        stored["witness"] = stored["witness"][:-1]
        save_file({k: v for k, v in stored.items() if damage == "few" or k != "witness"}, file)
    with pytest.raises(UsageError, match="cannot read a file of the run") as caught:
        render(folder)
    assert "gallery.safetensors" in str(caught.value)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_page_is_written_by_the_kind_of_the_run(plain):
    page = write_page(plain[0])
    assert page == plain[0] / "report.html" and page.read_text(encoding="utf-8") == plain[1]


def test_other_reports_say_what_it_is(plain):
    with pytest.raises(UsageError, match="this run is a certification"):
        write(plain[0], ["md"])
    with pytest.raises(UsageError, match="this run is a certification"):
        RunFiles.open(plain[0]).checked()


def test_folders_that_hold_no_certification(tmp_path):
    with pytest.raises(UsageError, match="`train` or `certify` wrote"):
        render(tmp_path)
    with pytest.raises(UsageError, match="not the results of a certification"):
        render(make_run(tmp_path / "evaluation"))
    folder = make_certification(tmp_path / "run")
    (folder / "run.json").unlink()
    assert "not recorded" in words(render(folder))
    (folder / "run.json").write_text('{"command": "robustkit"}')
    with pytest.raises(UsageError, match="cannot read a file of the run"):
        render(folder)
    (folder / "results.json").unlink()
    with pytest.raises(Incomplete):
        render(folder)
