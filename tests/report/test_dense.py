"""Pictures and tables of dense tasks: colours, legends, what is left out, and names that are only text."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from robustkit.core.errors import UsageError
from robustkit.report import dense, tables
from robustkit.report.files import RunFiles
from robustkit.report.html import render
from robustkit.report.markdown import render as markdown
from robustkit.report.text import headline, measure, verdict

EVIL = "<script>alert(1)</script>"


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def metric(key, name, unit, clean, robust, *attacks):
    return {
        "key": key,
        "name": name,
        "unit": unit,
        "higher_is_better": True,
        "clean": clean,
        "robust": robust,
        "attacks": list(attacks),
    }


def figures():
    return {
        "metrics": [
            metric("miou", "mIoU", "share", 0.8, 0.125, 0.25, 0.5),
            metric("pixel_accuracy", "pixel accuracy", "share", 0.9, 0.3, 0.4, 0.6),
        ],
        "per_class": [
            {"class": 0, "name": "ground", "pixels": 900, "clean_iou": 0.9, "robust_iou": 0.2},
            {"class": 3, "name": EVIL, "pixels": 100, "clean_iou": None, "robust_iou": 0.05},
        ],
        "gallery": [
            {
                "id": 4,
                "attack": "fgsm",
                "linf": 0.03,
                "l2": 1.0,
                "clean": {"miou": 0.7, "pixel_accuracy": 0.9},
                "robust": {"miou": 0.1, "pixel_accuracy": None},
            }
        ],
    }


@pytest.fixture
def folder(made):
    run = made("dense", dense=figures(), gallery=[])
    classes = np.array([[0, 3], [-1, 0]], dtype=np.int16)
    image = np.full((3, 2, 2), 0.5, np.float32)
    stored = {"original": image, "adversarial": image + 0.03}
    stored |= {"label": classes, "before": classes, "after": classes[::-1].copy()}
    save_file({f"{name}/4": value for name, value in stored.items()}, run / "dense_gallery.safetensors")
    return run


def test_colours_are_fixed_and_far_apart():
    assert [dense.colour(c) for c in range(8)] == list(dense.OKABE_ITO)
    assert len({dense.colour(c) for c in range(24)}) == 24 and dense.VOID not in {dense.colour(c) for c in range(24)}


def test_a_mask_shows_each_class_in_its_colour_and_void_in_its_own():
    shown = pixels(dense.mask(np.array([[0, 1], [-1, 9]], dtype=np.int16)))
    codes = ["#" + "".join(f"{v:02x}" for v in pixel) for pixel in shown.reshape(-1, 3)]
    assert codes == [dense.colour(0), dense.colour(1), dense.VOID, dense.colour(9)]


def test_large_masks_are_shrunk_without_mixing_colours():
    shown = pixels(dense.mask(np.kron(np.array([[0, 1], [2, 3]]), np.ones((400, 400))).astype(np.int16)))
    assert max(shown.shape[:2]) <= 256
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 4


def test_flow_shows_direction_as_hue_and_no_flow_as_white():
    label = np.zeros((2, 1, 3), np.float32)
    label[0, 0, 1], label[1, 0, 2] = 2.0, 2.0
    assert pixels(dense.flow(label, label))[0].tolist() == [[255, 255, 255], [255, 0, 0], [128, 255, 0]]


def test_the_page_shows_metrics_classes_legend_and_pictures(folder):
    page = render(RunFiles.open(folder))
    assert "mIoU under attack" in page and "12.5 %" in page and "80.0 % without attack" in page
    assert EVIL not in page and "&lt;script&gt;" in page
    for text in ("answer, clean", "answer, attacked", "change ×", "no label", "sample 4, fgsm"):
        assert text in page
    assert len(re.findall(r'<img[^>]*src="data:image/png', page)) == 5
    assert page.count(f"background:{dense.colour(3)}") == 2  # table and legend
    assert "Broken samples" not in page


def test_markdown_and_verdict(folder):
    run = RunFiles.open(folder)
    text = markdown(run)
    assert "| worst case | 12.5 % | 30.0 % |" in text and "| ground | 900 | 90.0 % | 20.0 % |" in text
    assert EVIL not in text
    assert headline(run.results) == "mIoU 12.5 %" and "without attack 80.0 %" in verdict(run.results)


def test_other_tasks_are_as_before(run_folder):
    run = RunFiles.open(run_folder)
    assert dense.context(run) is None and headline(run.results).startswith("robust accuracy")
    assert "mIoU" not in render(run) and "mIoU" not in markdown(run)


def test_missing_pictures_are_a_damaged_run(folder):
    (folder / "dense_gallery.safetensors").unlink()
    with pytest.raises(UsageError, match="cannot read a file of the run"):
        render(RunFiles.open(folder))


def test_values_and_their_units():
    values = {"metrics": [metric("psnr", "PSNR", "dB", 30.0, 12.34, 20.0)]}
    header, rows = tables.dense({"dense": values, "attacks": [{"label": "cospgd"}]})
    assert header == ["", "PSNR"] and rows[-1] == ["worst case", "12.34 dB"]
    assert measure({"unit": "dB"}, None) == "–"
