"""Optimisers by name, what they remember as tensors, and an average of the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError, near

LAYOUT = "layout"
"""Name of the tensor that holds everything of an optimiser's state which is no tensor, as JSON."""


def optimizer(
    net: nn.Module, name: str, *, lr: float, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """An optimiser of timm's catalogue; ``sgd`` is with Nesterov's momentum, ``momentum`` without.

    Weights decay, biases and the parameters of norms (all with one dimension) do not.

    Args:
        net: its parameters with gradients are learnt.
        name: as in timm, such as sgd, adamw, lars or lookahead_adamw.
        lr: learning rate > 0, the peak of the schedule.
        weight_decay: strength of the decay >= 0.
        momentum: from 0 to 1, of optimisers that have one; the others keep their own constants.

    Raises:
        UsageError: unknown name; an optimiser whose package is not installed, that needs second derivatives or reads
            the global generator; a rate that is not positive; a network without parameters.
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise UsageError("the learning rate is not positive", expected="a number > 0", got=f"{lr:g}", where="lr")
    if not any(p.requires_grad for p in net.parameters()):
        raise UsageError("the network has nothing to train", expected="parameters with gradients", where="model")
    _check_name(name)
    try:
        made: torch.optim.Optimizer = _timm().create_optimizer_v2(
            net, name, lr=lr, weight_decay=weight_decay, momentum=momentum
        )
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:  # of optimisers' own packages
        message = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise UsageError(f"the optimiser {name} cannot be made", got=message, where="optimizer") from error
    reasons = {
        "needs second derivatives, which a step of a defense does not give": getattr(made, "is_second_order", False),
        "draws from the global generator, so that nothing could be done again": hasattr(made, "rng"),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UsageError(f"the optimiser {reason}", got=repr(name), where="optimizer", fix="Take adamw, or sgd.")
    return made


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that an optimiser remembers, bit for bit: its tensors by place, the rest as JSON in ``layout``.

    Raises:
        UsageError: it remembers objects that are neither tensors nor plain values.
    """
    tensors: dict[str, Tensor] = {}
    stored = optimizer.state_dict()
    groups = [{k: v for k, v in group.items() if _is_plain(v)} for group in stored["param_groups"]]
    layout = _packed({"state": stored["state"], "param_groups": groups}, "", tensors)
    text = json.dumps(layout).encode()
    return {**tensors, LAYOUT: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Make an optimiser of the same kind, over the same network, remember what :func:`optimizer_tensors` found.

    Raises:
        UsageError: it is of another kind or network, or something is missing.
    """
    try:
        stored = _unpacked(json.loads(bytes(tensors[LAYOUT].cpu().tolist())), tensors)
        fresh = optimizer.state_dict()["param_groups"]
        stored["param_groups"] = [{**a, **b} for a, b in zip(fresh, stored["param_groups"], strict=True)]
        optimizer.load_state_dict(stored)
        for place, found in stored["state"].items():  # which load_state_dict takes for its own
            _exactly(optimizer, place, found)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise UsageError(
            "the checkpoint does not fit the optimiser",
            expected=f"what {type(optimizer).__name__} remembers of this network",
            got=message,
            where="checkpoint",
            fix="Give another folder with --out.",
        ) from error


class Average:
    """An exponential moving average of the weights; buffers, such as statistics of norms, are those of the network.

    The decay begins lower, with (1 + t) / (10 + t) after t updates, so that the first weights are soon forgotten.

    Args:
        net: whose weights; it is copied once.
        decay: what is kept of the average at an update, from 0 (none: the average is the network) to 1, 1 excluded.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        from torch.optim.swa_utils import AveragedModel

        if not 0 <= decay < 1:
            raise UsageError("not a decay", expected="a number from 0 to 1, 1 excluded", got=f"{decay:g}", where="ema")

        def blended(averages: Any, weights: Any, updates: Tensor | int) -> None:
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight.to(average.dtype), 1 - self._decay_now)

        self._decay, self._updates = decay, 0  # counted here: reading torch's count waits for an accelerator
        self._averaged = AveragedModel(net, multi_avg_fn=blended)
        self._averaged.requires_grad_(False)

    @property
    def _decay_now(self) -> float:
        return min(self._decay, (1 + self._updates) / (10 + self._updates))

    @property
    def net(self) -> nn.Module:
        """The network with the averaged weights."""
        averaged: nn.Module = self._averaged.module
        return averaged

    def update(self, net: nn.Module) -> None:
        """Take the network's present weights in, and copy its buffers; the first time, both as they are."""
        self._averaged.update_parameters(net)
        self._updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and the count of updates."""
        return dict(self._averaged.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave.

        Raises:
            UsageError: they are of another network.
        """
        try:
            self._averaged.load_state_dict(dict(tensors))
            self._updates = int(tensors["n_averaged"])
        except RuntimeError as error:
            message = str(error).strip().splitlines()[-1].strip()[:200]
            raise UsageError(
                "the checkpoint has no average of this network",
                expected=f"the tensors of {type(self.net).__name__}",
                got=message,
                where="checkpoint",
                fix="Give another folder with --out.",
            ) from error


def _timm() -> Any:
    return import_module("timm.optim")  # slow, and without types


def _check_name(name: str) -> None:
    known: list[str] = _timm().list_optimizers()
    if name.lower().removeprefix("lookahead_") not in known:
        raise UsageError("unknown optimiser", got=repr(name), where="optimizer", fix=near(name.lower(), known))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, with its tensors put aside under the names of their places."""
    if isinstance(value, Tensor):
        name = place.strip("/")
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs, since keys may be numbers
        return {"pairs": [[key, _packed(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        "what the optimiser remembers cannot be stored",
        expected="tensors and plain values",
        got=type(value).__name__,
        where=place.strip("/"),
        fix="Take another --optimizer.",
    )


def _unpacked(layout: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(layout, dict):
        return layout
    ((kind, content),) = layout.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "pairs":
        return {key: _unpacked(value, tensors) for key, value in content}
    values = [_unpacked(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def _exactly(optimizer: torch.optim.Optimizer, place: int | str, found: Any) -> None:
    """Undo load_state_dict's conversions: dtypes as they were stored, memory laid out as the parameter's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(place, int) or not isinstance(found, dict):
        return
    parameter = parameters[place]
    state = getattr(optimizer, "_base_optimizer", optimizer).state[parameter]  # timm's Lookahead wraps another
    for key, value in found.items():
        if not isinstance(value, Tensor):
            continue
        if value.shape == parameter.shape:
            state[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        elif state[key].dtype != value.dtype:
            state[key] = value.to(state[key].device)
