"""``junit.xml``: a test case for every gate and every diagnostic, for build servers."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from robustkit.report.files import RunFiles
from robustkit.report.text import number, verdict

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def render(run: RunFiles) -> str:
    """The report as JUnit's XML."""
    r = run.results
    suite = Element("testsuite", name=clean(f"robustkit {r['model']['name']} {r['threat']['text']}"), time=f"{r['times']['seconds']:.3f}")
    for gate in r["gates"]:
        text = f"{gate['metric']} is {number(gate['value'])}, asked for at least {number(gate['threshold'])}"
        _case(suite, "gates", f"{gate['metric']} >= {number(gate['threshold'])}", "PASS" if gate["passed"] else "FAIL", text)
    for d in r["diagnostics"]:
        _case(suite, "diagnostics", f"{d['id']} {d['title']}", d["status"], f"{d['message']} {d['remedy']}".strip())
    if not r["complete"]:
        case = SubElement(suite, "testcase", classname="robustkit.run", name="complete")
        SubElement(case, "error", message=f"the run is incomplete: {r['n']} samples are done")
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(kind, str(len(list(suite.iter(tag)))))
    SubElement(suite, "system-out").text = clean(verdict(r))
    indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(suite, encoding="unicode") + "\n"


def clean(text: str) -> str:
    """Text without what XML cannot hold."""
    return FORBIDDEN.sub("?", text)


def _case(suite: Element, group: str, name: str, status: str, text: str) -> None:
    case = SubElement(suite, "testcase", classname=f"robustkit.{group}", name=clean(name))
    if status == "FAIL":
        SubElement(case, "failure", message=clean(text))
    elif status == "NOT RUN":
        SubElement(case, "skipped", message=clean(text))
    else:
        SubElement(case, "system-out").text = clean(f"{status}: {text}")
