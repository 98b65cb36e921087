"""Every saliency method against planted signals: ``python -m benchmarks.ground_truth [--images 16] [--write]``.

Prints the tables of docs/explain/ground-truth.md; with ``--write`` it puts them there.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from rich.console import Console

from robustkit.explain.metrics.truth import SCORES
from robustkit.explain.moreaugrad import MoreauGrad
from robustkit.planted import Row, ground_truth, markdown, registered

PAGE = Path(__file__).parents[1] / "docs" / "explain" / "ground-truth.md"
TITLES = {**SCORES, "decoy": "share of the map's sum that lies on the decoy"}
console = Console(soft_wrap=True)


def measure(images: int) -> list[Row]:
    """Scores of every registered method, and of the two sparse forms of MoreauGrad."""
    sparse = {f"moreaugrad:penalty={name}": MoreauGrad(penalty=name, group_size=4) for name in ("l1", "group")}
    return ground_truth({**registered(), **sparse}, n=images)


def tables(rows: list[Row]) -> str:
    """One table for each score, in Markdown."""
    parts = [f"{title[0].upper()}{title[1:]}:\n\n{markdown(rows, name)}" for name, title in TITLES.items()]
    failed = [f"- `{row.method}`, {row.scenario}: {row.why}" for row in rows if row.why]
    return "\n\n".join([*parts, *(["No map:\n\n" + "\n".join(failed)] if failed else [])])


def write(text: str, page: Path = PAGE) -> None:
    """Put the tables between the two marks of the page."""
    old = page.read_text(encoding="utf-8")
    new = re.sub(
        r"(<!-- tables -->\n).*(\n<!-- end -->)", lambda found: f"{found[1]}\n{text}\n{found[2]}", old, flags=re.S
    )
    page.write_text(new, encoding="utf-8")


def main() -> None:
    """Measure, print, and with --write put into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="images of each scenario")
    parser.add_argument("--write", action="store_true", help="replace the tables of the page")
    given = parser.parse_args()
    start = time.perf_counter()
    text = tables(measure(given.images))
    console.print(text, markup=False, highlight=False)
    console.print(f"{time.perf_counter() - start:.0f} s")
    if given.write:
        write(text)


if __name__ == "__main__":
    main()
