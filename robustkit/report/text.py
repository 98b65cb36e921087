"""How figures read: the same in every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STATES = {"PASS": "pass", "WARN": "warn", "FAIL": "fail", "NOT RUN": "skip"}


def a_run(kind: str) -> str:
    """A kind of run with its article.

    >>> a_run("training"), a_run("explanation")
    ('a training', 'an explanation')
    """
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent.

    >>> percent(0.6149), percent(None)
    ('61.5 %', 'not measured')
    """
    return "not measured" if value is None else f"{100 * value:.{digits}f} %"


def between(interval: Sequence[float] | None) -> str:
    """An interval of shares.

    >>> between([0.5, 0.704])
    '50.0 to 70.4 %'
    """
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def number(value: float | None) -> str:
    """A figure to four significant digits; counts as they are.

    >>> number(12345), number(0.031372549), number(3.0), number(None)
    ('12,345', '0.03137', '3', '–')
    """
    if value is None:
        return "–"
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(3.21), duration(125), duration(7300)
    ('3.2 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(count: int | None) -> str:
    """Bytes in MiB or GiB.

    >>> memory(3 * 2**30), memory(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    if count is None:
        return "not measured"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def grey_levels(results: Mapping[str, Any]) -> str:
    """The radius of an l-infinity threat in levels of an 8-bit image; empty for other norms."""
    low, high = results["model"]["bounds"]
    if results["threat"]["norm"] != "linf":
        return ""
    return f"{255 * results['threat']['eps'] / (high - low):.3g} of 255 grey levels"


def measure(metric: Mapping[str, Any], value: float | None) -> str:
    """A metric of a dense task in its unit.

    >>> measure({"unit": "share"}, 0.5), measure({"unit": "dB"}, 21.37), measure({"unit": ""}, None)
    ('50.0 %', '21.37 dB', '–')
    """
    if metric["unit"] == "share" and value is not None:
        return percent(value)
    return f"{number(value)} {metric['unit'] if value is not None else ''}".rstrip()


def headline(results: Mapping[str, Any]) -> str:
    """The number that stands for all others."""
    dense = results.get("dense")
    if not dense:
        return f"robust accuracy {percent(results['robust_accuracy'])}"
    return f"{dense['metrics'][0]['name']} {measure(dense['metrics'][0], dense['metrics'][0]['robust'])}"


def verdict(results: Mapping[str, Any]) -> str:
    """The number and what it is of, in one sentence."""
    if results.get("dense"):
        figures = ", ".join(
            f"{m['name']} {measure(m, m['robust'])} (without attack {measure(m, m['clean'])})"
            for m in results["dense"]["metrics"]
        )
        return (
            f"In the worst case {figures}: {results['model']['name']} on {results['n']} images of "
            f"{results['data']['name']} under {results['threat']['text']}."
        )
    return (
        f"Robust accuracy {percent(results['robust_accuracy'])} (95 % interval {between(results['interval'])}) of "
        f"{results['model']['name']} on {results['n']} samples of {results['data']['name']} "
        f"under {results['threat']['text']}; clean accuracy {percent(results['clean_accuracy'])}."
    )


def stamps(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(kind, text) of everything that limits the number; kind is fail or warn."""
    found = []
    if results["forced"]:
        found.append(("fail", "Forced: the preflight refused this evaluation. The number may mean nothing."))
    if not results["valid"]:
        found.append(("fail", "Invalid: a check says that this number means nothing. See the diagnostics."))
    if not results["complete"]:
        found.append(("warn", f"Incomplete: {results['n']} samples are done; the same command goes on."))
    if results["limit"] and results["n"] < results["n_total"]:
        found.append(("warn", f"n = {results['n']} of {results['n_total']}: for testing, not a benchmark."))
    return found
