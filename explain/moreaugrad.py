"""MoreauGrad: the gradient of the Moreau envelope of the network, dense, sparse or group-sparse.

https://arxiv.org/abs/2302.05294. With ``f`` the target averaged over Gaussian noise (one draw of it, held throughout)

    M(x) = min_u  f(u) + ||u - x||^2 / (2 rho) + h(u - x),     map = (x - u*) / rho

``h`` is 0, ``eta ||d||_1`` or ``eta sum_g sqrt(n_g) ||d_g||_2`` over groups of pixels with ``n_g`` values. In terms of
the map ``m = (x - u) / rho`` the minimum is the fixed point of ``m = prox(grad f(x - rho m))``, ``prox`` the soft
threshold of values or groups. It is found by proximal gradient steps ``m <- prox_b(m + b (grad f(x - rho m) - m))``
with the step b of Barzilai and Borwein (SpaRSA, https://doi.org/10.1109/TSP.2009.2016892). Every iterate is a prox of
something, so its zeros are exact; none is averaged with another.

A network of ReLUs averaged over few draws has kinks, and the minimum lies on some of them: near it the residual stops
falling. An image whose residual does so goes on with more draws, those it had and new ones.

Shapes: x and map (N, *S). Units: as the gradient, of the output per unit of the input. Cost: at most ``budget``
forwards and backwards for each image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from skimage.segmentation import slic
from torch import Tensor

from robustkit.core.attribution import Note
from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS, Explainer, Map, Subject
from robustkit.core.gradients import Moments, Points, check_gradients
from robustkit.core.options import method
from robustkit.kernels.balls import norm, per_sample
from robustkit.kernels.prox import Groups, group_soft_threshold, groups_of, soft_threshold, square_labels

STALLED, PATIENCE = 0.8, 3
"""A residual that has not fallen to this share of its best in so many steps wants more draws, not more steps."""
GROWTH = 8
"""Most that the draws grow by at once."""
MEMORY = 3
"""Values of the envelope that a new one is held against: good steps do not descend every time."""
LEAST_STEP = 1e-4
TIE = 1e-4
"""Relative difference up to which sizes count as equal."""


@EXPLAINERS.register("moreaugrad", paper="https://arxiv.org/abs/2302.05294")
@method
class MoreauGrad(Explainer):
    """MoreauGrad: the gradient of a smoothed network, with values or groups of pixels that do not matter at 0.

    >>> MoreauGrad(penalty="group", group_size=16).group_size
    16
    """

    penalty: Literal["none", "l1", "group"] = Field(
        default="none",
        description="what is made sparse: none (the standard map), l1 (values), group (groups of pixels)",
    )
    rho: float = Field(
        default=0.05,
        gt=0,
        allow_inf_nan=False,
        description="strength of the smoothing by the envelope, in squared ranges of the bounds per unit of the output",
    )
    eta: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="gradients (root mean square of a group) below it vanish; by default by keep",
    )
    keep: float = Field(
        default=0.1, gt=0, le=1, description="eta by itself: share of values or groups that a linear network would keep"
    )
    samples: PositiveInt = Field(default=256, description="noise draws of an image to begin with")
    max_samples: PositiveInt = Field(default=512, description="most noise draws; they grow where the residual stalls")
    noise_level: float = Field(
        default=0.1, ge=0, allow_inf_nan=False, description="standard deviation of the noise, in ranges of the image"
    )
    tolerance: float = Field(default=0.01, gt=0, lt=1, description="relative residual of the fixed point to stop at")
    budget: PositiveInt = Field(default=2000, description="most gradients of an image; it may stop a little earlier")
    max_steps: PositiveInt = Field(
        default=100, description="most points looked at for an image, each with all its draws"
    )
    groups: Literal["squares", "superpixels"] = Field(
        default="squares", description="penalty=group: what a group is, squares or superpixels of the image (SLIC)"
    )
    group_size: PositiveInt = Field(default=14, description="groups=squares: side in pixels; edges may cut them")
    superpixels: int = Field(default=200, ge=2, description="groups=superpixels: about how many")
    labels: Tensor | None = Field(default=None)
    """Groups of your own, integers (H, W) or (N, H, W), for ``penalty=group``."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if self.penalty == "group" and len(shape) != 3:
            raise UsageError(
                "groups are of pixels, and these inputs are no images",
                expected="inputs (N, C, H, W)",
                got=f"(N, {', '.join(map(str, shape))})",
                where="moreaugrad:penalty=group",
                fix="penalty=none and penalty=l1 take inputs of any shape.",
            )
        super().check_shape(shape)

    def attribute(self, subject: Subject) -> Map:
        groups = self._groups(subject)
        if self.budget < 2 * self.samples:
            raise UsageError(
                "the budget is too small",
                expected=f"two gradients for each of the {self.samples} draws, to take one step",
                got=f"budget={self.budget}",
                where="moreaugrad",
                fix="Raise budget or lower samples.",
            )
        search = _Search(self, subject, groups)
        search.run()
        m, error = search.best, search.error
        extras = {"fixed_point_residual": error, "steps": search.steps, "draws": search.draws}
        if self.penalty != "none":
            extras |= {"eta": search.prox.eta, "support": m != 0}
        if groups is not None:
            extras["groups"] = groups.label.view(len(m), *m.shape[-2:])
        noise = search.noise if self.noise_level > 0 else None
        return Map(m, standard_error=noise, extras=extras, notes=self._notes(error))

    def _notes(self, error: Tensor) -> tuple[str, ...]:
        far = int((error > self.tolerance).sum())
        if not far:
            return ()
        text = (
            f"{far} of {len(error)} maps are no fixed point yet: relative residual up to {float(error.max()):.3g}, not "
            f"{self.tolerance:g}, after {self.budget} gradients or {self.max_steps} steps. The network bends more than "
            "the envelope smooths, which then has kinks or several minima: take a smaller rho, or a larger "
            "noise_level, max_samples or budget"
        )
        return (Note(text, error > self.tolerance),)

    def _groups(self, subject: Subject) -> Groups | None:
        """The groups of every sample, where the penalty has them."""
        x, labels = subject.x, self.labels
        if self.penalty != "group":
            if labels is not None:
                raise UsageError(
                    "labels are groups, and the penalty has none",
                    got=f"penalty={self.penalty}",
                    where="labels",
                    fix="Say penalty='group'.",
                )
            return None
        if labels is None and self.groups == "squares":
            labels = square_labels(x.shape[-2], x.shape[-1], self.group_size, x.device)
        elif labels is None:
            bounds = subject.model.bounds
            labels = _superpixels((x - bounds.low) / bounds.width, self.superpixels)
        return groups_of(_checked(labels, x), len(x))


