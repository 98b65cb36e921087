"""Every measure for every map of a batch, beside the controls, as plain values for results and pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError
from robustkit.core.explainer import Explainer
from robustkit.core.model import Model
from robustkit.core.types import Cost
from robustkit.explain.metrics.checks import check_classes, check_pictures, check_whole, checked_ids, rating
from robustkit.explain.metrics.controls import CONTROLS, controls
from robustkit.explain.metrics.insertion import SUBSTRATES, Curves, insertion_deletion
from robustkit.explain.metrics.randomisation import STAGES, Randomisation, check_labels, randomise
from robustkit.explain.metrics.sensitivity import RADIUS, check_same, max_sensitivity, sensitivity_of
from robustkit.explain.metrics.similarity import spearman, ssim

Evaluation = dict[str, Any]
"""What is known of one map of one picture: ``insertion`` and ``deletion`` (substrate -> area), ``max_sensitivity``,
``randomisation`` (``layers``; ``spearman``, ``signed`` and ``ssim`` at each of them; ``last``, of ``spearman``). None
is a number that does not exist."""
SAMPLES = 10
TEXTS = {
    "insertion": "Area under the probability of the class while pixels are put into an empty picture, the most "
    "important first. Higher is better; a method that does not beat the controls found nothing. Mean colour and blur "
    "rank methods differently: believe what holds on both.",
    "deletion": "Area under the probability of the class while the most important pixels are taken out first. Lower is "
    "better. Scattered maps win here by breaking the picture, so read it beside the random control.",
    "max_sensitivity": f"Largest relative change of the map when every value moves by up to {RADIUS:g} of the range. "
    "Lower is steadier, and steady is not right: the Gaussian in the centre has 0.",
    "randomisation": "Rank correlation of the map with the one of the same network when all of its weights are random. "
    "Near 0 is good. Near 1 the map shows the picture and not the network, as the controls do by construction.",
}


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was found for a batch.

    Attributes:
        maps: label -> an evaluation for each picture.
        controls: the same for each control.
        curves: label or control -> the curves behind the areas.
        randomised: label -> the stages behind ``randomisation``; empty where it was left out or cannot be done.
        notes: what could not be measured, and why.
        cost: of everything.
    """

    maps: dict[str, list[Evaluation]]
    controls: dict[str, list[Evaluation]]
    curves: dict[str, Curves]
    randomised: dict[str, Randomisation]
    notes: tuple[str, ...]
    cost: Cost

    @property
    def overview(self) -> dict[str, Any]:
        """See :func:`overview`."""
        return overview(self.maps, self.controls)


