"""Every saliency method has its page, which names its options as they are; the method of the how-to page works."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from robustkit.core.explainer import EXPLAINERS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = DOCS / "explain"
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \[([^\]]+)\]\((\w+\.md)\)", INDEX, re.MULTILINE)
LINKS = {name.strip(): page for names, page in ROWS for name in names.split(",")}
HOW_TO = DOCS / "how-to" / "add-a-saliency-method.md"


@pytest.mark.parametrize("name", EXPLAINERS.names())
def test_has_a_page_with_idea_source_formula_cost_limits_and_every_option(name):
    page, entry = (PAGES / LINKS[name]).read_text(encoding="utf-8"), EXPLAINERS.get(name)
    for part in ("**Idea.**", "**Source.**", "**Formula.**", "**Cost.**", "**When it misleads.**"):
        assert part in page, part
    missing = [option.name for option in entry.options() if f"`{option.name}" not in page]
    assert not missing, f"docs/explain lacks the options {missing} of {name}"
    number = re.search(r"arxiv\.org/abs/(\d+\.\d+)", entry.paper)
    assert number is None or f"arxiv.org/abs/{number[1]}" in page
    assert "```console\nrobustkit explain " in page and "```python\n" in page


def test_pages_of_methods_state_the_defaults():
    """Where the table of a page has a default that is a number or a switch, it is that of the code."""
    checked = 0
    for name in EXPLAINERS.names():
        rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", (PAGES / LINKS[name]).read_text(), re.MULTILINE))
        for option in EXPLAINERS.get(name).options():
            said = rows.get(option.name)
            if said is not None and isinstance(option.default, bool | int | float):
                checked += 1
                assert said == str(option.default).lower() or float(said) == option.default, (name, option.name)
    assert checked > 10


def test_every_page_is_linked_from_the_overview():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", INDEX))
    assert {path.name for path in PAGES.glob("*.md")} - {"index.md"} == linked


@pytest.fixture
def taught():
    """The blocks of the how-to page; what they register is forgotten afterwards."""
    before, name = dict(EXPLAINERS._entries), "robustkit.explain.occlusion"
    assert importlib.util.find_spec(name) is None, "the page teaches a method that is not there yet"
    code = re.findall(r"^```python[^\n]*\n(.*?)^```$", HOW_TO.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    yield name, code
    EXPLAINERS._entries.clear()
    EXPLAINERS._entries.update(before)
    sys.modules.pop(name, None)


def test_the_method_of_the_how_to_page_passes_the_tests_of_that_page(taught):
    name, (method, tests) = taught
    module = sys.modules.setdefault(name, types.ModuleType(name))
    exec(compile(method, str(HOW_TO), "exec"), vars(module))
    assert {option.name for option in EXPLAINERS.get("occlusion").options()} == {"output", "window", "level"}
    scope: dict[str, object] = {}
    exec(compile(tests, str(HOW_TO), "exec"), scope)
    checks = [value for key, value in scope.items() if key.startswith("test_")]
    assert len(checks) == 2
    for check in checks:
        check()
