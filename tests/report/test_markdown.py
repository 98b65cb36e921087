"""``report.md``: what it says, that nothing in it is taken for markup, and the summary of a job."""

import re

import pytest

from robustkit.core.errors import Incomplete, UsageError
from robustkit.report import tables
from robustkit.report.files import RunFiles
from robustkit.report.markdown import append_job_summary, escape, fence, render, table
from robustkit.report.write import FORMATS, write

EVIL = [
    "<script>alert(1)</script>",
    "a|b",
    "=SUM(A1)",
    "+1",
    "-1",
    "@team",
    "[x](http://evil.example)",
    "![](//x)",
    "`rm`",
    "a\n# big",
    "a\r\n| b |",
    "**b**",
    "https://evil.example",
    "\x1b[31m",
    "\u202eabc",
    "</details>",
    "&lt;",
    "~~x~~",
    "\\|",
]


def cells(line):
    return re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]


@pytest.mark.parametrize("text", EVIL)
def test_a_cell_is_one_cell_whatever_stands_in_it(text):
    lines = table(("head", "b"), [[text, "fine"]]).split("\n")
    assert len(lines) == 3 and [len(cells(line)) for line in lines] == [2, 2, 2]
    cell = cells(lines[2])[0].strip()
    assert cell[:1] not in tuple("=+-@") and not re.search(r"[<>\x00-\x1f\u202a-\u202e]", cell)
    assert "://" not in cell and not re.search(r"(?<!\\)[\[\]`*|~#!]", cell)


def test_plain_words_are_left_alone():
    assert escape("pgd:steps=40 (53.3 %), größer als 0") == "pgd:steps=40 (53.3 %), größer als 0"


def test_code_cannot_leave_its_fence():
    text = "a\n```\n````\nb"
    first, *_, last = fence(text).split("\n")
    assert first == last == "`````" and text in fence(text)


def test_what_the_report_says(run_folder):
    run = RunFiles.open(run_folder)
    text = render(run)
    r = run.results
    assert f"Robust accuracy {100 * r['robust_accuracy']:.1f} % (95 % interval" in text and "under linf:0.2" in text
    assert "n = 60 of 1000: for testing, not a benchmark" in text
    for a in r["attacks"]:
        assert re.search(
            rf"\| {re.escape(a['label'])} \| {100 * a['robust_accuracy']:.1f} % \|.* {a['broken']} \| {a['gain']} \|",
            text,
        )
    for d in r["diagnostics"]:
        row = next(
            line for line in text.split("\n") if f"[{d['id']}](docs/diagnostics/d{int(d['id'][1:]):02d}.md)" in line
        )
        assert row.startswith(f"| {d['status']} |") and len(cells(row)) == 5
    assert "a &lt;b&gt;single&lt;/b&gt; step \\| breaks more. More steps." in text
    assert "--limit 60 --out 'a run'" in text and "threat: linf:0.2" in text and "AML.T0043.000" in text
    assert "**not assessed** | Data and model poisoning" in text
    assert "| FAIL | clean\\_accuracy |" in text and "627 MiB" in text and "1 min 2 s" in text
    assert text.count("<") == text.count("<details>") + text.count("</details>") + text.count("<summary>") * 2


def test_the_weakest_class_comes_first(run_folder):
    r = RunFiles.open(run_folder).results
    rows = tables.classes(r, 4)
    shares = sorted(c["robust_accuracy"] for c in r["per_class"])[:4]
    assert [row[3] for row in rows] == [f"{100 * share:.1f} %" for share in shares]
    assert len(tables.classes(r, 100)) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forced": True}, "Forced: the preflight refused"),
        ({"valid": False}, "Invalid: a check says"),
        ({"complete": False}, "Incomplete: 60 samples are done"),
        ({"robust_accuracy": None, "clean_accuracy": None, "per_class": [], "confusion": []}, "not measured"),
        ({"curve": None, "gates": [], "calibration": None, "gallery": [], "limit": None}, "# Robustness report"),
        ({"threat": {"norm": "l2", "eps": 1.0, "text": "l2:1", "targeted": "random"}}, "targeted (random)"),
        ({"attacks": []}, "| knowledge | none |"),
        ({"diagnostics": []}, "## Diagnostics"),
    ],
)
def test_every_kind_of_run_has_a_report(made, changes, words):
    run = RunFiles.open(made(**changes))
    assert words in render(run)
    for _, renderer in (FORMATS[name] for name in ("md", "junit")):
        assert renderer(run)


def test_a_run_without_its_header_has_a_report(run_folder):
    for name in ("run.json", "config.yaml"):
        (run_folder / name).unlink()
    assert "## How to reproduce" in render(RunFiles.open(run_folder))


def test_the_summary_of_a_job(run_folder, tmp_path, monkeypatch):
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(target))
    write(run_folder, ["md"])
    assert target.read_text() == "before\n"
    write(run_folder, ["junit"], summary=True)
    assert target.read_text() == "before\n" + render(RunFiles.open(run_folder))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "summary.md"))
    with pytest.raises(UsageError, match="job summary"):
        append_job_summary("x")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert not append_job_summary("x")


def test_writing_gives_the_files(run_folder):
    before = (run_folder / "results.json").read_bytes()
    written = write(run_folder, ["md", "json", "junit"])
    assert {name: file.name for name, file in written.items()} == {
        "md": "report.md",
        "json": "results.json",
        "junit": "junit.xml",
    }
    assert written["md"].read_text(encoding="utf-8") == render(RunFiles.open(run_folder))
    assert (run_folder / "results.json").read_bytes() == before and not list(run_folder.glob("*.tmp"))


def test_text_that_utf8_cannot_hold_is_written_all_the_same(made):
    run = made(data={"name": "\ud800x", "size": 1, "sha256": "b" * 64})
    assert "?x" in write(run, ["md", "junit"])["md"].read_text(encoding="utf-8")


def test_a_format_that_does_not_exist_leaves_everything_as_it_was(run_folder):
    with pytest.raises(UsageError, match="Did you mean html"):
        write(run_folder, ["md", "htm"])
    assert not (run_folder / "report.md").exists()


def test_no_run_and_damaged_results_are_refused(made, tmp_path):
    with pytest.raises(UsageError, match="no run there"):
        write(tmp_path, ["md"])
    run = made()
    (run / "results.json").write_text('{"schema_version": "1.0", "n": 3}')
    with pytest.raises(UsageError, match="is a required property"):
        write(run, ["md"])
    (run / "results.json").unlink()
    with pytest.raises(Incomplete):
        write(run, ["md"])
