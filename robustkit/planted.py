"""Images with planted signals and networks that are known to look at nothing else: ground truth for saliency maps.

Every network is built by hand, so which pixels its answer depends on is known and not learnt. Where a scenario has a
decoy, the network does not need it, or not for what it says: a map that marks the decoy shows something else than the
signal. Everything is drawn from the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from robustkit.core.errors import UsageError, near
from robustkit.core.explainer import EXPLAINERS, Explainer
from robustkit.core.model import Model, wrap
from robustkit.explain.metrics.controls import controls
from robustkit.explain.metrics.truth import SCORES, truth_scores

PATCH = 6
"""Side of what is planted, in pixels."""
NOISE = 0.05
"""Half the range of the background's noise."""


@dataclass(frozen=True, eq=False)
class Planted:
    """Images, the network that answers them, and what it looks at.

    Attributes:
        name: of the scenario; see :data:`SCENARIOS`.
        net: (N, 3, H, W) in [0, 1] to logits (N, 2).
        x, label: images and their classes, which the network finds without a mistake.
        truth: (N, H, W) bool, where the signal is.
        decoy: the same, of what is no signal though it may look like one; None where there is none.
    """

    name: str
    net: nn.Module
    x: Tensor
    label: Tensor
    truth: Tensor
    decoy: Tensor | None = None

    @property
    def model(self) -> Model:
        """The network, wrapped."""
        return wrap(self.net, name=f"planted:{self.name}")


@dataclass(frozen=True)
class Row:
    """Scores of one map method in one scenario, mean over the images.

    Attributes:
        method: label of the method or name of the control.
        control: whether it is one.
        scenario: name.
        scores: of :data:`robustkit.explain.metrics.truth.SCORES`, and ``decoy``: share of the mass on the decoy. Empty
            where there is no map; ``why`` says why.
    """

    method: str
    control: bool
    scenario: str
    scores: Mapping[str, float]
    why: str = ""


class Finder(nn.Module):
    """Whether something that matches a filter is anywhere: z = sum over places of relu(filter - threshold) - margin.

    Logits (-z, z).
    """

    def __init__(self, weight: Tensor, threshold: float, margin: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(weight.shape[0], 1, weight.shape[-1])
        self.conv.weight = nn.Parameter(weight[None].clone())
        self.conv.bias = nn.Parameter(-threshold - weight.sum()[None] / 2)  # grey gives -threshold
        self.relu = nn.ReLU()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.conv(x)).flatten(1).sum(1) - self.margin
        return torch.stack([-z, z], 1)


class Regions(nn.Module):
    """Brightness of regions, mean over their pixels, from -1/2 to 1/2, and a rule that makes z of it.

    Logits (-z, z).
    """

    def __init__(self, regions: Tensor, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 1, 1)
        self.grey.weight, self.grey.bias = (
            nn.Parameter(torch.full((1, 3, 1, 1), 1 / 3)),
            nn.Parameter(-torch.ones(1) / 2),
        )
        self.mean = nn.Linear(regions[0].numel(), len(regions), bias=False)
        self.mean.weight = nn.Parameter(regions.flatten(1) / regions.flatten(1).sum(1, keepdim=True))
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        z = self.rule(self.mean(self.grey(x).flatten(1)))
        return torch.stack([-z, z], 1)


