"""The tables of a comparison in Markdown, from its lines, and the page that they stand on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from comparison.statistics import Difference, adjusted, bootstrap, difference
from numpy.typing import NDArray

BASE = "pgd-at"
HEAD = ("method", "clean", "PGD-20", "strong", "PGD-20 - pgd-at", "strong - pgd-at", "bootstrap", "p, Holm")
Line = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """What a paper says of its method, as this comparison can test it: ``measure`` above that of the reference."""

    text: str
    method: str
    reference: str = BASE
    measure: str = "strong"


CLAIMS = (
    Claim("Smoothed labels make adversarial training more robust", "pgd-at:label_smoothing=0.1"),
    Claim("FGSM-RS: one step trains as robust a network for less, and so a better one at the same price", "fgsm-rs"),
    Claim("Free: the same, with replayed batches", "free"),
    Claim("TRADES is more robust than PGD-AT", "trades"),
    Claim("MART is more robust than PGD-AT", "mart"),
    Claim("AWP makes PGD-AT more robust", "awp+pgd-at"),
    Claim("AWP makes TRADES more robust", "awp+trades", "trades"),
    Claim("RAT (a reconstruction) is more robust than PGD-AT", "rat"),
    Claim("RAT's smoothing by distance makes it more robust", "rat", "rat:smoothing=0"),
    Claim("AMP generalises better than ordinary training", "amp", "erm", "clean"),
    Claim(
        "Concurrent training (made for large batches, which these are not) generalises better than ordinary training",
        "concurrent",
        "erm",
        "clean",
    ),
)


def by_seed(lines: Iterable[Line], method: str, measure: str) -> dict[int, float]:
    """A figure of a method by seed."""
    return {line["seed"]: float(line[measure]) for line in lines if line["method"] == method}


def compare(lines: Sequence[Line], method: str, reference: str, measure: str) -> Difference | None:
    """The paired difference, over the seeds that both have; None where there are none."""
    ours, theirs = by_seed(lines, method, measure), by_seed(lines, reference, measure)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    found = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    if measure != "strong" or len(seeds) < 2:
        return found
    return replace(found, bootstrap=bootstrap(standing(lines, method, seeds) - standing(lines, reference, seeds)))


def standing(lines: Iterable[Line], method: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """(seeds, points): 1 where the network stands against everything."""
    rows = {line["seed"]: line["standing"] for line in lines if line["method"] == method}
    return np.array([[float(mark) for mark in rows[seed]] for seed in seeds])


def methods(lines: Iterable[Line]) -> list[str]:
    """As they stand in the lines, each once."""
    return list(dict.fromkeys(line["method"] for line in lines))


def percent(values: Iterable[float]) -> str:
    """Mean and standard deviation in percent: ``65.1 ± 0.6``."""
    found = 100 * np.array(list(values))
    return f"{found.mean():.1f}" + (f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else "")


def points(found: Difference) -> str:
    """A difference in points with its interval."""
    if np.isnan(found.low):
        return f"{100 * found.mean:+.1f}"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def p_text(p: float | None) -> str:
    """A p value as tables have it."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def words(found: Difference) -> str:
    """The verdict, with what must be said beside it."""
    if found.verdict == "refuted":
        return "refuted at 1 point" + (", and below" if found.high < 0 else "")
    if found.verdict == "beats":
        return "**beats**" + ("" if found.holm is not None and found.holm < 0.05 else ", not after Holm")
    return "not shown"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def table(lines: Sequence[Line]) -> str:
    """Every method: accuracies, and its robust accuracy against that of PGD-AT."""
    others = [name for name in methods(lines) if name != BASE]
    found = {name: compare(lines, name, BASE, "strong") for name in others}
    tested = {name: d for name, d in found.items() if d is not None}
    gaps = dict(zip(tested, adjusted(list(tested.values())), strict=True))
    rows = []
    for name in methods(lines):
        accuracies = [percent(by_seed(lines, name, measure).values()) for measure in ("clean", "pgd20", "strong")]
        weak, gap = compare(lines, name, BASE, "pgd20"), gaps.get(name)
        compared = ["-"] * 4
        if gap is not None and weak is not None:
            both = gap.bootstrap
            drawn = "-" if both is None else f"[{100 * both[0]:+.1f}, {100 * both[1]:+.1f}]"
            compared = [points(weak), points(gap), drawn, p_text(gap.holm)]
        rows.append([f"`{name}`", *accuracies, *compared])
    return markdown(HEAD, rows)


