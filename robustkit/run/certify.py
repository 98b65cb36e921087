"""``robustkit certify`` and ``robustkit.certify``: from a model and data to certificates and a curve of accuracy."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from robustkit.core.attack import Attack
from robustkit.core.certifier import Certifier, certifier_from
from robustkit.core.errors import UsageError
from robustkit.core.files import read_json, unsynced
from robustkit.core.model import Model, wrap
from robustkit.data import as_data, open_data
from robustkit.run.certify_config import CertifyConfig
from robustkit.run.certify_falsify import attack_from, check_attack, falsify_stage
from robustkit.run.certify_gallery import gallery
from robustkit.run.certify_plan import CertifyPlan
from robustkit.run.certify_result import Certification
from robustkit.run.certify_stage import ROWS, certify_stage
from robustkit.run.certify_summary import right_at, summarise
from robustkit.run.directory import RunDirectory
from robustkit.run.engine import check_first
from robustkit.run.facts import header
from robustkit.run.options import validated
from robustkit.run.plan import label_of
from robustkit.run.progress import NoProgress, Progress, make_progress
from robustkit.run.session import recall_memory, remember_memory, times
from robustkit.zoo import load

CHECKS = ("D14", "D15", "D16")
"""What the preflight looks at: preprocessing, evaluation mode, labels. Gradients are not needed, and whether a network
answers at random the certifier itself finds out."""


def certify(
    model: Model | nn.Module | Callable[..., Any],
    data: Any,
    method: Certifier | str,
    *,
    falsify: Attack | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    force: bool = False,
    out: str | Path | None = None,
    progress: Literal["none", "plain", "rich"] = "none",
) -> Certification:
    """Show around which samples no input gets another class, and up to which distance.

    Args:
        model: wrapped, or a network that takes images in [0, 1].
        data: DataLoader, Dataset, (x, y), or anything that yields (x, y).
        method: an instance such as ``rk.DualSmoothing(sigma=0.25)``, or text such as ``"smoothing:n=10000"``.
        falsify: an attack on the certified classifier, such as ``"pgd:steps=20"``: it bounds radii from above, and
            finds certificates that are wrong.
        limit: first samples to certify.
        seed: of all random draws.
        batch_size: most samples in the network at once.
        force: go on although the preflight refuses, and say so in the results.
        out: folder of the run; the same call again continues there. Without it a temporary one is used.
        progress: what to show.

    Raises:
        UsageError: something does not fit; the message says what.
        Refused: the preflight found that the numbers would be wrong.
    """
    wrapped, built = wrap(model), certifier_from(method)
    attack = attack_from(falsify)
    options = {
        "model": f"python:{wrapped.name}",
        "data": "python:data",
        "method": built.text,
        "falsify": None if attack is None else label_of(attack),
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "force": force,
        "progress": progress,
    }
    config = validated(CertifyConfig, options, "certify")
    plan = CertifyPlan(wrapped, as_data(data, limit=limit), built, config, attack)
    folder = Path(tempfile.mkdtemp(prefix="robustkit-") if out is None else out)
    try:
        with make_progress(progress) as shown, nullcontext() if out is not None else unsynced():
            results = _journey(plan, folder, ["python"], shown, page=out is not None)
    except BaseException:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return Certification(results, folder, temporary=out is None)


def run(config: CertifyConfig, out: Path, *, command: list[str], progress: Progress | None = None) -> dict[str, Any]:
    """The command line's way in: load what the configuration names and certify it into ``out``.

    Raises:
        RobustkitError: whatever went wrong, with its exit code.
    """
    return _journey(plan_of(config), out, command, progress or NoProgress(), page=True)


def plan_of(config: CertifyConfig) -> CertifyPlan:
    """Load the model, the data and the methods that a configuration names."""
    certifier, attack = certifier_from(config.method), attack_from(config.falsify)
    model = load(
        config.model,
        weights=config.weights,
        mean=config.mean,
        std=config.std,
        bounds=config.bounds,
        task=config.task,
        device=config.device,
    )
    data = open_data(config.data, preprocessing=model.preprocessing, limit=config.limit)
    return CertifyPlan(model, data, certifier, config, attack)


def _journey(plan: CertifyPlan, folder: Path, command: list[str], progress: Progress, *, page: bool) -> dict[str, Any]:
    check_attack(plan)
    stored = read_json(folder / "preflight.json") if folder.is_dir() else None
    first = check_first(plan, stored, progress, CHECKS)
    with RunDirectory.open(folder, plan.config, header(plan.model, plan.data, command)) as directory:
        if directory.finished:
            progress.note(f"the run in {directory.path} is finished: nothing to do")
            found: dict[str, Any] = directory.read_json("results.json")
            return found
        for remark in plan.certifier.remarks(plan.outputs):
            progress.note(f"warning: {remark}")
        results = _execute(plan, directory, first, progress)
        if page:
            from robustkit.report.write import write_page

            write_page(directory.path)
        directory.write_manifest()
    return results


def _execute(plan: CertifyPlan, directory: RunDirectory, first: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Every chunk; one whose rows are on disk is not done again."""
    began = time.time()
    if directory.read_json("preflight.json") is None:
        directory.write_json("preflight.json", first)
    recall_memory(plan.model, directory)
    try:
        _chunks(plan, directory, progress)
    except UsageError:
        if not directory.rows(ROWS):  # nothing was kept: corrected options may go there
            directory.discard()
        raise
    if directory.read_json("gallery.json") is None:
        gallery(plan, directory)
    results = {**summarise(plan, directory, complete=True), "times": times(directory, began)}
    directory.write_json("results.json", results)
    return results


def _chunks(plan: CertifyPlan, directory: RunDirectory, progress: Progress) -> None:
    stages = ("certify", "falsify") if plan.attack is not None else ("certify",)
    for stage in stages:
        progress.start(stage, plan.n)
    rows = {row["id"]: row for row in directory.rows(ROWS)}
    for chunk in plan.chunks:
        rows.update({r["id"]: r for r in certify_stage(plan, directory, chunk, partial(_pulse, progress))})
        progress.advance("certify", len(chunk))
        if not plan.dense:
            held = sum(right_at(rows[i], plan.asked or 0.0) for i in range(chunk.stop)) / chunk.stop
            progress.status("certify", f"certified accuracy {100 * held:.1f} %")
        if plan.attack is not None:
            falsify_stage(plan, directory, chunk, [rows[i] for i in chunk], partial(progress.status, "falsify"))
            progress.advance("falsify", len(chunk))
        remember_memory(plan.model, directory)


def _pulse(progress: Progress, passed: int) -> None:
    progress.status("certify", f"{passed:,} noisy copies")
