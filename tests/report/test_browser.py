"""The page in a real browser: names are text, and the page asks nothing of the network."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from robustkit.report.files import RunFiles
from robustkit.report.html import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # what it asks is logged, and goes nowhere
]
ITSELF = "not an origin"
"""The initiator of what a browser asks of its maker by itself, whatever page it shows."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")


def browse(page, folder):
    """The DOM as the browser built it, and the requests of the page to the network, by the browser's own log."""
    log = folder / f"{page.stem}-net.json"
    options = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom", page.as_uri()]
    done = subprocess.run([BROWSER, *FLAGS, *options], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, requests(log.read_text(encoding="utf-8", errors="replace"))


def requests(log):
    """URLs of all requests that are not the browser's own; the log's last line may be missing."""
    try:
        found = json.loads(log)
    except json.JSONDecodeError:
        found = json.loads(log.rstrip().rstrip(",") + "]}")
    started = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [
        event["params"] for event in found["events"] if event["type"] == started and "url" in event.get("params", ())
    ]
    return {e["url"] for e in events if e.get("initiator") != ITSELF and not e["url"].startswith(("file:", "data:"))}


def test_names_are_text_and_nothing_is_requested(run_folder, tmp_path):
    page = run_folder / "report.html"
    page.write_text(render(RunFiles.open(run_folder)), encoding="utf-8")
    dom, requested = browse(page, tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom and "<script" not in dom
    assert 'id="coverage"' in dom and dom.rstrip().endswith("</html>")
    assert requested == set()


def test_a_page_that_does_ask_is_seen_to_ask(tmp_path):
    page = tmp_path / "control.html"
    page.write_text(
        '<link rel="stylesheet" href="https://fonts.googleapis.com/x.css"><img src="http://127.0.0.1:9/seen.png">'
    )
    assert browse(page, tmp_path)[1] == {"https://fonts.googleapis.com/x.css", "http://127.0.0.1:9/seen.png"}


def test_the_policy_stops_what_slips_through(run_folder, tmp_path):
    source = render(RunFiles.open(run_folder))
    page = tmp_path / "injected.html"
    smuggled = (
        '<img src="http://127.0.0.1:9/seen.png"><script>document.title = "ran"</script>'
        '<link rel="stylesheet" href="http://127.0.0.1:9/x.css"><iframe src="http://127.0.0.1:9/"></iframe></main>'
    )
    page.write_text(source.replace("</main>", smuggled), encoding="utf-8")
    dom, requested = browse(page, tmp_path)
    assert requested == set() and "<title>ran" not in dom
