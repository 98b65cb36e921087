"""``robustkit explain`` and ``robustkit.explain``: from a model and images to maps, and what the maps are worth."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.explainer import Explainer
from robustkit.core.files import unsynced
from robustkit.core.model import Model, wrap
from robustkit.core.target import Output
from robustkit.data import as_data, open_data
from robustkit.run.config import load_config
from robustkit.run.directory import RunDirectory
from robustkit.run.explain_config import METHODS, ExplainConfig
from robustkit.run.explain_plan import ExplainPlan, build_methods, label_of, target_from
from robustkit.run.explain_result import Explanations
from robustkit.run.explain_stages import IMAGES, image_stage, judge_stage, map_stage
from robustkit.run.explain_subjects import Inputs, Pairs, Pictures, Samples, Subjects
from robustkit.run.explain_summary import summarise
from robustkit.run.facts import header, state_hash
from robustkit.run.folder import read_results
from robustkit.run.lock import RunLock
from robustkit.run.options import validated
from robustkit.run.progress import NoProgress, Progress, make_progress
from robustkit.run.session import recall_memory, remember_memory, times
from robustkit.zoo import load


def explain(
    model: Model | nn.Module | Callable[..., Any],
    data: Any,
    methods: Sequence[Explainer | str] | str = METHODS,
    *,
    target: Tensor | int | str = "predicted",
    output: Output | None = None,
    mask: Tensor | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    evaluate: bool = False,
    significant: bool = False,
    out: str | Path | None = None,
    progress: Literal["none", "plain", "rich"] = "none",
) -> Explanations:
    """Explain inputs by one or several methods.

    Args:
        model: wrapped, or a network that takes images in [0, 1].
        data: inputs (N, *S), or samples as :func:`robustkit.evaluate` takes them.
        methods: ``"smoothgrad,xrai"``, or a list of such texts and of instances such as ``rk.SmoothGrad(samples=20)``.
        target: the class that is explained: by number or name, one for each input (N,), ``"predicted"`` or ``"label"``.
        output: ``logit`` (by default), ``probability``, ``margin``, or a function of outputs and classes.
        mask: (H, W) or (N, H, W), of dense outputs: the pixels whose outputs are added up; by default those that the
            network gives the class.
        limit: first samples to explain.
        seed: of all random draws.
        batch_size: most points in the network at once.
        evaluate: also measure the maps, beside controls; this costs many times the maps themselves.
        significant: leave pixels out of the pictures that are less than two standard errors away from 0.
        out: folder of the run; the same call again continues there. Without it a temporary one is used.
        progress: what to show.

    Raises:
        UsageError: something does not fit; the message says what.
    """
    wrapped = wrap(model)
    built = build_methods(methods, output)
    subjects: Subjects
    if isinstance(data, Tensor):
        subjects = Inputs(data[:limit], wrapped)
    else:
        subjects = Samples(as_data(data, limit=limit), wrapped, limit)
    options = {
        "model": f"python:{wrapped.name}",
        "data": "python:data",
        "methods": [label_of(method) for method in built],
        "target": "python:target" if isinstance(target, Tensor) else target,
        "output": built[0].output if built and isinstance(built[0].output, str) else None,
        "evaluate": evaluate,
        "significant": significant,
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "progress": progress,
        "eot": wrapped.eot,
    }
    config = validated(ExplainConfig, options, "explain")
    plan = ExplainPlan(wrapped, subjects, built, config, _wanted(target, subjects), mask)
    folder = Path(tempfile.mkdtemp(prefix="robustkit-") if out is None else out)
    try:
        with make_progress(progress) as shown, nullcontext() if out is not None else unsynced():
            results = _journey(plan, folder, ["python"], shown, page=out is not None)
    except BaseException:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return Explanations(results, folder, temporary=out is None)


def run(config: ExplainConfig, out: Path, *, command: list[str], progress: Progress | None = None) -> dict[str, Any]:
    """The command line's way in: load what the configuration names and explain it into ``out``.

    Raises:
        RobustkitError: whatever went wrong, with its exit code.
    """
    return _journey(plan_of(config), out, command, progress or NoProgress(), page=True)


def plan_of(config: ExplainConfig) -> ExplainPlan:
    """Load the model, the inputs and the methods that a configuration names."""
    methods = build_methods(config.methods, config.output)
    subjects = _pairs(config) if config.from_run else _subjects(config)
    return ExplainPlan(subjects.model, subjects, methods, config, _wanted(config.target, subjects))


def _subjects(config: ExplainConfig) -> Subjects:
    model = load(
        str(config.model),
        weights=config.weights,
        mean=config.mean,
        std=config.std,
        bounds=config.bounds,
        task=config.task,
        device=config.device,
        eot=config.eot,
    )
    if config.images:
        return Pictures(config.images[: config.limit], model)
    data = open_data(str(config.data), preprocessing=model.preprocessing, limit=config.limit)
    return Samples(data, model, config.limit)


def _pairs(config: ExplainConfig) -> Subjects:
    """Clean and adversarial inputs of an evaluation, with its model and data."""
    folder = Path(str(config.from_run)).absolute()
    results = read_results(folder)
    stored = load_config(folder / "config.yaml", {})
    if stored.model.startswith("python:"):
        raise UsageError(
            "this run was made from Python",
            expected="one that the command line made: it names its model and data",
            where=str(folder),
            fix="Call rk.explain(model, x) on result.adversarial(...) instead.",
        )
    from robustkit.run.evaluate import plan_from  # and with it scipy's statistics, which only pairs need

    device = {"device": config.device} if config.device else {}
    plan = plan_from(stored.model_copy(update={"surrogate": None, **device}))
    now = {"model": state_hash(plan.model), "data": plan.data.fingerprint()}
    for part, sha256 in now.items():
        if sha256 != results[part]["sha256"]:
            raise UsageError(
                f"the {part} changed since the run",
                expected=f"sha256 {results[part]['sha256'][:12]}",
                got=sha256[:12],
                where=str(folder),
                fix="Evaluate again.",
            )
    return Pairs(plan, RunDirectory(folder, stored, RunLock(folder)), config.limit)


def _wanted(target: Any, subjects: Subjects) -> str | Tensor:
    """A word, or a class for every item.

    Raises:
        UsageError: no such class; as many classes as there are no items.
    """
    model, n = subjects.model, len(subjects)
    if isinstance(target, str):
        shape = model.output_shape(subjects.inputs([0]))
        target = target_from(target, model.class_names or subjects.classes, shape[0] if shape else None)
        if isinstance(target, str):
            return target
    classes = torch.as_tensor(target)
    classes = classes.expand(n) if classes.ndim == 0 else classes
    if classes.is_floating_point() or classes.dtype == torch.bool or classes.shape != (n,):
        raise UsageError(
            "a target is a class",
            expected=f"a whole number, a name, predicted, label, or one number for each of the {n} inputs",
            got=f"{classes.dtype} of shape {tuple(classes.shape)}",
            where="target",
        )
    return classes.long().cpu()


def _journey(plan: ExplainPlan, folder: Path, command: list[str], progress: Progress, *, page: bool) -> dict[str, Any]:
    with RunDirectory.open(folder, plan.config, header(plan.model, plan, command)) as run_directory:
        if run_directory.finished:
            progress.note(f"the run in {run_directory.path} is finished: nothing to do")
            found: dict[str, Any] = run_directory.read_json("results.json")
            return found
        results = _execute(plan, run_directory, progress)
        if page and all(image["picture"] for image in results["images"]):
            from robustkit.report.write import write_page

            write_page(run_directory.path)
        run_directory.write_manifest()
    return results


def _execute(plan: ExplainPlan, run: RunDirectory, progress: Progress) -> dict[str, Any]:
    """Every chunk through every method; a step whose result is on disk is not done again."""
    began = time.time()
    recall_memory(plan.model, run)
    for stage in ("images", *plan.labels):
        progress.start(stage, plan.n)
    images = {row["id"]: row for row in run.rows(IMAGES)}
    for chunk in plan.chunks:
        images.update({row["id"]: row for row in image_stage(plan, run, chunk, images)})
        progress.advance("images", len(chunk))
        for k, label in enumerate(plan.labels):
            map_stage(plan, run, k, chunk, images, partial(_pulse, progress, label))
            progress.advance(label, len(chunk))
        remember_memory(plan.model, run)
    if plan.config.evaluate:
        _judge(plan, run, progress)
    results = {**summarise(plan, run), "times": times(run, began)}
    run.write_json("results.json", results)
    return results


def _pulse(progress: Progress, label: str, gradients: int) -> None:
    progress.status(label, f"{gradients:,} gradients")


def _judge(plan: ExplainPlan, run: RunDirectory, progress: Progress) -> None:
    """Measure all maps. A measure counts in steps of its own; its bar begins when the first chunk comes to it."""
    started: set[str] = set()
    for chunk in plan.chunks:
        done: dict[str, int] = {}

        def tell(what: str, now: int, total: int, done: dict[str, int] = done) -> None:
            if what not in started:
                started.add(what)
                progress.start(what, total * len(plan.chunks))
            progress.advance(what, now - done.get(what, 0))
            done[what] = now

        judge_stage(plan, run, chunk, tell)
        remember_memory(plan.model, run)
