"""One schema for the options of an evaluation: command line, ``--config`` files and the stored ``config.yaml``.

Nothing here imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from robustkit.core.errors import UsageError
from robustkit.core.specs import Fraction, MethodSpec, ThreatSpec
from robustkit.run.gates import parse_gate
from robustkit.run.options import (
    Count,
    Device,
    Numbers,
    RunConfig,
    Seed,
    Text,
    canonical_task,
    check_range,
    config_digest,
    difference,
    dump_config,
    load_options,
)

__all__ = ["EvaluateConfig", "config_digest", "config_warnings", "difference", "dump_config", "load_config"]


class EvaluateConfig(RunConfig):
    """All options of ``robustkit evaluate``."""

    kind: ClassVar[str] = "evaluation"
    mark: ClassVar[str] = "threat"
    without_effect: ClassVar[frozenset[str]] = frozenset({"progress", "max_minutes", "fail_under"})
    extra: ClassVar[tuple[str, ...]] = ("eps_scale",)
    sources: ClassVar[tuple[str, ...]] = ("model", "data", "surrogate")
    missing: ClassVar[Mapping[str, str]] = {
        "model": "Write `robustkit evaluate MODEL ...`, or `model:` in the file; `robustkit list models` shows some.",
        "data": "Add --data, or `data:` in the file; `robustkit list data` shows some.",
        "attacks": "Add --attack pgd:steps=20, or `attacks:` in the file; `robustkit list attacks` shows all.",
        "threat": "Add --threat linf:8/255, or `threat:` in the file; `robustkit list threats` shows the norms.",
    }

    model: Text = Field(description="demo:NAME, timm:NAME, torchvision:NAME, hf:ID, run:DIR or path.py:factory")
    data: Text = Field(description="demo:NAME, folder:DIR, npz:FILE, hf:ID or path.py:factory")
    attacks: Annotated[tuple[StrictStr, ...], Field(min_length=1)] = Field(
        description="a list of attacks such as pgd:steps=20"
    )
    threat: StrictStr = Field(description="a norm and a radius such as linf:8/255")
    stages: tuple[Text, ...] | None = Field(None, description="a list of stages of a suite such as apgd-ce")
    limit: Count | None = Field(None, description="a whole number of samples >= 1")
    seed: Seed = Field(0, description="a whole number from 0 to 2^63 - 1")
    batch_size: Literal["auto"] | Count = Field("auto", description="auto or a whole number >= 1")
    weights: Path | None = Field(None, description="a file: .safetensors, or .pt with nothing but tensors")
    mean: Numbers | None = Field(None, description="a list of numbers, one per channel")
    std: Numbers | None = Field(None, description="a list of numbers > 0, one per channel")
    bounds: tuple[Fraction, Fraction] | None = Field(None, description="two numbers, low < high")
    task: StrictStr | None = Field(
        None, description="classification, segmentation or regression, with options such as segmentation:ignore_index=0"
    )
    surrogate: Text | None = Field(None, description="a second model, from which attacks are transferred")
    targeted: Literal["random", "least-likely", "next"] | None = Field(None, description="random, least-likely or next")
    curve: StrictBool = Field(False, description="true or false")
    force: StrictBool = Field(False, description="true or false")
    fail_under: tuple[StrictStr, ...] = Field((), description="a list of gates such as robust_accuracy=0.45")
    device: Device | None = Field(None, description="cpu, mps, cuda or cuda:N")
    eot: Count = Field(1, description="a whole number of forward passes >= 1")
    max_minutes: Annotated[Fraction, Field(gt=0)] | None = Field(None, description="a number of minutes > 0")
    progress: Literal["none", "plain", "rich"] | None = Field(None, description="none, plain or rich")

    @field_validator("attacks")
    @classmethod
    def _canonical_attacks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        texts = tuple(str(MethodSpec.parse(text)) for text in value)
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise UsageError("an attack is given twice", got=", ".join(twice), where="attacks", fix="Give each once.")
        return texts

    @field_validator("task")
    @classmethod
    def _canonical_task(cls, value: str | None) -> str | None:
        return canonical_task(value)

    @field_validator("threat")
    @classmethod
    def _canonical_threat(cls, value: str) -> str:
        return str(ThreatSpec.parse(value))

    @field_validator("fail_under")
    @classmethod
    def _canonical_gates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{metric}={threshold!r}" for metric, threshold in map(parse_gate, value))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_range(self.bounds, self.mean, self.std)
        return self

    @classmethod
    def worked_in(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values with ``eps_scale`` worked into the threat."""
        rest = dict(values)
        scale = rest.pop("eps_scale", None)
        if scale is None or not isinstance(rest.get("threat"), str):
            return rest
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
            raise UsageError(
                "eps_scale cannot be used", expected="a number > 0 such as 255", got=repr(scale), where=where
            )
        rest["threat"] = str(ThreatSpec.parse(rest["threat"], float(scale)))
        return rest

    @property
    def stem(self) -> str:
        """The name of the model."""
        return self.model.rpartition("/")[2]

    @property
    def threat_spec(self) -> ThreatSpec:
        """Norm and radius."""
        return ThreatSpec.parse(self.threat)

    @property
    def method_specs(self) -> tuple[MethodSpec, ...]:
        """Names and options of the attacks, in order."""
        return tuple(MethodSpec.parse(text) for text in self.attacks)


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> EvaluateConfig:
    """The options of an evaluation, see :func:`robustkit.run.options.load_options`.

    ``eps_scale`` (in the file or the overrides) divides the radius of the threat and is gone afterwards.

    Raises:
        UsageError: the file cannot be read, an unknown key (with the nearest name), a value of the wrong kind.
    """
    return load_options(EvaluateConfig, path, overrides)


def config_warnings(config: EvaluateConfig) -> list[str]:
    """What is allowed and yet probably a slip of the pen: a radius of 0, one that covers all inputs, a minute one."""
    spec = config.threat_spec
    low, high = config.bounds or (0.0, 1.0)
    share = spec.eps / (high - low)
    if spec.eps == 0:
        return [
            f"eps is 0 in {spec}: nothing is perturbed and robust accuracy will equal clean accuracy. "
            "Did you mean 8/255?"
        ]
    if spec.norm == "linf" and share >= 1:
        return [
            f"eps is {spec.eps:g} in {spec} and inputs lie in [{low:g}, {high:g}]: every input can become any "
            f"other. Did you mean {_in_255(spec.eps)}? Write it so, or add --eps-scale 255."
        ]
    if spec.norm == "linf" and share * 255 < 0.1:
        return [
            f"eps is {spec.eps:g} in {spec}, under a tenth of one grey level of inputs in [{low:g}, {high:g}]. "
            "Was it divided by 255 twice?"
        ]
    return []


def _in_255(eps: float) -> str:
    return f"{eps:g}/255" if eps < 255 else "8/255"
