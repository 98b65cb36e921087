"""XRAI here and in PAIR saliency, pixel for pixel and by the clock: ``python -m benchmarks.xrai [--check]``.

EfficientNet-Lite0 at 224 x 224, alternating runs of one process. Run it with a Python that has the package ``saliency``
(``python -m benchmarks`` makes one in .bench-venv). ``--check`` compares results only: segments with PAIR's segments,
and both ways of merging given the same segments and the same base attribution. Photos: ``demo:photos`` and, if the
folder is there, those of ../shared/data/imagenet_samples.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import robustkit as rk
from benchmarks.common import OURS, THREADS, alternate
from benchmarks.saliency import PAIR, Photos, pair_gradients
from robustkit.explain.integrated import IntegratedGradients
from robustkit.explain.xrai import XRAI
from robustkit.kernels.regions import Regions, bits_of_labels, dilate, merge
from robustkit.kernels.segments import Segmentation, forget, threaded

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "imagenet_samples"
STEPS, BATCH = 100, 20
"""PAIR's default number of gradients on a path, and the batch that it is given (its default is 1)."""
Array = NDArray[Any]


# -- the two ----------------------------------------------------------------------------------------------------------


def picture(x: Tensor) -> Array:
    """(H, W, C) of (C, H, W), as PAIR takes it."""
    return np.ascontiguousarray(x.permute(1, 2, 0).numpy())


def pair(image: Array, algorithm: str = "full", call: Any = None, **given: Any) -> Any:
    """PAIR's result with its ranks and its integrated gradients."""
    from saliency.core import XRAI as Theirs
    from saliency.core import XRAIParameters

    parameters = XRAIParameters(
        steps=STEPS, algorithm=algorithm, return_xrai_segments=True, return_ig_attributions=True
    )
    return Theirs().GetMaskWithDetails(image, call, extra_parameters=parameters, batch_size=BATCH, **given)


def after(x: Tensor, base: Tensor) -> list[Array]:
    """All that XRAI does after the gradients, nothing kept from before: maps of x (N, C, H, W) from base (N, H, W)."""
    forget()

    def one(job: tuple[Array, Array]) -> Array:
        bits, count = bits_of_labels(job[0])
        return merge(Regions.of(dilate(bits, 5), count), job[1], 50).values

    cuts = Segmentation()([picture(image) for image in x])
    return threaded(one, list(zip(cuts, base.numpy(), strict=True)))


# -- pixel for pixel --------------------------------------------------------------------------------------------------


@dataclass
class Differences:
    """What differs, added up over images."""

    images: int = 0
    masks: int = 0
    other_masks: int = 0
    values: int = 0
    ranks: int = 0

    def row(self) -> str:
        """As a line of text."""
        return (
            f"{self.images} photos, {self.masks} segments: {self.other_masks} segments differ; of all pixels, full and "
            f"fast, {self.values} values and {self.ranks} ranks differ"
        )


def check(x: Tensor, model: rk.Model) -> Differences:
    """Ours against PAIR's, photo by photo."""
    from saliency.core.xrai import _get_segments_felzenszwalb

    found = Differences()
    base = IntegratedGradients(steps=4, baseline="min+max")(model, x).values.double()
    for image, attribution in zip(x, base, strict=True):
        masks = np.stack(_get_segments_felzenszwalb(picture(image)))
        bits, count = bits_of_labels(Segmentation()([picture(image)])[0])
        ours = Regions.of(dilate(bits, 5), count)
        same = count == len(masks) and [np.array_equal(ours.members(k), np.flatnonzero(masks[k])) for k in range(count)]
        found.images += 1
        found.masks += len(masks)
        found.other_masks += len(masks) - sum(same) if same else len(masks)
        for algorithm in ("full", "fast"):
            theirs = pair(
                picture(image), algorithm, segments=list(masks), base_attribution=attribution.permute(1, 2, 0).numpy()
            )
            method = XRAI(
                algorithm=algorithm,  # type: ignore[arg-type]
                segments=torch.from_numpy(masks),
                base_attribution=attribution[None],
            )
            map_ = method(model, image[None])
            found.values += int((theirs.attribution_mask.astype(np.float32) != map_.values[0, 0].numpy()).sum())
            found.ranks += int((theirs.segments != map_.extras["ranks"][0].numpy()).sum())
    return found