def claims(lines: Sequence[Line]) -> str:
    """What the papers say, and what is found."""
    pairs = [(claim, compare(lines, claim.method, claim.reference, claim.measure)) for claim in CLAIMS]
    known = [(claim, found) for claim, found in pairs if found is not None]
    rows = []
    for (claim, _), found in zip(known, adjusted([found for _, found in known]), strict=True):
        measured = f"{claim.measure}: `{claim.method}` minus `{claim.reference}`"
        rows.append([claim.text, measured, points(found), p_text(found.holm), words(found)])
    return markdown(["claim", "measured", "difference", "p, Holm", "verdict"], rows)


def notes(lines: Sequence[Line]) -> list[str]:
    """What must be known beside the tables."""
    found = []
    for name in methods(lines):
        weak, strong = compare(lines, name, BASE, "pgd20"), compare(lines, name, BASE, "strong")
        if name != BASE and weak and strong and weak.low > 0 and not strong.low > 0:
            found.append(f"`{name}`: PGD-20 places it above pgd-at, the strong attack does not.")
    checked = [line for line in lines if "square" in line]
    if checked:
        square, wide = (max(checked, key=lambda line: line[name]) for name in ("square", "unbounded"))
        found.append(
            f"Signs of masked gradients, looked for with seed 0: Square breaks at most {square['square']:.1%} of the "
            f"points beyond what gradients broke (`{square['method']}`), and at eps 1 at most {wide['unbounded']:.1%} "
            "stand."
        )
    return found


def summary(lines: Sequence[Line]) -> str:
    """How many claims hold."""
    verdicts = [found.verdict for c in CLAIMS if (found := compare(lines, c.method, c.reference, c.measure))]
    beats, shown, refuted = (verdicts.count(name) for name in ("beats", "not shown", "refuted"))
    return f"Of {len(verdicts)} claims {beats} hold, {shown} are not shown, and {refuted} are refuted at 1 point."


def page(lines: Sequence[Line], eps: float, arguments: str) -> str:
    """The part of the page on one data set."""
    first = lines[0]
    seconds = {name: np.mean([*by_seed(lines, name, "seconds").values()]) for name in methods(lines)}
    low, high = min(seconds, key=lambda n: seconds[n]), max(seconds, key=lambda n: seconds[n])
    conditions = (
        f"l-infinity {eps:g}, {first['points']:,} test points, {len({line['seed'] for line in lines})} seeds, "
        f"{first['budget']:,.0f} example-gradients a training: `python examples/compare_defenses.py {arguments}`. "
        f"A training took {seconds[low]:.0f} s (`{low}`) to {seconds[high]:.0f} s (`{high}`) of one core."
    )
    listed = "\n".join(f"- {note}" for note in notes(lines))
    return "\n\n".join([conditions, summary(lines), claims(lines), table(lines), listed])


def write(path: Path, data: str, text: str, lines: Sequence[Line]) -> None:
    """Put the text between the marks of these data, and the raw figures beside the page.

    Raises:
        SystemExit: the page has no such marks.
    """
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {data} -->\n).*(\n<!-- end {data} -->)", re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{path} has no part for {data}: <!-- {data} --> to <!-- end {data} -->")
    path.write_text(pattern.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", old), encoding="utf-8")
    raw = [{**line, "standing": f"{int('1' + line['standing'], 2):x}"} for line in lines]
    body = ",\n".join(json.dumps(line) for line in raw)
    path.with_name(f"{path.stem}-{data}.json").write_text(f"[\n{body}\n]\n", encoding="utf-8")
