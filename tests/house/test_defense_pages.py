"""Every defense has its page, which names its options as they are; the method of the how-to page works."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from robustkit.core.defense import DEFENSES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = DOCS / "defenses"
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")
LINKS = dict(re.findall(r"^\| \[([\w-]+)\]\(([\w-]+\.md)\)", INDEX, re.MULTILINE))
HOW_TO = DOCS / "how-to" / "add-a-defense.md"


def text_of(name: str) -> str:
    return (PAGES / LINKS[name]).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DEFENSES.names())
def test_has_a_page_with_idea_source_formula_cost_and_every_option(name):
    page, entry = text_of(name), DEFENSES.get(name)
    for part in ("**Idea.**", "**Source.**", "**Formula.**", "**Cost.**", "**What to know.**"):
        assert part in page, part
    missing = [option.name for option in entry.options() if f"`{option.name}" not in page]
    assert not missing, f"docs/defenses lacks the options {missing} of {name}"
    number = re.search(r"arxiv\.org/abs/(\d+\.\d+)", entry.paper)
    assert number is None or f"arxiv.org/abs/{number[1]}" in page
    assert "```console\nrobustkit train " in page and "```python\n" in page


def test_pages_state_the_defaults():
    """Where the table of a page has a default that is a number or a switch, it is that of the code."""
    checked = 0
    for name in DEFENSES.names():
        rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.-]+)`? \|", text_of(name), re.MULTILINE))
        for option in DEFENSES.get(name).options():
            said = rows.get(option.name)
            if said is not None and isinstance(option.default, bool | int | float):
                checked += 1
                assert said == str(option.default).lower() or float(said) == option.default, (name, option.name)
    assert checked > 20


@pytest.mark.parametrize("name", DEFENSES.names())
def test_reconstructions_say_so_everywhere(name):
    """In the overview, on their page and in their class, or nowhere."""
    row = next(line for line in INDEX.splitlines() if line.startswith(f"| [{name}]("))
    said = ["reconstruction" in text.lower() for text in (row, text_of(name), DEFENSES.get(name).summary)]
    assert len(set(said)) == 1


def test_every_page_is_linked_from_the_overview():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", INDEX))
    assert {path.name for path in PAGES.glob("*.md")} - {"index.md"} == linked


@pytest.fixture
def taught():
    """The blocks of the how-to page; what they register is forgotten afterwards."""
    before, name = dict(DEFENSES._entries), "robustkit.defenses.alp"
    assert importlib.util.find_spec(name) is None, "the page teaches a defense that is not there yet"
    code = re.findall(r"^```python[^\n]*\n(.*?)^```$", HOW_TO.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    yield name, code
    DEFENSES._entries.clear()
    DEFENSES._entries.update(before)
    sys.modules.pop(name, None)


def test_the_defense_of_the_how_to_page_passes_the_tests_of_that_page(taught):
    name, (method, tests) = taught
    module = sys.modules.setdefault(name, types.ModuleType(name))
    exec(compile(method, str(HOW_TO), "exec"), vars(module))
    assert {option.name for option in DEFENSES.get("alp").options()} == {
        *("steps", "step_size", "attack_mode", "statistics", "label_smoothing", "weight")
    }
    scope: dict[str, object] = {}
    exec(compile(tests, str(HOW_TO), "exec"), scope)
    checks = [value for key, value in scope.items() if key.startswith("test_")]
    assert len(checks) == 2
    for check in checks:
        check()
