"""The page of a certification: what was shown, with which error, of which function, and what could not be shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robustkit.report import plots_certify, text
from robustkit.report.certify_pictures import gallery
from robustkit.report.dense import colour
from robustkit.report.files import RunFiles
from robustkit.report.templates import command_lines, environment, source, style

NORMS = {"l2": "L2", "linf": "Linf", "l1": "L1", "l0": "L0"}
OUTCOMES = {
    "certified": ("proved", "robust", "the property was shown"),
    "falsified": ("counter-example", "broken", "an input of another class was shown, by draws of its own"),
    "unknown": ("inconclusive", "wrong", "neither was shown, which does not say that the property fails"),
}
"""Outcome -> the standard's word, the colour, what it means."""
ROUNDED = (
    "The theorem behind the radius is about real numbers. Here the noise is drawn, added and rounded in floating "
    "point, and networks can be built for which that breaks it: the source certifies a radius of 1.26 where an input "
    "with another class lies at 0.8. On ordinary networks its authors found about the same radii in exact arithmetic. "
    "The option grid=true closes this gap."
)
GRID = (
    "Inputs lie on multiples of 1/255 and the noise is exactly discretised, so that rounding of the noise cannot break "
    "the theorem."
)
EXACT = "Bounds are computed in floating point; see the arithmetic."
DEPLOYED = (
    "The certified function is the network as it computes here: in another precision, on another device or with other "
    "kernels it is another function, which may answer otherwise."
)
FLOATS = "https://arxiv.org/abs/2207.07209"
"""Of the caveat: Voracek and Hein, sound randomized smoothing in floating-point arithmetics."""
RADII = 8
"""Lines of the table of radii, beside the radius asked for."""
CLASSES = 40
Row = dict[str, Any]


def render(folder: str | Path) -> str:
    """The whole page of a run of ``robustkit certify``.

    Raises:
        UsageError: the folder holds no such run, or its files are damaged.
        Incomplete: the run has no results yet.
    """
    run = opened(folder)
    context = {**_context(run), "gallery": gallery(run)}
    return environment().get_template("certify.html.j2").render(context)


def fragment(folder: str | Path) -> str:
    """The verdict, the outcomes and the curve, for notebooks.

    Raises:
        UsageError, Incomplete: as :func:`render`.
    """
    return environment().get_template("certify_fragment.html.j2").render(_context(opened(folder)))


def opened(folder: str | Path) -> RunFiles:
    """The run in a folder, once its results have the shape that the page relies on.

    Raises:
        UsageError: the folder holds no certification, or its files are damaged.
        Incomplete: the run has no results yet.
    """
    return RunFiles.open(folder).of("certification", load_schema(), "robustkit certify")


@lru_cache(maxsize=1)
def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json`` of a certification."""
    found: dict[str, Any] = json.loads(files("robustkit.report").joinpath("certify.schema.json").read_text("utf-8"))
    return found


def _context(run: RunFiles) -> Row:
    r = run.results
    norm = NORMS.get(r["property"]["norm"], r["property"]["norm"])
    return {
        "r": r,
        "run": run.run,
        "norm": norm,
        "what": "labelled pixels" if r["dense"] else "samples",
        "at": f" at {norm} radius {r['radius']:.4g}" if r["property"]["radius"] is not None else "",
        "stamps": list(_stamps(r)),
        "domain": _domain(r, norm),
        "error": _error(r),
        "caveats": _caveats(r),
        "floats": FLOATS,
        "outcomes": _outcomes(r),
        "radii": _radii(r),
        "levels": _levels(r),
        "attack": r["falsification"],
        "classes": _classes(r),
        "draws": r["draws"],
        "states": text.STATES,
        **_curves(r, norm),
        "command": command_lines(run.run.get("command") or []),
        "config": run.config_text,
        "css": style(),
        "own_css": source("certify.css"),
    }


def _stamps(r: Row) -> Iterator[tuple[str, str]]:
    """(kind, text) of everything that limits the headline; kind is fail or warn."""
    contradicted = (r["falsification"] or {}).get("contradictions", 0)
    if r["forced"]:
        yield "fail", "Forced: the preflight refused this certification. The certificates may mean nothing."
    if not r["valid"] and contradicted:
        yield "fail", f"Invalid: {_contradicted(r['falsification'])} This is more than chance explains."
    elif not r["valid"] and not r["forced"]:
        yield "fail", "Invalid: a check says that these certificates mean nothing. See the preflight."
    elif contradicted:
        yield "warn", f"{_contradicted(r['falsification'])} Chance may explain it: see below."
    if not r["complete"]:
        yield "warn", f"Incomplete: {r['n']} samples are done; the same command goes on."
    if r["data"]["limit"] and r["n"] < r["data"]["size"]:
        yield "warn", f"n = {r['n']} of {r['data']['size']}: for testing, not a benchmark."
    if r["nan_answers"]["count"]:
        bad = r["nan_answers"]
        yield "warn", f"{bad['count']:,} answers ({100 * bad['share']:.2g} %) were NaN. They count for no class."


def _contradicted(found: Row) -> str:
    """What the attack showed inside of certified radii.

    >>> _contradicted({"attack": "pgd", "contradictions": 1, "tried": 21, "certificates": 20})
    'pgd showed another class inside the certified radius of 1 sample, of 20 certificates that it tried.'
    """
    many, tried = found["contradictions"], found.get("certificates", found["tried"])
    inside = f"inside the certified radius of {many} sample{'s' if many != 1 else ''}"
    return f"{found['attack']} showed another class {inside}, of {tried} certificates that it tried."


def _domain(r: Row, norm: str) -> str:
    """The inputs that the property is about."""
    around = f"around each of {r['n']:,} samples of {r['data']['name']}"
    if r["property"]["radius"] is None:
        return f"open {norm} balls {around}; the radius is the largest that was shown, for each sample by itself"
    return f"the open {norm} ball of radius {r['property']['radius']:.4g} {around}"


def _error(r: Row) -> str:
    """What alpha means for all certificates together; empty for proofs."""
    alpha, n = r["verifier"]["alpha"], r["n"]
    if alpha is None:
        return ""
    each = "image, all of its pixels together" if r["dense"] else "sample"
    return f"alpha = {alpha:g} for each {each}: of {n:,} at most {alpha * n:.3g} are expected to be wrong"


def _caveats(r: Row) -> list[str]:
    """What the certificates do not cover, in any case."""
    if r["verifier"]["kind"] != "probabilistic":
        return [EXACT, DEPLOYED]
    return [GRID if r["method"]["options"].get("grid") else ROUNDED, DEPLOYED]


def _outcomes(r: Row) -> list[Row]:
    """The standard's words with their counts, in its order."""
    found = [
        {"word": word, "colour": hue, "text": said, "count": r["outcomes"][key]}
        for key, (word, hue, said) in OUTCOMES.items()
    ]
    if r["falsification"] is None:
        found[1]["text"] = "no attack looked for one"
    return found


