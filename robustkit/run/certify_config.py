"""The options of a certification: command line, ``--config`` files and the stored ``config.yaml``. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from robustkit.core.specs import Fraction, MethodSpec
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


class CertifyConfig(RunConfig):
    """All options of ``robustkit certify``."""

    kind: ClassVar[str] = "certification"
    mark: ClassVar[str] = "method"
    missing: ClassVar[Mapping[str, str]] = {
        "model": "Write `robustkit certify MODEL ...`, or `model:` in the file; `robustkit list models` shows some.",
        "data": "Add --data, or `data:` in the file; `robustkit list data` shows some.",
        "method": "Add --method smoothing:sigma=0.25,n=10000, or `method:` in the file; `robustkit list certifiers` "
        "shows all.",
    }

    model: Text = Field(description="demo:NAME, timm:NAME, torchvision:NAME, hf:ID, run:DIR or path.py:factory")
    data: Text = Field(description="demo:NAME, folder:DIR, npz:FILE, hf:ID or path.py:factory")
    method: StrictStr = Field(description="a method such as smoothing:sigma=0.25,n=10000")
    falsify: Text | None = Field(None, description="an attack such as pgd:steps=20")
    limit: Count | None = Field(None, description="a whole number of samples >= 1")
    seed: Seed = Field(0, description="a whole number from 0 to 2^63 - 1")
    batch_size: Literal["auto"] | Count = Field("auto", description="auto or a whole number >= 1")
    weights: Path | None = Field(None, description="a file: .safetensors, or .pt with nothing but tensors")
    mean: Numbers | None = Field(None, description="a list of numbers, one per channel")
    std: Numbers | None = Field(None, description="a list of numbers > 0, one per channel")
    bounds: tuple[Fraction, Fraction] | None = Field(None, description="two numbers, low < high")
    task: StrictStr | None = Field(None, description="classification or segmentation")
    force: StrictBool = Field(False, description="true or false")
    device: Device | None = Field(None, description="cpu, mps, cuda or cuda:N")
    progress: Literal["none", "plain", "rich"] | None = Field(None, description="none, plain or rich")

    @field_validator("method", "falsify")
    @classmethod
    def _canonical_method(cls, value: str | None) -> str | None:
        return None if value is None else str(MethodSpec.parse(value))

    @field_validator("task")
    @classmethod
    def _canonical_task(cls, value: str | None) -> str | None:
        return canonical_task(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_range(self.bounds, self.mean, self.std)
        return self

    @property
    def stem(self) -> str:
        """The name of the model."""
        return f"certify-{self.model.rpartition('/')[2]}"


def load_certify_config(path: Path | None, overrides: Mapping[str, Any]) -> CertifyConfig:
    """The options of a certification, see :func:`robustkit.run.options.load_options`.

    Raises:
        UsageError: the file cannot be read, an unknown key (with the nearest name), a value of the wrong kind.
    """
    return load_options(CertifyConfig, path, overrides)
