"""The options of an explanation: command line, ``--config`` files and the stored ``config.yaml``. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from robustkit.core.errors import UsageError
from robustkit.core.specs import Fraction, MethodSpec, split_methods
from robustkit.run.config import load_config
from robustkit.run.folder import read_results
from robustkit.run.options import (
    Count,
    Device,
    Numbers,
    RunConfig,
    Seed,
    Text,
    canonical_task,
    check_range,
    load_options,
)

METHODS = ("smoothgrad",)
IMAGES, PAIRS = 16, 6
"""Samples of a data set, and pairs of a run, that the command line explains unless told otherwise."""
OF_THE_RUN = ("model", "data", "images", "weights", "mean", "std", "bounds", "task", "eot")
"""Options that come from the evaluation's own configuration with ``from_run``."""


class ExplainConfig(RunConfig):
    """All options of ``robustkit explain``."""

    kind: ClassVar[str] = "explanation"
    mark: ClassVar[str] = "methods"
    paths: ClassVar[tuple[str, ...]] = ("weights", "from_run")
    lists_of_paths: ClassVar[tuple[str, ...]] = ("images",)

    model: Text | None = Field(
        None, description="demo:NAME, timm:NAME, torchvision:NAME, hf:ID, run:DIR or path.py:factory"
    )
    images: tuple[Text, ...] = Field((), description="a list of pictures, or folders of them")
    data: Text | None = Field(None, description="demo:NAME, folder:DIR, npz:FILE, hf:ID or path.py:factory")
    from_run: Path | None = Field(None, description="the folder of an evaluation")
    methods: Annotated[tuple[StrictStr, ...], Field(min_length=1)] = Field(
        METHODS, description="a list of methods such as smoothgrad:samples=20"
    )
    target: StrictStr = Field("predicted", description="predicted, label, or a class by number or name")
    output: Literal["logit", "probability", "margin"] | None = Field(None, description="logit, probability or margin")
    evaluate: StrictBool = Field(False, description="true or false")
    significant: StrictBool = Field(False, description="true or false")
    limit: Count | None = Field(None, description="a whole number of samples >= 1")
    seed: Seed = Field(0, description="a whole number from 0 to 2^63 - 1")
    batch_size: Literal["auto"] | Count = Field("auto", description="auto or a whole number >= 1")
    weights: Path | None = Field(None, description="a file: .safetensors, or .pt with nothing but tensors")
    mean: Numbers | None = Field(None, description="a list of numbers, one per channel")
    std: Numbers | None = Field(None, description="a list of numbers > 0, one per channel")
    bounds: tuple[Fraction, Fraction] | None = Field(None, description="two numbers, low < high")
    task: StrictStr | None = Field(None, description="classification, segmentation or regression")
    device: Device | None = Field(None, description="cpu, mps, cuda or cuda:N")
    eot: Count = Field(1, description="a whole number of forward passes >= 1")
    progress: Literal["none", "plain", "rich"] | None = Field(None, description="none, plain or rich")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """The target that is meant where none is given; numbers become text, and lists of methods single ones."""
        found = dict(values)
        target = found.get("target")
        if target is None:
            found["target"] = "clean" if found.get("from_run") else "predicted"
        elif isinstance(target, int) and not isinstance(target, bool):
            found["target"] = str(target)
        return found

    @field_validator("target")
    @classmethod
    def _canonical_target(cls, value: str) -> str:
        if not value.strip():
            raise UsageError("a target is a class", expected="predicted, label, a number or a name", where="target")
        return value.strip()

    @field_validator("methods")
    @classmethod
    def _canonical_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        texts = tuple(str(MethodSpec.parse(text)) for item in value for text in split_methods(item))
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice or not texts:
            got = ", ".join(twice) or "none"
            raise UsageError("each method is given once", got=got, where="methods", fix="`robustkit list explainers`.")
        return texts

    @field_validator("task")
    @classmethod
    def _canonical_task(cls, value: str | None) -> str | None:
        return canonical_task(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_range(self.bounds, self.mean, self.std)
        given = [name for name in ("images", "data", "from_run") if getattr(self, name)]
        if self.from_run:
            self._check_run()
        elif self.model is None:
            raise UsageError(
                "no model given",
                expected=str(type(self).model_fields["model"].description),
                where="model",
                fix="Write `robustkit explain MODEL IMAGE ...`; `robustkit list models` shows some.",
            )
        if len(given) != 1:
            raise UsageError(
                "nothing to explain" if not given else "more than one thing to explain",
                expected="pictures, --data DATA or --from-run RUN",
                got=" and ".join(given) or "none of them",
                fix="Write for example `robustkit explain demo:efficientnet_lite0 cat.jpg`.",
            )
        if self.target == "clean" and not self.from_run:
            raise UsageError(
                "the class predicted on the clean input is a target of pairs",
                expected="--from-run RUN",
                where="target clean",
                fix="Use --target predicted.",
            )
        if self.target == "label" and self.images:
            raise UsageError(
                "pictures have no label",
                expected="predicted, or a class by number or name",
                got="label",
                where="target",
                fix="Labels come with --data, such as folder:DIR with a folder for each class.",
            )
        return self

    def _check_run(self) -> None:
        taken = [name for name in OF_THE_RUN if getattr(self, name) != type(self).model_fields[name].default]
        if taken:
            raise UsageError(
                f"{taken[0]} comes from the run",
                expected="--from-run without it",
                got=f"{taken[0]}: {getattr(self, taken[0])}",
                where="from_run",
                fix="Leave it out; the run's config.yaml names it.",
            )

    @property
    def stem(self) -> str:
        """The name of the model or of the run."""
        name = self.from_run.name if self.from_run else str(self.model).rpartition("/")[2]
        return f"explain-{name}"


def load_explain_config(path: Path | None, overrides: Mapping[str, Any]) -> ExplainConfig:
    """The options of an explanation, see :func:`robustkit.run.options.load_options`.

    Where no limit is given, 16 samples of a data set are explained, or 6 pairs of a run; the seed of pairs is that of
    their run.

    Raises:
        UsageError: the file cannot be read, an unknown key (with the nearest name), a value of the wrong kind.
    """
    config = load_options(ExplainConfig, path, overrides)
    found: dict[str, Any] = {}
    if config.limit is None and not config.images:
        found["limit"] = PAIRS if config.from_run else IMAGES
    if config.from_run and "seed" not in config.model_fields_set:
        read_results(config.from_run)
        found["seed"] = load_config(config.from_run / "config.yaml", {}).seed
    return config.model_copy(update=found)
