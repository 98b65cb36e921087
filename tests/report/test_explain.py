"""The page of an explanation: what it says, what it carries, and what it refuses."""

import base64
import copy
import hashlib
import html
import io
import json
import re
import zlib

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from robustkit.core import heat
from robustkit.core.errors import Incomplete, UsageError
from robustkit.report import explain
from robustkit.report.explain import fragment, load_schema, render
from robustkit.report.explain_maps import cell, packed
from tests.report.explanation import METHODS, make_explanation, maps, write


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of two pictures, and its page."""
    folder = make_explanation(tmp_path_factory.mktemp("plain") / "run")
    return folder, render(folder)


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """The same of attacked pictures, evaluated."""
    folder = make_explanation(tmp_path_factory.mktemp("paired") / "run", pair=True, evaluate=True)
    return folder, render(folder)


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def faults(value):
    return [error.message for error in Draft202012Validator(load_schema()).iter_errors(value)]


def unpacked(text, count):
    """The planes of a map, by the rule and not by our code."""
    rows = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(count, -1)
    return np.cumsum(rows, axis=1, dtype=np.uint8)


def words(page):
    """The text of the page."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.S)))


def test_the_schema_is_one_and_made_up_runs_fit(plain, paired):
    Draft202012Validator.check_schema(load_schema())
    assert faults(results(plain[0])) == [] == faults(results(paired[0]))
    text = json.dumps(load_schema())
    assert {part.split('"')[0] for part in text.split("#/$defs/")[1:]} == set(load_schema()["$defs"])


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("kind",), "evaluation"),
        (("schema_version",), "2.0"),
        (("methods", 0, "signed"), "yes"),
        (("images", 0, "variant"), "dirty"),
        (("images", 0, "box"), [0, 0, 1]),
        (("images", 0, "width"), 0),
        (("images", 0, "top", 0, "p"), 2),
        (("images", 0, "maps", 0, "file"), None),
        (("images", 0, "maps", 0, "similarity"), {"top_k": 1.0}),
        (("target",), "anything"),
        (("surprise",), 1),
    ],
)
def test_what_is_wrong_does_not_fit(plain, where, value):
    changed = copy.deepcopy(results(plain[0]))
    part = changed
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    assert faults(changed)


def test_every_key_is_needed(plain):
    whole = results(plain[0])
    for key in load_schema()["required"]:
        assert len(faults({k: v for k, v in whole.items() if k != key})) == 1
    assert set(load_schema()["required"]) == set(load_schema()["properties"])


def test_the_page_says_what_it_shows(plain):
    text = words(plain[1])
    for said in (
        "What speaks for the class that it predicts in 2 pictures of demo:photos, by 3 methods.",
        "Explained is its logit.",
        "explained: tiger cat logit 9.25 labelled tabby tiger cat 61.0 %",
        "residual -0.25 (3.1 %)",
        "standard error 8.7 %",
        "a residual above 5 %: <b>more</b> steps",
        "99th percentile",
        "Add --evaluate",
        "robustkit explain demo:made-up",
        "robustkit 0.1.0, results schema 1.0",
    ):
        assert said in text
    assert plain[1].count('class="map"') == 6 and plain[1].count('class="static"') == 6
    assert "as clean" not in text and "controls, which" not in text
    minimum, maximum = (results(plain[0])["images"][0]["maps"][0][end] for end in ("min", "max"))
    assert f"raw {minimum:.4g} to {maximum:.4g}" in text


def test_nothing_is_asked_of_anybody_and_one_script_may_run(plain):
    page = plain[1]
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    script = re.search(r"<script>(.*?)</script>", page, flags=re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and "default-src 'none'" in policy
    assert page.count("<script") == 1 and len(script) < 10_000
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv.org)', page) and page.count("https://") == 1
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in page


