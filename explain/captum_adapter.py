"""Any class of captum that attributes inputs: ``captum:IntegratedGradients,n_steps=20`` or ``rk.from_captum(method)``
(https://arxiv.org/abs/2009.07896).

captum is handed a module that gives the explained number of every point, so that target, output and mask are ours, and
every pass is counted. Shapes: x and map (N, *S), of LayerGradCam (N, 1, H, W). Units: those of the class. Cost: that of
the class; what it may hold in memory at once is set to the batch.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from robustkit.core.attribution import Note
from robustkit.core.errors import RobustkitError, UsageError, near
from robustkit.core.explainer import EXPLAINERS, Explainer, Map, Subject
from robustkit.core.layers import find_layer
from robustkit.core.model import Model
from robustkit.core.options import method
from robustkit.core.registry import options_of
from robustkit.core.seen import private
from robustkit.core.specs import MethodSpec, parse_fraction
from robustkit.core.types import Bounds
from robustkit.explain.captum_bridge import Explained, class_of, clean, is_a, parameters, rebound
from robustkit.kernels.noise import key_of

DRAWN = ("GradientShap", "Lime", "NoiseTunnel", "ShapleyValueSampling")
"""Classes that draw from global generators: each sample runs alone, with a seed of its own."""
PLAIN = ("PerturbationAttribution", "IntegratedGradients", "Saliency", "InputXGradient", "GradientShap")
"""Classes that look at no layer, and so run on the fast copy of the network."""
BY_LAYERS = ("DeepLift", "LRP")
"""Classes that know their rules for layers alone, and not for what we make of the outputs."""
MANY = ("DeepLiftShap", "GradientShap")
"""Classes that take a distribution of baselines."""
WORDS = {"black": 0.0, "gray": 0.5, "white": 1.0}
"""Baselines, as shares of the range of the inputs."""
CELLS = 7
"""Parts of each side of an image that are taken as one feature, where features are removed and no mask is given."""
RESIDUAL = 0.05


@EXPLAINERS.register("captum", paper="https://arxiv.org/abs/2009.07896")
@method
class CaptumMethod(Explainer):
    """A class of captum, by its name; what else is given goes to its constructor or to ``attribute``.

    Raises, when called:
        UsageError: what :class:`Explainer` raises; no such class, or one that attributes layers or neurons; no such
            option; an output that the class has no rules for; whatever captum raises.

    >>> CaptumMethod(name="Occlusion", options={"sliding_window_shapes": 8}).options["sliding_window_shapes"]
    8
    """

    free: ClassVar[bool] = True

    name: str = Field(
        default="IntegratedGradients", description="class of captum.attr; any other option is one of that class"
    )
    options: dict[str, Any] = Field(default_factory=dict)
    given: Any = None

    # -- what the class is -----------------------------------------------------------------------------------------

    def target_class(self) -> type:
        """The class of captum.

        Raises:
            UsageError: no such class, or none that attributes inputs.
        """
        return class_of(self.name if self.given is None else self.given, self.text)

    @property
    def text(self) -> str:
        """The text form, for messages."""
        return str(MethodSpec(EXPLAINERS.entry_of(self).name, options_of(self)))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        known = self._known()
        for key in self.options:
            if key not in known:
                raise UsageError(f"{self.name} of captum has no option {key!r}", where=self.text, fix=near(key, known))
        if is_a(self._inner_class(), *BY_LAYERS) and self.output != "logit":
            raise UsageError(
                f"{self.name} of captum has rules for layers, and none for what is made of the logits",
                expected="output=logit",
                got=f"output={self.output}" if isinstance(self.output, str) else "a function of the outputs",
                where=self.text,
                fix="Explain the logit, or take IntegratedGradients.",
            )

    @property
    def _is_made(self) -> bool:
        """Whether an instance was brought, whose constructor has run."""
        return self.given is not None and not isinstance(self.given, type)

    def _inner_class(self) -> type:
        """What a NoiseTunnel averages; otherwise the class itself."""
        if not is_a(self.target_class(), "NoiseTunnel"):
            return self.target_class()
        inner = getattr(self.given, "attribution_method", self.options.get("attribution_method", "Saliency"))
        return class_of(inner, self.text)

    def _known(self) -> dict[str, Any]:
        """Options of the class: of its constructor and of ``attribute``, there also of what it averages."""
        cls, inner = self.target_class(), self._inner_class()
        made = {} if self._is_made else parameters(cls)
        return {
            **made,
            **parameters(getattr(cls, "attribute", None)),
            **parameters(getattr(inner, "attribute", None)),
        }

    @property
    def _is_signed(self) -> bool:
        inner = self._inner_class()
        squares = self.options.get("nt_type") in ("smoothgrad_sq", "vargrad")
        return not squares and not (is_a(inner, "Saliency") and self.options.get("abs", True))

    # -- the run ---------------------------------------------------------------------------------------------------

    def attribute(self, subject: Subject) -> Map:
        values, residuals, layer = [], [], self._layer(subject)
        for rows in self._pieces(subject):
            found, residual = self._run(subject, rows, layer)
            values.append(found)
            residuals.append(residual)
        joined = torch.cat(values)
        self._check_finite(joined, subject)
        kept = [r for r in residuals if r is not None]
        residual = torch.cat(kept) if kept else None
        return Map(joined, residual=residual, notes=self._notes(subject, joined, residual), signed=self._is_signed)

    def _pieces(self, subject: Subject) -> Iterator[Tensor]:
        """Samples that captum is handed together."""
        cls, n = self.target_class(), len(subject.x)
        if is_a(cls, "FeaturePermutation"):  # it changes features between samples
            yield torch.arange(n)
            return
        room = subject.engine.batch
        if is_a(cls, "DeepLift"):  # it passes every sample with its baselines
            room //= 2 * (len(self._baselines(subject)) if is_a(cls, *MANY) else 1)
        yield from torch.arange(n).split(1 if is_a(cls, *DRAWN) else max(1, room))

    def _layer(self, subject: Subject) -> nn.Module | None:
        """The layer of classes that take one."""
        if "layer" not in self._known():
            return None
        named = self.options.get("layer")
        named = str(named) if isinstance(named, int | float) else named
        return named if isinstance(named, nn.Module) else find_layer(subject.model, subject.x, named).module

    def _run(self, subject: Subject, rows: Tensor, layer: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        """The map (n, *S) and the residual (n,) of some samples."""
        seed = key_of(subject.draws.seed, int(subject.draws.ids[rows[0]]), f"captum:{self.name}", 0, 0) % 2**31
        sample = rows.to(subject.x.device)
        with subject.model.frozen(seed), private(seed), clean(subject.model.module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                attribution, options = self._built(subject, rows, layer)
                wants_gradient = not is_a(type(attribution), "PerturbationAttribution")
                x = subject.x[rows].clone().requires_grad_(wants_gradient)
                found = attribution.attribute(x, additional_forward_args=(sample,), **options)
            except RobustkitError:
                raise
            except Exception as error:
                raise self._refused(error) from error
        values, delta = found if isinstance(found, tuple) else (found, None)
        residual = None if delta is None else delta.detach().reshape(len(rows), -1).mean(1).to(x)
        return self._on_input(values.detach().to(x), x), residual

    def _on_input(self, values: Tensor, x: Tensor) -> Tensor:
        if is_a(self.target_class(), "LayerGradCam") and values.ndim == 4:
            values = values.sum(1, keepdim=True)
            return interpolate(values, size=x.shape[2:], mode="bilinear", align_corners=False)
        if values.shape != x.shape:
            raise UsageError(
                f"{self.name} of captum gives no map of the inputs",
                expected=str(tuple(x.shape)),
                got=str(tuple(values.shape)),
                where=self.text,
                fix="For Grad-CAM on tokens take gradcam, which lays them on their grid.",
            )
        return values

    def _built(self, subject: Subject, rows: Tensor, layer: nn.Module | None) -> tuple[Any, dict[str, Any]]:
        """The method of captum on our module, and the arguments of its ``attribute``."""
        cls, model = self.target_class(), subject.model
        fast = is_a(self._inner_class(), *PLAIN)
        net = Explained(model, subject.target, (model.fast(subject.x) if fast else model).module)
        chosen = {**self._offers(subject, len(rows)), **self.options}
        settings = {key: self._setting(key, value, subject, rows) for key, value in chosen.items()}
        if self._is_made:
            self._check_layer(model, self.given)
            attribution = rebound(self.given, net)
        else:
            tunnel = is_a(cls, "NoiseTunnel")
            settings |= {"attribution_method": self._inner_class()(net)} if tunnel else {}
            settings |= {} if layer is None else {"layer": layer}
            names = [name for name in parameters(cls) if name in settings]
            attribution = cls(*([] if tunnel else [net]), **{name: settings.pop(name) for name in names})
        if "return_convergence_delta" in inspect.signature(attribution.attribute).parameters:
            settings["return_convergence_delta"] = bool(getattr(attribution, "multiplies_by_inputs", True))
        return attribution, settings

    def _offers(self, subject: Subject, n: int) -> dict[str, Any]:
        """What the class is given where it takes it: a limit to what it holds at once, and what it must have."""
        cls, shape, room = self.target_class(), subject.x.shape[1:], max(1, subject.engine.batch // n)
        offers: dict[str, Any] = {
            "internal_batch_size": subject.engine.batch,
            "nt_samples_batch_size": room,
            "perturbations_per_eval": room,
            "baselines": "black+white" if is_a(cls, *MANY) else "black",
        }
        if len(shape) == 3:
            window = -(-max(shape[1:]) // CELLS)
            offers["feature_mask"] = -(-max(shape[1:]) // 2) if is_a(cls, "ShapleyValues") else window
            offers |= {"sliding_window_shapes": window, "strides": max(1, window // 2)}
        return {key: value for key, value in offers.items() if key in self._known()}

    def _setting(self, key: str, value: Any, subject: Subject, rows: Tensor) -> Any:
        """One option: our short forms spelt out, tensors of the whole batch cut to some samples."""
        x = subject.x
        if key == "baselines":
            value = self._baselines(subject, value) if isinstance(value, str | int | float) else value
        elif key == "feature_mask" and isinstance(value, int):
            value = cells(tuple(x.shape[1:]), value).to(x.device)
        elif key in ("sliding_window_shapes", "strides") and isinstance(value, int):
            value = _window(tuple(x.shape[1:]), value)
        elif key == "stdevs" and isinstance(value, int):
            value = float(value)  # captum takes no whole numbers for it
        elif isinstance(value, str) and re.fullmatch(r"[\d.]+/[\d.]+", value):
            value = parse_fraction(value, key)
        whole = isinstance(value, Tensor) and value.shape == x.shape and not is_a(self.target_class(), *MANY)
        return value[rows.to(value.device)] if whole else value

    def _baselines(self, subject: Subject, value: Any = None) -> Any:
        """Baselines in units of the input: a number, or a tensor (K, *S) for classes that take several."""
        value = self.options.get("baselines", "black+white") if value is None else value
        if not isinstance(value, str | int | float):
            return value
        levels = [self._level(part, subject.model.bounds) for part in str(value).split("+")]
        if is_a(self.target_class(), *MANY):
            return torch.stack([torch.full_like(subject.x[0], level) for level in levels])
        if len(levels) > 1:
            raise UsageError(f"{self.name} of captum takes one baseline", got=str(value), where=self.text)
        return levels[0]

    def _level(self, part: str, bounds: Bounds) -> float:
        if part in WORDS:
            return bounds.low + WORDS[part] * bounds.width
        try:
            return parse_fraction(part)
        except UsageError:
            raise UsageError(
                "unknown baseline",
                expected=f"{', '.join(WORDS)}, a number in units of the input, or several joined by +",
                got=repr(part),
                where=self.text,
            ) from None

    # -- what is said ----------------------------------------------------------------------------------------------

    def _notes(self, subject: Subject, values: Tensor, residual: Tensor | None) -> tuple[str, ...]:
        cls, notes = self.target_class(), list[str]()
        modules = list(subject.model.module.modules())
        if is_a(cls, "ModifiedReluGradientAttribution", "GuidedGradCam") and not any(
            isinstance(m, nn.ReLU) for m in modules
        ):
            notes.append(f"{self.name} changes nn.ReLU layers alone, and there are none: its gradient is the plain one")
        if is_a(cls, "FeaturePermutation"):
            notes.append("features are exchanged between the samples of the batch: every map depends on all of them")
        empty = (values == 0).flatten(1).all(1)
        if bool(empty.any()):
            named = self._named(subject, empty.nonzero()[:, 0].tolist())
            notes.append(Note(f"the map of sample {named} is zero everywhere", empty))
        if residual is not None:
            total = (values.flatten(1).sum(1) - residual).abs()
            share = residual.abs() / total.clamp_min(torch.finfo(total.dtype).tiny)
            if bool((share > RESIDUAL).any()):
                text = (
                    f"the values do not add up: the residual is up to {float(share.max()):.1%} of what they should be"
                )
                notes.append(Note(text, share > RESIDUAL))
        return tuple(notes)

    @staticmethod
    def _named(subject: Subject, rows: list[int]) -> str:
        return ", ".join(str(int(subject.draws.ids[i])) for i in rows[:5]) + (" ..." if len(rows) > 5 else "")

    def _check_finite(self, values: Tensor, subject: Subject) -> None:
        bad = (~values.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise UsageError(
                f"{self.name} of captum gives a map that is not finite",
                expected="numbers",
                got=f"NaN or infinity for sample {self._named(subject, bad)}",
                where=self.text,
                fix="Look at the gradient method first: it tells whether the network is the reason.",
            )

    def _check_layer(self, model: Model, given: Any) -> None:
        layer = getattr(given, "layer", None)
        if isinstance(layer, nn.Module) and not any(layer is module for module in model.module.modules()):
            raise UsageError(
                "the layer of the method is no part of the wrapped network",
                where=self.text,
                fix="Make it with a layer of the network that is wrapped, or name one: from_captum(cls, layer=...).",
            )

    def _refused(self, error: Exception) -> UsageError:
        first = re.sub(r"\s+", " ", str(error)).strip()[:300]
        return UsageError(
            f"{self.name} of captum stopped with an error",
            got=f"{type(error).__name__}: {first}".rstrip(": "),
            where=self.text,
            fix="Look at its options, and whether it takes such inputs and layers.",
        )


def from_captum(attribution: Any, **options: Any) -> CaptumMethod:
    """A method of captum as one of ours.

    Args:
        attribution: a class of captum.attr, or an instance. Of an instance the settings are kept; the network it was
            made with is replaced by the wrapped one that it is called with.
        options: of the constructor (of a class) and of ``attribute``.

    Raises:
        UsageError: nothing of captum's that attributes inputs.

    >>> import captum.attr
    >>> from_captum(captum.attr.IntegratedGradients, n_steps=20).name
    'IntegratedGradients'
    """
    cls = class_of(attribution, "from_captum")
    return CaptumMethod(name=cls.__name__, options=options, given=attribution)


def cells(shape: tuple[int, ...], size: int) -> Tensor:
    """Feature numbers for squares of ``size`` pixels of an image (C, H, W), (1, 1, H, W); for runs of other inputs.

    >>> cells((3, 2, 4), 2)[0, 0]
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]])
    """
    if size < 1:
        raise UsageError("a cell holds pixels", expected="at least 1", got=str(size), where="feature_mask")
    if len(shape) != 3:
        return (torch.arange(torch.Size(shape).numel()) // size).view(1, *shape)
    rows, columns = torch.arange(shape[1]) // size, torch.arange(shape[2]) // size
    return (rows[:, None] * (int(columns[-1]) + 1) + columns)[None, None]


def _window(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """A square of all channels of images; a run along the last dimension of other inputs, whole in the others."""
    if len(shape) == 3:
        return (shape[0], min(size, shape[1]), min(size, shape[2]))
    return (*shape[:-1], min(size, shape[-1]))
