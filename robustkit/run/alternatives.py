"""D14: would the network do better if it were fed otherwise?

The plausible mistakes are few: normalised twice or not at all, by another family's mean and std, 0-255 instead of 0-1,
channels in the other order. Each is tried on the probe; a way of feeding that is right on more samples than the given
one, by a paired test, means that the given one is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustkit.core.attack import ROUNDING
from robustkit.core.diagnostic import Diagnostic
from robustkit.core.model import Model
from robustkit.core.outputs import as_tensor
from robustkit.core.task import Classification
from robustkit.run.interval import clopper_pearson, paired_p

FAMILIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5/0.5": ((0.5,), (0.5,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307,), (0.3081,)),
}
SURE, DOUBTFUL = 0.01, 0.3
"""p of the paired test up to which an alternative is taken to be better, or is worth a warning."""
Feed = Callable[[Tensor], Tensor]


def _row(status: Any, message: str, *, value: float | None = None, threshold: str = "", remedy: str = "") -> Diagnostic:
    return Diagnostic(
        id="D14",
        title="preprocessing fits",
        status=status,
        value=value,
        threshold=threshold,
        message=message,
        remedy=remedy,
        invalidates=True,
    )


def audit_range(model: Model, x: Tensor, y: Tensor) -> Diagnostic | None:
    """Inputs outside the bounds: what they look like, and what would bring them back; None where they are inside."""
    low, high, bounds = float(x.min()), float(x.max()), model.bounds
    slack = ROUNDING * bounds.width
    if low >= bounds.low - slack and high <= bounds.high + slack:
        return None
    seen = f"inputs run from {low:.4g} to {high:.4g}, the bounds are [{bounds.low:g}, {bounds.high:g}]"
    fitting = [(name, feed(x)) for name, feed in _inverses(model, x)]
    fitting = [
        (name, z) for name, z in fitting if float(z.min()) >= bounds.low - 0.01 and float(z.max()) <= bounds.high + 0.01
    ]
    scored = [(_accuracy(model, z.clamp(bounds.low, bounds.high), y), name) for name, z in fitting]
    if not scored:
        return _row(
            "FAIL",
            seen,
            value=max(abs(low), abs(high)),
            threshold=f"[{bounds.low:g}, {bounds.high:g}]",
            remedy="Give images in the bounds, and mean and std to wrap(); or set the bounds to the true range.",
        )
    best, name = max(scored, key=lambda pair: pair[0] if pair[0] is not None else -1)
    given = _accuracy(model, x, y)
    accuracy = (
        "" if best is None or given is None else f"; clean accuracy is {given:.1%} as given and {best:.1%} after {name}"
    )
    return _row(
        "FAIL",
        seen + accuracy,
        value=max(abs(low), abs(high)),
        threshold=f"[{bounds.low:g}, {bounds.high:g}]",
        remedy=f"The data look {_looks(name)}: give images in [{bounds.low:g}, {bounds.high:g}], and let "
        "wrap(net, mean=..., std=...) normalise.",
    )


def _inverses(model: Model, x: Tensor) -> Iterator[tuple[str, Feed]]:
    """Ways back into the bounds."""
    if float(x.max()) > 4 * model.bounds.high:
        yield "dividing by 255", lambda z: z / 255
    families = dict(FAMILIES)
    if model.mean is not None and model.std is not None:
        families = {"the model's own": (model.mean, model.std), **families}
    for name, (mean, std) in families.items():
        if _fits(mean, x):
            yield f"undoing a normalisation by {name} mean and std", _affine(mean, std, inverse=True)


def audit(model: Model, x: Tensor, y: Tensor, outputs: Tensor) -> Diagnostic:
    """Inputs inside the bounds: whether another way of feeding them is right more often."""
    if not isinstance(model.task, Classification):
        return _row("NOT RUN", "only for classification")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return _row("NOT RUN", "only for images of one or three channels")
    right = outputs.argmax(1) == y
    given = float(right.double().mean())
    found = [(name, verdict) for name, verdict in _alternatives(model, x, y)]
    if not found:
        return _row("NOT RUN", "the network could not be fed otherwise")
    name, other = max(found, key=lambda pair: int(pair[1].sum()))
    better = float(other.double().mean())
    gained, lost = int((other & ~right).sum()), int((right & ~other).sum())
    p = paired_p(lost, gained)
    value, threshold = better - given, f"no alternative better with p < {SURE:g}"
    if gained <= lost or p > DOUBTFUL:
        return _row(
            "PASS",
            f"clean accuracy is {given:.1%}; none of {len(found)} other ways of feeding the network is clearly better "
            f"(best: {name}, {better:.1%})",
            value=value,
            threshold=threshold,
        )
    low, high = clopper_pearson(int(right.sum()), len(y))
    seen = f"clean accuracy is {given:.1%} ({low:.1%} to {high:.1%}) as given and {better:.1%} with {name}"
    if p < SURE:
        return _row("FAIL", f"{seen} (p = {p:.1g})", value=value, threshold=threshold, remedy=_remedy(name))
    return _row(
        "WARN",
        f"{seen}; the difference may be chance (p = {p:.2g})",
        value=value,
        threshold=threshold,
        remedy=_remedy(name),
    )


def _alternatives(model: Model, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, right or wrong) of each other way to feed the network itself."""
    for name, feed in _feeds(model, x):
        try:
            with model.frozen(), torch.no_grad():
                outputs = as_tensor(model.net(feed(x)))
            model.cost.forwards += len(x)
            yield name, outputs.argmax(1) == y
        except (RuntimeError, ValueError):  # a network may check its inputs: then this is no way to feed it
            continue