def evaluate_maps(
    model: Model,
    x: Tensor,
    explainers: Mapping[str, Explainer],
    attributions: Mapping[str, Attribution],
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    steps: int = 112,
    stages: int = STAGES,
    samples: int = SAMPLES,
    batch: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Judgement:
    """Judge maps of a batch of pictures, and the controls beside them.

    Args:
        model, x: what was explained: a classifier and pictures (N, C, H, W).
        explainers, attributions: label -> how, and what came out, with the same ids and seed; all of the same classes.
        ids: (N,), key all random draws; 0 .. N-1 by default.
        seed: of them.
        steps: of insertion and deletion.
        stages: of the randomisation; 0 leaves it out.
        samples: draws of max-sensitivity; 0 leaves it out.
        batch: most points in the network at once.
        progress: called with (what, done, total).

    Cost: for each picture and map at most ``4 steps`` forwards, and ``stages + samples`` times the cost of the map; for
    each control the forwards alone.

    Raises:
        UsageError: no classifier or no pictures; attributions of other inputs or of different classes; a label that is
            the name of a control.
    """
    check_pictures(x)
    check_labels(explainers, attributions)
    classes = check_classes(model, x, _classes(attributions))
    for attribution in attributions.values():
        check_same(x, attribution)
    check_whole(stages, "stages", 0)
    check_whole(samples, "samples", 0)
    ids = checked_ids(x, ids)
    tell = progress or (lambda *_: None)
    with model.metered() as cost:
        rated = {label: rating(a.values, explainers[label].pixels) for label, a in attributions.items()}
        plain = controls(x, ids=ids, seed=seed, bounds=model.bounds)
        curves = insertion_deletion(
            model,
            x,
            {**rated, **plain},
            classes,
            steps=steps,
            batch=batch,
            progress=partial(tell, "insertion and deletion"),
        )
        judge = _Judge(model, x, explainers, attributions, ids, seed, batch)
        randomised, lost = judge.randomise(stages, partial(tell, "randomisation"))
        moved, failed = judge.sensitivity(samples, partial(tell, "max-sensitivity"))
    alike = _unmoved(plain, randomised)
    found = {
        name: _evaluations(curves[name], moved.get(name), randomised.get(name) or alike.get(name)) for name in curves
    }
    reset = [f"{label}: {note}" for label, r in randomised.items() for note in r.notes]
    return Judgement(
        {label: found[label] for label in attributions},
        {name: found[name] for name in plain},
        curves,
        randomised,
        (*lost, *reset, *failed),
        cost,
    )


def overview(
    maps: Mapping[str, Sequence[Evaluation | None]], controls: Mapping[str, Sequence[Evaluation | None]]
) -> dict[str, Any]:
    """Means over pictures, for results.

    ``rows`` has one for each label and control, ``cascade`` the mean similarity at each stage by label, ``layers`` the
    names of the stages, ``texts`` how to read the measures. Numbers that do not exist are left out of the means;
    ``skipped`` counts the pictures with such.

    >>> one = {"insertion": {"mean": 0.5}, "deletion": {"mean": 0.1}, "max_sensitivity": None, "randomisation": None}
    >>> overview({"gradient": [one, one]}, {})["rows"][0]["insertion_mean"]
    0.5
    """
    named = [(name, False, rows) for name, rows in maps.items()] + [
        (name, True, rows) for name, rows in controls.items()
    ]
    rows = [_row(name, control, [r for r in rows if r is not None]) for name, control, rows in named]
    stages = {name: [r["randomisation"] for r in rows if r and r["randomisation"]] for name, _, rows in named}
    cascade = {name: _means([s["spearman"] for s in found]) for name, found in stages.items() if found}
    layers: list[str] = next((found[0]["layers"] for found in stages.values() if found), [])
    return {"rows": rows, "cascade": cascade, "layers": layers, "texts": dict(TEXTS)}


@dataclass(frozen=True, eq=False)
class _Judge:
    """The measures that need more than the maps."""

    model: Model
    x: Tensor
    explainers: Mapping[str, Explainer]
    attributions: Mapping[str, Attribution]
    ids: Tensor
    seed: int
    batch: int | None

    def randomise(
        self, stages: int, progress: Callable[[int, int], None]
    ) -> tuple[dict[str, Randomisation], list[str]]:
        """Label -> stages, and why there are none."""
        if not stages or not self.attributions:
            return {}, []
        try:
            found = randomise(
                self.model,
                self.x,
                self.explainers,
                self.attributions,
                ids=self.ids,
                seed=self.seed,
                stages=stages,
                batch=self.batch,
                progress=progress,
            )
        except UsageError as error:  # a function, or a network that cannot be copied: the other measures still stand
            return {}, [f"no randomisation: {error}"]
        return found, []

    def sensitivity(self, samples: int, progress: Callable[[int, int], None]) -> tuple[dict[str, Tensor], list[str]]:
        """Label or control -> (N,), and where it could not be had."""
        if not samples:
            return {}, []
        bounds, total = self.model.bounds, len(self.explainers) + 1

        def plain(pictures: Tensor, ids: Tensor) -> dict[str, Tensor]:
            return controls(pictures, ids=ids, seed=self.seed, bounds=bounds)

        found = sensitivity_of(plain, self.x, bounds, ids=self.ids, seed=self.seed, samples=samples)
        progress(1, total)
        notes = []
        for done, (label, explainer) in enumerate(self.explainers.items(), 2):
            try:
                result = max_sensitivity(
                    self.model,
                    self.x,
                    explainer,
                    self.attributions[label],
                    ids=self.ids,
                    seed=self.seed,
                    samples=samples,
                    batch=self.batch,
                )
                found[label] = result.value
                notes += [f"{label}: {note}" for note in result.notes]
            except UsageError as error:  # the method may fail beside the picture, where a gradient is not finite
                notes.append(f"{label}: no max-sensitivity: {error}")
            progress(done, total)
        return found, notes


def _classes(attributions: Mapping[str, Attribution]) -> Tensor:
    """The classes that all attributions explain."""
    clash = sorted(set(attributions) & set(CONTROLS))
    if clash or not attributions:
        raise UsageError(
            "labels name methods",
            expected=f"at least one, none of {', '.join(CONTROLS)}",
            got=clash[0] if clash else "none",
            where="attributions",
        )
    first, *others = attributions.values()
    if any(not torch.equal(first.target, other.target) for other in others):
        raise UsageError(
            "maps of different classes cannot be compared",
            expected="the same target for every method",
            got="different ones",
            where="attributions",
            fix="Pass the same target to every explainer.",
        )
    return first.target


def _unmoved(plain: Mapping[str, Tensor], randomised: Mapping[str, Randomisation]) -> dict[str, Randomisation]:
    """The stages of the controls: nothing of the network goes in, so each stage compares a map with itself."""
    like = next(iter(randomised.values()), None)
    if like is None:
        return {}
    found = {}
    for name, maps in plain.items():
        same, structure = (measure(maps, maps)[:, None].expand(-1, len(like.layers)) for measure in (spearman, ssim))
        found[name] = Randomisation(like.layers, like.depths, like.total, same, same, structure)
    return found


def _evaluations(curves: Curves, moved: Tensor | None, stages: Randomisation | None) -> list[Evaluation]:
    insertion = {name: area.tolist() for name, area in curves.insertion_auc.items()}
    deletion = {name: area.tolist() for name, area in curves.deletion_auc.items()}
    n = len(next(iter(insertion.values())))
    sizes = [None] * n if moved is None else moved.tolist()
    alike = [None] * n if stages is None else _stages(stages)
    return [
        {
            "insertion": {name: _number(insertion[name][i]) for name in SUBSTRATES},
            "deletion": {name: _number(deletion[name][i]) for name in SUBSTRATES},
            "max_sensitivity": _number(sizes[i]),
            "randomisation": alike[i],
        }
        for i in range(n)
    ]


def _stages(found: Randomisation) -> list[dict[str, Any]]:
    """For each picture."""
    tables = {"spearman": found.spearman, "signed": found.signed, "ssim": found.ssim}
    rows = [
        {name: [_number(v) for v in table[i].tolist()] for name, table in tables.items()} for i in range(len(found))
    ]
    return [{"layers": list(found.layers), **row, "last": row["spearman"][-1]} for row in rows]


def _row(name: str, control: bool, found: Sequence[Evaluation]) -> dict[str, Any]:
    numbers = [_flat(evaluation) for evaluation in found]
    keys = list(dict.fromkeys(key for row in numbers for key in row))
    means = {key: _mean([row.get(key) for row in numbers]) for key in keys}
    skipped = sum(any(value is None for value in row.values()) for row in numbers)
    return {"name": name, "control": control, **means, "images": len(found), "skipped": skipped}


def _flat(found: Evaluation) -> dict[str, float | None]:
    areas = {f"{game}_{on}": value for game in ("insertion", "deletion") for on, value in found[game].items()}
    stages = found["randomisation"]
    return {**areas, "max_sensitivity": found["max_sensitivity"], "randomisation": stages and stages["last"]}


def _means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [_mean(column) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
