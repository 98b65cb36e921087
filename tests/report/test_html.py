"""The page: complete, in order, harmless, small, the same for the same run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import save_file

from robustkit.report import images
from robustkit.report.files import RunFiles
from robustkit.report.html import fragment, render

BLOCKS = ["threat", "curve", "attacks", "classes", "gallery", "diagnostics", "cost", "reproduce", "coverage", "about"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
            assert target.startswith(("data:", "#")) or not target, (tag, target)
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
    assert r["model"]["sha256"] in text and " ".join(run.run["command"]) in text


def test_same_run_same_bytes(run_folder):
    run = RunFiles.open(run_folder)
    assert render(run) == render(run)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"forced": True, "valid": False}, ["Forced", "Invalid"]),
        ({"complete": False}, ["Incomplete"]),
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


def test_ten_thousand_samples_fit(made):
    source = render(RunFiles.open(made(n=10_000)))
    assert len(source.encode()) < 5_000_000


def test_strip_averages_and_keeps_order():
    colours = np.zeros((1200, 3), np.uint8)
    colours[600:] = 200
    assert images.strip(colours) == images.strip(colours[::2])


def test_fragment_is_the_first_block(run_folder):
    source = fragment(RunFiles.open(run_folder).results)
    assert "robust accuracy" in source and "pgd:steps=40" in source
    assert "<script" not in source and "<html" not in source


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-default-apps",
    "--disable-features=NetworkTimeServiceQuerying",
]
OWN = re.compile(r"https?://[a-z0-9.-]*\.(google|googleapis|gvt1)\.com/")
"""What a browser asks of its maker by itself, whatever page it shows."""


def browse(page, folder) -> tuple[str, set[str]]:
    """The DOM as the browser built it, and the requests to the network that its own log holds."""
    log = folder / f"{page.stem}-net.json"
    options = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom", page.as_uri()]
    done = subprocess.run([BROWSER, *FLAGS, *options], capture_output=True, text=True, timeout=90, check=True)
    requested = set(re.findall(r'"url":"(https?:[^"]+)"', log.read_text(errors="replace")))
    return done.stdout, {url for url in requested if not OWN.match(url)}


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_browser_shows_names_as_text_and_requests_nothing(run_folder, tmp_path):
    (run_folder / "report.html").write_text(render(RunFiles.open(run_folder)), encoding="utf-8")
    dom, requested = browse(run_folder / "report.html", tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom and "<script" not in dom and 'id="coverage"' in dom
    assert not requested
    control = tmp_path / "control.html"
    control.write_text('<img src="http://127.0.0.1:9/seen.png">')
    assert any("seen.png" in url for url in browse(control, tmp_path)[1])
