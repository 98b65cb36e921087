"""`run:DIR`: a network that robustkit has trained, with its best weights; `run:DIR:last` with the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from robustkit.certify.halves import Fill
from robustkit.core.errors import UsageError
from robustkit.core.files import read_json
from robustkit.core.model import Model
from robustkit.core.preprocessing import Preprocessing
from robustkit.core.task import task_text
from robustkit.core.types import Bounds
from robustkit.defenses.drs import halved
from robustkit.zoo.blank import blank
from robustkit.zoo.source import Source
from robustkit.zoo.weights import load_into, read_state

FILE = "model.json"
BEST, LAST = "best", "last"


def find(name: str, weights: Path | None) -> Source | Model:
    """The network of the run in a folder; `weights` replace its own."""
    folder, which = split(name)
    facts = described(folder)
    if facts["spec"].startswith("python:"):
        raise _from_python(folder, facts, which)
    model = _made(facts, folder)
    file = weights or folder / facts["weights"][which]
    if not file.is_file() and weights is None:
        raise _unfinished(file)
    load_into(model.net, read_state(file), str(file))
    model.net.eval()
    if model.eot != 1:  # random by design, as the user's factory says
        return model
    return Source(
        model.net,
        _preprocessing(model, facts),
        facts["class_names"],
        model.task if task_text(model.task) == facts["task"] else facts["task"],
        Bounds(*facts["bounds"]),
    )


def origin(spec: str) -> str:
    """How the network was first named: what `run:DIR` was built from, so that it outlives that folder."""
    kind, _, name = spec.partition(":")
    return str(described(split(name)[0])["spec"]) if kind == "run" else spec


def split_of(spec: str) -> dict[str, Any] | None:
    """How a network that is named so was taken into halves by the training that `run:DIR` holds; None if it was not."""
    kind, _, name = spec.partition(":")
    found: dict[str, Any] | None = described(split(name)[0])["split"] if kind == "run" else None
    return found


def split(name: str) -> tuple[Path, str]:
    """Folder and weights.

    >>> split("runs/a:last")
    (PosixPath('runs/a'), 'last')
    >>> split("runs/a")[1]
    'best'
    """
    folder, _, which = name.rpartition(":")
    return (Path(folder), which) if folder and which in (BEST, LAST) else (Path(name), BEST)


def described(folder: Path) -> dict[str, Any]:
    """What `model.json` says of a trained network.

    Raises:
        UsageError: no such folder, none of a training, or a damaged file.
    """
    if not folder.is_dir():
        raise UsageError("no such run", expected="the folder of a training", got=str(folder), where="model")
    facts = read_json(folder / FILE)
    if facts is None:
        raise UsageError(
            "no trained network in that folder",
            expected=f"a folder of robustkit train, with {FILE}",
            where=str(folder),
            fix="Folders of evaluations hold no network.",
        )
    kinds = {"spec": str, "classes": int, "shape": list, "bounds": list, "task": str, "weights": dict}
    fits = isinstance(facts, dict) and all(isinstance(facts.get(key), kind) for key, kind in kinds.items())
    if not fits or not {BEST, LAST} <= facts["weights"].keys():
        raise UsageError(
            "the description of the trained network cannot be read",
            expected=f"{', '.join(kinds)}",
            where=str(folder / FILE),
            fix="The run is damaged: its weights can still be loaded, with --weights FILE.",
        )
    return {"mean": None, "std": None, "class_names": None, "split": None, **facts}


def _made(facts: dict[str, Any], folder: Path) -> Model:
    """The network as it was trained, with weights that are still to be loaded."""
    model = blank(facts["spec"], classes=facts["classes"], shape=facts["shape"], seed=0)
    halves = facts["split"]
    if halves is None:
        return model
    known = isinstance(halves, dict) and halves.get("fill") in get_args(Fill)
    if not known or not isinstance(halves.get("shared"), bool):
        raise UsageError(
            "how the trained network sees the halves of an image cannot be read",
            expected=f"fill ({', '.join(get_args(Fill))}) and shared (true, false)",
            got=repr(halves),
            where=str(folder / FILE),
        )
    return model.around(halved(model.net, halves["fill"], halves["shared"]))


def _preprocessing(model: Model, facts: dict[str, Any]) -> Preprocessing | None:
    """Mean and std as they were in training; size and crop as the network's makers say."""
    if not facts["mean"]:
        return None
    own = model.preprocessing
    given = Preprocessing(tuple(map(float, facts["mean"])), tuple(map(float, facts["std"])), source="run")
    if own is None:
        return given
    return Preprocessing(given.mean, given.std, own.size, own.crop_pct, own.interpolation, own.source)


def _unfinished(file: Path) -> UsageError:
    return UsageError(
        "the training has no weights yet",
        expected="a file after the first measurement",
        got="none",
        where=str(file),
        fix="Give the same robustkit train command again to go on.",
    )


def _from_python(folder: Path, facts: dict[str, Any], which: str) -> UsageError:
    file, halves = folder / facts["weights"][which], facts["split"]
    again = ""
    if halves:
        copies = "net" if halves["shared"] else "net, copy.deepcopy(net)"
        again = f'net = robustkit.SplitModel({copies}, fill="{halves["fill"]}"); '
    return UsageError(
        "the network was built in Python, and only there can it be built again",
        expected="a network that a training made by name",
        got=f"{facts['spec'].removeprefix('python:')} of your code",
        where=str(folder),
        fix=f'Load its weights yourself: {again}net.load_state_dict(safetensors.torch.load_file("{file}")).',
    )