def test_a_map_travels_whole(plain):
    found = re.findall(r'data-column="(\d)" data-map="([^"]*)" data-planes="([^"]*)"', plain[1])
    assert [planes for _, _, planes in found[:3]] == ["rank signed flags", "rank signed flags", "rank"]
    stored = maps(0)
    for k, (_, text, names) in enumerate(found[:3]):
        values = stored[k]["values"]
        planes = dict(zip(names.split(), unpacked(text, len(names.split())), strict=True))
        shown = np.abs(values).sum(0) if k == 0 else values[0]
        assert (planes["rank"].reshape(56, 56) == heat.rank_map(shown)).all()
        if "signed" in planes:
            end = np.percentile(np.abs(values.sum(0)), 99) or 1
            back = (planes["signed"].reshape(56, 56) / 127.5 - 1) * end
            assert np.abs(back - np.clip(values.sum(0), -end, end)).max() <= 0.51 * end / 127.5
    gradient, regions = (unpacked(found[k][1], 3)[2].reshape(56, 56) for k in (0, 1))
    longer = np.linalg.norm(stored[0]["values"], axis=0) > 2 * np.linalg.norm(stored[0]["standard_error"], axis=0)
    assert (gradient == longer).all() and 0 < longer.sum() < longer.size
    assert (regions == 2 * heat.outlines(stored[1]["ranks"])).all()


def test_the_value_of_a_rank_is_the_mean_of_its_pixels():
    values = np.random.default_rng(0).normal(size=(1, 40, 40)).astype(np.float32)
    arrays = {"x": values, "values": values}
    found = cell(arrays, {"signed": False, "pixels": True}, Image.new("RGB", (40, 40)))
    ranks = unpacked(found["map"], 1)[0].reshape(40, 40)
    for code in (0, 100, 254):
        assert found["values"][code] == pytest.approx(values[0][ranks == code].mean(), rel=1e-3)
    assert found["low"] == values.min() and not found["plus"] and found["small"]


def test_packing_is_lossless():
    planes = [np.random.default_rng(k).integers(0, 256, (5, 7)).astype(np.uint8) for k in range(3)]
    assert (unpacked(packed({str(k): p for k, p in enumerate(planes)}), 3) == np.stack(planes).reshape(3, -1)).all()


def test_the_seen_box_is_cut_and_framed(plain):
    styles = re.findall(r'--at:([^;]*);--zoom:([^"]*)"', plain[1])
    assert styles == [("0% 0%", "100% 100%"), ("50% 0%", "150% 100%")]  # the second picture is 84 x 56
    frames = re.findall(r'class="frame" style="([^"]*)"', plain[1])
    assert frames == ["left:16.67%;top:0%;width:66.67%;height:100%"]


def test_the_overlay_without_script_shows_the_map_where_it_is(plain):
    pictures = re.findall(r'class="static"[^>]*src="data:image/png;base64,([^"]*)"', plain[1])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[2]))).convert("RGB")).astype(int)
    y, x = np.nonzero(shown[..., 0] > 230)  # orange and yellow, over a picture that is grey and dimmed
    assert len(y) > 50 and abs(y.mean() - 28) < 1 and abs(x.mean() - 28) < 1


def test_pairs_stand_together_with_their_similarity(paired):
    text = words(paired[1])
    assert text.count("insertion 0.61 / 0.7 deletion 0.12 / 0.2 max-sensitivity 0.3") == 12  # mean colour, then blur
    assert paired[1].count('class="subject"') == 2 and paired[1].count('class="whole"') == 4
    assert text.count("as clean: top pixels 0.31 as clean: ranks 0.42 as clean: cosine 0.5") == 6  # adversarial only
    assert "as pgd:steps=40 left it" in text and "Attacked by pgd:steps=40, from runs/a" in text


