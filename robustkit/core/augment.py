"""Changes to training images by torchvision's transforms, drawn from one key per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustkit.core.errors import UsageError, near
from robustkit.core.specs import MethodSpec
from robustkit.core.types import Bounds

DEGREES, SCALE, SHIFT = 10.0, 0.1, 2
"""Of ``digits``: how far it turns, by what share it scales, by how many pixels it moves."""
DEFAULTS: dict[str, dict[str, int]] = {
    "none": {},
    "flip": {},
    "crop": {"padding": 4},
    "crop-flip": {"padding": 4},
    "digits": {},
    "trivial": {},
    "randaugment": {"operations": 2, "magnitude": 9},
}
AUGMENTATIONS = tuple(DEFAULTS)
PICTURES = frozenset({"trivial", "randaugment"})
"""These work on the values of pictures: brightness, contrast and the like."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to training inputs; made by :func:`augmentation`.

    Attributes:
        name: one of ``AUGMENTATIONS``.
        options: of that name, complete.
        bounds: valid range of the inputs; what comes in from outside an image is ``low``.
    """

    name: str
    options: Mapping[str, int] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=Bounds)

    def __call__(self, x: Tensor, keys: Sequence[int]) -> Tensor:
        """New images of the same shape, dtype and bounds; each is a function of its image and its key alone.

        The global generator of the CPU, which the transforms read, is left as it was.

        Args:
            x: (N, C, H, W).
            keys: one per sample.

        Raises:
            UsageError: x is no batch of images, or has channels that the transform does not know.
        """
        self._check(x)
        low, width = self.bounds.low, self.bounds.width
        scaled = self.name in PICTURES and (low, width) != (0.0, 1.0)
        change = _TRANSFORMS[self.name](self, tuple(x.shape[-2:]))
        rows = []
        with torch.random.fork_rng(devices=[]):
            for row, key in zip((x - low) / width if scaled else x, keys, strict=True):
                torch.default_generator.manual_seed(key)
                rows.append(change(row))
        found = torch.stack(rows) if rows else x
        found = found * width + low if scaled else found
        return self.bounds.clamp(found) if self.name in PICTURES else found

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or not x.is_floating_point():
            raise UsageError(
                f"the augmentation {self.name} is for images",
                expected="x of shape (N, C, H, W)",
                got=f"{x.dtype} of shape {tuple(x.shape)}",
                where="augment",
                fix="Leave --augment out.",
            )
        if self.name in PICTURES and x.shape[1] not in (1, 3):
            raise UsageError(
                f"the augmentation {self.name} is for grey and colour pictures",
                expected="1 or 3 channels",
                got=str(x.shape[1]),
                where="augment",
                fix="crop-flip works with any number of channels.",
            )
        if self.name == "digits" and min(x.shape[-2:]) < 2 * SHIFT:
            raise UsageError(
                "the images are too small to be moved",
                expected=f"{2 * SHIFT} pixels or more on a side",
                got=f"{x.shape[-2]}x{x.shape[-1]}",
                where="augment",
            )


def augmentation(text: str, bounds: Bounds | None = None) -> Augmentation | None:
    """The augmentation that a text names; None for ``none``.

    - flip: left and right exchanged, half of the time.
    - crop: a cut-out of the same size after ``padding`` pixels were added on each side.
    - crop-flip: both.
    - digits: turned by up to 10 degrees, scaled by up to 10 %, moved by up to two pixels.
    - trivial: one operation of random strength (TrivialAugment Wide, Müller and Hutter 2021).
    - randaugment: ``operations`` of ``magnitude`` of 30 (RandAugment, Cubuk et al. 2020).

    Args:
        text: a name, such as ``crop`` or ``crop:padding=2``.
        bounds: valid range of the inputs; 0 to 1 by default.

    Raises:
        UsageError: unknown name or option; a value that is no whole number or out of range.

    >>> augmentation("crop:padding=2").options
    {'padding': 2}
    """
    spec = MethodSpec.parse(text)
    if spec.name not in DEFAULTS:
        raise UsageError("unknown augmentation", got=repr(spec.name), where="augment", fix=near(spec.name, DEFAULTS))
    known = DEFAULTS[spec.name]
    for key, value in spec.options.items():
        if key not in known:
            hint = near(key, known) if known else "It has none."
            raise UsageError(f"unknown option {key!r}", where=f"augment {text}", fix=hint)
        top = 30 if key == "magnitude" else 1000
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= top:
            raise UsageError(
                f"{key} is out of range",
                expected=f"a whole number from 1 to {top}",
                got=repr(value),
                where=f"augment {text}",
            )
    if spec.name == "none":
        return None
    return Augmentation(spec.name, {**known, **spec.options}, bounds or Bounds())


def _flip(given: Augmentation, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return _v2().RandomHorizontalFlip()  # type: ignore[no-any-return]


def _crop(given: Augmentation, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    made = _v2().RandomCrop(size, padding=given.options["padding"], fill=given.bounds.low)
    return made  # type: ignore[no-any-return]


def _crop_flip(given: Augmentation, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return _v2().Compose([_crop(given, size), _flip(given, size)])  # type: ignore[no-any-return]


def _digits(given: Augmentation, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    v2 = _v2()
    made = v2.RandomAffine(
        DEGREES,
        translate=(SHIFT / size[1], SHIFT / size[0]),
        scale=(1 - SCALE, 1 + SCALE),
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=given.bounds.low,
    )
    return made  # type: ignore[no-any-return]


def _trivial(given: Augmentation, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return _v2().TrivialAugmentWide()  # type: ignore[no-any-return]


def _randaugment(given: Augmentation, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    made = _v2().RandAugment(given.options["operations"], given.options["magnitude"])
    return made  # type: ignore[no-any-return]


def _v2() -> Any:
    from torchvision.transforms import v2  # type: ignore[import-untyped]  # slow to import

    return v2


_TRANSFORMS: dict[str, Callable[[Augmentation, tuple[int, ...]], Callable[[Tensor], Tensor]]] = {
    "flip": _flip,
    "crop": _crop,
    "crop-flip": _crop_flip,
    "digits": _digits,
    "trivial": _trivial,
    "randaugment": _randaugment,
}
