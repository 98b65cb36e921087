"""The explanation in a real browser: the slider moves, the picture changes, nothing is asked of the network."""

import base64
import hashlib
import html
import json
import re
import subprocess

import matplotlib
import numpy as np
import pytest

from robustkit.core import heat
from robustkit.report.explain import render
from tests.report.explanation import make_explanation, maps
from tests.report.test_browser import BROWSER, FLAGS, requests

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")

DRIVER = """
(async () => {
  const violations = [], seen = {};
  document.addEventListener("securitypolicyviolation", event => violations.push(event.blockedURI));
  const form = document.getElementById("controls"), slider = document.getElementById("slider");
  while (form.hidden) await new Promise(done => setTimeout(done, 10));
  const act = (node, change) => { change(node); node.dispatchEvent(new Event("input", {bubbles: true})); };
  const look = name => seen[name] = {
    output: document.getElementById("output").value,
    pixels: [...document.querySelectorAll("canvas")].slice(0, 3).map(canvas =>
      [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]),
    scale: [...document.querySelectorAll(".lo, .hi")].map(node => node.textContent),
    kept: [...document.querySelectorAll(".kept")].map(node => node.textContent),
    room: innerWidth,
    wide: document.documentElement.scrollWidth - innerWidth,
    statics: [...document.querySelectorAll(".static")].filter(node => node.offsetWidth).length,
    size: document.querySelector("canvas").getBoundingClientRect().width,
  };
  const choose = mode => act(form.querySelector(`[value=${mode}]`), node => { node.checked = true; });
  const slide = share => act(slider, node => { node.value = share; });
  look("overlay");
  act(form.elements.edges, node => { node.checked = false; });
  slide(20);
  look("overlay20");
  choose("heat");
  look("heat20");
  slide(100);
  look("heat");
  act(form.elements.shared, node => { node.checked = true; });
  look("shared");
  act(form.elements.shared, node => { node.checked = false; });
  act(form.elements.sure, node => { node.checked = true; });
  look("sure");
  act(form.elements.sure, node => { node.checked = false; });
  choose("signed");
  look("signed");
  choose("cutout");
  look("cutout");
  const canvas = document.querySelectorAll("canvas")[2], box = canvas.getBoundingClientRect();
  const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height / 2];
  canvas.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY}));
  seen.tip = document.querySelectorAll(".read")[2].textContent;
  seen.violations = violations;
  parent.postMessage(JSON.stringify(seen), "*");
})();
"""
FRAME = """<!doctype html><body><iframe width="{width}" height="900" style="border:0" src="{name}"></iframe>
<script>addEventListener("message", event => {{ document.body.dataset.seen = event.data; }})</script>"""
"""A browser's own window has a least width, a frame has none."""


def driven(page, folder, width, script=DRIVER):
    """What a script sees that uses the page as a person would, and the requests in the browser's log.

    The script is added to a copy of the page, whose policy is told of it; nothing else of the policy changes.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    source = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    file, log = folder / f"{width}.html", folder / f"{width}-net.json"
    file.write_text(source.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.format(width=width, name=file.name), encoding="utf-8")
    options = [f"--user-data-dir={folder / f'profile-{width}'}", f"--log-net-log={log}", "--window-size=1400,1000"]
    command = [BROWSER, *FLAGS, *options, "--virtual-time-budget=10000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    return json.loads(html.unescape(found[1])) if found else None, requests(log.read_text(errors="replace"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render(make_explanation(tmp_path_factory.mktemp("page") / "run", pair=True, evaluate=True))


@pytest.fixture(scope="module")
def wide(page, tmp_path_factory):
    return driven(page, tmp_path_factory.mktemp("wide"), 1280)


def rgba(seen, name, k):
    return np.array(seen[name]["pixels"][k], np.uint8).reshape(56, 56, 4)


def shown_maps():
    """The pixel map of each method, by the page's own rule: magnitude, or what rates pixels."""
    gradient, regions, cam = (stored["values"] for stored in maps(0))
    return np.abs(gradient).sum(0), regions[0], cam[0]


def test_no_request_is_made_and_no_policy_broken(wide):
    seen, requested = wide
    assert requested == set() and seen["violations"] == []


