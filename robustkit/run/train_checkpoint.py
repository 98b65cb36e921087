"""What a training needs to go on where it was cut, bit for bit: tensors in one file, the rest in another.

``training.json`` names the file of tensors that it belongs to and is replaced after that file is there; the old one is
removed last. A kill at any moment leaves one whole pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.files import slug
from robustkit.run.directory import RunDirectory

POSITION, FOLDER = "training.json", "checkpoints"


@dataclass
class Position:
    """How far a training is.

    Attributes:
        epoch: epochs that are done.
        batch: batches of the present epoch that are done.
        step: steps of the optimiser that are done.
        sums: of the terms, accuracies and losses of the present epoch so far, and their count.
        epochs: a row for each epoch that is done.
        best, last: of which epoch the weights in ``best.safetensors`` and ``last.safetensors`` are, and what they reach
            on the part held out.
        overfitting: where robust accuracy fell, and what was done.
        cost, spent: passes of the training, and of choosing the best weights.
        seconds: spent on the present epoch.
        ended: nothing more is to be trained.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    overfitting: dict[str, Any] | None = None
    cost: dict[str, int] = field(default_factory=lambda: {"forwards": 0, "backwards": 0})
    spent: dict[str, int] = field(default_factory=lambda: {"forwards": 0, "backwards": 0})
    seconds: float = 0.0
    ended: bool = False


def save(run: RunDirectory, position: Position, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a checkpoint; ``tensors`` are groups such as ``model`` and ``optimizer``.

    Raises:
        Incomplete: the disk is full; the checkpoint before stays.
    """
    name = f"{FOLDER}/{slug(f'step-{position.step:08d}')}.safetensors"
    flat = {f"{group}/{key}": value for group, found in tensors.items() for key, value in found.items()}
    run.write_tensors(name, apart(flat))
    run.write_json(POSITION, {"file": name, **asdict(position)})
    for old in run.file(FOLDER).glob("*.safetensors"):
        if old != run.file(name):
            with suppress(OSError):
                old.unlink()


def restore(run: RunDirectory) -> tuple[Position, dict[str, dict[str, Tensor]]] | None:
    """The last checkpoint; None where there is none yet.

    Raises:
        UsageError: it is damaged.
    """
    found = run.read_json(POSITION)
    if found is None:
        return None
    try:
        name = found.pop("file")
        position = Position(**found)
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            "the checkpoint cannot be read",
            got=f"{type(error).__name__}: {error}",
            where=str(run.file(POSITION)),
            fix="The run is damaged: start it again in another folder.",
        ) from None
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in run.read_tensors(name).items():
        group, _, rest = key.partition("/")
        groups.setdefault(group, {})[rest] = value
    return position, groups


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own: files of tensors know no shared ones."""
    seen: set[int] = set()
    found = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[key] = value.clone() if place in seen else value
        seen.add(place)
    return found


def load(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy stored weights and buffers into a network.

    Raises:
        UsageError: they are of another network.
    """
    try:
        net.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise UsageError(
            "the checkpoint is of another network",
            expected=f"the tensors of {type(net).__name__}",
            got=str(error).strip().splitlines()[-1].strip()[:200],
            where=FOLDER,
            fix="Give another folder with --out, or the network that the run began with.",
        ) from None


def plain_weights(net: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of the network as it is evaluated: without auxiliary layers for batch normalisation."""
    return apart({key: value for key, value in net.state_dict().items() if ".aux_bn." not in f".{key}"})
