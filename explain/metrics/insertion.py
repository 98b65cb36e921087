"""Insertion and deletion curves (RISE, https://arxiv.org/abs/1806.07421, sec. 4.3), all maps in one stream of batches.

Pixels are taken in the order of a map, most important first. Deletion replaces them in the picture by a substrate and
should lose the class soon (a low area is good); insertion puts them into the substrate and should find it soon (a high
area is good). The order is computed once, as a map of ranks r, and the picture at step s is ``where(r < cut_s, a, b)``
with ``cut_s = floor(s H W / steps)``. Scores are probabilities of the explained class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from robustkit.core.errors import UsageError, near
from robustkit.core.gradients import Engine, Points
from robustkit.core.model import Model
from robustkit.core.target import Output, Target
from robustkit.core.types import Cost
from robustkit.explain.metrics.checks import check_classes, check_map, check_pictures, check_whole
from robustkit.kernels.ranks import descending_ranks

SUBSTRATES = ("mean", "blur")
WINDOW, SIGMA = 11, 5.0
"""Of the blur, in pixels, as the authors of RISE chose them for pictures of 224 x 224."""
GAMES = ("insertion", "deletion")


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves of one method.

    Attributes:
        insertion, deletion: substrate -> (N, steps + 1), the score at every step.
        cost: forwards between the two ends; the ends belong to all methods of a call, which takes ``1 + substrates``
            more for each picture.
    """

    insertion: dict[str, Tensor]
    deletion: dict[str, Tensor]
    cost: Cost

    @property
    def insertion_auc(self) -> dict[str, Tensor]:
        """Area under each insertion curve, (N,); high is good."""
        return {name: area(curve) for name, curve in self.insertion.items()}

    @property
    def deletion_auc(self) -> dict[str, Tensor]:
        """Area under each deletion curve, (N,); low is good."""
        return {name: area(curve) for name, curve in self.deletion.items()}


def area(curve: Tensor) -> Tensor:
    """Area under curves (N, steps + 1) over [0, 1] by the trapezoid rule, (N,).

    >>> area(torch.tensor([[0.0, 0.5, 1.0]]))
    tensor([0.5000])
    """
    return (curve.sum(1) - (curve[:, 0] + curve[:, -1]) / 2) / (curve.shape[1] - 1)


def insertion_deletion(
    model: Model,
    x: Tensor,
    maps: Mapping[str, Tensor],
    classes: Tensor,
    *,
    steps: int = 112,
    substrates: Sequence[str] = SUBSTRATES,
    output: Output = "probability",
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Curves]:
    """Both curves on every substrate for every map.

    Args:
        model: a wrapped classifier; pictures run on its fast copy.
        x: pictures (N, C, H, W).
        maps: name -> (N, H, W), the larger the more important; of equal pixels the first in reading order comes first.
        classes: (N,), the explained class of each picture.
        steps: pieces that the order is cut into; at most one for each pixel.
        substrates: ``mean`` (what the normalisation of the network maps to 0, else the channel means of the picture),
            ``blur`` (Gaussian, 11 x 11 pixels, sigma 5).
        output: the score; see :data:`robustkit.core.target.Output`.
        batch: most pictures in the network at once.
        progress: called with (pictures done, pictures in all).

    Cost: for each picture ``1 + substrates`` forwards, and ``2 substrates (steps - 1)`` more for each map.

    Raises:
        UsageError: a map of another size or with NaN, a class that does not exist, an unknown substrate, no step.
    """
    check_pictures(x)
    classes = check_classes(model, x, classes)
    for name, found in maps.items():
        check_map(found, x, name)
    check_whole(steps, "steps")
    _check_substrates(substrates)
    with model.frozen(), torch.no_grad():
        plan = _Plan(model, x.detach(), maps, min(steps, x.shape[2] * x.shape[3]), tuple(substrates))
        engine = Engine(model, plan.x, Target(classes, output), batch)
        return plan.curves(engine.values(plan.stream(engine, progress)))


