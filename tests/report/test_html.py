"""The page: complete, in order, harmless, small, the same for the same run."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from robustkit.report import images, plots
from robustkit.report.files import RunFiles
from robustkit.report.html import fragment, render

BLOCKS = ["threat", "curve", "attacks", "classes", "gallery", "diagnostics", "cost", "reproduce", "coverage", "about"]


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.text, self._inside = [], "", []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.text += data


def change(folder, **values):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return RunFiles.open(folder)


def test_blocks_stand_in_order(run_folder):
    source = render(RunFiles.open(run_folder))
    places = [source.index(f'<h2 id="{block}">') for block in BLOCKS]
    assert places == sorted(places)
    assert source.index("robust accuracy") < places[0]


def test_names_are_text_and_nothing_is_requested(run_folder):
    source = render(RunFiles.open(run_folder))
    page = Page(source)
    assert "<script>alert(1)</script>" in page.text and "a <b>single</b> step" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "base", "form")]
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "img-src data:" in policy
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key) or ""
            followed = tag == "a" and target.startswith("https://")  # a reader's click, no request of the page
            assert followed or target.startswith(("data:", "#")) or not target, (tag, target)
        assert not [key for key in attributes if key.startswith("on")]
    assert "url(" not in source.replace("url(#", "")


def test_figures_of_the_run_are_on_the_page(run_folder):
    run = RunFiles.open(run_folder)
    text = " ".join(Page(render(run)).text.split())
    r = run.results
    assert f"{100 * r['robust_accuracy']:.1f} %" in text and f"{100 * r['interval'][0]:.1f} to" in text
    for attack in r["attacks"]:
        assert attack["label"] in text
    for row in r["diagnostics"]:
        assert row["message"] in text
    for item in (*r["assessed"], *r["not_assessed"]):
        assert item["what"] in text and all(key in text for key in (*item["atlas"], *item["nist"]))
    assert r["model"]["sha256"] in text and run.run["config_sha256"] in text and "seed 0;" in text


def test_the_command_can_be_pasted(run_folder):
    run = RunFiles.open(run_folder)
    said = re.search(r"robustkit evaluate.*?'a run'", Page(render(run)).text, flags=re.S)
    assert shlex.split(said[0].replace("\\\n", " ")) == run.run["command"]


def test_a_source_is_a_link_only_if_it_is_an_address(run_folder):
    attacks = RunFiles.open(run_folder).results["attacks"]
    attacks[0]["paper"], attacks[1]["paper"] = "javascript:alert(1)", "https://example.org/a?b=1&c=<i>"
    page = Page(render(change(run_folder, attacks=attacks)))
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert links == ["https://example.org/a?b=1&c=<i>"] and "javascript:alert(1)" in page.text


def test_same_run_same_bytes(run_folder):
    run = RunFiles.open(run_folder)
    assert render(run) == render(run)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"forced": True, "valid": False}, ["Forced", "Invalid"]),
        ({"complete": False}, ["Incomplete"]),
        ({"limit": None, "n_total": 60}, ["of 60"]),
        ({"limit": 60, "n_total": 1000}, ["not a benchmark"]),
        ({"curve": None}, ["--curve"]),
        ({"confusion": []}, ["No sample was broken"]),
        ({"per_class": [], "calibration": None}, ["Not applicable"]),
    ],
)
def test_what_limits_the_number_is_said(run_folder, values, words):
    text = " ".join(Page(render(change(run_folder, **values))).text.split())
    for word in words:
        assert word in text


def test_a_sound_whole_run_has_no_stamp(run_folder):
    tags = Page(render(change(run_folder, limit=None, n_total=60))).tags
    assert not [a for _, a in tags if "stamp" in (a.get("class") or "")]


def test_colours_of_stamps(run_folder):
    def kinds(**values):
        tags = Page(render(change(run_folder, **{"limit": None, **values}))).tags
        return [a["class"] for _, a in tags if "stamp" in (a.get("class") or "")]

    assert kinds(forced=True, valid=False) == ["stamp fail", "stamp fail"]
    assert kinds(forced=False, valid=True, complete=False, limit=60, n_total=1000) == ["stamp warn", "stamp warn"]


def test_a_run_that_has_only_begun(run_folder):
    for name in ("clean", "0-fgsm", "1-pgd-steps-40"):
        (run_folder / f"samples-{name}.jsonl").unlink()
    (run_folder / "run.json").unlink()
    (run_folder / "config.yaml").unlink()
    nothing = {"robust_accuracy": None, "clean_accuracy": None, "interval": [0.0, 1.0], "clean_interval": [0.0, 1.0]}
    attacks = [
        {**a, **{key: nothing[key] for key in ("robust_accuracy", "interval")}, "median_distance": None}
        for a in RunFiles.open(run_folder).results["attacks"]
    ]
    left_out = {"per_class": [], "confusion": [], "calibration": None, "diagnostics": [], "curve": None, "gallery": []}
    run = change(run_folder, complete=False, n=0, attacks=attacks, **nothing, **left_out)
    text = Page(render(run)).text
    assert "not measured" in text and "Incomplete: 0 samples" in text and "not recorded" in text


@pytest.mark.parametrize(("norm", "said"), [("linf", "51 of 255 grey levels"), ("l2", "51 in units of 0 to 255")])
def test_eps_for_people_who_think_in_bytes(run_folder, norm, said):
    threat = {"norm": norm, "eps": 0.2, "text": f"{norm}:0.2", "targeted": None}
    assert said in Page(render(change(run_folder, threat=threat))).text


def test_many_classes_are_told_as_pairs(run_folder):
    model = RunFiles.open(run_folder).results["model"]
    source = render(change(run_folder, model={**model, "outputs": 1000}))
    assert 'class="matrix' not in source and 'class="matrix' in render(change(run_folder, model=model))


def test_pictures_are_lossless_and_the_scale_is_stated(run_folder):
    run = RunFiles.open(run_folder)
    source = render(run)
    original, adversarial = next(iter(run.images().values()))
    assert images.picture(original, 0, 1) in source and images.picture(adversarial, 0, 1) in source
    uri, factor = images.perturbation(original, adversarial)
    assert uri in source and factor == pytest.approx(0.5 / np.abs(adversarial - original).max())
    assert images.perturbation(original, original)[1] == 1.0


def test_inputs_that_are_no_pictures_are_left_out(run_folder):
    entries = RunFiles.open(run_folder).results["gallery"]
    flat = {f"{kind}/{e['id']}": np.zeros(9, np.float32) for e in entries for kind in ("original", "adversarial")}
    save_file(flat, run_folder / "gallery.safetensors")
    assert "no pictures" in Page(render(RunFiles.open(run_folder))).text


def test_a_picture_comes_back_to_the_last_bit():
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (channels, 40, 50))
        uri = images.picture((pixels / 255).astype(np.float32), 0, 1)
        back = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        assert np.array_equal(np.moveaxis(np.atleast_3d(back), -1, 0), pixels)


def test_large_pictures_and_many_of_them_fit(run_folder):
    run = RunFiles.open(run_folder)
    rng, entry = np.random.default_rng(0), run.results["gallery"][0]
    noise = {
        f"{kind}/{i}": rng.random((3, 300, 300), np.float32) for i in range(12) for kind in ("original", "adversarial")
    }
    save_file(noise, run_folder / "gallery.safetensors")
    source = render(change(run_folder, gallery=[{**entry, "id": i} for i in range(12)]))
    assert "shown at 256 pixels" in source and 3 <= source.count('class="sample"') < 12
    assert len(source.encode()) < 5_000_000


def test_ten_thousand_samples_fit(made):
    folder = made(n=10_000)
    rng = np.random.default_rng(0)
    for file in folder.glob("samples-[01]-*.jsonl"):  # every attack breaks others: the worst case for the matrix
        rows = [json.loads(line) | {"success": bool(rng.random() < 0.5)} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = render(RunFiles.open(folder))
    assert len(source.encode()) < 5_000_000
    assert source.count('viewBox="0 0 600 1"') == 3


def shares(svg):
    """Area of each state in a strip."""
    columns = int(re.search(r'viewBox="0 0 (\d+) 1"', svg)[1])
    found = {}
    for name, path in re.findall(r'fill="var\(--(\w+)\)" d="([^"]*)"', svg):
        boxes = re.findall(r"M\S+ \S+?h(\d+)v([\d.e-]+)h", path)
        found[name] = sum(int(w) * float(h) for w, h in boxes) / columns
    return found


@pytest.mark.parametrize("n", [1, 3, 599, 600, 601, 10_000])
def test_a_strip_gives_each_state_its_share(n):
    states = np.sort(np.random.default_rng(n).integers(0, 3, n))
    svg = plots.strip(states)
    assert f'viewBox="0 0 {min(n, 600)} 1"' in svg
    found, wanted = shares(svg), np.bincount(states, minlength=3) / n
    assert [found.get(name, 0.0) for name in plots.STATES] == pytest.approx(list(wanted), abs=2e-3)


def test_equal_neighbours_share_a_box():
    assert plots.strip(np.zeros(500, np.int64)).count("M") == 1
    assert "M0 0h2v1h-2zM3 0h1v1h-1z" in plots.strip(np.array([0, 0, 1, 0]))


def test_the_curve_is_coloured_by_the_page_and_marks_its_eps(run_folder):
    r = RunFiles.open(run_folder).results
    svg = plots.curve(r["curve"]["points"], eps=0.2, chance=0.1, norm="linf")
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", svg) and "var(--robust)" in svg and "currentColor" in svg
    assert "eps of this run: 0.2" in svg and "chance" in svg and "<metadata" not in svg
    assert "chance" not in plots.curve(r["curve"]["points"], eps=0.2, chance=None, norm="linf")


def test_fragment_is_the_first_block(run_folder):
    source = fragment(RunFiles.open(run_folder).results)
    assert "robust accuracy" in source and "pgd:steps=40" in source
    assert "<script" not in source and "<html" not in source
