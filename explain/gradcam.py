"""Grad-CAM: the last layer with a grid, its channels weighted by their mean gradient (https://arxiv.org/abs/1610.02391).

``a_k = mean over places of d target / d A_k``; the map is ``ReLU(sum_k a_k A_k)``, enlarged to the image. Shapes:
x (N, C, H, W), map (N, 1, H, W). Units: of the output. Cost: one forward and one backward for each image, the latter
only down to the layer, and one of each of a single image to find it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn.functional import interpolate

from robustkit.core.attribution import Note
from robustkit.core.explainer import EXPLAINERS, Explainer, Map, Subject
from robustkit.core.gradients import check_gradients
from robustkit.core.layers import Layer, find_layer, layer_gradients
from robustkit.core.options import method


def _word(value: object) -> object:
    """Names such as 4 or 0.1, which text forms read as numbers."""
    return str(value) if isinstance(value, int | float) else value


@EXPLAINERS.register("gradcam", paper="https://arxiv.org/abs/1610.02391")
@method
class GradCAM(Explainer):
    """Grad-CAM: where in the last layer that knows places the target comes from.

    >>> GradCAM(layer="layer4").interpolation
    'bilinear'
    """

    signed: ClassVar[bool] = False
    pixels: ClassVar[bool] = True

    layer: Annotated[str | None, BeforeValidator(_word)] = Field(
        default=None, description="name of the layer inside the network; found where not given"
    )
    relu: bool = Field(default=True, description="keep only what speaks for the target; false: a signed map")
    interpolation: Literal["bilinear", "nearest"] = Field(
        default="bilinear", description="how the map of the layer is enlarged to the image: bilinear or nearest"
    )

    def attribute(self, subject: Subject) -> Map:
        layer = find_layer(subject.model, subject.x, self.layer)
        pieces = [self._coarse(subject, layer, rows) for rows in subject.engine.batches(len(subject.x))]
        coarse = torch.cat(pieces)
        check_gradients(coarse, subject.draws.ids)
        shown = coarse.relu() if self.relu else coarse
        smooth = {"align_corners": False} if self.interpolation == "bilinear" else {}
        values = interpolate(shown, size=subject.x.shape[-2:], mode=self.interpolation, **smooth)
        notes = (f"layer {layer.name}, {layer.size[0]} x {layer.size[1]} places", *_black(shown, coarse, subject))
        return Map(values, extras={"coarse": coarse}, notes=notes, signed=not self.relu)

    @staticmethod
    def _coarse(subject: Subject, layer: Layer, rows: Tensor) -> Tensor:
        """sum_k a_k A_k, (n, 1, h, w)."""
        found = layer_gradients(subject.model, layer, subject.x[rows], subject.target.take(rows))
        return torch.cat([(grad.mean((2, 3), keepdim=True) * output).sum(1, keepdim=True) for output, grad in found])


def _black(shown: Tensor, coarse: Tensor, subject: Subject) -> tuple[str, ...]:
    """What to say about maps that are zero everywhere."""
    black = (shown == 0).flatten(1).all(1)
    if not bool(black.any()):
        return ()
    which = black.nonzero()[:, 0].tolist()
    dead = [i for i in which if not bool(coarse[i].any())]
    why = (
        "the target does not depend on the layer: name another one"
        if len(dead) == len(which)
        else "everything in the layer speaks against the target: see relu=false, or take an earlier layer"
    )
    named = ", ".join(str(int(subject.draws.ids[i])) for i in which[:5]) + (" ..." if len(which) > 5 else "")
    return (Note(f"the map of sample {named} is zero everywhere: {why}", black),)
