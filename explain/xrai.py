"""XRAI: regions of the image, ranked by the attribution they gather (https://arxiv.org/abs/1906.02825).

Integrated gradients from two baselines, the lowest and the highest value of the image, are reduced over channels; the
image is cut into segments at six scales, each grown by a few pixels; the image is then covered greedily, again and
again with the segment whose uncovered part has the highest mean attribution, and every pixel gets that mean. Shapes: x
(N, C, H, W), map (N, 1, H, W). Units: of the output per pixel. Cost: ``steps`` forwards and backwards for each baseline
and one forward for each baseline, then some tenths of a second on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.explainer import EXPLAINERS, Map, Subject
from robustkit.core.options import method
from robustkit.core.specs import parse_fraction
from robustkit.explain.baselines import checked
from robustkit.explain.paths import PathMethod
from robustkit.kernels.regions import Merged, Regions, bits_of_labels, bits_of_masks, dilate, merge, merge_once
from robustkit.kernels.segments import SIDE, Segmentation, threaded


def checked_scales(value: object) -> str:
    """Positive numbers joined by "+"; a single one may come as a number.

    >>> checked_scales("50+100"), checked_scales(50)
    ('50+100', '50')
    """
    try:
        if all(parse_fraction(part) > 0 for part in str(value).split("+")):
            return str(value)
    except UsageError:
        pass
    raise ValueError("positive numbers joined by +, such as 50+100")


@EXPLAINERS.register("xrai", paper="https://arxiv.org/abs/1906.02825")
@method
class XRAI(PathMethod):
    """XRAI: whole segments of the image, from the most salient to the least, by their share of integrated gradients.

    In Python only: ``segments`` instead of our own, label maps (int; (N, H, W) or (N, L, H, W); grown by ``radius``) or
    masks (bool; (K, H, W) for all samples or (N, K, H, W); used as they are), or one of either for each sample;
    ``base_attribution`` (N, C, H, W) or (N, H, W) instead of integrated gradients; ``reference`` instead of the
    baseline.

    The residual is that of the integrated gradients: means over segments add up to nothing in particular.

    >>> XRAI(algorithm="fast", baseline="black+white").steps
    50
    """

    pixels = True

    baseline: Annotated[str, AfterValidator(checked)] = Field(
        default="min+max",
        description='start of the paths: min, max (of the image), black, white, mean, blur, uniform, or several by "+"',
    )
    algorithm: Literal["full", "fast"] = Field(
        default="full", description="full: means without what is covered, always anew; fast: means taken once"
    )
    channels: Literal["max", "sum"] = Field(
        default="max", description="how the channels of a pixel are reduced; sum keeps the total"
    )
    scales: Annotated[str, BeforeValidator(checked_scales)] = Field(
        default="50+100+150+250+500+1200", description="scales of the segmentations: larger ones give larger segments"
    )
    sigma: float = Field(default=0.8, ge=0, description="smoothing before the segmentation, in pixels of 224 x 224")
    min_size: int = Field(default=150, ge=1, description="smallest segment, in pixels of 224 x 224")
    radius: int = Field(default=5, ge=0, description="pixels that every segment is grown by")
    min_pixels: PositiveInt = Field(default=50, description="a segment with fewer uncovered pixels is dropped")
    relative: bool = Field(
        default=False, description="radius and min_pixels are those of 224 x 224, scaled to the size of the image"
    )
    area_threshold: float = Field(
        default=1.0, gt=0, le=1, description="algorithm=full: stop when more of the image than this is covered"
    )
    segments: Tensor | tuple[Tensor, ...] | None = None
    base_attribution: Tensor | None = None

    def attribute(self, subject: Subject) -> Map:
        # Segments first: what is wrong with an image shows before the gradients are paid for.
        cuts = self._given(subject.x) if self.segments is not None else self._own(subject)
        found = self._base(subject)
        base = self._reduced(found.values).detach().cpu().double().numpy()
        merged = threaded(lambda pair: self._merged(self._grown(pair[0]), pair[1]), list(zip(cuts, base, strict=True)))
        maps = {name: _stacked(merged, name, subject.x.device) for name in ("values", "ranks", "masks")}
        return Map(
            maps["values"].to(subject.x.dtype)[:, None],
            residual=found.residual,
            extras={"ranks": maps["ranks"], "segments": maps["masks"], **found.extras},
            notes=found.notes,
        )

    # -- attribution of pixels -----------------------------------------------------------------------------------------

    def _base(self, subject: Subject) -> Map:
        if self.base_attribution is None:
            return self.integrated(subject)
        given, x = self.base_attribution, subject.x
        if given.shape not in (x.shape, x[:, :1].shape, x[:, 0].shape):
            raise UsageError(
                "the base attribution does not fit the images",
                expected=f"{tuple(x.shape)} or {tuple(x[:, 0].shape)}",
                got=str(tuple(given.shape)),
                where="base_attribution",
            )
        if not bool(given.isfinite().all()):
            raise UsageError("the base attribution is not finite", where="base_attribution")
        return Map(given, notes=("the base attribution was given, not computed",))

    def _reduced(self, values: Tensor) -> Tensor:
        """(N, H, W)."""
        if values.ndim == 3:
            return values
        return values.amax(1) if self.channels == "max" else values.sum(1)

    def _merged(self, regions: Regions, base: NDArray[np.float64]) -> Merged:
        smallest = max(1, round(self.min_pixels * _scale(regions.shape) ** 2)) if self.relative else self.min_pixels
        if self.algorithm == "fast":
            return merge_once(regions, base, smallest)
        return merge(regions, base, smallest, self.area_threshold)

    # -- regions -------------------------------------------------------------------------------------------------------

    def _grown(self, given: NDArray[Any]) -> Regions:
        """Regions of label maps (L, H, W), or of masks (K, H, W)."""
        if given.dtype == bool:
            return Regions.of(bits_of_masks(given), len(given))
        bits, count = bits_of_labels(given.astype(np.int64))
        radius = round(self.radius * _scale(bits.shape)) if self.relative else self.radius
        return Regions.of(dilate(bits, radius), count)

    def _own(self, subject: Subject) -> list[NDArray[Any]]:
        flat = subject.x.flatten(1)
        constant = (flat.amax(1) == flat.amin(1)).nonzero()[:, 0].tolist()
        if constant:
            raise UsageError(
                "a constant image has no segments",
                expected="images with more than one value",
                got=f"sample {int(subject.draws.ids[constant[0]])}, all {float(flat[constant[0], 0]):g}",
                where="xrai",
                fix="Leave it out, or give segments of your own: XRAI(segments=...).",
            )
        scales = tuple(parse_fraction(part) for part in self.scales.split("+"))
        images = subject.x.movedim(1, -1).cpu()
        if images.dtype not in (torch.float32, torch.float64):
            images = images.float()
        return [*Segmentation(scales, self.sigma, self.min_size)(list(images.numpy()))]

    def _given(self, x: Tensor) -> list[NDArray[Any]]:
        given = self.segments
        assert given is not None
        if isinstance(given, Tensor) and given.dtype == torch.bool and given.ndim == 3:
            given = given.expand(len(x), *given.shape)
        found: list[Tensor] = [part[None] if part.ndim == 2 else part for part in given]
        shape = tuple(x.shape[2:])
        bad = [part for part in found if part.ndim != 3 or tuple(part.shape[1:]) != shape or not len(part)]
        if bad or len(found) != len(x) or any(part.is_floating_point() for part in found):
            raise UsageError(
                "the segments do not fit the images",
                expected=f"label maps (int) or masks (bool) of size {shape} for each of {len(x)} samples",
                got=f"{len(found)} of {', '.join(f'{part.dtype} {tuple(part.shape)}' for part in found[:3])}",
                where="segments",
            )
        return [part.cpu().numpy() for part in found]


def _scale(shape: Sequence[int]) -> float:
    """Side of an image of this size, if it were a square, in sides of 224."""
    return float((shape[0] * shape[1]) ** 0.5 / SIDE)


def _stacked(merged: list[Merged], name: str, device: torch.device) -> Tensor:
    stacked = torch.from_numpy(np.stack([getattr(part, name) for part in merged]))
    return stacked.to(torch.float32 if device.type == "mps" and name == "values" else stacked.dtype).to(device)
