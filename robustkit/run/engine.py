"""The loop of an evaluation: preflight, every chunk through every attack, diagnostics, results.

Each step writes what it found before the next begins, and a step whose result is on disk is not done again: going on
after a kill is the same code as running through. ``results.json`` is a function of those files alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from torch import Tensor

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import Refused
from robustkit.core.model import Model
from robustkit.core.threat import Threat
from robustkit.run.curve import curve_stage
from robustkit.run.diagnostics import diagnose
from robustkit.run.directory import RunDirectory
from robustkit.run.evidence import gather
from robustkit.run.gallery import gallery
from robustkit.run.plan import Plan
from robustkit.run.preflight import preflight
from robustkit.run.progress import Progress
from robustkit.run.session import recall_memory, remember_memory, timed, times
from robustkit.run.stages import CLEAN, attack_stage, clean_stage, samples_file
from robustkit.run.summary import robust_share, summarise

FORCE = "--force"
"""How the message of a refusal says what goes on all the same."""


class Checked(Protocol):
    """What the preflight reads of a plan."""

    @property
    def model(self) -> Model: ...

    @property
    def threat(self) -> Threat: ...

    @property
    def config(self) -> Any: ...

    def inputs(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]: ...

    def probe_ids(self) -> list[int]: ...


def check_first(
    plan: Checked, stored: Any, progress: Progress, only: Collection[str] | None = None
) -> dict[str, Any]:
    """The preflight, or what an earlier process found; of ``only`` these checks.

    Raises:
        Refused: the number would be wrong, and ``force`` is not set.
    """
    if stored is not None:
        found: dict[str, Any] = stored
    else:
        progress.start("preflight", 1)
        x, y = plan.inputs(plan.probe_ids())
        with plan.model.metered() as cost:
            rows = preflight(plan.model, x, y, threat=plan.threat, seed=plan.config.seed)
        rows = [row for row in rows if only is None or row.id in only]
        found = {"rows": [row.to_json() for row in rows], "cost": asdict(cost)}
        progress.advance("preflight", 1)
    rows = [Diagnostic(**row) for row in found["rows"]]
    for row in rows:
        if row.status == "WARN":
            progress.note(f"{row.id} {row.title}: {row.message}")
    fatal = [row for row in rows if row.fatal]
    if fatal and not plan.config.force:
        raise Refused(
            "; ".join(f"{row.id} {row.title}: {row.message.rstrip('.')}" for row in fatal),
            fix=" ".join(dict.fromkeys(row.remedy for row in fatal if row.remedy))
            + f" ({FORCE} goes on and stamps the report.)",
        )
    return found


def execute(plan: Plan, run: RunDirectory, first: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Everything after the preflight; returns the results, which are also in ``results.json``."""
    began = time.time()
    if run.read_json("preflight.json") is None:
        run.write_json("preflight.json", first)
    recall_memory(plan.model, run)
    complete = _chunks(plan, run, progress, _deadline(plan))
    if complete:
        _diagnostics(plan, run, first, progress)
    results = summarise(plan, run, complete=complete)
    results["times"] = times(run, began)
    run.write_json("results.json", results)
    return results


def _chunks(plan: Plan, run: RunDirectory, progress: Progress, late: Callable[[], bool]) -> bool:
    """Every chunk through every stage; False when time ran out first."""
    clean = {row["id"]: row for row in run.rows(CLEAN)}
    broken = [
        {row["id"] for row in run.rows(samples_file(plan, k)) if row["success"]} for k in range(len(plan.stages))
    ]
    for stage in ("clean", *plan.labels):
        progress.start(stage, plan.n)
    for chunk in plan.chunks():
        if late():
            return False
        clean.update({row["id"]: row for row in clean_stage(plan, run, chunk)})
        progress.advance("clean", len(chunk))
        for k, label in enumerate(plan.labels):
            if late():
                return False
            before = set().union(*(broken[j] for j in plan.stages[k].after))
            rows = attack_stage(plan, run, k, chunk, clean, before)
            broken[k] |= {row["id"] for row in rows if row["success"]}
            progress.advance(label, len(chunk), robust_share(clean, set().union(*broken), chunk.stop))
        remember_memory(plan.model, run)
    return True


def _diagnostics(plan: Plan, run: RunDirectory, first: dict[str, Any], progress: Progress) -> None:
    """What the attacks have left to say: tests of the number itself, the curve, pictures."""
    if plan.config.curve:
        with timed(run, "curve"):
            curve_stage(plan, run, progress)
    if run.read_json("diagnostics.json") is None:
        progress.start("diagnostics", 1)
        with timed(run, "diagnostics"), plan.model.metered() as cost:
            rows = diagnose(gather(plan, run))
        run.write_json("diagnostics.json", {"rows": [row.to_json() for row in rows], "cost": asdict(cost)})
        progress.advance("diagnostics", 1)
    if run.read_json("gallery.json") is None:
        gallery(plan, run)


def _deadline(plan: Plan) -> Callable[[], bool]:
    minutes = plan.config.max_minutes
    end = None if minutes is None else time.monotonic() + 60 * minutes
    return lambda: end is not None and time.monotonic() >= end
