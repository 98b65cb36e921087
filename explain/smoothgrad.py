"""SmoothGrad, SmoothGrad-squared and VarGrad: moments of the gradient under noise (https://arxiv.org/abs/1706.03825).

``g_i = gradient at x + z_i``, ``z_i ~ N(0, sigma^2)``, ``sigma = noise_level * (max(x) - min(x))`` of each image.
One pass gives the mean (SmoothGrad), the mean of squares (SmoothGrad-squared, https://arxiv.org/abs/1806.10758), the
population variance (VarGrad, https://arxiv.org/abs/1810.03292) and the standard error of the mean. Noisy images are not
clipped. Shapes: x and map (N, *S). Cost: ``samples`` forwards and backwards for each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from robustkit.core.attribution import Note
from robustkit.core.explainer import EXPLAINERS, Explainer, Map, Subject
from robustkit.core.gradients import Accumulator, Moments, Paired, Points, check_gradients
from robustkit.core.options import method
from robustkit.kernels.balls import per_sample

ROUND = 32
"""Draws of every image between two looks at the error, where their number is found on the way."""


@EXPLAINERS.register("smoothgrad", paper="https://arxiv.org/abs/1706.03825")
@method
class SmoothGrad(Explainer):
    """SmoothGrad: the gradient averaged over noisy copies of the image, with its standard error.

    >>> SmoothGrad(samples="auto", tolerance=0.1).samples
    'auto'
    """

    samples: PositiveInt | Literal["auto"] = Field(
        default=50, description="noisy copies; auto: as many as the tolerance takes"
    )
    noise_level: float = Field(
        default=0.15, ge=0, allow_inf_nan=False, description="standard deviation of the noise, in ranges of the image"
    )
    statistic: Literal["mean", "squared", "variance"] = Field(
        default="mean", description="what is shown: mean (SmoothGrad), squared (SmoothGrad-squared), variance (VarGrad)"
    )
    antithetic: bool = Field(default=False, description="draw the noise in pairs z, -z")
    tolerance: float = Field(
        default=0.05, gt=0, lt=1, description="samples=auto: relative standard error of the whole map to stop at"
    )
    max_samples: int = Field(default=1000, ge=2, description="samples=auto: most copies of an image")

    def attribute(self, subject: Subject) -> Map:
        moments = Moments(subject.x)
        errors = Moments(subject.x) if self.antithetic else moments
        takers: list[Accumulator] = [moments, Paired(errors)] if self.antithetic else [moments]
        rows, done, most = torch.arange(len(subject.x)), 0, self._most()
        while len(rows) and done < most:
            count = min(ROUND if self.samples == "auto" else most, most - done)
            subject.engine.run(self._noisy(subject, rows, done, count), *takers)
            done += count
            if self.samples == "auto":
                rows = rows[(relative_error(errors)[rows] > self.tolerance).cpu()]
        check_gradients(moments.mean, subject.draws.ids)
        return self._map(moments, errors, rows if self.samples == "auto" else rows[:0])

    def _most(self) -> int:
        most = self.max_samples if self.samples == "auto" else self.samples
        return most + most % 2 if self.antithetic else most

    def _noisy(self, subject: Subject, rows: Tensor, first: int, count: int) -> Iterator[Points]:
        sigma = per_sample(self.noise_level * _range(subject.x), subject.x)
        group = 2 if self.antithetic else 1
        for index in subject.engine.batches(len(rows) * count, group):
            sample, number = rows[index // count], first + index % count
            x = subject.x[sample]
            if self.antithetic:
                half = subject.draws.normal_of(sample[::2], number[::2] // 2, x)
                noise = torch.stack([half, -half], 1).flatten(0, 1)
            else:
                noise = subject.draws.normal_of(sample, number, x)
            yield Points(sample, x + sigma[sample] * noise, x.new_ones(len(sample)))

    def _map(self, moments: Moments, errors: Moments, unfinished: Tensor) -> Map:
        variance = moments.variance
        squared = moments.mean.square() + variance
        values = {"mean": moments.mean, "squared": squared, "variance": variance}[self.statistic]
        extras = {"mean": moments.mean, "squared": squared, "variance": variance, "samples": moments.count.long()}
        notes: tuple[str, ...] = ()
        if len(unfinished):
            text = (
                f"{len(unfinished)} of {len(values)} maps stopped at max_samples={self.max_samples} with a relative "
                f"standard error of up to {float(relative_error(errors).max()):.3g}, above the tolerance"
            )
            which = torch.zeros(len(values), dtype=torch.bool)
            which[unfinished] = True
            notes = (Note(text, which),)
        error = errors.standard_error if self.statistic == "mean" else None
        return Map(values, standard_error=error, extras=extras, notes=notes)


def relative_error(moments: Moments) -> Tensor:
    """(N,), the length of the error of the mean map over that of the map itself, both with the noise taken off.

    ``sqrt(E / max(|m|^2 - E, 0))`` with E the sum of the squared standard errors: |m|^2 alone counts the noise as map.
    """
    error = moments.standard_error.flatten(1).square().sum(1)
    return (error / (moments.mean.flatten(1).square().sum(1) - error).clamp_min(0)).sqrt().nan_to_num(torch.inf)


def _range(x: Tensor) -> Tensor:
    return x.flatten(1).amax(1) - x.flatten(1).amin(1)
