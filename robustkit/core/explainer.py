"""What every saliency method promises, kept in one place; the author of a method writes ``attribute``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

from pydantic import Field
from torch import Tensor

from robustkit.core.attack import check_inputs
from robustkit.core.attribution import Attribution
from robustkit.core.errors import UsageError
from robustkit.core.gradients import Engine, Points, WeightedSum, check_gradients
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model, NoGradient
from robustkit.core.options import method
from robustkit.core.registry import Registry, options_of
from robustkit.core.target import OUTPUT, Output, Target, target_of

EXPLAINERS = Registry("robustkit.explain", "explainer")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is to be explained.

    Attributes:
        model: the wrapped network; gradients come from ``engine``, which runs on its fast copy.
        x: (N, *S), inputs inside the bounds.
        target: the explained number of each sample.
        value: (N,), the target at x, of the network itself.
        draws: random numbers keyed by seed, sample and method.
        engine: gradients of the target at streams of points.
    """

    model: Model
    x: Tensor
    target: Target
    value: Tensor
    draws: Draws
    engine: Engine

    def gradient(self) -> Tensor:
        """The gradient of the target at x, (N, *S)."""
        total = WeightedSum(self.x)

        def stream() -> Iterator[Points]:
            for rows in self.engine.batches(len(self.x)):
                yield Points(rows, self.x[rows], self.x.new_ones(len(rows)))

        self.engine.run(stream(), total)
        check_gradients(total.total, self.draws.ids)
        return total.total


@dataclass(frozen=True, eq=False)
class Map:
    """What a method found; see :class:`robustkit.core.attribution.Attribution` for the meaning of each.

    ``signed`` is said here where it depends on the options, and is else that of the method.
    """

    values: Tensor
    residual: Tensor | None = None
    standard_error: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    signed: bool | None = None


@method
class Explainer(ABC):
    """A map of what in the input speaks for an output, sample by sample.

    ``signed`` says whether the sign of a value means something (for or against the target), ``pixels`` whether the
    method rates pixels, (N, 1, H, W), and so needs images, instead of values of the input, (N, *S).

    Raises, when called:
        UsageError: x, target, mask or ids do not fit the model or each other; NaN; x outside the bounds; a gradient
            that does not exist or is not finite.
    """

    signed: ClassVar[bool] = True
    pixels: ClassVar[bool] = False
    output: Output = Field(default="logit", description=OUTPUT)

    @final
    def __call__(
        self,
        model: Model,
        x: Tensor,
        target: Tensor | int | Literal["predicted"] = "predicted",
        *,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        seed: int = 0,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Attribution:
        """Explain a batch.

        Args:
            model: from :func:`robustkit.wrap`.
            x: inputs (N, *S) inside the bounds of the model.
            target: a class for all, one for each sample (N,), or what the network predicts.
            mask: (H, W) or (N, H, W), of dense outputs: the pixels whose outputs are added up.
            ids: sample ids (N,) that key the random draws; 0 .. N-1 by default.
            seed: of the random draws.
            batch: most points in the network at once; by default by the size of the input.
            progress: called again and again with the number of gradients taken so far.
        """
        ids = default_ids(len(x)) if ids is None else ids
        self._check(model, x, ids, batch)
        x = x.detach().contiguous()
        with model.frozen(seed), model.metered() as cost:
            chosen, value = target_of(model, x, target, self.output, mask)
            draws = Draws(seed, ids.cpu(), EXPLAINERS.entry_of(self).name)
            engine = Engine(model, x, chosen, batch, progress)
            found = self._attribute(Subject(model, x, chosen, value, draws, engine))
        return Attribution(
            method=EXPLAINERS.entry_of(self).name,
            settings=options_of(self),
            x=x,
            values=found.values,
            target=chosen.classes,
            output=chosen.output if isinstance(chosen.output, str) else "function",
            value=value,
            residual=found.residual,
            standard_error=found.standard_error,
            extras=found.extras,
            notes=found.notes,
            signed=self.signed if found.signed is None else found.signed,
            cost=cost,
            class_names=model.class_names,
            bounds=model.bounds,
        )

    @abstractmethod
    def attribute(self, subject: Subject) -> Map:
        """The map of every sample."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Whether the method can explain inputs of this shape (without the batch).

        Raises:
            UsageError: it cannot.
        """
        if self.pixels and len(shape) != 3:
            raise UsageError(
                "the method explains images",
                expected="inputs (N, C, H, W)",
                got=f"(N, {', '.join(map(str, shape))})",
                where=EXPLAINERS.entry_of(self).name,
                fix="Use gradient, smoothgrad or integrated for inputs that are no images.",
            )

    def _attribute(self, subject: Subject) -> Map:
        try:
            return self.attribute(subject)
        except NoGradient as error:
            raise UsageError(
                f"{EXPLAINERS.entry_of(self).name} needs the gradient of the network, and there is none",
                got="no differentiable path leads from the inputs to the outputs",
                where="the network's forward",
                fix="Look for argmax, round, detach, no_grad or numpy inside; captum:Occlusion needs no gradient.",
            ) from error

    def _check(self, model: Model, x: Tensor, ids: Tensor, batch: int | None) -> None:
        if not isinstance(model, Model):
            raise UsageError(
                "explainers take a wrapped model",
                expected="a robustkit Model",
                got=type(model).__name__,
                where="model",
                fix="Wrap it once: model = robustkit.wrap(net, mean=..., std=...).",
            )
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0:
            raise UsageError(
                "inputs must be a batch",
                expected="a tensor (N, ...) of at least one sample",
                got=f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__,
                where="x",
                fix="Add the batch dimension: x[None].",
            )
        if len(ids) != len(x):
            raise UsageError("x and ids have different lengths", expected=str(len(x)), got=str(len(ids)), where="ids")
        if batch is not None and batch < 1:
            raise UsageError("a batch holds points", expected="at least 1", got=str(batch), where="batch")
        self.check_shape(tuple(x.shape[1:]))
        model.check(x)
        check_inputs(x.detach(), model)
        model.output_shape(x)
