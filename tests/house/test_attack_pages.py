"""Every attack has its page, which names its options as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustkit.core.attack import ATTACKS

PAGES = Path(__file__).resolve().parents[2] / "docs" / "attacks"
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")
LINKS = {
    name.strip(): page for names, page in re.findall(r"\[([^\]]+)\]\((\w+\.md)\)", INDEX) for name in names.split(",")
}
FOREIGN = {"torchattacks", "foolbox", "art"}


def page_of(name: str) -> str:
    link = "adapters.md" if name in FOREIGN else LINKS[name]
    return (PAGES / link).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ATTACKS.names())
def test_has_a_page_with_idea_source_cost_and_every_option(name):
    page, entry = page_of(name), ATTACKS.get(name)
    for part in () if name in FOREIGN else ("**Idea.**", "**Source.**", "**Cost", "**When to use it.**"):
        assert part in page, part
    missing = [option.name for option in entry.options() if f"`{option.name}" not in page]
    assert not missing, f"docs/attacks lacks the options {missing} of {name}"
    if name not in FOREIGN:
        number = re.search(r"arxiv\.org/abs/(\d+\.\d+)", entry.paper)
        assert number is None or number[1] in page


def test_every_page_is_linked_from_the_overview():
    assert {path.name for path in PAGES.glob("*.md")} - {"index.md"} == set(re.findall(r"\]\((\w+\.md)\)", INDEX))