def pattern(seed: int) -> Tensor:
    """A patch of -1 and 1, (3, 6, 6), half of each in every channel."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.cat([torch.ones(PATCH * PATCH // 2), -torch.ones(PATCH * PATCH // 2)])
    return torch.stack([half[torch.randperm(len(half), generator=generator)] for _ in range(3)]).view(3, PATCH, PATCH)


def _patch(n: int, size: int, generator: torch.Generator) -> Planted:
    """A textured patch somewhere on grey; a matched filter looks for it."""
    signal, x = pattern(0), _background(n, size, generator)
    truth = _boxes(n, size, generator, 1)[0]
    _put(x, truth, 0.5 + 0.4 * signal)
    return Planted("patch", _patch_finder(signal), x, torch.ones(n, dtype=torch.long), truth)


def _distractor(n: int, size: int, generator: torch.Generator) -> Planted:
    """The same with a second texture in every image, which the filter is blind to."""
    signal, x = pattern(0), _background(n, size, generator)
    truth, decoy = _boxes(n, size, generator, 2)
    _put(x, truth, 0.5 + 0.4 * signal)
    _put(x, decoy, 0.5 + 0.4 * _orthogonal(pattern(1), signal))
    return Planted("distractor", _patch_finder(signal), x, torch.ones(n, dtype=torch.long), truth, decoy)


def _patch_finder(signal: Tensor) -> Finder:
    return Finder(signal, threshold=0.2 * signal.numel(), margin=5.0)


def _colour(n: int, size: int, generator: torch.Generator) -> Planted:
    """A magenta square; the network adds up magenta pixels. Yellow and cyan squares are decoys."""
    x = _background(n, size, generator)
    truth, yellow, cyan = _boxes(n, size, generator, 3)
    for box, rgb in ((truth, (0.9, 0.1, 0.9)), (yellow, (0.9, 0.9, 0.1)), (cyan, (0.1, 0.9, 0.9))):
        _put(x, box, torch.tensor(rgb)[:, None, None].expand(3, PATCH, PATCH))
    net = Finder(torch.tensor([1.0, -2.0, 1.0])[:, None, None], threshold=1.0, margin=5.0)
    return Planted("colour", net, x, torch.ones(n, dtype=torch.long), truth, yellow | cyan)


def _xor(n: int, size: int, generator: torch.Generator) -> Planted:
    """Two squares, each bright or dark; the class is whether they differ. Neither alone says anything."""
    corners = _corners(size)
    x, (a, b) = _background(n, size, generator), (torch.randint(0, 2, (2, n), generator=generator) - 0.5)
    for box, side in ((corners[0], a), (corners[1], b)):
        x += 0.7 * side[:, None, None, None] * box
    net = Regions(corners, lambda mean: -40 * mean[:, 0] * mean[:, 1])
    truth = corners.any(0).expand(n, -1, -1)
    return Planted("xor", net, x, (a != b).long(), truth)


def _suppressor(n: int, size: int, generator: torch.Generator) -> Planted:
    """A signal under a drift, and a second square with the drift alone, which the network takes off.

    The second square is independent of the class: by itself it says nothing. It gets as much weight as the signal
    nevertheless, from any optimal linear network (https://doi.org/10.1016/j.neuroimage.2013.10.067).
    """
    corners = _corners(size)
    x, side = _background(n, size, generator), torch.randint(0, 2, (n,), generator=generator) - 0.5
    drift = 0.3 * torch.rand(n, generator=generator) - 0.15
    x += (0.4 * side + drift)[:, None, None, None] * corners[0] + drift[:, None, None, None] * corners[1]
    net = Regions(corners, lambda mean: 20 * (mean[:, 0] - mean[:, 1]))
    truth, decoy = (corner.expand(n, -1, -1) for corner in corners)
    return Planted("suppressor", net, x, (side > 0).long(), truth, decoy)


SCENARIOS: dict[str, Callable[[int, int, torch.Generator], Planted]] = {
    "patch": _patch,
    "colour": _colour,
    "xor": _xor,
    "distractor": _distractor,
    "suppressor": _suppressor,
}


def planted(name: str, n: int = 8, *, size: int = 32, seed: int = 0) -> Planted:
    """Images of a scenario with their network.

    Args:
        name: ``patch``, ``colour``, ``xor``, ``distractor`` or ``suppressor``.
        n: images.
        size: height and width, at least 16.
        seed: of the images; the networks do not depend on it.

    Raises:
        UsageError: an unknown scenario, or images that are too small.

    >>> one = planted("patch", 2, size=16)
    >>> one.model(one.x).argmax(1).tolist(), one.truth.sum((1, 2)).tolist()
    ([1, 1], [36, 36])
    """
    if name not in SCENARIOS:
        raise UsageError(f"unknown scenario {name!r}", where="planted", fix=near(name, SCENARIOS))
    if size < 2 * (PATCH + 2) or n < 1:
        raise UsageError(
            "the signals do not fit into such images",
            expected=f"at least one image of at least {2 * (PATCH + 2)} pixels each way",
            got=f"n={n}, size={size}",
            where="planted",
        )
    return SCENARIOS[name](n, size, torch.Generator().manual_seed(seed))


def ground_truth(
    methods: Mapping[str, Explainer] | None = None,
    scenarios: Iterable[str] = tuple(SCENARIOS),
    *,
    n: int = 8,
    size: int = 32,
    seed: int = 0,
) -> list[Row]:
    """Score maps against what is known, every method and every control in every scenario.

    Args:
        methods: label -> method; by default all that are registered, with their defaults.
        scenarios: names.
        n, size, seed: of the images.
    """
    chosen = registered() if methods is None else methods
    return [row for name in scenarios for row in _rows(planted(name, n, size=size, seed=seed), chosen, seed)]


def registered() -> dict[str, Explainer]:
    """Every registered method that needs no argument, with its defaults."""
    found: dict[str, Explainer] = {}
    for name in EXPLAINERS.names():
        entry = EXPLAINERS.get(name)
        fields: dict[str, FieldInfo] = getattr(entry.cls, "__pydantic_fields__", {})
        if not any(info.is_required() for info in fields.values()):
            method: Explainer = entry.build({})
            found[f"{name}:{method.name}" if hasattr(method, "name") else name] = method
    return found


def _rows(case: Planted, methods: Mapping[str, Explainer], seed: int) -> list[Row]:
    model, rows = case.model, []
    for label, explainer in methods.items():
        try:
            maps = explainer(model, case.x, case.label, seed=seed).pixel_map()
            rows.append(Row(label, False, case.name, _scores(maps, case)))
        except UsageError as error:
            rows.append(Row(label, False, case.name, {}, str(error)))
    for label, maps in controls(case.x, seed=seed).items():
        rows.append(Row(label, True, case.name, _scores(maps, case)))
    return rows


def _scores(maps: Tensor, case: Planted) -> dict[str, float]:
    found = {name: float(score.mean()) for name, score in truth_scores(maps, case.truth).items()}
    if case.decoy is not None:
        found["decoy"] = float(truth_scores(maps, case.decoy)["mass"].mean())
    return found


def markdown(rows: Iterable[Row], score: str = "mass") -> str:
    """A table of one score: a line for each method, a column for each scenario; ``-`` where there is no map.

    Raises:
        UsageError: no such score.
    """
    if score not in (*SCORES, "decoy"):
        raise UsageError(f"unknown score {score!r}", where="markdown", fix=near(score, (*SCORES, "decoy")))
    rows = list(rows)
    names = list(dict.fromkeys(row.scenario for row in rows))
    cells = {(row.method, row.scenario): row.scores.get(score) for row in rows}
    titles = {row.method: f"*{row.method}*" if row.control else f"`{row.method}`" for row in rows}
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method, title in titles.items():
        values = (cells.get((method, name)) for name in names)
        lines.append(f"| {title} | {' | '.join('-' if v is None else f'{v:.2f}' for v in values)} |")
    return "\n".join(lines)


def _background(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Grey with a little noise, (N, 3, size, size)."""
    return 0.5 + NOISE * (2 * torch.rand(n, 3, size, size, generator=generator) - 1)


def _boxes(n: int, size: int, generator: torch.Generator, count: int) -> list[Tensor]:
    """Masks (N, H, W) of squares at random places, each in a quarter of the image of its own."""
    half = size // 2
    quarters = torch.stack([torch.randperm(4, generator=generator)[:count] for _ in range(n)], 1)
    found = []
    for quarter in quarters:
        top = quarter // 2 * half + torch.randint(1, half - PATCH, (n,), generator=generator)
        left = quarter % 2 * half + torch.randint(1, half - PATCH, (n,), generator=generator)
        row, column = torch.arange(size)[None], torch.arange(size)[None]
        inside = (row >= top[:, None]) & (row < top[:, None] + PATCH)
        across = (column >= left[:, None]) & (column < left[:, None] + PATCH)
        found.append(inside[:, :, None] & across[:, None, :])
    return found


def _corners(size: int) -> Tensor:
    """Masks (2, H, W) of one square in the top left quarter and one in the bottom right one."""
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    first, second = size // 4 - PATCH // 2, 3 * size // 4 - PATCH // 2
    masks[0, first : first + PATCH, first : first + PATCH] = True
    masks[1, second : second + PATCH, second : second + PATCH] = True
    return masks


def _put(x: Tensor, box: Tensor, content: Tensor) -> None:
    """Write content (3, 6, 6) into the square of every image."""
    for image, mask in zip(x, box, strict=True):
        image[:, mask] = content.reshape(3, -1)


def _orthogonal(other: Tensor, signal: Tensor) -> Tensor:
    """The other pattern without its share of the signal, at most 1 in size."""
    free = other - signal * (other * signal).sum() / signal.square().sum()
    return free / free.abs().max()