class _Prox:
    """The penalty of some samples: its threshold, its value and its proximal operator.

    Args:
        method: with the options.
        first: (N, *S), the averaged gradients at x, from which ``keep`` finds eta.
        groups: of penalty group.
    """

    def __init__(self, method: MoreauGrad, first: Tensor, groups: Groups | None) -> None:
        self.kind, self.groups = method.penalty, groups
        self._root = first.new_ones(0)
        if groups is not None:
            self._root = (groups.pixels * first.shape[1]).sqrt().to(first)
        self.eta = first.new_zeros(len(first))
        if self.kind != "none":
            self.eta = self._eta_of(first, method.keep) if method.eta is None else self.eta + method.eta

    def __call__(self, y: Tensor, rows: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """The prox of ``step`` times the penalty at y (K, *S)."""
        if self.kind == "l1":
            return soft_threshold(y, self.eta[rows] * step)
        if self.groups is not None:
            limits = self._limits(rows) * (step[:, None] if isinstance(step, Tensor) else step)
            return group_soft_threshold(y, self.groups.take(rows), limits)
        return y

    def penalty(self, m: Tensor, rows: Tensor) -> Tensor:
        """Of maps (K, *S), (K,)."""
        if self.kind == "l1":
            return self.eta[rows] * norm(m, 1)
        if self.groups is not None:
            return (self.groups.take(rows).lengths(m) * self._limits(rows)).sum(1)
        return m.new_zeros(len(m))

    def _limits(self, rows: Tensor) -> Tensor:
        return self.eta[rows, None] * self._root[rows]

    def _eta_of(self, first: Tensor, keep: float) -> Tensor:
        """The eta that leaves a share of the values or groups of a gradient, (N,), and with the last one its equals.

        It is the largest size below those, so that no map is empty because many values are the same.
        """
        if self.groups is None:
            size = first.flatten(1).abs()
            present = torch.full_like(self.eta, size.shape[1])
        else:
            absent = self._root == 0
            size = (self.groups.lengths(first) / self._root).masked_fill(absent, 0)
            present = (~absent).sum(1)
        kept = (keep * present).round().long().clamp_min(1)
        least = size.sort(1).values.gather(1, size.shape[1] - kept[:, None])
        return size.masked_fill(size >= least * (1 - TIE), 0).amax(1)


class _Search:
    """The fixed points of a batch, each searched on its own; those that are found leave the computation.

    ``_kept`` is the last map that the envelope agreed to, ``_slope`` what drives it on: the averaged gradient there
    less the map itself; ``_map`` is the one at work.

    Attributes:
        best: (N, *S), the maps; error: (N,), their relative residuals; noise: (N, *S), their standard errors.
        steps, draws: (N,), points looked at and noise draws at the end.
    """

    def __init__(self, method: MoreauGrad, subject: Subject, groups: Groups | None) -> None:
        self.method, self.subject, x = method, subject, subject.x
        n = len(x)
        range_ = x.flatten(1).amax(1) - x.flatten(1).amin(1)
        self._sigma = per_sample(method.noise_level * range_, x)
        width = subject.model.bounds.width
        self._rho = method.rho * (width**2 if math.isfinite(width) else 1)
        everyone = torch.arange(n, device=x.device)
        self.draws = torch.full_like(everyone, method.samples if method.noise_level > 0 else 1)
        self.steps, self._spent = torch.zeros_like(everyone), self.draws.clone()
        first, value, self.noise = self._gradient(everyone, torch.zeros_like(x))
        self.prox = _Prox(method, first, groups)
        self._kept, self._slope, self._step = torch.zeros_like(x), first, x.new_ones(n)
        self._values = torch.cat([value[:, None], value.new_full((n, MEMORY - 1), -torch.inf)], 1)
        self._map = self.prox(first.clone(), everyone)
        self.best, self.error = torch.zeros_like(x), x.new_full((n,), torch.inf)
        self._goal, self._idle = self.error.clone(), torch.zeros_like(everyone)

    def run(self) -> None:
        """Search until every sample is a fixed point or has spent what it may."""
        rows = torch.arange(len(self._map), device=self._map.device)
        while len(rows):
            m = self._map[rows]
            gradient, value, noise = self._gradient(rows, m)
            self.steps[rows] += 1
            self._spent[rows] += self.draws[rows]
            error = _relative(self.prox(gradient, rows) - m, m)
            self._remember(rows, m, error, noise)
            envelope = value + self._rho * (norm(m, 2).square() / 2 + self.prox.penalty(m, rows))
            self._move(rows, gradient - m, envelope)
            rows = rows[self.error[rows] > self.method.tolerance]
            self._grow(rows)
            rows = rows[
                (self._spent + self.draws <= self.method.budget)[rows] & (self.steps < self.method.max_steps)[rows]
            ]

    def _remember(self, rows: Tensor, m: Tensor, error: Tensor, noise: Tensor) -> None:
        better = error < self.error[rows]
        gained = rows[better]
        self.best[gained], self.error[gained], self.noise[gained] = m[better], error[better], noise[better]
        falls = error < STALLED * self._goal[rows]
        self._goal[rows] = torch.where(falls, error, self._goal[rows])
        self._idle[rows] = torch.where(falls, 0, self._idle[rows] + 1)

    def _move(self, rows: Tensor, slope: Tensor, envelope: Tensor) -> None:
        """On from the point if the envelope there is no higher than lately, else a shorter way from the last one.

        The step of Barzilai and Borwein is the one that the two slopes agree on if the network is quadratic between.
        """
        way, turn = (self._map[rows] - self._kept[rows]).flatten(1), slope.flatten(1) - self._slope[rows].flatten(1)
        secant = -(way * turn).sum(1) / turn.square().sum(1)
        known = (secant > 0) & (self._values[rows, 0] < torch.inf)  # else another function was met at the last point
        step = torch.where(known, secant, self._step[rows]).clamp(LEAST_STEP, 1)
        rounding = 100 * torch.finfo(envelope.dtype).eps * (1 + envelope.abs())
        taken = envelope <= self._values[rows].amax(1) + rounding
        self._step[rows] = torch.where(taken, step, torch.minimum(step, self._step[rows] / 2).clamp_min(LEAST_STEP))
        on = rows[taken]
        self._kept[on], self._slope[on] = self._map[on], slope[taken]
        earlier = self._values[on, :-1]
        self._values[on] = torch.cat([envelope[taken, None], earlier.masked_fill(earlier == torch.inf, -torch.inf)], 1)
        step = self._step[rows]
        self._map[rows] = self.prox(self._kept[rows] + per_sample(step, slope) * self._slope[rows], rows, step)

    def _grow(self, rows: Tensor) -> None:
        """More draws for those whose residual stalls, if enough steps with them can be paid for."""
        if self.method.noise_level == 0:
            return
        most = max(self.method.max_samples, self.method.samples)
        short = (self.error[rows] / self.method.tolerance).clamp(2, GROWTH)
        more = (self.draws[rows] * 2 ** short.log2().ceil().long()).clamp_max(most)
        left = self.method.budget - self._spent[rows]
        more = torch.minimum(more, left // (PATIENCE + 1))
        chosen = (self._idle[rows] >= PATIENCE) & (more > self.draws[rows])
        grown = rows[chosen]
        self.draws[grown] = more[chosen]
        self._forget(grown)

    def _forget(self, rows: Tensor) -> None:
        """With other draws it is another function: its value, residual and curvature are unknown."""
        self.error[rows], self._goal[rows], self._idle[rows] = torch.inf, torch.inf, 0
        self._values[rows, 0], self._values[rows, 1:] = torch.inf, -torch.inf

    def _gradient(self, rows: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean gradient and target over the draws of every row at x - rho m, and the standard error of the former."""
        x = torch.zeros_like(self.subject.x).index_copy_(0, rows, self.subject.x[rows] - self._rho * m)
        moments, total = Moments(x), _Values(x)
        self.subject.engine.run(self._points(rows.cpu(), x), moments, total)
        check_gradients(moments.mean, self.subject.draws.ids)
        return moments.mean[rows], (total.total / moments.count)[rows], moments.standard_error[rows]

    def _points(self, rows: Tensor, x: Tensor) -> Iterator[Points]:
        """The same draws at every call, the first ones of every sample for any number of them."""
        counts = self.draws.cpu()[rows]
        sample, start = rows.repeat_interleave(counts), counts.cumsum(0) - counts
        number = torch.arange(len(sample)) - start.repeat_interleave(counts)
        for index in self.subject.engine.batches(len(sample)):
            owner = sample[index]
            points = x[owner]
            noise = self.subject.draws.normal_of(owner, number[index], points)
            yield Points(owner, points + self._sigma[owner] * noise, x.new_ones(len(owner)))


class _Values:
    """Sums of the target of every sample, (N,)."""

    def __init__(self, like: Tensor) -> None:
        self.total = like.new_zeros(len(like))

    def add(self, points: Points, value: Tensor, grad: Tensor) -> None:
        self.total.index_add_(0, points.sample.to(value.device), value)


def _relative(difference: Tensor, m: Tensor) -> Tensor:
    """Length of the difference over that of the map, (K,); 0 where both are 0."""
    size, whole = norm(difference, 2), norm(m, 2)
    return torch.where(size > 0, size / whole, 0)


def _superpixels(x: Tensor, count: int) -> Tensor:
    """SLIC labels (N, H, W) of images in [0, 1], of any number of channels."""
    pictures = x.detach().movedim(1, -1).double().cpu().numpy()
    lab = x.shape[1] == 3
    settings = {"n_segments": count, "convert2lab": lab, "compactness": 10.0 if lab else 0.1}  # Lab goes up to 100
    found = [slic(picture, start_label=0, channel_axis=-1, **settings) for picture in pictures]
    return torch.from_numpy(np.stack(found)).long().to(x.device)


def _checked(labels: Tensor, x: Tensor) -> Tensor:
    shape = tuple(labels.shape)
    if labels.is_floating_point() or labels.is_complex() or shape not in (tuple(x.shape[-2:]), (len(x), *x.shape[-2:])):
        size = f"({x.shape[-2]}, {x.shape[-1]})"
        raise UsageError(
            "the labels do not fit the images",
            expected=f"whole numbers of shape {size} or ({len(x)}, {size[1:]}",
            got=f"{labels.dtype} of shape {shape}",
            where="labels",
            fix="Resize labels without interpolation: mode='nearest'.",
        )
    return labels.to(x.device).long()