def test_the_slider_keeps_the_top_share(wide):
    seen = wide[0]
    assert (seen["overlay"]["output"], seen["overlay20"]["output"]) == ("top 100 %", "top 20 %")
    for k, pixels in enumerate(shown_maps()):
        kept = heat.rank_map(pixels) < 0.2 * 255
        assert 0.15 < kept.mean() < 0.3
        assert not rgba(seen, "overlay20", k)[~kept].any() and rgba(seen, "overlay20", k)[kept][:, 3].all()
        assert rgba(seen, "overlay", k)[..., 3].any(where=~kept)
    assert seen["overlay"]["kept"][0] == "" and seen["overlay20"]["kept"][0].endswith("% shown")


def test_the_heat_has_the_colours_of_the_map(wide):
    for k, pixels in enumerate(shown_maps()):
        low, high = heat.value_range(pixels)[:2]
        share = np.clip((pixels - low) / (high - low), 0, 1)
        wanted = matplotlib.colormaps["inferno"](share, bytes=True)[..., :3].astype(int)
        off = np.abs(rgba(wide[0], "heat", k)[..., :3].astype(int) - wanted).max(-1)
        assert np.percentile(off, 90) <= 6  # a rank is a 255th of the pixels: nearly as good as the value itself
        assert (rgba(wide[0], "heat", k)[..., 3] == 255).all()


def test_signed_values_are_red_or_blue_and_cut_outs_veil_the_rest(wide):
    seen, signed = wide[0], maps(0)[0]["values"].sum(0)
    drawn = rgba(seen, "signed", 0).astype(int)
    strong = np.abs(signed) > 0.3 * np.percentile(np.abs(signed), 99)
    assert ((drawn[..., 0] > drawn[..., 2]) == (signed > 0))[strong].all()
    assert seen["signed"]["scale"][0].startswith("-") and "no sign" in seen["signed"]["kept"][2]
    assert seen["cutout"]["output"] == "top 30 %"
    for k, pixels in enumerate(shown_maps()):
        assert ((rgba(seen, "cutout", k)[..., 3] == 0) == (heat.rank_map(pixels) < 0.3 * 255)).all()


def test_outlines_significance_and_the_shared_scale(wide):
    seen, stored = wide[0], maps(0)
    edges = heat.outlines(stored[1]["ranks"])
    assert (rgba(seen, "overlay", 1)[edges] == 255).all() and not (rgba(seen, "heat", 1)[edges] == 255).all()
    longer = np.linalg.norm(stored[0]["values"], axis=0) > 2 * np.linalg.norm(stored[0]["standard_error"], axis=0)
    assert ((rgba(seen, "sure", 0)[..., 3] > 0) == longer).all() and (rgba(seen, "sure", 1)[..., 3] > 0).all()
    ends = np.array([seen[name]["scale"] for name in ("heat", "shared")], float).reshape(2, 4, 3, 2)[..., 1]
    assert (ends[1] == ends[0].max(0)).all() and len(set(ends[0, :, 0])) > 1


def test_hovering_tells_the_value(wide):
    value, place = wide[0]["tip"].split(", ")
    assert float(value) == pytest.approx(1, abs=0.02) and place == "top 1 %"


def test_it_fits_a_telephone(page, wide, tmp_path):
    seen, requested = driven(page, tmp_path, 400)
    assert requested == set() and seen["violations"] == []
    for width, found in ((1280, wide[0]), (400, seen)):
        assert found["overlay"]["room"] == width and found["overlay"]["wide"] <= 0 and found["overlay"]["statics"] == 0
        assert 120 < found["overlay"]["size"] < 0.5 * width
    assert seen["cutout"]["pixels"] == wide[0]["cutout"]["pixels"]


def test_what_slips_in_does_not_run_and_the_maps_are_seen_without_a_script(page, tmp_path):
    smuggled = '<script>document.title = "ran"</script><img src="http://127.0.0.1:9/seen.png"></main>'
    changed = page.replace("</main>", smuggled, 1).replace('"use strict";', '"use strict"; ', 1)
    script = """setTimeout(() => {
      const shown = [...document.querySelectorAll(".static")].filter(node => node.offsetWidth && node.naturalWidth);
      parent.postMessage(JSON.stringify([document.title, shown.length]), "*");
    }, 300)"""
    seen, requested = driven(changed, tmp_path, 500, script)
    assert seen == ["demo:made-up: what its answers rest on", 12] and requested == set()
