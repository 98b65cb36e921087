"""The options of a training: command line, ``--config`` files and the stored ``config.yaml``. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StrictStr, field_validator, model_validator

from robustkit.core.errors import UsageError
from robustkit.core.specs import Fraction, MethodSpec, ThreatSpec
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
from robustkit.run.train_schedule import check_schedule

SELECTION = ("pgd:steps=10", "pgd:steps=10,loss=margin")
"""The attacks that choose the best weights, on the part of the training data that is held out."""
Share = Annotated[Fraction, Field(ge=0, lt=1)]
Positive = Annotated[Fraction, Field(gt=0)]
Texts = Annotated[tuple[StrictStr, ...], Field(min_length=1)]


class TrainConfig(RunConfig):
    """All options of ``robustkit train``."""

    kind: ClassVar[str] = "training"
    mark: ClassVar[str] = "defense"
    without_effect: ClassVar[frozenset[str]] = frozenset({"progress", "workers", "resume", "tensorboard"})
    sources: ClassVar[tuple[str, ...]] = ("model", "data", "test")
    paths: ClassVar[tuple[str, ...]] = ()
    missing: ClassVar[Mapping[str, str]] = {
        "data": "Write `robustkit train DATA ...`, or `data:` in the file; `robustkit list data` shows some.",
        "model": "Add --model cnn, or `model:` in the file; `robustkit list networks` shows all forms.",
        "defense": "Add --defense pgd-at, or `defense:` in the file; `robustkit list defenses` shows all.",
    }

    data: Text = Field(description="demo:NAME, folder:DIR, npz:FILE, hf:ID or path.py:factory")
    model: Text = Field(description="cnn, resnet8, timm:NAME, torchvision:NAME, demo:NAME or path.py:factory")
    defense: StrictStr = Field(description="a defense such as trades:beta=6, or several such as awp+trades")
    threat: StrictStr | None = Field(None, description="a norm and a radius such as linf:8/255")
    test: Text | None = Field(None, description="data for the final evaluation, in the forms of data")
    epochs: Count = Field(20, description="a whole number of passes over the data >= 1")
    batch_size: Count = Field(128, description="a whole number of samples >= 1")
    optimizer: StrictStr = Field("sgd", description="sgd, adamw, lars or another optimiser of timm")
    lr: Positive | None = Field(None, description="a number > 0: the peak of the learning rate")
    weight_decay: Annotated[Fraction, Field(ge=0)] = Field(5e-4, description="a number >= 0")
    momentum: Share = Field(0.9, description="a number from 0 to 1, 1 excluded")
    schedule: StrictStr = Field("one-cycle", description="constant, cosine, one-cycle, piecewise, cyclic or poly")
    warmup: Share = Field(0.0, description="a share of the steps, from 0 to 1, 1 excluded")
    ramp: Share = Field(0.2, description="a share of the steps, from 0 to 1, 1 excluded")
    ema: Share | None = Field(None, description="a decay from 0 to 1, 1 excluded, such as 0.995")
    grad_clip: Positive | None = Field(None, description="a number > 0")
    augment: StrictStr = Field("none", description="none, flip, crop, crop-flip, digits, trivial or randaugment")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="float32 or bfloat16")
    init: StrictStr | None = Field(None, description="a file of weights, or pretrained")
    holdout: Count | None = Field(None, description="a whole number of samples >= 1")
    select: Texts = Field(SELECTION, description="a list of attacks such as pgd:steps=10")
    select_every: Count = Field(1, description="a whole number of epochs >= 1")
    on_overfitting: Literal["warn", "rollback"] = Field("warn", description="warn or rollback")
    eval: Literal["standard", "pgd", "none"] = Field("standard", description="standard, pgd or none")
    eval_limit: Count | None = Field(None, description="a whole number of samples >= 1")
    limit: Count | None = Field(None, description="a whole number of samples >= 1")
    seed: Seed = Field(0, description="a whole number from 0 to 2^63 - 1")
    mean: Numbers | None = Field(None, description="a list of numbers, one per channel")
    std: Numbers | None = Field(None, description="a list of numbers > 0, one per channel")
    bounds: tuple[Fraction, Fraction] | None = Field(None, description="two numbers, low < high")
    task: StrictStr | None = Field(None, description="classification, segmentation or regression")
    device: Device | None = Field(None, description="cpu, mps, cuda or cuda:N")
    workers: Annotated[int, Field(ge=0, strict=True)] = Field(0, description="a whole number of processes >= 0")
    resume: Literal["auto", "never"] = Field("auto", description="auto or never")
    tensorboard: bool = Field(False, strict=True, description="true or false")
    progress: Literal["none", "plain", "rich"] | None = Field(None, description="none, plain or rich")

    @field_validator("select")
    @classmethod
    def _canonical_attacks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(MethodSpec.parse(text)) for text in value)

    @field_validator("task")
    @classmethod
    def _canonical_task(cls, value: str | None) -> str | None:
        return canonical_task(value)

    @field_validator("threat")
    @classmethod
    def _canonical_threat(cls, value: str | None) -> str | None:
        return None if value is None else str(ThreatSpec.parse(value))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_range(self.bounds, self.mean, self.std)
        check_schedule(self.schedule)
        if not self.defense.strip():
            raise UsageError("no defense given", where="defense", fix=self.missing["defense"])
        return self

    @property
    def stem(self) -> str:
        """The name of the network and of the defense."""
        return f"train-{self.model.rpartition('/')[2]}-{self.defense.partition(':')[0]}"


def load_train_config(path: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """The options of a training, see :func:`robustkit.run.options.load_options`.

    A file of weights in ``init`` becomes an absolute path.

    Raises:
        UsageError: the file cannot be read, an unknown key (with the nearest name), a value of the wrong kind.
    """
    config = load_options(TrainConfig, path, overrides)
    if config.init is None or config.init == "pretrained":
        return config
    if config.init.startswith("run:"):
        raise UsageError(
            "init is a file of weights",
            expected="FILE or pretrained",
            got=config.init,
            where="init",
            fix=f"To train that network further write --model {config.init}.",
        )
    from_file = path is not None and overrides.get("init") is None
    folder = path.resolve().parent if from_file and path is not None else Path.cwd()
    return config.model_copy(update={"init": str((folder / Path(config.init).expanduser()).resolve())})
