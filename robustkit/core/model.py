"""The one wrapper between methods and networks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.errors import UsageError
from robustkit.core.fold import folded
from robustkit.core.heap import kept
from robustkit.core.outputs import as_tensor
from robustkit.core.preprocessing import Preprocessing, read_preprocessing
from robustkit.core.task import Task, task_from
from robustkit.core.types import Bounds, Cost


class NoGradient(UsageError):
    """No differentiable path leads from the inputs of a network to its outputs."""


class Normalize(nn.Module):
    """(x - mean) / std over channels: a layer, so that relaxations and exports see it."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], like: Tensor) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=like.dtype, device=like.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)


class FunctionNet(nn.Module):
    """A plain function as a network without parameters."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Repeated(nn.Module):
    """The mean output of several passes, for networks that are random by design (expectation over transformation)."""

    def __init__(self, net: nn.Module, passes: int) -> None:
        super().__init__()
        self.net, self.passes = net, passes

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([as_tensor(self.net(x)) for _ in range(self.passes)]).mean(0)


@dataclass(slots=True)
class _Shared:
    """What a model and its fast copy have in common."""

    chunk: int | None
    cost: Cost = field(default_factory=Cost)


class Model:
    """A network seen from inputs in ``bounds``. Made by :func:`wrap`.

    Calling it gives outputs (N, C) or (N, C, H, W) ...; it neither clips nor rejects inputs outside the bounds, since
    smoothing leaves them on purpose. Device and dtype are those of the network, which is never moved.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        task: Task,
        bounds: Bounds,
        preprocessing: Preprocessing | None = None,
        chunk: int | None = None,
        eot: int = 1,
        name: str = "",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.net, self.task, self.bounds, self.name, self.eot = net, task, bounds, name or type(net).__name__, eot
        self.preprocessing, self.class_names = preprocessing, class_names
        self._shared = _Shared(chunk)
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._fast: tuple[object, Model] | None = None
        body = net if eot == 1 else Repeated(net, eot)
        first = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), None)
        self._place = first
        if preprocessing is not None:
            like = torch.empty(0) if first is None else first
            body = nn.Sequential(Normalize(preprocessing.mean, preprocessing.std, like), body)
        self.module: nn.Module = body

    @property
    def mean(self) -> tuple[float, ...] | None:
        return self.preprocessing.mean if self.preprocessing else None

    @property
    def std(self) -> tuple[float, ...] | None:
        return self.preprocessing.std if self.preprocessing else None

    @property
    def device(self) -> torch.device:
        """Where the network lies; the CPU for a network without weights."""
        return torch.device("cpu") if self._place is None else self._place.device

    @property
    def dtype(self) -> torch.dtype:
        """In what the network computes; float32 for a network without weights."""
        return torch.float32 if self._place is None else self._place.dtype

    @property
    def cost(self) -> Cost:
        """Everything passed through this model so far; see :meth:`metered`."""
        return self._shared.cost

    @property
    def chunk(self) -> int | None:
        """Most samples passed at once; None for no limit. Halved for good when memory runs out."""
        return self._shared.chunk

    @chunk.setter
    def chunk(self, size: int | None) -> None:
        self._shared.chunk = size

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs for x (N, *S); the graph is kept exactly where x asks for it."""
        self.check(x)

        def forward(part: slice) -> Tensor:
            with torch.set_grad_enabled(x.requires_grad):
                return as_tensor(self.module(x[part]))

        outputs = torch.cat(self._chunked(forward, len(x)))
        self.cost.forwards += len(x) * self.eot
        return outputs

    def value_and_grad(self, x: Tensor, objective: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Objective (N,), its gradient (N, *S) and the outputs, all detached: one forward serves all three.

        Raises:
            UsageError: the objective does not depend on x through differentiable operations.
        """
        self.check(x)

        def both(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            leaf = x[part].detach().requires_grad_()
            with torch.enable_grad():
                outputs = as_tensor(self.module(leaf))
                value = objective.take(part)(outputs) if part != slice(0, len(x)) else objective(outputs)
                grad = self._gradient(value, leaf)
            return value.detach(), grad, outputs.detach()

        parts: list[tuple[Tensor, Tensor, Tensor]] = self._chunked(both, len(x))
        self.cost.forwards += len(x) * self.eot
        self.cost.backwards += len(x) * self.eot
        if len(parts) == 1:
            return parts[0]
        value, grad, outputs = (torch.cat(column) for column in zip(*parts, strict=True))
        return value, grad, outputs

    def jacobian(self, x: Tensor, functions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N, K) of several functions of the outputs, their gradients (N, K, *S) and the outputs, all detached.

        One forward and K backwards: cheaper than K objectives, each with a forward of its own.
        """
        self.check(x)

        def all_of(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            leaf = x[part].detach().requires_grad_()
            with torch.enable_grad():
                outputs = as_tensor(self.module(leaf))
                values = functions.take(part)(outputs)
                grads = [self._gradient(value, leaf, keep=True) for value in values.unbind(1)]
            return values.detach(), torch.stack(grads, 1), outputs.detach()

        parts: list[tuple[Tensor, Tensor, Tensor]] = self._chunked(all_of, len(x))
        values, grads, outputs = (torch.cat(column) for column in zip(*parts, strict=True))
        self.cost.forwards += len(x) * self.eot
        self.cost.backwards += values.numel() * self.eot
        return values, grads, outputs

    @staticmethod
    def _gradient(value: Tensor, leaf: Tensor, keep: bool = False) -> Tensor:
        if not value.requires_grad:
            raise NoGradient(
                "the network has no gradient: no differentiable path leads from its inputs to its outputs",
                where="the network's forward",
                fix="Look for argmax, round, detach, no_grad or numpy inside; "
                "gradient-based robust accuracy means nothing for such a network.",
            )
        (grad,) = torch.autograd.grad(value.sum(), leaf, retain_graph=keep, allow_unused=True, materialize_grads=True)
        return grad

    def fast(self, example: Tensor) -> Model:
        """The same function for the inner loops: BatchNorm folded, channels-last, no parameter gradients.

        A private copy, made anew when the weights have changed, equal to the network up to about 6e-6 in the logits.
        Verdicts that go into a result are taken on the network itself.
        """
        state = (
            *((t.data_ptr(), _version(t)) for t in (*self.module.parameters(), *self.module.buffers())),
            example.shape[1:],
            example.dtype,
        )
        if self._fast is None or self._fast[0] != state:
            with self.frozen():
                module = self.module if self.eot > 1 else folded(self.module, example[:1].detach())
            twin = self
            if module is not self.module:
                twin = Model(module, task=self.task, bounds=self.bounds, name=self.name)
                twin._shared = self._shared
            self._fast = (state, twin)
        return self._fast[1]

    def averaged(self, passes: int) -> Model:
        """The same network with its outputs averaged over so many passes; this model where nothing changes."""
        if passes == self.eot:
            return self
        return Model(
            self.net,
            task=self.task,
            bounds=self.bounds,
            preprocessing=self.preprocessing,
            chunk=self.chunk,
            eot=passes,
            name=self.name,
            class_names=self.class_names,
        )

    def around(self, net: nn.Module) -> Model:
        """Another network seen the same way: bounds, normalisation, task and passes; its cost counts here, too."""
        twin = Model(
            net,
            task=self.task,
            bounds=self.bounds,
            preprocessing=self.preprocessing,
            eot=self.eot,
            name=self.name,
            class_names=self.class_names,
        )
        twin._shared = self._shared
        return twin

    def output_shape(self, x: Tensor, *, gradients: bool = True) -> tuple[int, ...]:
        """Shape of the outputs of one sample; found by running one sample, once for every input shape.

        Args:
            x: a batch.
            gradients: whether the network is asked to run on an input that needs a gradient.

        Raises:
            UsageError: the network does not accept such inputs.
        """
        shape = tuple(x.shape[1:])
        if shape not in self._shapes:
            probe = x[:1].detach().clone().requires_grad_(gradients)
            with self.frozen(), self.metered(refund=True):
                try:
                    self._shapes[shape] = tuple(self(probe).shape[1:])
                except UsageError:
                    raise
                except Exception as error:
                    raise UsageError(
                        "the network does not accept these inputs",
                        expected="a batch it can run on" + (", with gradients" if gradients else ""),
                        got=f"{x.dtype} of shape (N, {', '.join(map(str, shape))}): {_first_line(error)}",
                        where="x",
                        fix="Check channels, image size and layout (channels first); x must not be changed in place.",
                    ) from error
        return self._shapes[shape]

    @contextmanager
    def frozen(self, seed: int = 0) -> Iterator[None]:
        """Evaluation mode, no parameter gradients, a private global generator; all restored, also on error."""
        modes = {m: m.training for m in self.module.modules()}
        grads = {p: p.requires_grad for p in self.module.parameters()}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), kept():
            try:
                _seed(seed, self.device)
                self.module.eval().requires_grad_(False)
                yield
            finally:
                for m, training in modes.items():
                    m.training = training
                for p, needs in grads.items():
                    p.requires_grad_(needs)

    @contextmanager
    def metered(self, *, refund: bool = False) -> Iterator[Cost]:
        """Yield a Cost that holds, on leaving, what was spent inside; ``refund`` takes it off the model's own count."""
        before, spent = replace(self.cost), Cost()
        try:
            yield spent
        finally:
            spent.forwards = self.cost.forwards - before.forwards
            spent.backwards = self.cost.backwards - before.backwards
            if refund:
                self._shared.cost.forwards, self._shared.cost.backwards = before.forwards, before.backwards

    def state_sha256(self) -> str:
        """Hash of all weights and buffers, by name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check(self, x: Tensor) -> None:
        """Inputs are floating point and lie where the network does.

        Raises:
            UsageError: they are not; the message names both sides.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise UsageError(
                "inputs must be a floating-point tensor",
                got=str(getattr(x, "dtype", type(x).__name__)),
                where="x",
                fix="Divide 8-bit images by 255: x.float() / 255.",
            )
        if self._place is not None and (x.device != self.device or x.dtype != self.dtype):
            raise UsageError(
                "inputs and network do not match",
                expected=f"x on {self.device} in {self.dtype}, as the network",
                got=f"x on {x.device} in {x.dtype}",
                where="x",
                fix=f'Call x.to("{self.device}", {self.dtype}), or move the network.',
            )

    def _chunked(self, work: Callable[[slice], Any], n: int) -> list[Any]:
        """Run ``work`` over slices of at most ``chunk`` samples; halve it for good when memory runs out."""
        while True:
            size = max(1, self.chunk or n)
            try:
                return [work(slice(i, min(i + size, n))) for i in range(0, max(n, 1), size)]
            except RuntimeError as error:
                if not _out_of_memory(error) or min(size, n) <= 1:
                    raise
            self.chunk = min(size, n) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def wrap(
    net: nn.Module | Callable[[Tensor], Any] | Model,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    bounds: tuple[float, float] | Bounds = (0.0, 1.0),
    task: Task | str = "classification",
    preprocessing: object | None = None,
    chunk: int | None = None,
    eot: int = 1,
    name: str = "",
    class_names: Sequence[str] | None = None,
) -> Model:
    """Wrap a network once; every method of robustkit takes the result.

    Args:
        net: a module or function that maps images in ``bounds``, or normalised ones if mean and std are known.
        mean, std: per channel, on the scale of ``bounds``; applied inside the wrapper. Where they are not given they
            are read from a timm network's own configuration.
        bounds: valid range of inputs, before normalisation.
        task: ``classification``, ``segmentation``, ``regression`` or a Task.
        preprocessing: torchvision weights or a Hugging Face image processor to read mean and std from.
        chunk: most samples passed at once.
        eot: passes averaged for networks that are random by design.
        name: how reports call it.
        class_names: names of the outputs.

    Raises:
        UsageError: not callable; only one of mean and std; std not positive; eot or chunk below 1.

    >>> model = wrap(nn.Flatten(), name="pixels")
    >>> model(torch.zeros(2, 1, 2, 2)).shape
    torch.Size([2, 4])
    """
    if isinstance(net, Model):
        return net
    if not callable(net):
        raise UsageError(
            "this is not a model",
            expected="a torch.nn.Module or a function of a batch",
            got=type(net).__name__,
            where="wrap",
            fix='To load one by name use robustkit.load("timm:resnet18").',
        )
    if eot < 1 or (chunk is not None and chunk < 1):
        raise UsageError(
            "eot and chunk count passes and samples", expected="at least 1", got=f"eot={eot}, chunk={chunk}"
        )
    module = net if isinstance(net, nn.Module) else FunctionNet(net)
    return Model(
        module,
        task=task_from(task),
        bounds=bounds if isinstance(bounds, Bounds) else Bounds(*bounds),
        preprocessing=_preprocessing(net, mean, std, preprocessing),
        chunk=chunk,
        eot=eot,
        name=name,
        class_names=tuple(class_names) if class_names else None,
    )


def _preprocessing(net: object, mean: Any, std: Any, source: object | None) -> Preprocessing | None:
    found = read_preprocessing(net if source is None else source)
    if source is not None and found is None:
        raise UsageError(
            "no mean and std found there",
            expected="torchvision weights or a Hugging Face image processor",
            got=type(source).__name__,
            where="preprocessing",
            fix="Give mean=... and std=...",
        )
    if mean is None and std is None:
        return found
    if mean is None or std is None:
        raise UsageError(
            "mean and std belong together", got=f"mean={mean}, std={std}", where="wrap", fix="Give both or neither."
        )
    means = (float(mean),) if isinstance(mean, int | float) else tuple(map(float, mean))
    stds = (float(std),) if isinstance(std, int | float) else tuple(map(float, std))
    if len(means) != len(stds) or not all(s > 0 for s in stds):
        raise UsageError(
            "mean and std do not fit",
            expected="as many means as stds, each std > 0",
            got=f"mean={means}, std={stds}",
            where="wrap",
            fix="They are on the scale of the bounds: divide those of 0-255 images by 255.",
        )
    return replace(found, mean=means, std=stds, source="given") if found else Preprocessing(means, stds)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the global generators that a forward on this device may read, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _out_of_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
