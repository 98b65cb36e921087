"""House rules that a linter does not know: what no file may say, and what the library's code may not do."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ("robustkit", "attacks", "defenses", "certify", "explain")
TEXTS = {".py", ".md", ".cfg", ".toml", ".yml", ".yaml", ".j2", ".css", ".json", ".txt", ""}
HOSTS = [("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"), ("npmjs", "org"), ("deb.debian", "org")]
GLOBAL_SEEDS = {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed_all", "np.random.seed", "random.seed"}
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(work|root|home/\w+|Users/\w+|opt/\w+)/",
    "a registry's host": "|".join(re.escape(".".join(parts)) for parts in HOSTS),
    "the install command of an unrelated project": r"pip install (-\w+ )*['\"]?" + r"robustkit\b(?![-/])",
}


def project_files() -> list[Path]:
    """The files that are, or would be, committed; without git, all that are not built."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        return [path for name in names if name and (path := ROOT / name).is_file() and not path.is_symlink()]
    folders = [*LIBRARY, "tests", "docs", "examples", "benchmarks"]
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]


FILES = project_files()
SOURCES = [path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in LIBRARY]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_no_file_says(rule: str) -> None:
    pattern = re.compile(FORBIDDEN[rule])
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:120]}"
        for path in FILES
        if path.suffix in TEXTS and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_note_of_unfinished_work() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert not [name_of(path) for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forked_lines(tree: ast.AST) -> set[int]:
    """Lines inside `with torch.random.fork_rng():`, where the global generator is a private copy."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    forks = [node for node in blocks if any("fork_rng(" in ast.unparse(item.context_expr) for item in node.items)]
    return {line for node in forks for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def faults(tree: ast.AST) -> Iterator[str]:
    """What the library's code may not do, each with its line."""
    forked = forked_lines(tree)
    for name, call in calls(tree):
        safe = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)
        if name == "print":
            yield f"{call.lineno}: prints"
        if name == "torch.load" and not safe:
            yield f"{call.lineno}: torch.load without weights_only=True"
        if name in GLOBAL_SEEDS and call.lineno not in forked:
            yield f"{call.lineno}: seeds a global generator"
        if name.startswith(("pickle.", "cPickle.", "dill.")) or name in {"eval", "exec", "yaml.load"}:
            yield f"{call.lineno}: {name} runs what it reads"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in {"NotImplementedError", "NotImplemented"}:
            yield f"{node.lineno}: {node.id}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{node.lineno}: catches everything, Ctrl-C too"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_library_source(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not list(faults(tree))
    if path.stat().st_size:
        assert ast.get_docstring(tree), "a module says in one line what it is for"


def test_the_rules_bite() -> None:
    """The oracle of this file: source that breaks every rule is found out."""
    source = (
        "print(1)\ntorch.load(p)\ntorch.load(p, weights_only=False)\ntorch.manual_seed(0)\nnp.random.seed(0)\n"
        "pickle.load(f)\nraise NotImplementedError\ntry:\n    x\nexcept:\n    y\n"
    )
    assert sorted(int(fault.partition(":")[0]) for fault in faults(ast.parse(source))) == [1, 2, 3, 4, 5, 6, 7, 10]
    fine = (
        "torch.load(p, weights_only=True)\ngenerator.manual_seed(3)\nlog.info(1)\n"
        "with torch.random.fork_rng():\n    torch.manual_seed(0)\n"
    )
    assert not list(faults(ast.parse(fine)))
