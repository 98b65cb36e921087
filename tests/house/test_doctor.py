"""`robustkit doctor`: every conflict is found in an environment built to have it, and a sound one passes at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from robustkit.cli import doctor, environment
from robustkit.cli.doctor import Check

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}\n"


class Site:
    """A folder of installed distributions, made of metadata alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, version: str, *needs: str, entry_points: str = "") -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = METADATA.format(name=name, version=version, needs="".join(f"Requires-Dist: {need}\n" for need in needs))
        (info / "METADATA").write_text(text, encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Nothing is installed but what the test adds."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if isinstance(finder, type)])
    return Site(folder)


def only(checks: list[Check] | Check) -> Check:
    (check,) = checks if isinstance(checks, list) else [checks]
    return check


def test_this_environment_is_sound() -> None:
    checks = doctor.examine()
    assert not [check for check in checks if check.status == "fail"]
    names = {check.name for check in checks}
    assert names >= {"python", "robustkit", "families", "torch", "torchvision", "device", "pillow", "requirements"}


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    assert all(check.fix for check in doctor.examine() if check.status != "ok")


@pytest.mark.parametrize(
    ("version", "status", "word"),
    [
        ("2.5.1", "fail", "CVE-2025-32434"),
        ("2.6.0", "warn", "CVE-2026-24747"),
        ("2.9.1+cpu", "warn", "CVE-2026-24747"),
        ("2.10.0", "ok", "2.10"),
    ],
)
def test_torch_version(site: Site, version: str, status: str, word: str) -> None:
    site.add("torch", version)
    check = doctor.check_torch()
    assert (check.status, word in check.found) == (status, True)


def test_torch_missing(site: Site) -> None:
    assert doctor.check_torch().status == "fail"


@pytest.mark.parametrize(("torch", "status"), [("2.13.0", "fail"), ("2.14.1", "ok"), ("2.14.1+cu130", "ok")])
def test_torchvision_is_built_for_another_torch(site: Site, torch: str, status: str) -> None:
    site.add("torch", torch)
    site.add("torchvision", "0.29.1", "torch==2.14.1")
    check = doctor.check_torchvision()
    assert check.status == status
    assert status == "ok" or torch in check.found


def test_unrelated_robustkit(site: Site) -> None:
    site.add("robustkit", "3.2", entry_points="[console_scripts]\nrobustkit = robustkit.tool:run\n")
    check = doctor.check_robustkit()
    assert check.status == "fail"
    assert "3.2" in check.found
    assert "uninstall" in check.fix


def test_our_robustkit(site: Site) -> None:
    site.add("robustkit", "0.1.0", entry_points="[console_scripts]\nrobustkit = robustkit.__main__:main\n")
    assert doctor.check_robustkit().status == "ok"


def test_requirements_own_fault_fails_and_distant_fault_warns(site: Site) -> None:
    site.add("robustkit", "0.1.0", "timm>=1.0.12", "absent>=1; extra == 'demo'", "old>=1; python_version < '3'")
    site.add("timm", "1.0.1", "idna>=3.18")
    site.add("idna", "2.10")
    found = {check.status: check.found for check in doctor.check_requirements("robustkit")}
    assert set(found) == {"fail", "warn"}
    assert "timm>=1.0.12, but 1.0.1" in found["fail"]
    assert "timm requires idna>=3.18, but 2.10" in found["warn"]


def test_requirements_in_a_ring_end(site: Site) -> None:
    site.add("robustkit", "0.1.0", "a>=1")
    site.add("a", "1.0", "b")
    site.add("b", "1.0", "a", "robustkit")
    assert environment.requirements_below("robustkit") == ["robustkit", "a", "b"]
    assert only(list(doctor.check_requirements("robustkit"))).status == "ok"


@pytest.mark.parametrize("requests", ["2.25.1", "2.34.2"])
def test_torchattacks_holds_requests_back(site: Site, requests: str) -> None:
    assert not list(doctor.check_torchattacks())
    site.add("torchattacks", "3.5.1", "requests~=2.25.1")
    site.add("requests", requests)
    check = only(list(doctor.check_torchattacks()))
    assert check.status == "warn"
    assert "requests" in check.found


def test_old_pillow(site: Site) -> None:
    site.add("pillow", "11.0.0")
    assert doctor.check_pillow().status == "warn"


def test_families_as_text_files(tmp_path: Path) -> None:
    """What a Windows checkout without symbolic links holds: a file with the link's target as its text."""
    for family in doctor.FAMILIES:
        (tmp_path / family).write_text(f"../{family}", encoding="utf-8")
    check = only(list(doctor.check_families(tmp_path)))
    assert check.status == "fail"
    assert "core.symlinks" in check.fix


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ("cuda: Optional[str] = '13.0'\n", "13.0"),
        ("cuda = '12.4'\n", "12.4"),
        ("cuda: Optional[str] = None\nhip = '6'\n", None),
        ("__all__ = ['cuda']\n", None),
    ],
)
def test_torch_cuda_is_read_without_torch(site: Site, source: str, version: str | None) -> None:
    site.add("torch", "2.14.1")
    (site.folder / "torch").mkdir()
    (site.folder / "torch" / "version.py").write_text(source, encoding="utf-8")
    assert environment.torch_cuda() == version


@pytest.mark.parametrize(
    ("driver", "build", "status", "word"),
    [("580.82", "13.0", "ok", "cuda"), ("580.82", None, "warn", "without CUDA"), (None, "13.0", "ok", "cpu")],
)
def test_device(monkeypatch: pytest.MonkeyPatch, driver: str | None, build: str | None, status: str, word: str) -> None:
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(doctor, "torch_cuda", lambda: build)
    check = doctor.check_device()
    assert (check.status, word in check.found) == (status, True)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert doctor.check_folder(tmp_path).status == "ok"
    assert doctor.check_folder(tmp_path / "absent").status == "warn"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_exit_code_and_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: doctor.Status, code: int
) -> None:
    check = Check(name="x", status=status, found="[bold]folder[/]", fix="pip install '.[demo]'")
    monkeypatch.setattr(doctor, "examine", lambda: [check])
    with pytest.raises(typer.Exit) as caught:
        doctor.doctor()
    shown = capsys.readouterr().out
    assert caught.value.exit_code == code
    assert "[bold]folder[/]" in shown
    assert ".[demo]" in shown


def test_answers_within_two_seconds_and_without_torch(tmp_path: Path) -> None:
    """The best of three, since the machine may be busy with something else."""
    code = (
        "import sys, typer\nfrom robustkit.cli.doctor import doctor\n"
        "try:\n    doctor()\nexcept typer.Exit as end:\n    assert end.exit_code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        times.append(time.perf_counter() - start)
    assert min(times) < 2