class _Plan:
    """Which pictures are needed, in which order, and how their scores become curves.

    First the ends: for every picture itself and its substrates. Then, for every picture, map, curve and substrate the
    steps between them.
    """

    def __init__(
        self, model: Model, x: Tensor, maps: Mapping[str, Tensor], steps: int, substrates: tuple[str, ...]
    ) -> None:
        self.x, self.names, self.steps, self.substrates = x, tuple(maps), steps, substrates
        self.ends = torch.stack([x, *(substrate(model, x, name) for name in substrates)], 1)
        rows = [descending_ranks(found.to(x.device)).int() for found in maps.values()]
        self.ranks = torch.stack(rows, 1) if rows else x.new_zeros((len(x), 0, *x.shape[2:]))
        pixels = x.shape[2] * x.shape[3]
        self.cuts = torch.arange(steps + 1, device=x.device) * pixels // steps
        self.shape = (len(x), len(self.names), len(GAMES), len(substrates), steps - 1)

    def stream(self, engine: Engine, progress: Callable[[int, int], None] | None) -> Iterator[Points]:
        ends = self.ends.shape[0] * self.ends.shape[1]
        total = ends + _size(self.shape)
        for index in engine.batches(total):
            first, rest = index[index < ends], index[index >= ends] - ends
            sample, pictures = self._between(rest)
            end = torch.div(first, self.ends.shape[1], rounding_mode="floor")
            pictures = torch.cat([self.ends.flatten(0, 1)[first.to(pictures.device)], pictures])
            yield Points(torch.cat([end, sample]), pictures, pictures.new_ones(len(pictures)))
            if progress:
                progress(int(index[-1]) + 1, total)

    def _between(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (P,) on the CPU and pictures (P, C, H, W) of some steps between the ends."""
        sample, method, game, ground, step = torch.unravel_index(index, self.shape)
        on = [part.to(self.x.device) for part in (sample, method, game, ground, step)]
        taken = self.ranks[on[0], on[1]] < self.cuts[on[4] + 1].view(-1, 1, 1)
        own = taken != (on[2] == 1).view(-1, 1, 1)  # deletion shows the picture where it is not taken yet
        return sample, torch.where(own[:, None], self.x[on[0]], self.ends[on[0], on[3] + 1])

    def curves(self, scores: Tensor) -> dict[str, Curves]:
        count = self.ends.shape[0] * self.ends.shape[1]
        ends, between = scores[:count].view(self.ends.shape[:2]), scores[count:].view(self.shape)
        spent = Cost(forwards=_size(self.shape) // max(1, len(self.names)))
        found: dict[str, dict[str, dict[str, Tensor]]] = {name: {game: {} for game in GAMES} for name in self.names}
        for (m, name), (g, game), (s, ground) in product(
            enumerate(self.names), enumerate(GAMES), enumerate(self.substrates)
        ):
            whole, bare = ends[:, :1], ends[:, s + 1 : s + 2]
            first, last = (bare, whole) if game == "insertion" else (whole, bare)
            found[name][game][ground] = torch.cat([first, between[:, m, g, s], last], 1)
        return {name: Curves(**games, cost=Cost(spent.forwards)) for name, games in found.items()}


def substrate(model: Model, x: Tensor, name: str) -> Tensor:
    """What pictures (N, C, H, W) are taken apart into, of the same shape.

    The blur sees the mean colour beyond the border, as the zero padding of normalised pictures does.

    >>> from robustkit.core.model import wrap
    >>> model = wrap(torch.nn.Flatten(), mean=0.25, std=1.0)
    >>> substrate(model, torch.rand(1, 1, 2, 2), "mean").unique().item()
    0.25
    """
    mean = _mean_colour(model, x)
    if name == "mean":
        return mean.expand_as(x).contiguous()
    taps = blur_taps().to(x)
    rest = F.pad((x - mean).flatten(0, 1)[:, None], [WINDOW // 2] * 4)
    return F.conv2d(F.conv2d(rest, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1)).view(x.shape) + mean


def blur_taps() -> Tensor:
    """The taps (11,) along one axis: a Gaussian whose tails beyond the window are folded back into it; sum 1."""
    impulse = torch.zeros(WINDOW, dtype=torch.float64)
    impulse[WINDOW // 2] = 1
    return torch.from_numpy(gaussian_filter1d(impulse.numpy(), SIGMA, mode="reflect"))


def _mean_colour(model: Model, x: Tensor) -> Tensor:
    """(1 or N, C or 1, 1, 1)."""
    if model.mean is None:
        return x.mean((2, 3), keepdim=True)
    return torch.tensor(model.mean, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)


def _check_substrates(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise UsageError("substrates are a list", expected="names, each once", got=repr(names), where="substrates")
    for name in names:
        if name not in SUBSTRATES:
            raise UsageError(f"unknown substrate {name!r}", where="substrates", fix=near(name, SUBSTRATES))


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
