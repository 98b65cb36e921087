"""``junit.xml``: a test case for every gate and every diagnostic, for build servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from robustkit.report import tables
from robustkit.report.files import RunFiles
from robustkit.report.text import number, verdict

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def render(run: RunFiles) -> str:
    """The report as JUnit's XML.

    A gate or a diagnostic that failed is a failure, one that was not run is skipped, and a warning passes with its
    message as output. An incomplete run is an error.
    """
    r = run.results
    suite = Element(
        "testsuite",
        name=clean(f"robustkit {r['model']['name']} {r['threat']['text']}"),
        time=f"{r['times']['seconds']:.3f}",
        timestamp=clean(r["times"]["finished"]),
    )
    _complete(suite, r)
    for gate in r["gates"]:
        _gate(suite, gate)
    for row in r["diagnostics"]:
        _case(
            suite,
            "diagnostics",
            f"{row['id']} {row['title']}",
            row["status"],
            f"{tables.found(row)} (value {number(row['value'])}, threshold {row['threshold'] or 'none'}; "
            f"{tables.page(row['id'])})",
        )
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(kind, str(len(list(suite.iter(tag)))))
    SubElement(suite, "system-out").text = clean(verdict(r))
    suites = Element("testsuites")
    suites.append(suite)
    indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(suites, encoding="unicode") + "\n"


def clean(text: str) -> str:
    """Text without what XML cannot hold.

    >>> clean("a\\x00b")
    'a?b'
    """
    return FORBIDDEN.sub("?", text)


def _complete(suite: Element, r: Mapping[str, Any]) -> None:
    case = SubElement(suite, "testcase", classname="robustkit.run", name="complete")
    if not r["complete"]:
        asked = min(r["limit"] or r["n_total"], r["n_total"])
        text = f"the run is incomplete: {r['n']} of {asked} samples are done; the same command goes on"
        SubElement(case, "error", message=text).text = text


def _gate(suite: Element, gate: Mapping[str, Any]) -> None:
    value = "not measured" if gate["value"] is None else f"{gate['value']:.6g}"
    _case(
        suite,
        "gates",
        f"{gate['metric']} >= {gate['threshold']:g}",
        "PASS" if gate["passed"] else "FAIL",
        f"{gate['metric']} is {value}, asked for at least {gate['threshold']:g}",
    )


def _case(suite: Element, group: str, name: str, status: str, text: str) -> None:
    case = SubElement(suite, "testcase", classname=f"robustkit.{group}", name=clean(name))
    if status == "FAIL":
        SubElement(case, "failure", message=clean(text)).text = clean(text)
    elif status == "NOT RUN":
        SubElement(case, "skipped", message=clean(text))
    else:
        SubElement(case, "system-out").text = clean(f"{status}: {text}")