def _radii(r: Row) -> list[Row]:
    """A few points of the curve up to the last radius that is of use, and the one asked for."""
    points, asked = r["curve"], r["property"]["radius"]
    used = [p for p in points if p["certified"] > 0] or points[:1]
    step = max(1, -(-len(used) // RADII))
    near = 0.4 * used[-1]["radius"] / RADII if used and asked is not None else 0.0
    chosen = [p for p in used[::step] if abs(p["radius"] - (asked or 0.0)) >= near or p is used[0]]
    chosen += [p for p in (*used[-1:], *points) if p["radius"] == asked or p is used[-1]]
    found = {p["radius"]: p for p in chosen}
    return [{**found[x], "linf": x * r["linf"]["factor"], "asked": x == asked} for x in sorted(found)]


def _levels(r: Row) -> str:
    """What the norm bound makes of the radius asked for, or of the average, for those who think in 8-bit images."""
    radius, low_high = r["property"]["radius"] or r["average_certified_radius"], r["model"]["bounds"]
    if not radius or r["property"]["norm"] != "l2":
        return ""
    small = radius * r["linf"]["factor"]
    levels = 255 * small / (low_high[1] - low_high[0])
    whose = "asked for" if r["property"]["radius"] else "on average"
    return f"The L2 radius {whose}, {radius:.4g}, becomes {small:.4g}, or {levels:.3g} of 255 grey levels"


def _classes(r: Row) -> Row:
    """Classes from the weakest on, with their colours in pictures."""
    rows = sorted(r["per_class"], key=lambda c: (c["certified_accuracy"], c["class"]))
    shown = [{**c, "colour": colour(c["class"])} for c in rows[:CLASSES]]
    return {"rows": shown, "left": len(rows) - len(shown), "clean": any(c["clean_accuracy"] is not None for c in rows)}


def _curves(r: Row, norm: str) -> Row:
    """The plot, for wide pages and for narrow ones; made of numbers and of names that matplotlib escapes."""
    verifier, asked = r["verifier"], r["property"]["radius"]
    decided = verifier["mode"] == "decide"
    last = r["curve"][-1]["radius"] if r["curve"] else 0.0
    end = asked or 0.0 if decided else last if verifier["max_radius"] is None else verifier["max_radius"]
    options: Row = {
        "abstained": r["abstained"] or 0.0,
        "asked": asked,
        "end": end,
        "beyond": "not asked" if decided else _reach(r),
        "norm": norm,
        "attack": (r["falsification"] or {}).get("attack"),
    }
    broad = plots_certify.curve(r["curve"], **options)
    narrow = plots_certify.curve(r["curve"], **options, width=6.2)
    return {"end": end, "curve": broad and Markup(broad), "curve_narrow": narrow and Markup(narrow)}


def _reach(r: Row) -> str:
    """Why nothing lies beyond the largest radius.

    >>> _reach({"draws": {"cap": 20000, "votes": 2}})
    'out of reach of n = 10,000'
    """
    draws: Mapping[str, Any] | None = r["draws"]
    return f"out of reach of n = {draws['cap'] // draws['votes']:,}" if draws else "out of reach"
