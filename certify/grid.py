"""Smoothing that is sound in floating point: inputs on a grid, and noise of whole steps (https://arxiv.org/abs/2207.07209).

The certified function rounds its noisy input to multiples of 1/255 and clips it to [-k, k + 1]:
``P(f(clip(round(x + sigma * e))) = c)``. Both are fixed functions of ``x + sigma * e`` in real numbers, so the theorem
holds for every real x. For an x on the grid ``round(x + sigma * e) = x + round(sigma * e)``, and a whole number of
steps is drawn without any floating point: 60 random bits against the whole numbers nearest to
``2^60 * Phi((j + 1/2) / (255 sigma))``. Their rounding changes the law of the steps by little, which is bounded and
given up by every bound on a probability.
Shapes: x (N, *S) in [0, 1]. Units: sigma in those of the input; steps are 1/255.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import mpmath
import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.types import Bounds

STEPS = 255
"""Steps from 0 to 1."""
BITS, GUIDE = 60, 16
"""Bits of a draw, and the first of them that nearly always decide."""
DIGITS = 60
"""Decimal digits in which the normal distribution is computed."""
WIDEST = 64
"""Most images beyond [0, 1], on each side, that a noisy input may lie in before it is clipped."""
ROOM = 2 * torch.finfo(torch.float32).eps
"""How far from k/255 an input may lie to stand for it: what making floats of 8 bits may cost."""


@dataclass(frozen=True, eq=False)
class Law:
    """The law of the noise in steps.

    Attributes:
        width: noisy inputs are clipped to [-width, width + 1].
        thresholds: (2 reach,) int64; a draw of 60 bits that reaches the first i of them is ``i - reach`` steps.
        guide: (2^16,) int32, what the first bits of a draw say of its steps plus reach; -1 where that takes all bits.
    """

    width: int
    thresholds: Tensor
    guide: Tensor

    @property
    def reach(self) -> int:
        """Most steps of noise: from one end of [0, 1] to where clipping begins beyond the other."""
        return STEPS * (self.width + 1)

    @property
    def slack(self) -> float:
        """Bound on the total variation between the law of one value's noise and the one that is stated.

        Each of the ``2 reach`` values of the distribution function is off by half of 2^-60 at most, and the distance is
        at most the sum of these errors. The hundredth is far more than the 60 digits and this product are off.
        """
        return 1.01 * self.reach * 2.0**-BITS

    def steps(self, draws: Tensor) -> Tensor:
        """Noise in steps, int32, from whole numbers of 60 bits."""
        found = self.guide.index_select(0, (draws >> (BITS - GUIDE)).flatten())
        open_ = (found < 0).nonzero()[:, 0]
        exact = torch.bucketize(draws.flatten()[open_], self.thresholds, right=True, out_int32=True)
        return found.index_copy_(0, open_, exact).sub_(self.reach).view(draws.shape)


@lru_cache(maxsize=16)
def law_of(sigma: float, device: torch.device) -> Law:
    """The law for a standard deviation, in units of the input."""
    width = min(max(1, int(6 * sigma)), WIDEST)
    half = _thresholds_below(sigma, STEPS * (width + 1))
    # the distribution is symmetric, and so are the thresholds
    whole = torch.tensor([*half[::-1], *((1 << BITS) - t for t in half)], dtype=torch.int64)
    ends = torch.arange(1 << GUIDE, dtype=torch.int64) << (BITS - GUIDE)
    low, high = (torch.bucketize(at, whole, right=True) for at in (ends, ends + (1 << (BITS - GUIDE)) - 1))
    guide = torch.where(low == high, low, -1).int()
    return Law(width, whole.to(device), guide.to(device))


def _thresholds_below(sigma: float, count: int) -> list[int]:
    """The whole numbers nearest to ``2^60 * Phi(-(j + 1/2) / (255 sigma))`` for j = 0 .. count - 1."""
    with mpmath.workdps(DIGITS):
        # erfc(z / sqrt 2) / 2 with z = (2 j + 1) / (510 sigma); the float sigma is taken as it is
        scale = 1 / (2 * STEPS * mpmath.mpf(sigma) * mpmath.sqrt(2))
        return [int(mpmath.nint(mpmath.erfc((2 * j + 1) * scale) * (1 << (BITS - 1)))) for j in range(count)]


class GridNoise:
    """Gaussian noise, rounded to the grid: exactly for inputs that lie on it.

    Args:
        x: inputs (N, *S) that noise will be added to.
        sigmas: standard deviations that will be asked for.
        strict: whether x must lie on the grid. Inputs that do not are drawn for in floating point.

    Raises:
        UsageError: they do not lie on the grid.
    """

    def __init__(self, x: Tensor, sigmas: tuple[float, ...], *, strict: bool = True) -> None:
        self.laws = {sigma: law_of(float(sigma), x.device) for sigma in sigmas}
        self.size = x[0].numel()
        off = _off_grid(x)
        self.exact = not bool(off.any())
        if strict and not self.exact:
            raise UsageError(
                "grid=true takes inputs on multiples of 1/255",
                expected="images of 8 bits, as floats in [0, 1]",
                got=f"{100 * float(off.double().mean()):.3g} % of the values lie elsewhere",
                where="x",
                fix="Resized or averaged images leave the grid: put them back by x = (x * 255).round() / 255.",
            )

    @property
    def slack(self) -> float:
        """Total variation of a whole noisy input: at most that of a value, as often as there are values."""
        return self.size * max(law.slack for law in self.laws.values())

    @property
    def arithmetic(self) -> str:
        clips = " and ".join(f"[{-law.width}, {law.width + 1}]" for law in self._apart())
        return (
            "Gaussian noise, rounded to multiples of 1/255 and clipped to "
            f"{clips} as part of the certified function; it is drawn in whole numbers, and what their rounding "
            f"changes (at most {self.slack:.1e} of a probability) is subtracted; a sample is the point of the grid "
            "that it stands for"
        )

    def noisy(self, x: Tensor, rows: Tensor, blocks: Tensor, draws: Draws, sigma: float, size: int) -> Tensor:
        """See :class:`robustkit.certify.noise.Noise`; the values nearest to multiples of 1/255, in the dtype of x."""
        law, mine = self.laws[sigma], x[rows.to(x.device)][:, None]
        drawn = draws.whole_of(rows, blocks, (size, *x.shape[1:]), x.device)
        level = law.steps(drawn).add_(_levels(mine).int()) if self.exact else _rounded(mine, drawn, sigma, law.width)
        at = level.clamp_(-STEPS * law.width, STEPS * (law.width + 1)).add_(STEPS * law.width)
        return _values(law.width, x).index_select(0, at.flatten()).view(at.shape)

    def _apart(self) -> list[Law]:
        return list({law.width: law for law in self.laws.values()}.values())


def check_grid(model: Model) -> None:
    """Whether inputs of a model can lie on the grid.

    Raises:
        UsageError: its bounds are not (0, 1).
    """
    if model.bounds != Bounds(0.0, 1.0):
        raise UsageError(
            "grid=true is about images of 8 bits",
            expected="bounds (0, 1)",
            got=f"bounds ({model.bounds.low:g}, {model.bounds.high:g})",
            where="model",
            fix="Wrap the network for inputs in [0, 1] and let mean and std bring them to its own range.",
        )


def _levels(x: Tensor) -> Tensor:
    """The nearest multiple of 1/255, as a number of steps."""
    return (x.double() * STEPS).round_()


def _off_grid(x: Tensor) -> Tensor:
    """Which values stand for no multiple of 1/255: a short type must hold the nearest number that it has."""
    nearest = (_levels(x) / STEPS).to(x.dtype)
    room = ROOM if x.dtype in (torch.float32, torch.float64) else 0.0
    return torch.gt((x - nearest).abs(), room)


def _rounded(x: Tensor, drawn: Tensor, sigma: float, width: int) -> Tensor:
    """Levels of noisy inputs that lie anywhere, int32: by the inverse of the normal distribution, in float64."""
    noise: Tensor = torch.special.ndtri((drawn.double() + 0.5) / 2**BITS).mul_(sigma)
    return noise.add_(x.double()).clamp_(-width - 1, width + 2).mul_(STEPS).round_().int()


def _values(width: int, like: Tensor) -> Tensor:
    """The grid from -width to width + 1; a table, for division by 255 is not exact on every device."""
    grid = torch.arange(-STEPS * width, STEPS * (width + 1) + 1, dtype=torch.float64) / STEPS
    return grid.to(like.device, like.dtype)
