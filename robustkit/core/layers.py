"""Layers whose outputs lie on a grid over the image: which there are, which is last, and how their outputs are read.

Three forms are known: channels first (N, C, h, w), channels last (N, h, w, C), and tokens (N, T, C), of which the first
T - h * w belong to no place (class and register tokens). The network is run once, on noise, to see the order of its
layers and which of them the outputs depend on: with a class token nothing that the last block does to the other tokens
reaches the outputs, and a map of it would be black.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError, near
from robustkit.core.model import FunctionNet, Model, NoGradient
from robustkit.core.outputs import as_tensor
from robustkit.core.target import Target

MOST_PREFIX = 16
"""Most tokens that belong to no place."""
Form = Literal["channels first", "channels last", "tokens"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer and how its output is read.

    Attributes:
        name: inside the network, as ``named_modules`` has it.
        module: the layer itself.
        form: of its output.
        size: (h, w), its grid.
        prefix: tokens before those of the grid.
    """

    name: str
    module: nn.Module
    form: Form
    size: tuple[int, int]
    prefix: int = 0

    def on_grid(self, output: Tensor) -> Tensor:
        """The output as (N, C, h, w)."""
        if self.form == "channels first":
            return output
        if self.form == "channels last":
            return output.movedim(-1, 1)
        tokens: Tensor = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], *self.size)


@dataclass(frozen=True, eq=False)
class _Run:
    """One pass of a module: its name, itself, its output, and whether the output is one of its inputs."""

    name: str
    module: nn.Module
    output: Tensor
    passed_on: bool


def find_layer(model: Model, x: Tensor, name: str | None = None) -> Layer:
    """A layer by name, or the last one with a grid that the outputs depend on; of dense outputs the last coarsest one.

    One forward and one backward of a single sample, which neither the batch nor the target changes.

    Args:
        model, x: the network and inputs (N, C, H, W) of the size that it will see.
        name: as ``model.net.named_modules()`` has it; by default the layer is found.

    Raises:
        UsageError: no such layer (with near matches), a layer that does not run, or one without a grid; none found.
        NoGradient: the outputs do not depend on the inputs through differentiable operations.
    """
    named = dict(model.net.named_modules())
    if name is not None and (name not in named or not name):
        raise UsageError(
            f"the network has no layer {name!r}",
            where="layer",
            fix="A plain function hides its layers: wrap the module."
            if isinstance(model.net, FunctionNet)
            else near(name, (n for n in named if n)),
        )
    runs, outputs = _trace(model, x)
    size = (int(x.shape[-2]), int(x.shape[-1]))
    if name is not None:
        return _named(name, runs, model.net, size)
    model.cost.backwards += model.eot
    return _last(runs, outputs, model.net, size)


def layer_gradients(model: Model, layer: Layer, x: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
    """The output of a layer and the gradient of the target there, both (n, C, h, w), in pieces as memory allows.

    Where the network is run several times for one output, the passes lie one behind the other in C: what is summed over
    channels is then their mean, for the gradient holds the weight of each. Where the layer runs several times in a
    pass, the last counts. Cost: one forward, and a backward from the outputs down to the layer.
    """

    def both(part: slice) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), _cut(layer.module) as leaves:
            value = target.take(part)(as_tensor(model.module(x[part])))
        each = len(leaves) // model.eot
        last = leaves[each - 1 :: each]
        grads = torch.autograd.grad(value.sum(), last, allow_unused=True, materialize_grads=True)
        return torch.cat([*map(layer.on_grid, last)], 1).detach(), torch.cat([*map(layer.on_grid, grads)], 1)

    yield from model._chunked(both, len(x))
    model.cost.forwards += len(x) * model.eot
    model.cost.backwards += len(x) * model.eot


