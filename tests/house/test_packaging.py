"""The package is whole as a checkout, as an editable install and as a wheel, also beside foreign folders."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("attacks", "defenses", "certify", "explain")
TORCH_FREE = (
    "robustkit",
    "robustkit.__main__",
    "robustkit.catalogue",
    "robustkit.cli.app",
    "robustkit.cli.doctor",
    "robustkit.core.diagnostic",
    "robustkit.core.errors",
    "robustkit.core.registry",
    "robustkit.core.specs",
    "robustkit.report",
    "robustkit.run.config",
    "robustkit.run.directory",
)


def python(code: str, *, cwd: Path, path: Path | None = None, flags: tuple[str, ...] = ()) -> str:
    """What a fresh interpreter prints; its environment names no other place to import from than `path`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of somebody else's, with packages that bear our families' names."""
    for name in FAMILIES:
        package = tmp_path / "foreign" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("OWNER = 'foreign'\n", encoding="utf-8")
    return tmp_path / "foreign"


def package_files() -> Iterator[Path]:
    """Every file below robustkit/, links followed, as `robustkit/...`."""
    for folder, folders, names in os.walk(ROOT / "robustkit", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder, name).relative_to(ROOT) for name in names)


def test_setup_cfg_lists_every_package(setup: configparser.ConfigParser) -> None:
    listed = setup["options"]["packages"].split()
    found = [".".join(path.parent.parts) for path in package_files() if path.name == "__init__.py"]
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_a_relative_link_and_mapped(family: str, setup: configparser.ConfigParser) -> None:
    link = ROOT / "robustkit" / family
    assert link.is_symlink()
    assert os.readlink(link) == f"../{family}"
    assert link.resolve() == ROOT / family
    assert f"robustkit.{family} = {family}" in setup["options"]["package_dir"].split("\n")


def test_requirements_have_lower_bounds_only(setup: configparser.ConfigParser) -> None:
    extras = setup["options.extras_require"].values()
    lines = [line for block in (setup["options"]["install_requires"], *extras) for line in block.split("\n") if line]
    assert not [line for line in lines if any(sign in line for sign in ("<", "==", "~=", "!=", "@"))]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_no_torch(module: str) -> None:
    heavy = "torch", "torchvision", "timm", "matplotlib", "scipy"
    code = f"import sys, {module}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    assert python(code, cwd=ROOT) == "[]"


def test_checkout_needs_no_installation() -> None:
    """With -S there is no site-packages: only the links can make the families part of the package."""
    code = "import robustkit.attacks as a, robustkit.explain as e; print(a.__name__, e.__file__)"
    assert python(code, cwd=ROOT, flags=("-S",)) == f"robustkit.attacks {ROOT / 'robustkit/explain/__init__.py'}"


def test_installed_package_wins_over_foreign_folders(foreign: Path) -> None:
    code = "import attacks, robustkit.attacks as ours; print(attacks.OWNER, hasattr(ours, 'OWNER'), ours.__name__)"
    assert python(code, cwd=foreign) == "foreign False robustkit.attacks"


def test_second_binding_is_refused() -> None:
    """`import attacks.pgd` would make a second PGD class that no registry knows: it raises instead."""
    code = (
        "import robustkit.attacks.pgd\n"
        "try:\n    import attacks.pgd\n"
        "except ValueError as error:\n    print(error)"
    )
    assert "may not rebind" in python(code, cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("robustkit", *FAMILIES, "docs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("robustkit-*.whl")
    return found


def test_wheel_holds_exactly_the_package(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {path.as_posix() for path in package_files()}


def test_wheel_carries_the_licences(wheel: Path) -> None:
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/licenses/" in name]
    assert sorted(names) == ["LICENSE", "NOTICE"]


def test_wheel_runs_beside_foreign_folders(wheel: Path, foreign: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    code = (
        "import attacks, robustkit, robustkit.attacks.pgd as pgd\n"
        "from robustkit.core.attack import ATTACKS\n"
        "print(attacks.OWNER, robustkit.__file__, pgd.__file__, 'pgd' in ATTACKS.names())"
    )
    expected = f"foreign {target / 'robustkit/__init__.py'} {target / 'robustkit/attacks/pgd.py'} True"
    assert python(code, cwd=foreign, path=target) == expected
