"""Check a finished run again: its files, its model and data, every adversarial input and every figure it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustkit.core.diagnostic import Diagnostic
from robustkit.core.errors import UsageError
from robustkit.core.model import Model, wrap
from robustkit.core.threat import threat_from
from robustkit.data import as_data
from robustkit.run.config import EvaluateConfig, load_config
from robustkit.run.directory import RunDirectory
from robustkit.run.evaluate import plan_from
from robustkit.run.evidence import stored
from robustkit.run.facts import state_hash
from robustkit.run.folder import kind_of, read_results
from robustkit.run.lock import RunLock
from robustkit.run.manifest import check_manifest
from robustkit.run.plan import Plan, build_attacks, passes_of
from robustkit.run.stages import CLEAN
from robustkit.run.summary import is_tie, summarise
from robustkit.run.verification import verification


def verify(path: str | Path, *, model: Model | None = None, data: Any = None) -> list[Diagnostic]:
    """Reload what a run stored and check every claim on it.

    Args:
        path: folder of a finished run; of an explanation or a training the files alone are checked.
        model, data: for runs made from Python; those of the command line are loaded again by name.

    Returns:
        One row a claim; a FAIL means that the run, the model or the data is not what the results say.

    Raises:
        UsageError: no such run, or one made from Python without its model and data.
    """
    folder = Path(path)
    results = read_results(folder, kind=None)
    if kind_of(results) != EvaluateConfig.kind:  # what maps and weights claim, only making them anew would check
        return [_files(folder)]
    config = load_config(folder / "config.yaml", {})
    plan = _plan(config, model, data)
    run = RunDirectory(folder.absolute(), config, RunLock(folder))
    rows = [
        _files(folder),
        _same("V2", "the model is the one that was evaluated", state_hash(plan.model), results["model"]["sha256"]),
        _same("V3", "the data are those that were evaluated", plan.data.fingerprint(), results["data"]["sha256"]),
    ]
    if any(row.status == "FAIL" for row in rows[1:]):
        return rows
    clean = {row["id"]: row for row in run.rows(CLEAN)}
    return [
        *rows,
        _clean(plan, clean),
        verification(plan.model, stored(plan, run, clean), plan.threat),
        _figures(plan, run, results),
    ]


def _plan(config: EvaluateConfig, model: Model | None, data: Any) -> Plan:
    if not any(name.startswith("python:") for name in (config.model, config.data)):
        return plan_from(config)
    if model is None or data is None:
        raise UsageError(
            "this run is of a model or data that no name leads to: from Python, or held out of a training",
            expected="its model and data",
            got="only the folder",
            where="verify",
            fix="Call robustkit.verify(folder, model=..., data=...).",
        )
    threat = threat_from(config.threat_spec)
    attacks = build_attacks(config.attacks, threat, config.stages)
    wrapped = wrap(model)
    wrapped = wrapped.averaged(max(wrapped.eot, passes_of(attacks)))
    return Plan(wrapped, as_data(data, limit=config.limit), attacks, threat, config)


def _files(folder: Path) -> Diagnostic:
    changes = check_manifest(folder)
    return _row(
        "V1",
        "files are as the run wrote them",
        len(changes),
        "; ".join(changes[:5]) or "every hash of the manifest fits",
    )


def _same(key: str, title: str, now: str, then: str) -> Diagnostic:
    return _row(key, title, int(now != then), f"sha256 {now[:12]}, recorded {then[:12]}")


def _clean(plan: Plan, clean: dict[int, dict[str, Any]]) -> Diagnostic:
    """Predictions on the inputs as they are, in batches of another size than the run's."""
    wrong = 0
    ids = sorted(clean)
    size = max(1, plan.batch // 2)
    with plan.model.frozen(plan.config.seed), torch.no_grad():
        for i in range(0, len(ids), size):
            part = ids[i : i + size]
            x, y = plan.inputs(part)
            correct = (~plan.model.task.failed(plan.model(x), y)).tolist()
            wrong += sum(c != clean[k]["correct"] and not is_tie(clean[k]) for k, c in zip(part, correct, strict=True))
    return _row(
        "V4", "clean predictions come out the same", wrong, f"{wrong} of {len(ids)} differ by more than rounding"
    )


def _figures(plan: Plan, run: RunDirectory, results: dict[str, Any]) -> Diagnostic:
    """The figures, computed again from the rows."""
    again = summarise(plan, run, complete=results["complete"])
    keys = [key for key in again if key not in ("times", "gates") and again[key] != results.get(key)]
    return _row(
        "V5", "figures follow from the rows", len(keys), f"differ: {', '.join(keys)}" if keys else "all of results.json"
    )


def _row(key: str, title: str, bad: int, message: str) -> Diagnostic:
    return Diagnostic(
        id=key,
        title=title,
        status="FAIL" if bad else "PASS",
        value=float(bad),
        threshold="0",
        message=message,
        invalidates=True,
    )