def photographs(model: rk.Model, count: int) -> Tensor:
    """``demo:photos`` and some samples, (N, 3, 224, 224)."""
    x, _ = rk.open_data("demo:photos", preprocessing=model.preprocessing).take(range(4))
    if not SAMPLES.is_dir():
        sys.stdout.write(f"skipped: no photos in {SAMPLES.name}\n")
        return x
    more = rk.open_data(f"folder:{SAMPLES}", preprocessing=model.preprocessing)
    return torch.cat([x, more.take(range(0, 250, max(1, 250 // count)))[0][:count]])


# -- time -------------------------------------------------------------------------------------------------------------


def times(rounds: int) -> list[str]:
    """Lines of the table."""
    one, many = Photos.load(1), Photos.load(16)
    call = pair_gradients(one)
    whole = alternate(
        {
            OURS: partial(_ours, one, XRAI()),
            "linspace": partial(_ours, one, XRAI(rule="linspace", steps=STEPS)),
            PAIR: partial(pair, picture(one.x[0]), "full", call),
        },
        rounds,
    )
    base = IntegratedGradients(steps=20, baseline="min+max")(many.model, many.x, many.y).values
    first = base[0].permute(1, 2, 0).double().numpy()
    reduced = base.amax(1).double()
    late = alternate(
        {
            OURS: partial(after, one.x, reduced[:1]),
            PAIR: partial(pair, picture(one.x[0]), "full", None, base_attribution=first),
        },
        3,
    )
    batch = alternate({OURS: partial(after, many.x, reduced)}, 1)
    residual = _residuals(one)
    lines = [
        _line("XRAI full, one photo", whole[OURS], whole[PAIR], 0.25),
        _line("the same with PAIR's rule", whole["linspace"], whole[PAIR], 0.45),
        _line("after the gradients, one photo", late[OURS], late[PAIR], 0.15),
        f"| after the gradients, 16 photos | {batch[OURS] / 16:.3f} s a photo | | at most 0.1 s a photo |",
    ]
    return [*lines, "", *(f"- completeness residual of {name}: {value:+.1%}" for name, value in residual.items())]


def _ours(photos: Photos, method: XRAI) -> Tensor:
    forget()
    return method(photos.model, photos.x, photos.y).values


def _residuals(photos: Photos) -> dict[str, float]:
    """Sum of the integrated gradients less the difference of the outputs, relative to it."""
    x = photos.x
    ends = torch.cat([torch.full_like(x, float(x.min())), torch.full_like(x, float(x.max()))])
    difference = float(photos.model(x)[0, photos.y[0]] - photos.model(ends)[:, photos.y[0]].mean())
    theirs = pair(picture(x[0]), "fast", pair_gradients(photos)).ig_attribution
    ours = XRAI()(photos.model, x, photos.y)
    assert ours.residual is not None
    return {
        OURS: float(ours.residual[0]) / difference,
        PAIR: float(np.mean(theirs, 0).sum()) / difference - 1,
    }


def _line(title: str, ours: float, theirs: float, bar: float) -> str:
    ratio = ours / theirs
    verdict = "met" if ratio <= bar else "missed"
    return f"| {title} | {ours:.2f} s | {theirs:.2f} s | {ratio:.3f} (at most {bar}: {verdict}) |"


def main() -> None:
    """Compare, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xrai", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare results only")
    parser.add_argument("--photos", type=int, default=16, help="photos beside the four of demo:photos to compare")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each whole XRAI, in turns, after a warm-up")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = rk.load("demo:efficientnet_lite0")
    sys.stdout.write(f"- against PAIR: {check(photographs(model, arguments.photos), model).row()}\n")
    if arguments.check:
        return
    lines = ["| work | robustkit | PAIR, batch of 20 | ratio |", "| --- | --- | --- | --- |", *times(arguments.rounds)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