def test_the_evaluation_stands_apart_from_its_controls(paired):
    page = paired[1][paired[1].index('id="evaluation"') :]
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", page[: page.index("</table>")])
    assert [name for name, _ in rows] == ["smoothgrad:samples=50", "xrai", "gradcam", "random map", "Sobel edges"]
    assert page.index("<td>gradcam") < page.index("controls, which know nothing") < page.index("<td>random map")
    figures = [re.findall(r">([^<]*)</td>", cells) for _, cells in rows]
    assert figures[0] == ["0.61", "0.12", "0.3", "0.05"]
    assert figures[2] == ["0.2 *", "0.5 *", "0.3", "0.05"]  # no better than the best control, either way
    assert "the sooner the class is found" in words(page) and "Similarity under randomised weights" in page
    assert "Add --evaluate" not in words(paired[1])
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert all(m["label"] in svg for m in METHODS) and "Sobel edges" not in svg  # level by construction


def test_what_does_not_fit_is_left_out_and_said(tmp_path, monkeypatch):
    folder = make_explanation(tmp_path / "run", images=4)
    monkeypatch.setattr(explain, "PAGE_BYTES", 50_000)
    page = render(folder)
    shown = page.count('class="subject"')
    assert 1 <= shown < 4 and f"{4 - shown} more are in the folder" in words(page)


def test_large_maps_are_shrunk(tmp_path):
    folder = make_explanation(tmp_path / "run", images=1, size=500, arrays=lambda seed: maps(seed, 500, 300))
    page = render(folder)
    assert set(re.findall(r'data-w="(\d+)" data-h="(\d+)"', page)) == {("269", "448")}


def test_an_unfinished_run_says_so(tmp_path):
    folder = make_explanation(tmp_path / "run", complete=False, target=7)
    assert "Incomplete: 2 pictures are done" in words(render(folder))
    assert "What speaks for class 7" in words(render(folder))


def test_maps_of_nothing_and_of_nan_are_drawn(tmp_path):
    def odd(seed):
        zero, nan = np.zeros((1, 8, 8), np.float32), np.full((1, 8, 8), np.nan, np.float32)
        return [{"values": zero.repeat(3, 0)}, {"values": nan}, {"values": zero + 2}]

    folder = make_explanation(tmp_path / "run", images=1, arrays=lambda seed: maps(seed))
    for entry, stored in zip(results(folder)["images"][0]["maps"], odd(0), strict=True):
        np.savez(folder / entry["file"], x=np.zeros((3, 8, 8), np.float32), **stored)
    found = re.findall(r'data-map="([^"]*)" data-planes="([^"]*)"', render(folder))
    ranks = [unpacked(text, len(names.split()))[0] for text, names in found]
    assert [set(r.tolist()) for r in ranks] == [{0}, {255}, {0}]


def test_a_fragment_for_notebooks(paired):
    found = fragment(paired[0], most=1)
    assert found.count("<img") == 4 and "<script" not in found and "3 more" in found and "tiger cat" in found


@pytest.mark.parametrize(
    ("name", "content"), [("maps/00000_xrai.npz", b"x"), ("maps/00000_xrai.npz", b""), ("images/00000.png", b"x")]
)
def test_damaged_files_are_named(tmp_path, name, content):
    folder = make_explanation(tmp_path / "run")
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        render(folder)


def test_files_outside_the_folder_are_not_read(tmp_path):
    folder = make_explanation(tmp_path / "run")
    changed = results(folder)
    changed["images"][0]["maps"][0]["file"] = "../../secret.npz"
    write(folder / "results.json", changed)
    with pytest.raises(UsageError, match="leads out"):
        render(folder)


def test_folders_that_hold_no_explanation(tmp_path):
    with pytest.raises(UsageError, match="no run there"):
        render(tmp_path)
    folder = make_explanation(tmp_path / "run", images=1, kind="evaluation")
    with pytest.raises(UsageError, match="not the results of an explanation"):
        render(folder)
    (folder / "results.json").unlink()
    with pytest.raises(Incomplete):
        render(folder)
