"""The page that sets five lines of each library beside ours: its code runs, and its tables come from that code."""

from __future__ import annotations

import ast
from importlib.util import find_spec

import pytest

from benchmarks import five_lines

TEXT = five_lines.PAGE.read_text(encoding="utf-8")
BLOCKS = five_lines.blocks(TEXT)
SAMPLES = 8


@pytest.fixture(scope="module")
def found():
    return five_lines.measure(TEXT, rounds=0, samples=SAMPLES)


def test_every_block_is_about_five_lines():
    assert next(iter(BLOCKS)) == five_lines.FIRST
    for title, code in BLOCKS.items():
        assert len(ast.parse(code).body) in range(4, 7), title


def test_ours_print_a_figure_and_leave_nothing_behind(found):
    rows = {row[0]: row for row in found["figures"]}
    assert list(rows) == list(BLOCKS)[1:]
    for title in ("robustkit", "robustkit, evaluated"):
        assert rows[title][1].startswith("robust accuracy") and rows[title][3] == "nothing"
        assert found["mistakes"][title]["values from 0 to 255"].startswith(("UsageError", "Refused"))


@pytest.mark.parametrize("title", ["torchattacks", "Foolbox", "ART", "torchattacks in robustkit"])
def test_a_library_that_is_missing_is_said_to_be_missing(found, title):
    rows = {row[0]: row for row in found["figures"]}
    module = {"ART": "art", "torchattacks in robustkit": "torchattacks"}.get(title, title.lower())
    said = rows[title][1]
    assert said.startswith("robust accuracy" if find_spec(module) else five_lines.MISSING), said
    assert (title in found["mistakes"]) == (find_spec(module) is not None)


def test_the_page_holds_the_tables_of_its_blocks(found):
    parts = five_lines.tables({**found, "date": "today", "versions": "torch 0"})
    again = five_lines.written(TEXT, parts)
    assert "Written on today: torch 0" in again and five_lines.blocks(again) == BLOCKS
    assert five_lines.written(again, parts) == again
    for title in list(BLOCKS)[1:]:
        assert TEXT.count(f"\n| {title} | ") == 2, "one row in each table: run python -m benchmarks.five_lines"