@contextmanager
def _cut(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a module as leaves: what lies below keeps no graph. What follows may work in place, on a copy."""
    leaves: list[Tensor] = []

    def after(_: nn.Module, inputs: Any, output: Any) -> Any:
        leaves.append(_first(output).detach().requires_grad_())
        copy = leaves[-1].clone()
        return copy if isinstance(output, Tensor) else type(output)((copy, *output[1:]))

    handle = module.register_forward_hook(after)
    try:
        yield leaves
    finally:
        handle.remove()


def _trace(model: Model, x: Tensor) -> tuple[list[_Run], Tensor]:
    """Every pass of every module on one noise image, with its graph, in the order in which they ended; the outputs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(x.shape[1:], generator=generator).to(x)[None]
    leaf = (model.bounds.low + model.bounds.width * noise).requires_grad_()
    runs: list[_Run] = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found = _first(output)
            if isinstance(found, Tensor) and found.is_floating_point() and len(found) == 1:
                runs.append(_Run(name, module, found, any(found is given for given in inputs)))

        return hook

    handles = [m.register_forward_hook(after(name)) for name, m in model.net.named_modules() if name]
    try:
        with torch.enable_grad():
            outputs = as_tensor(model.module(leaf))
    finally:
        for handle in handles:
            handle.remove()
    model.cost.forwards += model.eot
    if not outputs.requires_grad:
        raise NoGradient("the network has no gradient", where="the network's forward")
    return runs, outputs


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output


def _named(name: str, runs: list[_Run], net: nn.Module, size: tuple[int, int]) -> Layer:
    place = max((i for i, run in enumerate(runs) if run.name == name), default=None)
    if place is None:
        raise UsageError(
            f"the layer {name!r} gives no tensor for a batch, or does not run",
            where="layer",
            fix="Name one that the forward of the network calls.",
        )
    layer = _read(runs, place, net, size)
    if layer is None:
        raise UsageError(
            f"the output of the layer {name!r} lies on no grid over the image",
            expected="(N, C, h, w), (N, h, w, C) or tokens (N, T, C), with more than one place",
            got=str(tuple(runs[place].output.shape)),
            where="layer",
            fix="Name an earlier layer, or leave it out: one is found.",
        )
    return layer


def _last(runs: list[_Run], outputs: Tensor, net: nn.Module, size: tuple[int, int]) -> Layer:
    read = [(run, _read(runs, i, net, size)) for i, run in enumerate(runs) if run.output.requires_grad]
    pooled = {id(run.output) for run in runs if "Pool" in type(run.module).__name__ and not run.passed_on}
    found = [(run, layer) for run, layer in read if layer and id(run.output) not in pooled and _is_state(run, layer)]
    if outputs.ndim == 4:  # the logits themselves are no features
        found = [(run, layer) for run, layer in found if layer.on_grid(run.output).shape[1] != outputs.shape[1]]
    weight = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    tensors = [run.output for run, _ in found]
    grads = torch.autograd.grad((outputs * weight).sum(), tensors, allow_unused=True) if tensors else ()
    alive = [layer for (_, layer), g in zip(found, grads, strict=True) if g is not None and layer.on_grid(g).any()]
    alive = alive or [layer for _, layer in found]  # a network whose head is zero: its maps are, too, and say so
    if not alive:
        raise UsageError(
            "the network has no layer with a grid over the image",
            expected="convolutions, or tokens of patches",
            got="a plain function, which hides its layers" if isinstance(net, FunctionNet) else type(net).__name__,
            where="layer",
            fix="Wrap the module itself, name a layer, or take smoothgrad or integrated, which need none.",
        )
    coarsest = min(math.prod(layer.size) for layer in alive) if outputs.ndim == 4 else None
    return [layer for layer in alive if coarsest in (None, math.prod(layer.size))][-1]


def _is_state(run: _Run, layer: Layer) -> bool:
    """Whether the output is what the network knows about each place, not something on the way inside of attention."""
    kind = type(run.module).__name__
    if isinstance(run.module, nn.Identity) or "Drop" in kind or "Pool" in kind:
        return False
    return layer.form == "channels first" or "Norm" in kind or any(True for _ in run.module.children())


def _read(runs: list[_Run], place: int, net: nn.Module, size: tuple[int, int]) -> Layer | None:
    """How the output of a run is read, if it can be."""
    run = runs[place]
    shape = tuple(run.output.shape)
    if len(shape) == 4:
        form: Form | None = _form(run.module, shape, size)
        grid = (shape[2], shape[3]) if form == "channels first" else (shape[1], shape[2])
        return Layer(run.name, run.module, form, grid) if form is not None and math.prod(grid) > 1 else None
    if len(shape) != 3:
        return None
    seen = [tuple(r.output.shape[2:]) for r in runs[:place] if r.output.ndim == 4 and _fits(r.output.shape[2:], size)]
    found = _tokens(shape[1], [g for g in seen if math.prod(g) > 1], net, size)
    return Layer(run.name, run.module, "tokens", *found) if found else None


def _form(module: nn.Module, shape: tuple[int, ...], size: tuple[int, int]) -> Form | None:
    """Where the channels are, told by the grid that has the form of the image."""
    last = isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == shape[3:]
    if _fits(shape[1:3], size) and (last or not _fits(shape[2:4], size)):
        return "channels last"
    return "channels first" if _fits(shape[2:4], size) and not last else None


def _fits(grid: Any, size: tuple[int, int]) -> bool:
    """Whether a grid divides an image of that size evenly, up to a line at the border."""
    (h, w), (height, width) = grid, size
    even = abs(h - w * height / width) <= 1 or abs(w - h * width / height) <= 1
    return bool(h <= height and w <= width and even)


def _tokens(count: int, seen: list[Any], net: nn.Module, size: tuple[int, int]) -> tuple[tuple[int, int], int] | None:
    """Grid and number of the tokens before it: a grid that convolutions made, or a coarser one; else by its form."""
    known = getattr(net, "num_prefix_tokens", None)
    prefixes = [known, *range(MOST_PREFIX + 1)] if isinstance(known, int) else [*range(MOST_PREFIX + 1)]
    halved = [(h / 2**k, w / 2**k) for h, w in reversed(seen) for k in range(6)]
    grids = [(whole(h), whole(w)) for h, w in halved for whole in (math.ceil, math.floor)]
    for prefix in prefixes:
        for grid in grids:
            if math.prod(grid) == count - prefix > 1:
                return grid, prefix
    for prefix in prefixes if not seen else ():
        h = round(math.sqrt(max(0, count - prefix) * size[0] / size[1]))
        if h and (count - prefix) % h == 0 and count - prefix > 1 and _fits((h, (count - prefix) // h), size):
            return (h, (count - prefix) // h), prefix
    return None
