"""The page of an explanation: pictures in rows, methods in columns, and controls that work without any server."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robustkit.core import heat
from robustkit.report import plots
from robustkit.report.explain_maps import SMALL, cell, jpeg, photo, read_arrays
from robustkit.report.files import RunFiles
from robustkit.report.templates import command_lines, environment, source, style

PAGE_BYTES = 16_000_000
"""All pictures and maps of the page together; at least one row of pictures is always shown."""
MEASURES = {
    "insertion_mean": ("insertion, mean colour", "higher is better", 1),
    "insertion_blur": ("insertion, blur", "higher is better", 1),
    "deletion_mean": ("deletion, mean colour", "lower is better", -1),
    "deletion_blur": ("deletion, blur", "lower is better", -1),
    "max_sensitivity": ("max-sensitivity", "lower is steadier", 0),
    "randomisation": ("randomisation", "near 0 is good", 0),
}
"""Key -> name, what is good, and the sign under which more is better; 0 where a control is good by construction."""
Row = dict[str, Any]


def render(folder: str | Path) -> str:
    """The whole page of a run of ``robustkit explain``.

    Raises:
        UsageError: the folder holds no such run, or its files are damaged.
        Incomplete: the run has no results yet.
    """
    run = opened(folder)
    groups, left = _groups(run)
    return environment().get_template("explain.html.j2").render(_context(run, groups, left))


def fragment(folder: str | Path, most: int = 4) -> str:
    """The first pictures with their overlays, without any script, for notebooks.

    Raises:
        UsageError, Incomplete: as :func:`render`.
    """
    run = opened(folder)
    rows = [_row(run, image) for image in run.results["images"][:most]]
    left = len(run.results["images"]) - len(rows)
    return environment().get_template("explain_fragment.html.j2").render(r=run.results, rows=rows, left=left)


def opened(folder: str | Path) -> RunFiles:
    """The run in a folder, once its results have the shape that the page relies on.

    Raises:
        UsageError: the folder holds no explanation, or its files are damaged.
        Incomplete: the run has no results yet.
    """
    return RunFiles.open(folder).of("explanation", load_schema(), "robustkit explain")


@lru_cache(maxsize=1)
def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json`` of an explanation."""
    found: dict[str, Any] = json.loads(files("robustkit.report").joinpath("explain.schema.json").read_text("utf-8"))
    return found


def _context(run: RunFiles, groups: list[Row], left: int) -> Row:
    r, script = run.results, source("explain.js")
    cells = [found for group in groups for row in group["rows"] for found in row["cells"]]
    judged = (r["evaluation"] or {}).get("rows") or []
    columns = _columns(judged)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return {
        "r": r,
        "run": run.run,
        "groups": groups,
        "left": left,
        "limit": PAGE_BYTES // 1_000_000,
        "target": _target(r),
        "count": _count(r),
        "signed": any(found["plus"] for found in cells),
        "sure": any(found["sure"] for found in cells),
        "edges": any(found["edges"] for found in cells),
        "residual": any(found["residual"] is not None for found in cells),
        "several": len(r["images"]) > 1,
        "columns": columns,
        "judged": _judged(judged, columns),
        "texts": _texts((r["evaluation"] or {}).get("texts")),
        "cascade": _cascade(r["evaluation"] or {}),
        "command": command_lines(run.run.get("command") or []),
        "config": run.config_text,
        "css": style(),
        "own_css": source("explain.css"),
        "script": script,
        "script_hash": Markup(f"'sha256-{digest}'"),
        "tables": {"heat": _table(heat.MAGNITUDE), "signed": _table(heat.SIGNED)},
        "ramps": {"heat": _ramp(heat.MAGNITUDE), "signed": _ramp(heat.SIGNED)},
    }


def _groups(run: RunFiles) -> tuple[list[Row], int]:
    """Pictures by id, the variants of one below each other, as many as fit; and how many are left out."""
    images: dict[int, list[Row]] = {}
    for image in run.results["images"]:
        images.setdefault(image["id"], []).append(image)
    groups, size = list[Row](), 0
    for key, variants in images.items():
        rows = [_row(run, image) for image in variants]
        size += sum(len(row["photo"]) + sum(len(c["map"]) + len(c["static"]) for c in row["cells"]) for row in rows)
        if groups and size > PAGE_BYTES:
            break
        judged = [line for image in variants for line in _lines(run, image)]
        columns = _columns(judged)
        name = variants[0]["name"] or f"picture {key}"
        beside = _judged(judged, columns) if any(line["control"] for line in judged) else []
        groups.append({"id": key, "name": name, "rows": rows, "judged": beside, "columns": columns})
    return groups, len(images) - len(groups)


def _row(run: RunFiles, image: Row) -> Row:
    """A picture with its maps."""
    methods, (whole, seen) = run.results["methods"], photo(run.path, image)
    cells = []
    for found in image["maps"]:
        method = methods[found["method"]]
        drawn = cell(read_arrays(run.path, found["file"]), method, seen)
        judged = _figures(found["evaluation"])
        cells.append({**found, **drawn, "label": method["label"], "figures": judged})
    return {
        **image,
        "name": image["name"] or f"picture {image['id']}",
        "photo": Markup(jpeg(whole)),  # a data URI: base64 alone
        "cells": cells,
        "small": max(whole.size) <= SMALL,
        **_places(image),
    }


