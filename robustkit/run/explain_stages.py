"""One chunk of images through one stage of an explanation: computed whole, written whole, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from robustkit.core import heat
from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS
from robustkit.core.files import replace_file
from robustkit.core.registry import options_of
from robustkit.core.target import target_of
from robustkit.core.task import Classification, DenseClassification
from robustkit.explain.metrics.judge import evaluate_maps
from robustkit.explain.metrics.similarity import similarity
from robustkit.run.directory import RunDirectory
from robustkit.run.explain_maps import map_bytes, read_maps, read_values
from robustkit.run.explain_pictures import draw, keep_picture
from robustkit.run.explain_plan import ExplainPlan
from robustkit.run.session import timed

IMAGES, JUDGED = "samples-images", "samples-evaluation"
TOP = 5
NOTHING = "zero everywhere"

Row = dict[str, Any]


def image_stage(plan: ExplainPlan, run: RunDirectory, chunk: range, before: dict[int, Row]) -> list[Row]:
    """What the network says of the inputs as they are, and what is to be explained; returns the rows computed now.

    Args:
        before: rows of earlier chunks, for pairs that are cut between two.
    """
    if run.chunk_done(IMAGES, chunk):
        return []
    with timed(run, "images", start=chunk.start, n=len(chunk)):
        x = plan.subjects.inputs(chunk)
        with plan.model.frozen(plan.config.seed), torch.no_grad():
            plan.model.output_shape(x)
            outputs = plan.model(x)
            classes = _classes(plan, chunk, outputs, before)
            target, value = target_of(plan.model, x, classes, plan.output, _mask(plan, chunk, classes))
        pictures = [
            keep_picture(run, f"images/{plan.subjects.items[place].key}.png", plan.subjects.shown(place, one))
            for place, one in zip(chunk, x, strict=True)
        ]
        labels: Sequence[int | None] = plan.subjects.labels(chunk) or [None] * len(chunk)
        chosen, values, tops = target.classes.tolist(), value.tolist(), _tops(plan, outputs)
        rows = [
            {
                "id": place,
                "sample": plan.subjects.items[place].sample,
                "variant": plan.subjects.items[place].variant,
                "name": plan.subjects.items[place].name,
                **picture,
                "label": label,
                "label_name": None if label is None else plan.class_name(label),
                "target": c,
                "target_name": plan.class_name(c),
                "value": amount,
                "top": top,
            }
            for place, picture, label, c, amount, top in zip(chunk, pictures, labels, chosen, values, tops, strict=True)
        ]
        run.append_rows(IMAGES, rows)
    return rows


def map_stage(
    plan: ExplainPlan,
    run: RunDirectory,
    k: int,
    chunk: range,
    images: dict[int, Row],
    tell: Callable[[int], None] | None = None,
) -> None:
    """The maps of one method: arrays and pictures first, then their rows."""
    if run.chunk_done(plan.rows_file(k), chunk):
        return
    with timed(run, plan.labels[k], start=chunk.start, n=len(chunk)):
        found = explained(plan, k, chunk, images, tell)
        files = [plan.map_file(place, k) for place in chunk]
        for i, file in enumerate(files):
            replace_file(run.file(file), map_bytes(found, i))
        pixels = found.pixel_map() if found.x.ndim == 4 else None
        drawn = _drawn(plan, run, found, pixels, files, [images[place] for place in chunk])
        alike = [_similar(plan, run, found, k, place, pixels, i) for i, place in enumerate(chunk)]
        figures = _figures(found, pixels)
        rows = [
            {"id": place, "file": file, **pictures, **numbers, "similarity": similar}
            for place, file, pictures, numbers, similar in zip(chunk, files, drawn, figures, alike, strict=True)
        ]
        rows[0] |= {"signed": found.signed, "cost": asdict(found.cost)}  # of the whole chunk
        run.append_rows(plan.rows_file(k), rows)


def explained(
    plan: ExplainPlan,
    k: int,
    chunk: range,
    images: dict[int, Row],
    tell: Callable[[int], None] | None = None,
) -> Attribution:
    """The maps of a chunk by method ``k``."""
    classes = torch.tensor([images[place]["target"] for place in chunk], device=plan.model.device)
    return plan.methods[k](
        plan.model,
        plan.subjects.inputs(chunk),
        classes,
        mask=_mask(plan, chunk, classes),
        ids=torch.tensor([plan.subjects.items[place].sample for place in chunk]),
        seed=plan.config.seed,
        batch=plan.points,
        progress=tell,
    )


def judge_stage(plan: ExplainPlan, run: RunDirectory, chunk: range, tell: Callable[[str, int, int], None]) -> None:
    """Measure the maps of a chunk, all methods together, and the controls beside them."""
    if run.chunk_done(JUDGED, chunk):
        return
    with timed(run, "evaluation", start=chunk.start, n=len(chunk)):
        x = plan.subjects.inputs(chunk)
        found = evaluate_maps(
            plan.model,
            x,
            dict(zip(plan.labels, plan.methods, strict=True)),
            {label: stored_maps(plan, run, k, chunk) for k, label in enumerate(plan.labels)},
            ids=torch.tensor([plan.subjects.items[place].sample for place in chunk]),
            seed=plan.config.seed,
            batch=plan.points,
            progress=tell,
        )
        rows: list[Row] = [
            {
                "id": place,
                "maps": [found.maps[label][i] for label in plan.labels],
                "controls": {name: evaluations[i] for name, evaluations in found.controls.items()},
                "notes": list(found.notes),
                "cost": asdict(found.cost) if i == 0 else None,  # of the chunk
            }
            for i, place in enumerate(chunk)
        ]
        run.append_rows(JUDGED, rows)


def stored_maps(plan: ExplainPlan, run: RunDirectory, k: int, chunk: range) -> Attribution:
    """The maps of a chunk by method ``k``, from their files."""
    rows = {row["id"]: row for row in run.rows(plan.rows_file(k))}
    return read_maps(
        [run.file(rows[place]["file"]) for place in chunk],
        device=plan.model.device,
        method=EXPLAINERS.entry_of(plan.methods[k]).name,
        settings=options_of(plan.methods[k]),
        output=output_name(plan),
        signed=rows[chunk[0]]["signed"],
        notes=tuple(rows[chunk[0]]["notes"]),
        bounds=plan.model.bounds,
        class_names=plan.class_names,
    )


def output_name(plan: ExplainPlan) -> str:
    """What is made of the outputs, in a word."""
    return plan.output if isinstance(plan.output, str) else "function"


# -- what is explained


def _classes(plan: ExplainPlan, chunk: range, outputs: Tensor, before: dict[int, Row]) -> Tensor | Literal["predicted"]:
    """A class for each item, or "predicted"."""
    if isinstance(plan.wanted, Tensor):
        classes = plan.wanted[chunk.start : chunk.stop].to(plan.model.device)
    elif plan.wanted == "label":
        classes = torch.tensor(plan.subjects.labels(chunk), device=plan.model.device)
        _check_labels(plan, chunk, classes, outputs)
    elif plan.wanted == "clean":
        classes = _predicted(plan, outputs)
        for i, place in enumerate(chunk):
            if plan.subjects.items[place].variant == "adversarial":
                classes[i] = classes[i - 1] if i else before[place - 1]["target"]
        return classes
    else:
        return "predicted"
    if isinstance(plan.model.task, DenseClassification) and plan.mask is None:
        _check_given(plan, chunk, classes, outputs)
    return classes


def _predicted(plan: ExplainPlan, outputs: Tensor) -> Tensor:
    """The class of each input; of dense outputs that of most pixels."""
    if outputs.ndim == 2:
        return outputs.argmax(1)
    top = outputs.flatten(2).argmax(1)
    return torch.stack([row.bincount(minlength=outputs.shape[1]).argmax() for row in top])


def _mask(plan: ExplainPlan, chunk: range, classes: Tensor | str) -> Tensor | None:
    """The pixels of dense outputs that are added up: given, or those of the clean input for both of a pair."""
    if plan.mask is not None:
        mask = plan.mask.to(plan.model.device)
        return mask if mask.ndim == 2 else mask[chunk.start : chunk.stop]
    if isinstance(classes, str) or plan.wanted != "clean" or not isinstance(plan.model.task, DenseClassification):
        return None
    clean = [p - 1 if plan.subjects.items[p].variant == "adversarial" else p for p in chunk]
    with plan.model.frozen(plan.config.seed), torch.no_grad():
        return plan.model(plan.subjects.inputs(clean)).argmax(1) == classes[:, None, None]


def _check_labels(plan: ExplainPlan, chunk: range, classes: Tensor, outputs: Tensor) -> None:
    wrong = ((classes < 0) | (classes >= outputs.shape[1])).nonzero()[:, 0].tolist()
    if wrong:
        raise UsageError(
            "a label is no class of the network",
            expected=f"0 .. {outputs.shape[1] - 1}",
            got=f"{int(classes[wrong[0]])} of {plan.subjects.items[chunk[wrong[0]]].name}",
            where="target label",
            fix="Check the class map of the data set.",
        )


def _check_given(plan: ExplainPlan, chunk: range, classes: Tensor, outputs: Tensor) -> None:
    given = (outputs.argmax(1) == classes[:, None, None]).flatten(1).any(1)
    without = (~given).nonzero()[:, 0].tolist()
    if without:
        raise UsageError(
            "the network gives no pixel the target class",
            got=f"class {plan.class_name(int(classes[without[0]]))} in {plan.subjects.items[chunk[without[0]]].name}",
            where="target",
            fix="Leave the image out, or take another class; predicted is the one of most pixels.",
        )


def _tops(plan: ExplainPlan, outputs: Tensor) -> list[list[Row]]:
    """The likeliest classes of each input of a classifier."""
    if not isinstance(plan.model.task, Classification) or outputs.ndim != 2:
        return [[] for _ in outputs]
    top = outputs.double().softmax(1).topk(min(TOP, outputs.shape[1]), dim=1)
    return [
        [{"class": c, "name": plan.class_name(c), "p": p} for c, p in zip(classes, shares, strict=True)]
        for classes, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


# -- what is recorded of a map


def _drawn(
    plan: ExplainPlan,
    run: RunDirectory,
    found: Attribution,
    pixels: Tensor | None,
    files: Sequence[str],
    images: Sequence[Row],
) -> list[dict[str, str | None]]:
    """The pictures of each map; none of inputs that are no images."""
    if pixels is None:
        return [{"heat": None, "overlay": None} for _ in files]
    wanted = plan.config.significant and found.standard_error is not None
    keep = found.significant() if wanted else [None] * len(files)
    return [
        draw(run, file, one, image, keep=kept, regions=found.regions)
        for file, one, image, kept in zip(files, pixels, images, keep, strict=True)
    ]


def _figures(found: Attribution, pixels: Tensor | None) -> list[Row]:
    """Ends of each map, how far it can be trusted, and what its reader must know."""
    values = (found.values if pixels is None else pixels).flatten(1)
    columns = {
        "min": values.amin(1),
        "max": values.amax(1),
        "residual": found.residual,
        "relative_residual": found.relative_residual,
        "relative_error": found.relative_error,
        "fixed_point_residual": found.extras.get("fixed_point_residual"),
    }
    numbers = {name: [None] * len(found) if v is None else v.tolist() for name, v in columns.items()}
    rows: list[Row] = [{name: _finite(numbers[name][i]) for name in columns} for i in range(len(found))]
    for i, (row, nothing) in enumerate(zip(rows, found.values.flatten(1).eq(0).all(1).tolist(), strict=True)):
        row["notes"] = found.notes_of(i)
        if nothing and not any(NOTHING in note for note in row["notes"]):
            row["notes"].append(f"the map is {NOTHING}: to this method nothing in the input matters")
    return rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _similar(
    plan: ExplainPlan, run: RunDirectory, found: Attribution, k: int, place: int, pixels: Tensor | None, i: int
) -> dict[str, float] | None:
    """How alike the map of an adversarial input and that of its clean one are."""
    if pixels is None or plan.subjects.items[place].variant != "adversarial":
        return None
    values = read_values(run.file(plan.map_file(place - 1, k)))[None].to(pixels)
    rated = found.regions or found.values.shape != found.x.shape
    return {name: float(v) for name, v in similarity(heat.pixel_map(values, rated), pixels[i : i + 1]).items()}
