"""``robustkit evaluate`` and ``robustkit.evaluate``: from a model and data to a number with its evidence."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import nn

from robustkit.core.attack import Attack
from robustkit.core.errors import UsageError
from robustkit.core.files import read_json, unsynced
from robustkit.core.model import Model, wrap
from robustkit.core.threat import Threat, threat_from
from robustkit.data import as_data, open_data
from robustkit.run.config import EvaluateConfig, config_warnings
from robustkit.run.directory import RunDirectory
from robustkit.run.engine import check_first, execute
from robustkit.run.facts import header
from robustkit.run.options import validated
from robustkit.run.plan import Plan, build_attacks, label_of, passes_of
from robustkit.run.progress import NoProgress, Progress, make_progress
from robustkit.run.result import Result
from robustkit.zoo import load

FORMATS = ("html", "md", "junit")


def evaluate(
    model: Model | nn.Module | Callable[..., Any],
    data: Any,
    *,
    attacks: Sequence[Attack | str],
    threat: Threat | str,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    out: str | Path | None = None,
    targeted: Literal["random", "least-likely", "next"] | None = None,
    curve: bool = False,
    force: bool = False,
    fail_under: Iterable[str] = (),
    max_minutes: float | None = None,
    surrogate: Model | None = None,
    progress: Literal["none", "plain", "rich"] = "none",
) -> Result:
    """Evaluate a model's robustness: preflight, attacks, the per-sample worst case with its interval, diagnostics.

    Args:
        model: wrapped, or a network that takes images in [0, 1].
        data: DataLoader, Dataset, (x, y), or anything that yields (x, y).
        attacks: instances or text forms, such as ``[rk.FGSM(), "pgd:steps=20"]``.
        threat: such as ``rk.Linf(8/255)`` or ``"linf:8/255"``.
        limit: first samples to evaluate.
        seed: of all random draws.
        batch_size: samples in a chunk; ``auto`` goes by the input's size and halves when memory runs out.
        out: folder of the run; the same call again continues there. Without it nothing is kept on disk.
        targeted: how targets are chosen; None attacks away from the label.
        curve: also find the robust accuracy against eps.
        force: go on where the preflight refuses; the result is marked.
        fail_under: gates such as ``robust_accuracy=0.45``, judged in the result.
        max_minutes: stop after so long; the result is then partial and says so.
        surrogate: second model whose adversarial inputs are tried on the first (diagnostic D5).
        progress: what to show.

    Raises:
        Refused: the preflight found that the number would be wrong.
        UsageError: something does not fit; the message says what.
    """
    wrapped = wrap(model)
    where = threat_from(threat)
    if not isinstance(where.eps, float | int):
        raise UsageError(
            "an evaluation has one eps",
            expected="a float",
            got="a tensor",
            where="threat",
            fix="Per-sample radii are for calling an attack yourself.",
        )
    built = build_attacks([attacks] if isinstance(attacks, str) else attacks, where)
    wrapped = wrapped.averaged(max(wrapped.eot, passes_of(built)))
    options = {
        "model": f"python:{wrapped.name}",
        "data": "python:data",
        "attacks": [label_of(a) for a in built],
        "threat": where.exact,
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "targeted": targeted,
        "curve": curve,
        "force": force,
        "fail_under": list(fail_under),
        "max_minutes": max_minutes,
        "progress": progress,
        "eot": wrapped.eot,
        "surrogate": surrogate and f"python:{surrogate.name}",
    }
    config = validated(EvaluateConfig, options, "evaluate")
    plan = Plan(wrapped, as_data(data, limit=limit), built, where, config, surrogate)
    folder = Path(tempfile.mkdtemp(prefix="robustkit-") if out is None else out)
    try:
        with make_progress(progress) as shown, nullcontext() if out is not None else unsynced():
            results = journey(plan, folder, ["python"], shown, reports=out is not None)
    except BaseException:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return Result(results, folder, temporary=out is None)


def run(config: EvaluateConfig, out: Path, *, command: list[str], progress: Progress | None = None) -> dict[str, Any]:
    """The command line's way in: load what the configuration names and evaluate it into ``out``.

    Raises:
        RobustkitError: whatever went wrong, with its exit code.
    """
    shown = progress or NoProgress()
    for warning in config_warnings(config):
        shown.note(f"warning: {warning}")
    return journey(plan_from(config), out, command, shown, reports=True)


def plan_from(config: EvaluateConfig) -> Plan:
    """Load the model, the data and the attacks that a configuration names."""
    threat = threat_from(config.threat_spec)
    attacks = build_attacks(config.attacks, threat, config.stages)
    model = load(
        config.model,
        weights=config.weights,
        mean=config.mean,
        std=config.std,
        bounds=config.bounds,
        task=config.task,
        device=config.device,
        eot=max(config.eot, passes_of(attacks)),
    )
    data = open_data(config.data, preprocessing=model.preprocessing, limit=config.limit)
    surrogate = load(config.surrogate, device=config.device) if config.surrogate else None
    return Plan(model, data, attacks, threat, config, surrogate)


def journey(plan: Plan, folder: Path, command: list[str], progress: Progress, *, reports: bool) -> dict[str, Any]:
    """From a plan to the results in a folder, where the same plan goes on.

    Raises:
        RobustkitError: whatever went wrong, with its exit code.
    """
    stored = read_json(folder / "preflight.json") if folder.is_dir() else None
    first = check_first(plan, stored, progress)
    with RunDirectory.open(folder, plan.config, header(plan.model, plan.data, command)) as directory:
        if directory.finished:
            progress.note(f"the run in {directory.path} is finished: nothing to do")
            results: dict[str, Any] = directory.read_json("results.json")
            return results
        results = execute(plan, directory, first, progress)
        if reports:
            from robustkit.report.write import write

            write(directory.path, FORMATS, summary=True)
        directory.write_manifest()
    return results
