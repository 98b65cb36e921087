"""D14: would the network do better if it were fed otherwise?

The plausible mistakes are few: normalised twice or not at all, by another family's mean and std, 0-255 instead of 0-1,
channels in the other order. Each is tried on the probe; a way of feeding that is right on more samples than the given
one, by a paired test, means that the given one is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.attack import ROUNDING
from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import Model
from robustkit.core.outputs import as_tensor
from robustkit.core.task import Classification
from robustkit.run.interval import clopper_pearson, paired_p
from robustkit.run.probe import row
from robustkit.run.ranges import FAMILIES, affine, explain_range, fits

SURE, DOUBTFUL = 0.01, 0.3
"""p of the paired test up to which an alternative is taken to be better, or is worth a warning."""
SAME = 0.02
"""Ways of feeding that differ by less than this everywhere are one."""
Feed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Other:
    """Another way of feeding the network itself, and what to write if it is the right one."""

    name: str
    feed: Feed
    remedy: str


def audit_range(model: Model, x: Tensor, y: Tensor) -> Diagnostic | None:
    """Inputs outside the bounds: what they look like, and what would bring them back; None where they are inside."""
    low, high, bounds = float(x.min()), float(x.max()), model.bounds
    slack = ROUNDING * bounds.width
    if low >= bounds.low - slack and high <= bounds.high + slack:
        return None
    seen = f"inputs run from {low:.4g} to {high:.4g}, the bounds are [{bounds.low:g}, {bounds.high:g}]"
    told, remedy = explain_range(model, x, y)
    threshold = f"[{bounds.low:g}, {bounds.high:g}]"
    return row("D14", "FAIL", seen + told, value=max(abs(low), abs(high)), threshold=threshold, remedy=remedy)


def audit(model: Model, x: Tensor, y: Tensor, outputs: Tensor) -> Diagnostic:
    """Inputs inside the bounds: whether another way of feeding them is right more often."""
    if not isinstance(model.task, Classification):
        return row("D14", "NOT RUN", "the range fits; the other ways of feeding are tried for classification only")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return row(
            "D14", "NOT RUN", "the range fits; other ways of feeding are known only for images of 1 or 3 channels"
        )
    right = outputs.argmax(1) == y
    found = list(_tried(model, x, y))
    if not found:
        return row("D14", "NOT RUN", "the network could not be fed otherwise")
    return _verdict(right, *max(found, key=lambda pair: int(pair[1].sum())), len(found))


def _verdict(right: Tensor, other: Other, verdicts: Tensor, tried: int) -> Diagnostic:
    """The best other way against the given one, by the exact sign test on the samples where they disagree."""
    given, better = (float(v.double().mean()) for v in (right, verdicts))
    gained, lost = int((verdicts & ~right).sum()), int((right & ~verdicts).sum())
    p, threshold = paired_p(lost, gained), f"no alternative better with p < {SURE:g}"
    if gained <= lost or p > DOUBTFUL:
        text = f"clean accuracy is {given:.1%}; none of {tried} other ways of feeding the network is clearly better"
        best = f" (best: {other.name}, {better:.1%})"
        return row("D14", "PASS", text + best, value=better - given, threshold=threshold)
    low, high = clopper_pearson(int(right.sum()), len(right))
    seen = f"clean accuracy is {given:.1%} ({low:.1%} to {high:.1%}) as given and {better:.1%} with {other.name}"
    told = f" (p = {p:.1g})" if p < SURE else f"; the difference may be chance (p = {p:.2g})"
    return row(
        "D14",
        "FAIL" if p < SURE else "WARN",
        seen + told,
        value=better - given,
        threshold=threshold,
        remedy=other.remedy,
    )


def _tried(model: Model, x: Tensor, y: Tensor) -> Iterator[tuple[Other, Tensor]]:
    """Each other way to feed the network, with (N,) bool: right or wrong."""
    own = own_feed(model)
    done = [own(x)]
    for other in _others(model, x, own):
        fed = other.feed(x)
        if any(bool(((fed - seen).abs() < SAME * (1 + seen.abs())).all()) for seen in done):
            continue
        done.append(fed)
        try:
            with model.frozen(), torch.no_grad():
                outputs = as_tensor(model.net(fed))
        except Exception:  # a network may check its inputs: then this is no way to feed it
            continue
        model.cost.forwards += len(x)
        yield other, outputs.argmax(1) == y


def own_feed(model: Model) -> Feed:
    """What the network receives as the model is wrapped."""
    if model.mean is None or model.std is None:
        return lambda z: z.clone()
    return affine(model.mean, model.std)


def _others(model: Model, x: Tensor, own: Feed) -> Iterator[Other]:
    bounds = model.bounds
    unit = _to_unit(model, x)
    if model.mean is not None:
        yield Other(
            "no normalisation",
            lambda z: z,
            "The network normalises by itself, or was trained without: leave mean and std out (mean=0, std=1).",
        )
    yield Other(
        "values of 0 to 255",
        lambda z: unit(z) * 255,
        "The network wants 0 to 255: give images in [0, 1] and wrap(net, mean=0, std=1/255).",
    )
    if bounds.width > 4:
        yield from _small(model, unit, own)
    for name, (mean, std) in FAMILIES.items():
        if fits(mean, x):
            yield Other(f"{name} mean and std", _then(unit, affine(mean, std)), _wrapped(mean, std))
    if x.shape[1] == 3:
        yield Other(
            "channels in the order BGR",
            lambda z: own(z.flip(1)),
            "The network wants BGR: wrap a function that flips the channels, wrap(lambda x: net(x.flip(1))).",
        )
    yield Other(
        "inverted colours",
        lambda z: own(bounds.low + bounds.high - z),
        f"The network wants inverted images: wrap(lambda x: net({bounds.low + bounds.high:g} - x)).",
    )


def _small(model: Model, unit: Feed, own: Feed) -> Iterator[Other]:
    """Where bounds are wide: the network, or its mean and std, are made for 0 to 1."""
    yield Other("values of 0 to 1", unit, "The network wants 0 to 1: divide the images by 255 and use bounds (0, 1).")
    if model.mean is not None:
        yield Other(
            "values of 0 to 1, normalised as given",
            _then(unit, own),
            "mean and std are those of images in [0, 1]: divide the images by 255 and use bounds (0, 1).",
        )


def _then(first: Feed, second: Feed) -> Feed:
    return lambda z: second(first(z))


def _to_unit(model: Model, x: Tensor) -> Feed:
    """To [0, 1], on whose scale means and stds are published: as the data are, or from the bounds."""
    low, width = model.bounds.low, model.bounds.width
    if float(x.min()) >= 0 and float(x.max()) <= 1 + ROUNDING:
        return lambda z: z
    return lambda z: (z - low) / width


def _wrapped(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    return f"Wrap it so: wrap(net, mean={list(mean)}, std={list(std)}) with images in [0, 1], or --mean and --std."
