"""Everything that is decided before the first map."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from robustkit.core.errors import UsageError, near
from robustkit.core.explainer import EXPLAINERS, Explainer
from robustkit.core.files import slug
from robustkit.core.model import Model
from robustkit.core.registry import text_of
from robustkit.core.specs import MethodSpec, split_methods
from robustkit.core.target import Output
from robustkit.core.task import Classification, DenseClassification
from robustkit.run.explain_config import ExplainConfig
from robustkit.run.explain_subjects import Pairs, Samples, Subjects
from robustkit.run.plan import check_weights

CHUNK_VALUES, CHUNK = 1_250_000, 64
"""Input values of the images that go through a method together: 8 photos of 224x224; and the most images."""
WORDS = ("predicted", "label", "clean")


@dataclass(frozen=True, eq=False)
class ExplainPlan:
    """A model, what it is to explain, by which methods, and the options of the run.

    Attributes:
        wanted: the class of every item, or ``predicted``, ``label`` or ``clean``: what the network predicts on the
            clean one of a pair.
        mask: of dense outputs, (H, W) or one for each item: the pixels whose outputs are added up.
    """

    model: Model
    subjects: Subjects
    methods: tuple[Explainer, ...]
    config: ExplainConfig
    wanted: str | Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_weights(self.model)
        twice = {label for label in self.labels if self.labels.count(label) > 1}
        if not self.methods or twice:
            got = ", ".join(sorted(twice)) or "none"
            raise UsageError("each method must be given once", got=got, where="methods")
        self._check_wanted()
        for shape in dict.fromkeys(self.subjects.shapes()):
            for method in self.methods:
                method.check_shape(shape)

    @property
    def n(self) -> int:
        """Items to explain."""
        return len(self.subjects)

    @property
    def output(self) -> Output:
        """What is made of the outputs, the same for all methods."""
        return self.methods[0].output

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """How results call the methods: the name, and the options that are not the defaults."""
        return tuple(label_of(method) for method in self.methods)

    @cached_property
    def slugs(self) -> tuple[str, ...]:
        """What the files of each method are named after."""
        names = [slug(label) for label in self.labels]
        return tuple(f"{name}-{k}" if names.count(name) > 1 else name for k, name in enumerate(names))

    def rows_file(self, k: int) -> str:
        """Rows of method ``k``."""
        return f"samples-{k}-{self.slugs[k]}"

    def map_file(self, place: int, k: int) -> str:
        """Arrays of method ``k`` for an item; its pictures end in ``_heat.png`` and ``_overlay.png``."""
        return f"maps/{self.subjects.items[place].key}_{self.slugs[k]}.npz"

    @cached_property
    def chunks(self) -> tuple[range, ...]:
        """The items in fixed runs, each of one shape; decided by the options and the shapes alone."""
        found: list[range] = []
        shapes = self.subjects.shapes()
        for shape, group in groupby(range(self.n), key=lambda place: shapes[place]):
            places = list(group)
            size, stop = self._chunk(shape), places[-1] + 1
            found += [range(i, min(i + size, stop)) for i in range(places[0], stop, size)]
        return tuple(found)

    @property
    def points(self) -> int | None:
        """Most points in the network at once; None leaves it to the engine."""
        return None if self.config.batch_size == "auto" else self.config.batch_size

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the outputs, where they are known."""
        return self.model.class_names or self.subjects.classes

    def class_name(self, label: int) -> str:
        """The name of an output, or its number."""
        names = self.class_names
        return names[label] if names and 0 <= label < len(names) else str(label)

    # -- as `run.json` records data

    @property
    def name(self) -> str:
        return self.subjects.name

    def fingerprint(self) -> str:
        """Of the inputs, and of classes and masks that were given as tensors."""
        digest = hashlib.sha256(self.subjects.fingerprint().encode())
        for given in (self.wanted, self.mask):
            if isinstance(given, Tensor):
                digest.update(np.ascontiguousarray(given.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def _chunk(self, shape: tuple[int, ...]) -> int:
        values = max(1, math.prod(shape))
        most = max(1, min(CHUNK, 1 << int(math.log2(max(1, CHUNK_VALUES / values)))))
        return most if self.points is None else min(most, self.points)

    def _check_wanted(self) -> None:
        outputs = self.model.output_shape(self.subjects.inputs([0]))
        if self.mask is not None and not isinstance(self.model.task, DenseClassification) and len(outputs) != 3:
            raise UsageError(
                "a mask chooses pixels of dense outputs", expected="outputs (N, C, H, W)", got=str(outputs),
                where="mask",
            )  # fmt: skip
        pictures = len(self.subjects.shapes()[0]) == 3
        if self.config.evaluate and not (isinstance(self.model.task, Classification) and pictures):
            raise UsageError(
                "maps of classifiers of pictures can be measured, no others",
                got=f"task {self.model.task.name} and inputs {self.subjects.shapes()[0]}",
                where="evaluate",
                fix="Leave --evaluate out.",
            )
        if self.wanted == "label" and self.subjects.labels([0]) is None:
            raise UsageError(
                "the samples have no single label",
                expected="one class for each sample",
                got="labels for every pixel, or none",
                where="target label",
                fix="Name a class: --target 3.",
            )
        if isinstance(self.wanted, Tensor) and outputs:
            self._check_classes(self.wanted, outputs[0])

    def _check_classes(self, classes: Tensor, count: int) -> None:
        wrong = [c for c in classes.tolist() if not 0 <= c < count]
        if wrong:
            raise UsageError(
                "there is no such class", expected=f"0 .. {count - 1}", got=str(wrong[0]), where="target",
                fix=f"The network has {count} outputs.",
            )  # fmt: skip


def label_of(method: Explainer) -> str:
    """``smoothgrad:samples=20``: the name and the options that are not the defaults, but for the output."""
    return text_of(EXPLAINERS, method, leave_out=("output",))


def build_methods(items: Sequence[str | Explainer] | str, output: Output | None = None) -> tuple[Explainer, ...]:
    """Methods from their text forms or instances.

    Args:
        items: ``"smoothgrad,xrai"``, or a list of such texts and of instances.
        output: what to explain, where a method does not say it by itself; ``logit`` by default.

    Raises:
        UsageError: unknown names or options (near matches are named); methods that explain different outputs.
    """
    listed = [items] if isinstance(items, str) else list(items)
    texts = [part for item in listed for part in (split_methods(item) if isinstance(item, str) else [item])]
    built = tuple(_build(item, output) for item in texts)
    if len({method.output for method in built}) > 1:
        raise UsageError(
            "the methods explain different outputs",
            expected="one for all",
            got=" and ".join(dict.fromkeys(str(method.output) for method in built)),
            where="output",
            fix="Give --output once, or explain them in runs of their own.",
        )
    return built


def _build(item: object, output: Output | None) -> Explainer:
    if isinstance(item, Explainer):
        default = type(item).__pydantic_fields__["output"].default  # type: ignore[attr-defined]
        return item if output is None or item.output != default else replace(item, output=output)
    if not isinstance(item, str):
        raise UsageError(
            "this is not a saliency method",
            expected="rk.SmoothGrad(...) or text such as smoothgrad:samples=20",
            got=repr(item)[:200],
            where="methods",
        )
    spec = MethodSpec.parse(item)
    built: Explainer = EXPLAINERS.get(spec.name).build(spec.options)
    return built if output is None or "output" in spec.options else replace(built, output=output)


def target_from(text: str, names: Sequence[str] | None, count: int | None) -> str | int:
    """The class that a text names, by number or by name; words such as ``predicted`` as they are.

    >>> target_from("tabby", ["tench", "tabby, tabby cat"], 2)
    1

    Raises:
        UsageError: no such class; near matches are named, where names are known.
    """
    if text in WORDS:
        return text
    if text.lstrip("-").isdecimal():
        return int(text)
    known = {name.strip().lower(): i for i, name in reversed(list(enumerate(names or ())))}
    parts = {part.strip(): i for name, i in reversed(list(known.items())) for part in name.split(",")}
    found = {**parts, **known}.get(text.lower())
    if found is None:
        expected = f"0 .. {count - 1}" if count else "a number"
        raise UsageError(
            f"there is no class {text!r}",
            expected=f"{expected}, {', '.join(WORDS[:2])}" + (", or a name" if names else ""),
            where="target",
            fix=_near_class(text.lower(), {**parts, **known}) if names else "The names of the classes are not known.",
        )
    return found


def _near_class(text: str, known: Collection[str]) -> str:
    """Near matches, and no list of a thousand names."""
    inside = [name for name in known if text in name]
    if inside:
        return f"Did you mean {' or '.join(sorted(inside, key=len)[:3])}?"
    hint = near(text, known)
    return hint if hint.startswith("Did") or len(known) <= 20 else "Give its number."


def pair_of(plan: ExplainPlan) -> dict[str, Any] | None:
    """The run that pairs come from, as results name it."""
    if not isinstance(plan.subjects, Pairs):
        return None
    return {"run": str(plan.subjects.run.path), "attack": ", ".join(plan.subjects.attacks)}


def data_of(plan: ExplainPlan) -> dict[str, Any]:
    """The inputs, as results name them."""
    found = {"name": plan.subjects.name, "size": plan.subjects.size, "sha256": plan.fingerprint()}
    return {**found, "limit": plan.config.limit if isinstance(plan.subjects, Samples | Pairs) else None}
