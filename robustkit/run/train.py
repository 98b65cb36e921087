"""``robustkit train`` and ``robustkit.train``: from a network and data to weights, chosen honestly and judged."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from robustkit.core.defense import Defense, defense_from
from robustkit.core.errors import Incomplete, UsageError
from robustkit.core.files import unsynced
from robustkit.core.model import Model, wrap
from robustkit.core.splitnorm import check_branches, merge
from robustkit.core.threat import Threat, threat_from
from robustkit.data import as_data
from robustkit.run.directory import RunDirectory
from robustkit.run.facts import header
from robustkit.run.options import validated
from robustkit.run.progress import NoProgress, Progress, make_progress
from robustkit.run.session import times
from robustkit.run.train_checkpoint import POSITION, Position
from robustkit.run.train_config import SELECTION, TrainConfig
from robustkit.run.train_evaluate import evaluate_weights
from robustkit.run.train_loop import Trainer
from robustkit.run.train_plan import TrainPlan, copied, inside, plan_of
from robustkit.run.train_result import Training
from robustkit.run.train_summary import model_file, summarise


def train(
    model: Model | nn.Module,
    data: Any,
    *,
    defense: Defense | str,
    threat: Threat | str | None = None,
    test: Any = None,
    epochs: int = 20,
    batch_size: int = 128,
    optimizer: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    schedule: str = "one-cycle",
    warmup: float = 0.0,
    ramp: float = 0.2,
    ema: float | None = None,
    grad_clip: float | None = None,
    augment: str = "none",
    precision: Literal["float32", "bfloat16"] = "float32",
    holdout: int | None = None,
    select: Sequence[str] = SELECTION,
    select_every: int = 1,
    on_overfitting: Literal["warn", "rollback"] = "warn",
    eval: Literal["standard", "pgd", "none"] = "none",
    eval_limit: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    out: str | Path | None = None,
    tensorboard: bool = False,
    progress: Literal["none", "plain", "rich"] = "none",
) -> Training:
    """Train a network so that it withstands attacks, and keep the weights that do best on data it did not learn from.

    The network that is given holds the best weights afterwards, in eval mode; until then it stays as it is, since a
    private copy is trained. Where a defense makes another network of it, as ``drs`` does, it stays as it is for good,
    and ``.model`` of what is returned has the other. With ``out`` the same call goes on with a training that was cut.

    Args:
        model: wrapped, or a network that takes images in [0, 1].
        data: DataLoader, Dataset, (x, y), or anything that yields (x, y); a class-balanced part of it is held out.
        defense: an instance or a text form, such as ``rk.TRADES(beta=6)`` or ``"awp+trades"``.
        threat: what the attacker may change, such as ``rk.Linf(8/255)``, which is also the default.
        test: data for the final evaluation; without them the part held out serves, which has chosen the weights.
        epochs: passes over the data.
        batch_size: samples in a step.
        optimizer: sgd (Nesterov), adamw, lars, or any other of timm's.
        lr: peak of the learning rate; by default 0.1 for sgd, 1 for lars, 0.001 for the rest.
        weight_decay, momentum: of the optimiser; biases and norms are not decayed.
        schedule: of the rate: constant, cosine, one-cycle, piecewise, cyclic or poly.
        warmup, ramp: shares of the steps over which the rate, and the radius of the threat, rise to their full size.
        ema: decay of an average of the weights, which is then what is measured and kept.
        grad_clip: largest norm of the gradient.
        augment: what is done to inputs: none, flip, crop, crop-flip, digits, trivial or randaugment.
        precision: of the training forward; attacks compute as the network does.
        holdout: samples held out; by default 10 %, or 1,000 where these are at most a quarter.
        select: attacks on the part held out; the best weights withstand all of them on the most samples.
        select_every: epochs between two such measurements.
        on_overfitting: what to do when robust accuracy falls by more than 0.2: warn, or rollback to the weights before.
        eval: the final evaluation: standard (AutoAttack's ensemble), pgd, or none.
        eval_limit: samples of it.
        limit: first samples of the data to use.
        seed: of all random draws.
        workers: processes that read data.
        out: folder of the run. Without it nothing is kept on disk.
        tensorboard: also write events for TensorBoard.
        progress: what to show.

    Raises:
        UsageError: something does not fit; the message says what.
        Incomplete: stopped, or a loss that is no number; what was done is kept where ``out`` was given.
    """
    options = {name: value for name, value in locals().items() if name in TrainConfig.model_fields}
    wrapped = wrap(model)
    plan = _plan(wrapped, data, test, defense, threat, options)
    folder = Path(tempfile.mkdtemp(prefix="robustkit-") if out is None else out)
    try:
        with make_progress(progress) as shown, nullcontext() if out is not None else unsynced():
            results, weights = _journey(plan, folder, ["python"], shown, page=out is not None)
        trained = _like_trained(plan, wrapped)
        trained.net.load_state_dict(weights)
        trained.net.eval()
    except BaseException as error:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Incomplete):
                raise _lost(error) from error
        raise
    return Training(results, folder, trained, temporary=out is None)


def _like_trained(plan: TrainPlan, model: Model) -> Model:
    """The user's network, where that was trained; else, as with ``drs``, one like what the defense has made of it."""
    if type(plan.prepared.net) is type(model.net):
        return model
    return model.around(merge(copy.deepcopy(plan.prepared.net)))


def _lost(error: Incomplete) -> Incomplete:
    return Incomplete(
        "the training stopped, and nothing of it is kept",
        got=error.what,
        where="out",
        fix="Give out=FOLDER: then the same call goes on.",
    )


def run(config: TrainConfig, out: Path, *, command: list[str], progress: Progress | None = None) -> dict[str, Any]:
    """The command line's way in: load what the configuration names and train it into ``out``.

    Raises:
        RobustkitError: whatever went wrong, with its exit code.
    """
    return _journey(plan_of(config), out, command, progress or NoProgress(), page=True)[0]


def _plan(
    model: Model, data: Any, test: Any, defense: Defense | str, threat: Threat | str | None, options: dict[str, Any]
) -> TrainPlan:
    if not isinstance(model.net, nn.Module):
        raise UsageError("only a torch.nn.Module can be trained", got=type(model.net).__name__, where="model")
    check_branches(model.net, 1)  # the trainer prepares its own copy
    chosen = defense_from(defense)
    chosen, where, notes = inside(chosen, chosen.threat if threat is None else threat_from(threat))
    if where is not None and not isinstance(where.eps, float | int):
        raise UsageError("a training has one eps", expected="a float", got="a tensor", where="threat")
    given = {
        "data": "python:data",
        "test": None if test is None else "python:test",
        "model": f"python:{model.name}",
        "defense": chosen.text,
        "threat": None if where is None else where.exact,
        "select": [options["select"]] if isinstance(options["select"], str) else list(options["select"]),
    }
    config = validated(TrainConfig, {**options, **given}, "train")
    limit = config.limit
    return TrainPlan(
        copied(model),
        config.model,
        as_data(data, limit=limit),
        None if test is None else as_data(test),
        chosen,
        where,
        config,
        notes,
    )


def _journey(
    plan: TrainPlan, folder: Path, command: list[str], progress: Progress, *, page: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The results, and the best weights."""
    began = time.time()
    with RunDirectory.open(folder, plan.config, header(plan.model, plan.data, command)) as run_directory:
        _check_resume(plan, run_directory)
        if run_directory.finished:
            progress.note(f"the run in {run_directory.path} is finished: nothing to do")
            found: dict[str, Any] = run_directory.read_json("results.json")
            return found, run_directory.read_tensors("best.safetensors")
        for note in plan.remarks:
            progress.note(note)
        run_directory.write_json("model.json", model_file(plan))
        position = _trained(plan, run_directory, progress)
        evaluations = evaluate_weights(plan, run_directory, position, progress)
        results = {**summarise(plan, run_directory, position, evaluations), "times": times(run_directory, began)}
        run_directory.write_json("results.json", results)
        if page:
            from robustkit.report.write import write_page

            write_page(run_directory.path)
        run_directory.write_manifest()
        return results, run_directory.read_tensors("best.safetensors")


def _trained(plan: TrainPlan, run_directory: RunDirectory, progress: Progress) -> Position:
    try:
        return Trainer(plan, run_directory, progress).fit()
    except UsageError:
        if not run_directory.file(POSITION).is_file():  # no step was kept: corrected options may go there
            run_directory.discard()
        raise


def _check_resume(plan: TrainPlan, run_directory: RunDirectory) -> None:
    if plan.config.resume == "never" and run_directory.resumed:
        raise UsageError(
            "a training was begun there",
            expected="a new folder, since going on is not wanted",
            where=str(run_directory.path),
            fix="Leave --resume never out to go on, or give another --out.",
        )
