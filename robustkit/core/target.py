"""What a map explains: one number for every sample, made of the outputs and a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustkit.core.errors import UsageError
from robustkit.core.model import Model
from robustkit.core.task import DenseClassification, Regression

Output = Literal["logit", "probability", "margin"] | Callable[[Tensor, Tensor], Tensor]
"""What is made of the outputs: the logit of the class, its probability, its logit less the largest other, or a
function of outputs (N, ...) and classes (N,) that gives one number for every sample."""
OUTPUT = "what is explained: the logit of the class, its probability, or its margin over the best other class"


@dataclass(frozen=True, eq=False)
class Target:
    """The explained number, sample by sample.

    Attributes:
        classes: (N,) int64, the class (for values to predict: the channel) of each sample.
        output: what is made of the outputs.
        mask: (N, H, W) bool, for dense outputs: the pixels whose numbers are added up.
    """

    classes: Tensor
    output: Output = "logit"
    mask: Tensor | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """(N,), differentiable.

        Raises:
            UsageError: a function of the user's that gives anything but one number for every sample.
        """
        if callable(self.output):
            return _one_each(self.output(outputs, self.classes), outputs)
        scores = outputs.softmax(1) if self.output == "probability" else outputs
        index = self.classes.view(-1, 1, *[1] * (outputs.ndim - 2)).expand(-1, 1, *outputs.shape[2:])
        chosen = scores.gather(1, index)[:, 0]
        if self.output == "margin":
            chosen = chosen - scores.scatter(1, index, -torch.inf).amax(1)
        if chosen.ndim == 1:
            return chosen
        kept = chosen if self.mask is None else chosen.where(self.mask, 0)
        return kept.flatten(1).sum(1)

    def take(self, index: Tensor | slice) -> Target:
        """The same for some of the samples; an index may lie on the CPU."""
        index = index.to(self.classes.device) if isinstance(index, Tensor) else index
        return Target(self.classes[index], self.output, None if self.mask is None else self.mask[index])


def target_of(
    model: Model,
    x: Tensor,
    wanted: Tensor | int | Literal["predicted"],
    output: Output = "logit",
    mask: Tensor | None = None,
) -> tuple[Target, Tensor]:
    """The target of a batch and its value (N,) there, from one forward of the network itself.

    Args:
        model, x: where.
        wanted: a class for all samples, one for each (N,), or ``"predicted"``: what the network answers (on dense
            outputs the class of most pixels of the mask, or of the image).
        output: see :data:`Output`.
        mask: (H, W) or (N, H, W), of dense outputs; by default the pixels that the network gives the class.

    Raises:
        UsageError: a class out of range, as many classes as there are no samples, a mask of another size or an empty
            one, a probability of something that is no classifier.
    """
    outputs = model(x)
    if not callable(output):
        _check_outputs(model, outputs, output)
    dense = outputs.ndim == 4
    pixels = None if mask is None else _checked_mask(mask, outputs)
    if callable(output) and pixels is not None:
        raise UsageError("a function of the outputs has no use for a mask", where="mask", fix="Mask inside of it.")
    classes = _predicted(outputs, pixels) if isinstance(wanted, str) else _given(wanted, outputs)
    if dense and pixels is None and not callable(output):
        pixels = _answered(model, outputs, classes)
    target = Target(classes, output, pixels)
    return target, target(outputs).detach()


def _check_outputs(model: Model, outputs: Tensor, output: Output) -> None:
    if outputs.ndim not in (2, 4):
        raise UsageError(
            "outputs of this shape have no classes",
            expected="(N, C), or (N, C, H, W) of a dense task",
            got=str(tuple(outputs.shape)),
            where="the network's outputs",
            fix="Say what to explain: output=lambda outputs, classes: ... gives one number for every sample.",
        )
    if output != "logit" and (isinstance(model.task, Regression) or outputs.shape[1] < 2):
        raise UsageError(
            f"there is no {output} of a class here",
            expected="logits of at least two classes",
            got=f"task {model.task.name} with outputs {tuple(outputs.shape)}",
            where=f"output={output}",
            fix="Use output=logit: the value itself.",
        )


def _predicted(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """The class of each sample; of dense outputs the one that most pixels are given."""
    top = outputs.flatten(2).argmax(1) if outputs.ndim > 2 else outputs.argmax(1)
    if top.ndim == 1:
        return top
    counted = torch.ones_like(top, dtype=torch.bool) if mask is None else mask.flatten(1)
    votes = torch.zeros(outputs.shape[:2], dtype=torch.long, device=outputs.device)
    return votes.scatter_add_(1, top, counted.long()).argmax(1)


def _given(wanted: Tensor | int, outputs: Tensor) -> Tensor:
    n, count = outputs.shape[:2]
    classes = torch.as_tensor(wanted, device=outputs.device)
    if classes.ndim == 0:
        classes = classes.expand(n)
    if classes.shape != (n,) or classes.is_floating_point() or classes.dtype == torch.bool:
        raise UsageError(
            "a target is a class",
            expected=f"a whole number, or one for each of the {n} samples",
            got=f"{classes.dtype} of shape {tuple(classes.shape)}",
            where="target",
        )
    bad = (classes < 0) | (classes >= count)
    if bool(bad.any()):
        raise UsageError(
            "the target class does not exist",
            expected=f"0 .. {count - 1}, for the {count} outputs of the network",
            got=str(int(classes[bad][0])),
            where="target",
        )
    return classes.long()


def _checked_mask(mask: Tensor, outputs: Tensor) -> Tensor:
    n, size = len(outputs), tuple(outputs.shape[2:])
    found = torch.as_tensor(mask, device=outputs.device)
    found = found.expand(n, *found.shape) if found.ndim == 2 else found
    if outputs.ndim != 4 or tuple(found.shape) != (n, *size):
        raise UsageError(
            "the mask does not fit the outputs",
            expected=f"(H, W) or (N, H, W) with N={n}, H, W = {size}" if outputs.ndim == 4 else "no mask: one label",
            got=str(tuple(mask.shape)),
            where="mask",
        )
    found = found.bool()
    empty = (~found.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise UsageError(
            "a mask marks no pixel", got=f"sample {empty[0]}", where="mask", fix="There is nothing to sum."
        )
    return found


def _answered(model: Model, outputs: Tensor, classes: Tensor) -> Tensor | None:
    """Where the network gives the class; everywhere for values to predict."""
    if not isinstance(model.task, DenseClassification):
        return None
    found = outputs.argmax(1) == classes[:, None, None]
    empty = (~found.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise UsageError(
            "no pixel is given the target class",
            got=f"class {int(classes[empty[0]])} in sample {empty[0]}",
            where="target",
            fix="Name the pixels with mask=..., or take another class.",
        )
    return found


def _one_each(value: Tensor, outputs: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (len(outputs),):
        raise UsageError(
            "the function of the outputs must give one number for every sample",
            expected=f"a tensor of shape ({len(outputs)},)",
            got=str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__,
            where="output",
        )
    return value
