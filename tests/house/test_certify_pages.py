"""Every certifier has its page, which names its options as they are; the method of the how-to page works."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import robustkit as rk
from robustkit.certify import confidence
from robustkit.core.certifier import CERTIFIERS
from robustkit.run import certify_falsify
from tests.contracts import test_certifier_contract as contract

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = DOCS / "certify"
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")
LINKS = dict(re.findall(r"^\| \[([\w-]+)\]\(([\w-]+\.md)\)", INDEX, re.MULTILINE))
HOW_TO = DOCS / "how-to" / "add-a-certifier.md"


def text_of(name: str) -> str:
    return (PAGES / LINKS[name]).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CERTIFIERS.names())
def test_has_a_page_with_idea_source_formula_cost_limits_and_every_option(name):
    page, entry = text_of(name), CERTIFIERS.get(name)
    for part in ("**Idea.**", "**Source.**", "**Formula.**", "**Cost.**", "**When it misleads.**"):
        assert part in page, part
    missing = [option.name for option in entry.options() if f"`{option.name}" not in page]
    assert not missing, f"docs/certify lacks the options {missing} of {name}"
    number = re.search(r"(arxiv\.org/abs/\d+\.\d+|openreview\.net/forum\?id=\w+)", entry.paper)
    assert number is None or number[1] in page
    assert "```console\nrobustkit certify " in page and "```python\n" in page


def test_pages_state_the_defaults():
    """Where the table of a page has a default that is a number, a word or a switch, it is that of the code."""
    checked = 0
    for name in CERTIFIERS.names():
        rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.-]+)`? \|", text_of(name), re.MULTILINE))
        for option in CERTIFIERS.get(name).options():
            said = rows.pop(option.name)
            checked += 1
            if isinstance(option.default, bool | None):
                assert said == str(option.default).lower(), (name, option.name)
            else:
                assert said == str(option.default) or float(said) == option.default, (name, option.name)
        assert not rows, f"{name} has no options {sorted(rows)}"
    assert checked > 20


def test_every_page_is_linked_from_the_overview():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", INDEX))
    assert {path.name for path in PAGES.glob("*.md")} - {"index.md"} == linked


def test_the_overview_states_the_largest_radii_of_the_code():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", INDEX, re.MULTILINE)
    assert len(rows) == 4
    for count, *said in rows:
        n = int(count.replace(",", ""))
        limits = (method(sigma=1, n=n).limit() for method in (rk.Smoothing, rk.DualSmoothing))
        assert said == [f"{limit:.2f}" for limit in limits]
    assert rk.Smoothing(n=9, n0=1).remarks((2,)) and not rk.Smoothing(n=10, n0=1).remarks((2,))
    assert "that is 10 draws" in INDEX


def test_the_example_of_unsound_radii_is_one():
    """a = 1, b = 0: the hypot says 1, and a shift of length 1/sqrt(2) changes the vote."""
    a, b = (torch.special.ndtr(torch.tensor(quantile)).numpy() for quantile in (1.0, 0.0))
    radius = float(rk.DualSmoothing(sigma=1).radius_of([a, b]))
    each = 1.001 * radius / 2**0.5
    assert torch.special.ndtr(torch.tensor([1 - each, 0 - each])).sum() < 1, "the other class is in front"
    assert f"a shift of length {radius:.2f} changes the vote" in text_of("dual-smoothing")


def test_the_page_of_the_attack_states_its_constants():
    text = (PAGES / "falsify.md").read_text(encoding="utf-8")
    turns = {6: "Six", 7: "Seven", 8: "Eight", 9: "Nine", 10: "Ten"}[certify_falsify.TURNS]
    for said in (
        f"{certify_falsify.COPIES} fixed noisy copies",
        f"{turns} balls",
        f"at {certify_falsify.INSIDE} of it",
        f"up to {certify_falsify.DRAWS:,} draws",
        f"below {certify_falsify.BEYOND:g}: exit code 4",
    ):
        assert said in text, said
    assert "1e-4" in text and certify_falsify.ERROR == 1e-4


def test_the_schema_of_results_has_what_the_pages_name():
    """The fields that docs/results.md lists for certifications are those of the published schema."""
    text = (DOCS / "results.md").read_text(encoding="utf-8").partition("## Certifications")[2].partition("\n## ")[0]
    schema = json.loads((Path(rk.__file__).parent / "report" / "certify.schema.json").read_text(encoding="utf-8"))
    named = {name for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 15 and named <= set(schema["properties"])
    assert not (set(schema["required"]) - named - {"schema_version", "kind", "robustkit", "seed", "n", "times"})


@pytest.fixture
def taught(monkeypatch):
    """The blocks of the how-to page; what they register is forgotten afterwards."""
    before, name = dict(CERTIFIERS._entries), "robustkit.certify.denoised"
    assert importlib.util.find_spec(name) is None, "the page teaches a method that is not there yet"
    code = re.findall(r"^```python[^\n]*\n(.*?)^```$", HOW_TO.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    yield name, code
    CERTIFIERS._entries.clear()
    CERTIFIERS._entries.update(before)
    sys.modules.pop(name, None)


def test_the_method_of_the_how_to_page_passes_the_tests_of_that_page(taught, monkeypatch):
    name, (method, tests) = taught
    module = sys.modules.setdefault(name, types.ModuleType(name))
    exec(compile(method, str(HOW_TO), "exec"), vars(module))
    own = {option.name for option in CERTIFIERS.get("denoised").options()}
    assert own == {option.name for option in CERTIFIERS.get("smoothing").options()} - {"correction"} | {"size"}
    scope: dict[str, object] = {}
    exec(compile(tests, str(HOW_TO), "exec"), scope)
    checks = [value for key, value in scope.items() if key.startswith("test_")]
    assert len(checks) == 2
    for check in checks:
        check()
    monkeypatch.setitem(contract.CLASSES, "denoised", CERTIFIERS.get("denoised").cls)
    for mode in ("radius", "decide"):
        case = ("denoised", mode)
        contract.test_form_of_the_certificate(case, torch.float32)
        contract.test_every_certifier_knows_its_cost(case)
        contract.test_text_and_settings_make_the_same_certifier(case)
    contract.test_a_certificate_does_not_depend_on_the_batch(("denoised", "radius"))
    contract.test_any_shape_of_input_or_a_clear_message("denoised", (7,))


def test_the_page_of_floats_states_the_rounding():
    text = (PAGES / "floats.md").read_text(encoding="utf-8")
    assert "by 1e-13 of their\nsize, radii by 1e-12" in text
    assert float(confidence.lower(10, 10, 0.001)) <= 0.001**0.1 * (1 - 0.9e-13)
