"""``junit.xml``, read back as a build server reads it."""

from xml.etree import ElementTree

import pytest

from robustkit.report.files import RunFiles
from robustkit.report.write import write


def cases(folder):
    """name -> (class, outcome, message) of each test case, and the suite."""
    suite = ElementTree.parse(write(folder, ["junit"])["junit"]).getroot().find("testsuite")
    found = {}
    for case in suite.iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        message = next((child.get("message") or child.text or "" for child in case), "")
        found[case.get("name")] = (case.get("classname"), outcome, message)
    return found, suite


def test_a_case_for_every_gate_and_diagnostic(run_folder):
    found, suite = cases(run_folder)
    r = RunFiles.open(run_folder).results
    assert len(found) == 1 + len(r["gates"]) + len(r["diagnostics"])
    assert found["complete"] == ("robustkit.run", "passed", "")
    assert found["robust_accuracy >= 0.45"][:2] == ("robustkit.gates", "passed")
    assert found["clean_accuracy >= 0.99"] == (
        "robustkit.gates",
        "failure",
        "clean_accuracy is 0.95, asked for at least 0.99",
    )
    outcomes = {"PASS": "passed", "WARN": "passed", "FAIL": "failure", "NOT RUN": "skipped"}
    for d in r["diagnostics"]:
        group, outcome, message = found[f"{d['id']} {d['title']}"]
        assert (group, outcome) == ("robustkit.diagnostics", outcomes[d["status"]])
        assert d["message"] in message and d["remedy"] in message
        assert ("WARN: " in message) is (d["status"] == "WARN")
    counts = {kind: int(suite.get(kind)) for kind in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 9, "failures": 2, "errors": 0, "skipped": 1}
    assert float(suite.get("time")) == 61.5 and "Robust accuracy" in suite.findtext("system-out")


def test_an_incomplete_run_is_an_error(made):
    found, suite = cases(made(complete=False, n=60, limit=None))
    assert (
        found["complete"][1] == "error" and "60 of 1000 samples" in found["complete"][2] and suite.get("errors") == "1"
    )


def test_a_gate_on_what_was_never_measured_fails(made):
    gate = {"metric": "robust_accuracy", "threshold": 0.5, "value": None, "passed": False}
    found, _ = cases(made(gates=[gate]))
    assert found["robust_accuracy >= 0.5"][1:] == ("failure", "robust_accuracy is not measured, asked for at least 0.5")


@pytest.mark.parametrize("text", ["\x00\x1b[1m\ufffe", "]]><failure/>", '"/><x a="', "&amp;<", "\ud800"])
def test_any_text_is_text(made, text):
    row = {
        "id": "D1",
        "title": text,
        "status": "FAIL",
        "value": None,
        "threshold": text,
        "message": text,
        "remedy": text,
        "invalidates": True,
    }
    found, suite = cases(made(diagnostics=[row]))
    assert len(found) == 4 and suite.get("failures") == "2"
