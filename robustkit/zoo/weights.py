"""Weights from a file, without executing anything that comes with it.

`.safetensors` holds nothing but tensors. Files of torch.save are read with weights_only=True; one that holds more is
refused, and there is no other way round it here.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.core.errors import UsageError

PICKLES = frozenset({".pt", ".pth", ".th", ".bin", ".ckpt"})
NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
SHOWN = 3  # keys named in a message
State = dict[str, Tensor]


def read_state(path: str | Path) -> State:
    """The named tensors of a file, found also below `state_dict` or `model`.

    Raises:
        UsageError: missing, of another kind, damaged, holding anything but tensors and plain values, or without
            tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such weights file", got=str(path), where="weights")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in PICKLES:
        return _unnested(_torch_file(path), str(path))
    raise UsageError(
        "unknown kind of weights file", expected=".safetensors, .pt or .pth", got=repr(path.suffix), where=str(path)
    )


def load_into(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors into the network; every one of its tensors must be there, and no other.

    Prefixes that all keys share and the network does not know (`module.`, `_orig_mod.`, `model.`) are taken off.

    Raises:
        UsageError: keys or shapes differ; a few of each are named.
    """
    wanted = net.state_dict()
    state = without_prefix(state, wanted)
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    found = [
        _some(kind, names)
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes))
        if names
    ]
    if found:
        raise UsageError(
            f"the weights do not fit {type(net).__name__}",
            expected=f"its {len(wanted)} tensors",
            got="; ".join(found),
            where=where,
            fix="Is this file of another architecture, or for another number of classes?",
        )
    net.load_state_dict(dict(state), strict=False)


def _safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(
            "the weights file cannot be read",
            expected="a whole safetensors file",
            got=_first_line(error),
            where=str(path),
        ) from error


def _torch_file(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about old pickles, just before they are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            "the weights file holds more than weights, and is refused: loading it could run code",
            expected="a state_dict of tensors",
            got=_culprit(error),
            where=str(path),
            fix="If you trust its author, load it yourself and save net.state_dict() as safetensors.",
        ) from error
    except Exception as error:  # damaged archives end in many ways
        raise UsageError(
            "the weights file cannot be read",
            expected="a whole file of torch.save",
            got=_first_line(error),
            where=str(path),
        ) from error


def _unnested(content: Any, where: str) -> State:
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(key): value for key, value in content.items()}
    got = type(content).__name__
    if isinstance(content, Mapping):
        got = f"a mapping with {_some('keys', [str(key) for key in content]) if content else 'nothing in it'}"
    raise UsageError(
        "no weights in the file",
        expected="a state_dict, or one under state_dict or model",
        got=got,
        where=where,
        fix="Save net.state_dict().",
    )


def without_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors under the names that the network has for them, as far as a shared prefix is what differs."""
    known = {key.partition(".")[0] for key in wanted}
    while state and len(heads := {key.partition(".")[0] for key in state}) == 1 and not heads & known:
        if not all("." in key for key in state):
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def _culprit(error: BaseException) -> str:
    """What of the pickle was refused: torch names it after `GLOBAL`."""
    words = str(error).replace("`", " ").split()
    names = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"]
    return names[0] if names else "objects other than tensors"


def _some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind}: {', '.join(names[:SHOWN])}{more}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