def _places(image: Row) -> Row:
    """Styles that cut the seen box out of the whole picture, and frame it there."""
    width, height, (left, top, right, bottom) = image["width"], image["height"], image["box"]
    x, y = (100 * a / b if b > 0 else 0 for a, b in ((left, width - right + left), (top, height - bottom + top)))
    box = (100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height)
    framed = [left, top, right, bottom] != [0, 0, width, height]
    return {
        "at": f"{x:.4g}% {y:.4g}%",
        "zoom": f"{100 * width / (right - left):.5g}% {100 * height / (bottom - top):.5g}%",
        "ratio": f"{right - left:.6g}/{bottom - top:.6g}",
        "frame": "left:{:.4g}%;top:{:.4g}%;width:{:.4g}%;height:{:.4g}%".format(*box) if framed else "",
    }


def _target(r: Row) -> str:
    wanted = str(r["target"])
    words = {
        "predicted": "the class that it predicts",
        "label": "the labelled class",
        "clean": "the class that it predicts on the clean input",
        "given": "a class given for each input",
    }
    return words.get(wanted, f"class {wanted}")


def _count(r: Row) -> str:
    """How many pictures, and of which data where they have a name of their own."""
    many, name = len({image["id"] for image in r["images"]}), r["data"]["name"]
    return (f"{many} pictures" if many != 1 else "one picture") + (f" of {name}" if name != "pictures" else "")


def _lines(run: RunFiles, image: Row) -> Iterator[Row]:
    """The figures of one picture's maps and controls."""
    of = f", {image['variant']}" if image["variant"] else ""
    for found in image["maps"]:
        if found["evaluation"]:
            name = run.results["methods"][found["method"]]["label"] + of
            yield {"name": name, "control": False, **flat(found["evaluation"])}
    for control in image["controls"] or []:
        yield {"name": control["name"] + of, "control": True, **flat(control["evaluation"])}


def flat(evaluation: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The evaluation of a map under the keys of :data:`MEASURES`, in their order.

    >>> flat({"randomisation": {"last": 0.02}, "insertion": {"blur": 0.25, "mean": 0.5}})
    {'insertion_mean': 0.5, 'insertion_blur': 0.25, 'randomisation': 0.02}
    """
    found: dict[str, float | None] = {}
    for key, value in (evaluation or {}).items():
        if key == "randomisation":
            found[key] = (value or {}).get("last")
        elif isinstance(value, Mapping):
            found |= {f"{key}_{on}": area for on, area in value.items()}
        else:
            found[key] = value
    return {key: found[key] for key in MEASURES if key in found}


def _figures(evaluation: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Name, figures and what they stand for, for the lines under a map.

    >>> _figures({"max_sensitivity": 0.125, "insertion": {"blur": 0.25, "mean": 0.5}})
    [('insertion', '0.5 / 0.25', 'mean colour / blur'), ('max-sensitivity', '0.125', '')]
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for key, value in flat(evaluation).items():
        name, _, on = MEASURES[key][0].partition(", ")
        found.setdefault(name, []).append((_short(value), on))
    lines = []
    for name, values in found.items():
        figures, stand_for = zip(*values, strict=True)
        lines.append((name, " / ".join(figures), " / ".join(stand_for)))
    return lines


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _columns(lines: Sequence[Row]) -> list[Row]:
    """The measures that any line has."""
    return [
        {"key": key, "name": name, "better": better, "good": good}
        for key, (name, good, better) in MEASURES.items()
        if any(line.get(key) is not None for line in lines)
    ]


def _judged(lines: Sequence[Row], columns: Sequence[Row]) -> list[Row]:
    """Lines with a cell for each column; weak is what is no better than the best control."""
    best: dict[str, float] = {}
    for column in columns:
        of = [column["better"] * line[column["key"]] for line in lines if line["control"] and _has(line, column)]
        if of and column["better"]:
            best[column["key"]] = max(of)
    return [{**line, "cells": [_judge(line, column, best) for column in columns]} for line in lines]


def _judge(line: Row, column: Row, best: Mapping[str, float]) -> Row:
    key = column["key"]
    weak = key in best and not line["control"] and _has(line, column) and column["better"] * line[key] <= best[key]
    return {"value": _short(line.get(key)), "weak": weak}


def _has(line: Row, column: Row) -> bool:
    return line.get(column["key"]) is not None


def _texts(texts: Any) -> list[str]:
    """How to read the figures: one text, several, or several by name."""
    if isinstance(texts, Mapping):
        return [f"{MEASURES.get(str(key), (key,))[0]}: {value}" for key, value in texts.items()]
    return [texts] if isinstance(texts, str) else list(texts or [])


def _cascade(judgement: Mapping[str, Any]) -> Markup | None:
    """The curves of the methods; those of controls are level by construction."""
    controls = {line["name"] for line in judgement.get("rows") or [] if line["control"]}
    lines = {name: values for name, values in (judgement.get("cascade") or {}).items() if name not in controls}
    return Markup(plots.cascade(lines)) if lines else None  # matplotlib escapes the labels


def _table(name: str) -> str:
    """The 256 colours of a map, in base64."""
    return base64.b64encode(heat.colours(name).tobytes()).decode("ascii")


def _ramp(name: str) -> Markup:
    """A map of colours as a gradient of the style sheet."""
    stops = heat.colours(name)[:: 255 // 15]
    return Markup("linear-gradient(90deg," + ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in stops.tolist()) + ")")
