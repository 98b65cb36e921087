"""Model-parameter randomisation (https://arxiv.org/abs/1810.03292): a map of the network must change with its weights.

Layers are reset from the outputs down, in the order in which they run, and the map of the same class is compared with
the original at each stage. *cascading*: a layer that is reset stays so, until nothing is left of the network.
*independent*: one layer alone is reset at each stage. A map that stays alike shows the picture and not the network.

A layer is a module with parameters of its own (BatchNorm counts, and its reset also forgets its running statistics).
It is reset by its own ``reset_parameters``; parameters that this does not touch, and those of modules without it, are
drawn anew from a normal distribution of mean 0 and their own root mean square. Every layer has a seed of its own, made
of the seed of the call and the name of the layer, so that its new weights depend on no other layer. All happens on a
private copy of the network; no global generator is read or moved.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError, near
from robustkit.core.explainer import Explainer
from robustkit.core.model import Model
from robustkit.core.seen import private
from robustkit.core.types import Cost
from robustkit.explain.metrics.checks import check_pictures, check_whole, checked_ids, rating
from robustkit.explain.metrics.sensitivity import check_same
from robustkit.explain.metrics.similarity import hog_spearman, spearman, ssim
from robustkit.kernels.noise import key_of

STAGES = 8
RESETS = ("reset_parameters", "_reset_parameters")
Order = Literal["cascading", "independent"]
ORDERS = ("cascading", "independent")


@dataclass(frozen=True, eq=False)
class Randomisation:
    """Similarity of the maps of one method with the original ones, which are not among the stages.

    Attributes:
        layers: (S), the name of the layer that each stage ends with.
        depths: (S), how many layers are reset at each stage, of ``total``; in independent order which one is.
        total: layers of the network.
        spearman: (N, S), rank correlation of the pixel ratings (magnitudes, for methods that rate values).
        signed: (N, S), rank correlation of the signed sums over channels.
        ssim: (N, S), structural similarity of the pixel ratings.
        hog: (N, S), rank correlation of HOG features, where it was asked for.
        notes: stages at which the method failed or gave constant maps.
        cost: of all stages.
    """

    layers: tuple[str, ...]
    depths: tuple[int, ...]
    total: int
    spearman: Tensor
    signed: Tensor
    ssim: Tensor
    hog: Tensor | None = None
    notes: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)

    def __len__(self) -> int:
        return len(self.spearman)


def randomise(
    model: Model,
    x: Tensor,
    explainers: Mapping[str, Explainer],
    attributions: Mapping[str, Attribution],
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    order: Order = "cascading",
    stages: int | None = STAGES,
    hog: bool = False,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Randomisation]:
    """How alike the maps of some methods stay while the network is reset.

    Args:
        model, x: what was explained.
        explainers, attributions: label -> how, and what came out (with the same ids and seed).
        ids: (N,), key the draws of the methods; 0 .. N-1 by default.
        seed: of the draws of the methods and of the new weights.
        order: see the module.
        stages: most stages, evenly spaced from the first layer to the last; None for one a layer.
        hog: compare HOG features, too.
        batch: most points in the network at once.
        progress: called with (stages done, stages in all).

    Cost: ``stages`` times that of each map.

    Raises:
        UsageError: a network without parameters, or one that cannot be copied; attributions of other inputs, or labels
            that do not match.
    """
    check_pictures(x)
    check_labels(explainers, attributions)
    for attribution in attributions.values():
        check_same(x, attribution)
    if order not in ORDERS:
        raise UsageError(f"unknown order {order!r}", where="order", fix=near(str(order), ORDERS))
    ids = checked_ids(x, ids)
    layers = cascade(model, x)
    depths = evenly(len(layers), stages)
    tables = {
        label: _Table(attribution.values, explainers[label].pixels, hog) for label, attribution in attributions.items()
    }
    for stage, twin in enumerate(_networks(model, layers, depths, order, seed)):
        for label, table in tables.items():
            with model.metered() as spent:
                table.add(_explained(twin, x, explainers[label], attributions[label], ids, seed, batch))
            table.cost += spent
        if progress:
            progress(stage + 1, len(depths))
    shown = tuple(layers[depth - 1] or type(model.net).__name__ for depth in depths)
    return {label: table.result(shown, depths, len(layers)) for label, table in tables.items()}


def cascade(model: Model, x: Tensor) -> list[str]:
    """Names of the layers as modules of the network, the one nearest to the outputs first; "" is the network itself.

    Found by running one sample. A layer's place is where its last run begins; one that is never called (its parent
    reads its weights, as in attention) has the place of the nearest module around it that is.

    Raises:
        UsageError: no parameters.
    """
    modules = dict(model.net.named_modules())
    names = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
    if not names:
        raise UsageError(
            "there is nothing to randomise",
            expected="a network with parameters",
            got=type(model.net).__name__,
            where="model",
            fix="Wrap the nn.Module itself and not a function around it.",
        )
    begins = _begins(model, modules, x)
    places = {name: next((begins[a] for a in _ancestors(name) if a in begins), 0) for name in names}
    number = {name: i for i, name in enumerate(names)}
    return sorted(names, key=lambda name: (places[name], number[name]), reverse=True)


def evenly(total: int, stages: int | None) -> tuple[int, ...]:
    """At most ``stages`` depths from 1 to ``total``; one alone is the whole network.

    >>> evenly(10, 4), evenly(2, 8), evenly(5, 1)
    ((1, 4, 7, 10), (1, 2), (5,))
    """
    if stages is None:
        return tuple(range(1, total + 1))
    check_whole(stages, "stages")
    count = min(stages, total)
    if count == 1:
        return (total,)
    return tuple(1 + round(i * (total - 1) / (count - 1)) for i in range(count))


def reset(layer: nn.Module) -> None:
    """New parameters for one module, its children aside, from the global generators of torch, numpy and random."""
    own = dict(layer.named_parameters(recurse=False))
    before = {name: p.detach().clone() for name, p in own.items()}
    inner = [t for child in layer.children() for t in (*child.parameters(), *child.buffers())]
    kept = [(t, t.detach().clone()) for t in inner if not any(t is p for p in own.values())]
    initialise = next((f for f in (getattr(layer, n, None) for n in RESETS) if f is not None and _plain(f)), None)
    with torch.no_grad():
        if initialise is not None:
            initialise()
        for tensor, old in kept:
            tensor.copy_(old)
        for name, p in layer.named_parameters(recurse=False):
            same = name in before and before[name].shape == p.shape and bool((before[name] == p).all())
            if same and (initialise is None or bool((p != p.flatten()[:1]).any())):
                p.copy_(torch.randn_like(p) * p.square().mean().sqrt())


def check_labels(explainers: Mapping[str, Explainer], attributions: Mapping[str, Attribution]) -> None:
    """The two have the same labels.

    Raises:
        UsageError: they have not.
    """
    if set(explainers) != set(attributions):
        raise UsageError(
            "explainers and attributions do not match",
            expected=f"the labels {sorted(explainers)}",
            got=str(sorted(attributions)),
            where="attributions",
        )


class _Table:
    """Similarities of one method, stage by stage."""

    def __init__(self, values: Tensor, pixels: bool, hog: bool) -> None:
        self.pixels, self.cost = pixels, Cost()
        self.rated, self.signed = rating(values, pixels), rating(values, True)
        self.measures = {"spearman": spearman, "signed": spearman, "ssim": ssim}
        if hog:
            self.measures["hog"] = hog_spearman
        self.columns: dict[str, list[Tensor]] = {name: [] for name in self.measures}
        self.notes: list[str] = []

    def add(self, found: Tensor | str) -> None:
        """The values (N, *S) of a stage, or why there are none."""
        if isinstance(found, str):
            self.notes.append(found)
            found = self.rated.new_full((len(self.rated), 1, *self.rated.shape[1:]), torch.nan)
        finite = found.isfinite().flatten(1).all(1)
        found = found.where(finite.view(-1, 1, 1, 1), 0)
        rated, signed = rating(found, self.pixels), rating(found, True)
        for name, measure in self.measures.items():
            pair = (self.signed, signed) if name == "signed" else (self.rated, rated)
            self.columns[name].append(measure(*pair).where(finite, torch.nan))

    def result(self, layers: tuple[str, ...], depths: tuple[int, ...], total: int) -> Randomisation:
        found = {name: torch.stack(column, 1) for name, column in self.columns.items()}
        flat = int(found["spearman"].isnan().sum()) - len(self.notes) * len(self.rated)
        if flat:
            self.notes.append(f"no rank correlation at {flat} of {found['spearman'].numel()} stages: a map is constant")
        return Randomisation(layers, depths, total, **found, notes=tuple(self.notes), cost=self.cost)


def _explained(
    twin: Model, x: Tensor, explainer: Explainer, of: Attribution, ids: Tensor, seed: int, batch: int | None
) -> Tensor | str:
    """The values on a network that is partly reset; a method may fail there, where gradients may not be finite."""
    try:
        return explainer(twin, x, of.target, ids=ids, seed=seed, batch=batch).values
    except UsageError as error:
        return f"no map of the reset network: {error}"


def _networks(model: Model, layers: list[str], depths: tuple[int, ...], order: Order, seed: int) -> Iterator[Model]:
    """The network of every stage, wrapped anew: what is made of its weights is never that of another stage."""
    net, done = _copied(model.net), 0
    for depth in depths:
        if order == "independent":
            net, done = _copied(model.net), depth - 1
        twin = model.around(net)
        for name in layers[done:depth]:
            key = key_of(seed, 0, f"randomisation/{name}", 0, 0)
            with private(key % 2**31), twin.frozen(key):
                reset(net.get_submodule(name))
        done = depth
        yield twin


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except Exception as error:
        raise UsageError(
            "the network cannot be copied, so its weights cannot be randomised",
            got=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            where="model",
            fix="copy.deepcopy(net) must work: keep no tensors with a graph, files or locks in it.",
        ) from error


def _begins(model: Model, modules: Mapping[str, nn.Module], x: Tensor) -> dict[str, int]:
    """When the last run of each module begins, in the order of all runs of one sample."""
    begins: dict[str, int] = {}
    count = 0

    def watch(name: str) -> Callable[..., None]:
        def before(*_: Any) -> None:
            nonlocal count
            count += 1
            begins[name] = count

        return before

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        with model.frozen(), model.metered(refund=True):
            model(x[:1].detach())
    finally:
        for handle in handles:
            handle.remove()
    return begins


def _ancestors(name: str) -> Iterator[str]:
    """The name itself, then those of the modules around it, the nearest first.

    >>> list(_ancestors("a.b"))
    ['a.b', 'a', '']
    """
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _plain(function: Any) -> bool:
    """Whether something can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True