def _feeds(model: Model, x: Tensor) -> Iterator[tuple[str, Feed]]:
    own = _affine(model.mean, model.std) if model.mean is not None and model.std is not None else None
    if own is not None:
        yield "no normalisation", lambda z: z
        yield "values of 0 to 255, not normalised", lambda z: z * 255
    else:
        yield "values of 0 to 255", lambda z: z * 255
    for name, (mean, std) in FAMILIES.items():
        if _fits(mean, x) and (mean, std) != (model.mean, model.std) and not _same(model, mean, std, x):
            yield f"{name} mean and std", _affine(mean, std)
    if x.shape[1] == 3:
        yield "channels in the order BGR", lambda z: own(z.flip(1)) if own else z.flip(1)
    yield "inverted colours", lambda z: own(1 - z) if own else 1 - z


def _same(model: Model, mean: tuple[float, ...], std: tuple[float, ...], x: Tensor) -> bool:
    if model.mean is None or model.std is None:
        return False
    c = x.shape[1]

    def spread(values: tuple[float, ...]) -> list[float]:
        return [round(v, 2) for v in (values * c if len(values) == 1 else values)]

    return spread(mean) == spread(model.mean) and spread(std) == spread(model.std)


def _affine(mean: tuple[float, ...], std: tuple[float, ...], *, inverse: bool = False) -> Feed:
    def feed(z: Tensor) -> Tensor:
        m, s = (torch.tensor(v, dtype=z.dtype, device=z.device).view(-1, *[1] * (z.ndim - 2)) for v in (mean, std))
        return z * s + m if inverse else (z - m) / s

    return feed


def _fits(mean: tuple[float, ...], x: Tensor) -> bool:
    return x.ndim == 4 and len(mean) in (1, x.shape[1])


def _accuracy(model: Model, x: Tensor, y: Tensor) -> float | None:
    if not isinstance(model.task, Classification) or y.ndim != 1:
        return None
    with model.frozen(), torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def _looks(name: str) -> str:
    return "like 8-bit images" if "255" in name else "normalised already"


def _remedy(name: str) -> str:
    if name in FAMILIES or name.removesuffix(" mean and std") in FAMILIES:
        mean, std = FAMILIES[name.removesuffix(" mean and std")]
        return f"Wrap it so: wrap(net, mean={list(mean)}, std={list(std)}), or --mean and --std."
    if name == "no normalisation":
        return "The network normalises by itself, or was trained without: leave mean and std out (mean=0, std=1)."
    if "255" in name:
        return "The network wants 0 to 255: wrap(net, mean=0, std=1/255)."
    if "BGR" in name:
        return "The network wants BGR: wrap a function that flips the channels, wrap(lambda x: net(x.flip(1)))."
    return "The network wants inverted images: wrap(lambda x: net(1 - x))."
