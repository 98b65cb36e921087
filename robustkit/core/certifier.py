"""What every certifier promises, kept in one place; the author of a method writes ``certify``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from robustkit.core.attack import check_inputs
from robustkit.core.certificate import Certificate
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws, default_ids
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.registry import Registry, options_of, text_of
from robustkit.core.specs import MethodSpec

CERTIFIERS = Registry("robustkit.certify", "certifier")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is to be certified.

    Attributes:
        model: the wrapped network itself, frozen.
        x: (N, *S), inputs inside the bounds.
        outputs: shape of the outputs of one sample, (C,) or (C, H, W).
        draws: random numbers keyed by seed, sample and method.
        batch: most samples in the network at once; None leaves it to the method.
        tell: takes the number of samples passed so far, again and again.
    """

    model: Model
    x: Tensor
    outputs: tuple[int, ...]
    draws: Draws
    batch: int | None
    tell: Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Finding:
    """What a method found; see :class:`robustkit.core.certificate.Certificate` for the meaning of each."""

    prediction: Tensor
    radius: Tensor
    certified: Tensor
    reasons: tuple[str, ...]
    n: Tensor
    arithmetic: str
    asked: float | None = None
    alpha: float | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@method
class Certifier(ABC):
    """A proof, or a test with a stated error, that no input near a sample gets another class.

    ``norm`` is that of the radius; ``probabilistic`` says whether a certificate may be wrong with probability alpha.

    Raises, when called:
        UsageError: x or ids do not fit the model or each other; NaN; x outside the bounds; a network that answers at
            random, or NaN.
    """

    norm: ClassVar[str]
    probabilistic: ClassVar[bool] = False

    @final
    def __call__(
        self,
        model: Model,
        x: Tensor,
        *,
        ids: Tensor | None = None,
        seed: int = 0,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Certificate:
        """Certify a batch.

        Args:
            model: from :func:`robustkit.wrap`.
            x: inputs (N, *S) inside the bounds of the model.
            ids: sample ids (N,) that key the random draws; 0 .. N-1 by default.
            seed: of the random draws.
            batch: most samples in the network at once; by default by the size of the input.
            progress: called again and again with the number of samples passed so far.
        """
        ids = default_ids(len(x)) if ids is None else ids
        self._check(model, x, ids, batch)
        check_inputs(x.detach(), model)
        x = x.detach().contiguous()
        with model.frozen(seed), model.metered() as cost, torch.no_grad():
            outputs = model.output_shape(x, gradients=False)
            self.check(model, tuple(x.shape[1:]), outputs)
            draws = Draws(seed, ids.cpu(), CERTIFIERS.entry_of(self).name)
            found = self.certify(Subject(model, x, outputs, draws, batch, progress or _silent))
        return Certificate(
            method=CERTIFIERS.entry_of(self).name,
            settings=options_of(self),
            norm=self.norm,
            dimension=x[0].numel(),
            cost=cost,
            **{name: getattr(found, name) for name in Finding.__dataclass_fields__},
        )

    @abstractmethod
    def certify(self, subject: Subject) -> Finding:
        """The certificates of every sample."""

    def check(self, model: Model, shape: tuple[int, ...], outputs: tuple[int, ...]) -> None:  # noqa: B027
        """Whether this network on inputs of this shape (without the batch) can be certified so; costs no forward.

        Raises:
            UsageError: it cannot.
        """

    def remarks(self, outputs: tuple[int, ...]) -> tuple[str, ...]:
        """What is allowed and yet probably a mistake, for outputs of this shape."""
        return ()

    @property
    def text(self) -> str:
        """The form of configurations and the command line, such as ``smoothing:sigma=0.5``."""
        return text_of(CERTIFIERS, self)

    def _check(self, model: Model, x: Tensor, ids: Tensor, batch: int | None) -> None:
        if not isinstance(model, Model):
            raise UsageError(
                "certifiers take a wrapped model",
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
            raise UsageError("a batch holds samples", expected="at least 1", got=str(batch), where="batch")
        model.check(x)


def certifier_from(value: Certifier | str) -> Certifier:
    """The certifier that a text stands for; certifiers pass through.

    Raises:
        UsageError: unknown name or option, or something else.
    """
    if isinstance(value, Certifier):
        return value
    if not isinstance(value, str):
        raise UsageError(
            "this is not a certifier",
            expected="rk.Smoothing(...) or text such as smoothing:sigma=0.25",
            got=repr(value)[:200],
            where="method",
        )
    spec = MethodSpec.parse(value)
    built: Certifier = CERTIFIERS.get(spec.name).build(spec.options)
    return built


def _silent(passed: int) -> None:
    pass
