"""The documentation is true: links lead somewhere, commands and names exist, and the attack it teaches works."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main
import yaml

import robustkit
from robustkit.cli.app import app
from robustkit.core.attack import ATTACKS, ROUNDING
from robustkit.run import (
    alternatives,
    behaviour,
    diagnostics,
    evidence,
    gates,
    gradients,
    labels,
    plan,
    probe,
    ranges,
    verification,
)


def short(number: float) -> str:
    """As pages write powers of ten: 1e-4.

    >>> short(0.0001)
    '1e-4'
    """
    return f"{number:.0e}".replace("e-0", "e-")


ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
TITLES = probe.TITLES | diagnostics.TITLES | {"D17": verification.TITLE}
FEW = f"more than {200 * diagnostics.POINT:g} % of the probe, and more than one sample"
GAIN = (f"FAIL: above {500 * diagnostics.POINT:g} %.", f"WARN: above {100 * diagnostics.POINT:g} %")
THRESHOLDS = {  # page -> how it must state the constants of the code
    "D1": (f"zero for more than {100 * gradients.ZERO_SHARE:g} % of the samples",),
    "D2": (f"above {short(behaviour.SPREAD)}", f"more than {100 * behaviour.JUMP:g} % of"),
    "D4": (*GAIN, f"rises by more than {100 * diagnostics.MOVING:g} %"),
    "D5": (FEW,),
    "D7": (f"more than {200 * diagnostics.POINT:g} %",),
    "D8": (FEW,),
    "D9": (f"more than {100 * diagnostics.BY_QUERIES:g} %", f"more than {100 * diagnostics.POINT:g} % of the samples"),
    "D10": (f"Up to {diagnostics.NOISE_DRAWS} random points", FEW),
    "D11": GAIN,
    "D14": (
        f"by more than {short(ROUNDING)} of their width",
        f"p < {alternatives.SURE:g}",
        f"p up to {alternatives.DOUBTFUL:g}",
        f"less than {100 * alternatives.SAME:g} % everywhere",
        *ranges.FAMILIES.keys() - {"0.5/0.5"},
    ),
    "D15": (f"the limit is {behaviour.NEIGHBOURS:g}",),
    "D16": (f"p < {labels.SURE:g}",),
    "D17": (
        f"{short(verification.ROOM)} of eps",
        f"above -{short(verification.TIE)}",
        f"the first {verification.ALONE} of each file",
        f"fewer than {100 * verification.SURVIVES:g} %",
    ),
    "index": (
        f"{plan.PROBE} evenly spaced",
        f"({plan.PROBE_LARGE} where",
        f"{evidence.PROBE_VALUES // (3 * 32 * 32)} samples",
    ),
}
INVALIDATING = {"D3", "D6", "D9", "D10", "D17"}  # checks after the attacks whose FAIL marks the result as invalid
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The code of the fenced blocks in these languages."""
    for match in FENCE.finditer(path.read_text(encoding="utf-8")):
        if match["language"] in languages:
            yield match["code"]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def nav_files(node: object) -> Iterator[str]:
    """The files that mkdocs.yml lists."""
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nav_files(child)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_resolve(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_link_within_docs(path: Path) -> None:
    """MkDocs builds docs/ alone: a link that leaves it works on GitHub and breaks on the site."""
    links = re.findall(r"\]\(([^)\s#]+)", prose(path))
    local = [link for link in links if "://" not in link]
    assert all((path.parent / link).resolve().is_relative_to(DOCS) for link in local)


def test_navigation_lists_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = list(nav_files(yaml.safe_load(text)["nav"]))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


def page_of(key: str) -> Path:
    """`D1` -> docs/diagnostics/d01.md: the address that reports link to."""
    return DOCS / "diagnostics" / (f"d{int(key[1:]):02d}.md" if key[1:].isdecimal() else f"{key}.md")


@pytest.mark.parametrize("key", TITLES)
def test_every_diagnostic_has_a_page(key: str) -> None:
    page = page_of(key)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {key} {TITLES[key][:1].upper()}{TITLES[key][1:]}\n")
    for heading in ("What it tests", "Value and threshold", "Why it matters", "What to do"):
        assert f"\n## {heading}\n" in text
    assert f"[{key}]({page.name})" in page_of("index").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", THRESHOLDS)
def test_pages_state_the_thresholds_of_the_code(key: str) -> None:
    text = " ".join(page_of(key).read_text(encoding="utf-8").split())
    assert not [value for value in THRESHOLDS[key] if value not in text]


@pytest.mark.parametrize("key", [*diagnostics.TITLES, "D17"])
def test_pages_tell_which_failures_invalidate(key: str) -> None:
    text = " ".join(page_of(key).read_text(encoding="utf-8").split())
    assert ("the result is invalid" in text.lower()) == (key in INVALIDATING)
    assert ("A FAIL does not invalidate the result" in text) == (key not in INVALIDATING)


def test_the_code_invalidates_by_the_same_checks() -> None:
    """The calls that say ``invalidates``, by the id in their first argument; D17 takes it from the status."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(diagnostics))) if isinstance(node, ast.Call)]
    said = {
        call.args[0].value
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "invalidates" and call.args and isinstance(call.args[0], ast.Constant)
    }
    assert said == INVALIDATING - {"D17"}
    assert verification._row("FAIL", "").fatal and not verification._row("WARN", "").invalidates


@pytest.mark.parametrize("key", probe.TITLES)
def test_every_failure_of_the_preflight_refuses_and_its_page_says_so(key: str) -> None:
    assert probe.row(key, "FAIL", "").fatal
    text = " ".join(page_of(key).read_text(encoding="utf-8").split())
    assert "refuses the evaluation" in text and "refuses nothing" not in text


def test_gates_are_documented() -> None:
    text = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(gates.METRICS)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every `robustkit ...` line in shell blocks."""
    for code in blocks(path, "console", "bash", "sh", "yaml"):
        for line in code.replace("\\\n", " ").splitlines():
            line = line.removeprefix("- run:").strip().removeprefix("$ ")
            if line.startswith("robustkit "):
                yield shlex.split(line, comments=True)[1:]


def options_of(verb: str) -> set[str]:
    names = {name for param in COMMANDS[verb].params for name in (*param.opts, *param.secondary_opts)}
    return {"--help"} | {name for name in names if name.startswith("-")}


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_commands_exist(path: Path) -> None:
    for verb, *words in commands(path):
        assert verb in COMMANDS
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= options_of(verb), f"robustkit {verb}"


def test_the_command_line_page_names_every_verb_and_option() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `robustkit (\w+)`", text, re.MULTILINE)) == set(COMMANDS)
    hidden = {"--no-curve", "--no-force", "--no-evaluate", "--no-significant", "--help"}
    for verb in COMMANDS:
        assert not {name for name in options_of(verb) - hidden if not re.search(rf"{name}[ `]", text)}, verb


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_python_blocks_compile_and_use_public_names(path: Path) -> None:
    for code in blocks(path, "python"):
        tree = ast.parse(code)
        dotted = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        used = {name.removeprefix("rk.") for name in dotted if re.fullmatch(r"rk\.\w+", name)}
        assert used <= set(robustkit.__all__)


@pytest.fixture
def taught() -> Iterator[list[str]]:
    """The blocks of the how-to page; what they register is forgotten afterwards."""
    before = dict(ATTACKS._entries)
    yield list(blocks(DOCS / "how-to" / "add-an-attack.md", "python"))
    ATTACKS._entries.clear()
    ATTACKS._entries.update(before)
    sys.modules.pop("robustkit.attacks.mifgsm", None)


def test_the_attack_of_the_how_to_page_passes_the_test_of_that_page(taught: list[str]) -> None:
    attack, test = taught
    module = types.ModuleType("robustkit.attacks.mifgsm")
    sys.modules[module.__name__] = module
    exec(compile(attack, "docs/how-to/add-an-attack.md", "exec"), vars(module))
    assert "mifgsm" in ATTACKS.names()
    assert {option.name for option in ATTACKS.get("mifgsm").options()} == {"steps", "decay", "loss"}
    scope: dict[str, object] = {}
    exec(compile(test, "docs/how-to/add-an-attack.md", "exec"), scope)
    check = scope["test_equals_the_algorithm_of_the_paper"]
    assert callable(check)
    check()
