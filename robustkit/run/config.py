"""One schema for the options of an evaluation: command line, ``--config`` files and the stored ``config.yaml``.

Nothing here imports torch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from robustkit.core.errors import RobustkitError, UsageError, near
from robustkit.core.specs import Fraction, MethodSpec, ThreatSpec
from robustkit.run.gates import parse_gate
from robustkit.run.sources import absolute_path, absolute_source
from robustkit.run.yaml_file import read_yaml

WITHOUT_EFFECT = frozenset({"progress", "max_minutes", "fail_under"})
"""Options that change no figure: they are in no digest, and a run may be continued with others."""

TASK_NAMES = ("classification", "segmentation", "regression")

Text = Annotated[StrictStr, Field(min_length=1, pattern=r"\S")]
Numbers = Annotated[tuple[Fraction, ...], Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]


class EvaluateConfig(BaseModel):
    """All options of ``robustkit evaluate``. The description of a field says what it expects, in messages too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text = Field(description="demo:NAME, timm:NAME, torchvision:NAME, hf:ID or path.py:factory")
    data: Text = Field(description="demo:NAME, folder:DIR, npz:FILE, hf:ID or path.py:factory")
    attacks: Annotated[tuple[StrictStr, ...], Field(min_length=1)] = Field(
        description="a list of attacks such as pgd:steps=20"
    )
    threat: StrictStr = Field(description="a norm and a radius such as linf:8/255")
    stages: tuple[Text, ...] | None = Field(None, description="a list of stages of a suite such as apgd-ce")
    limit: Count | None = Field(None, description="a whole number of samples >= 1")
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = Field(0, description="a whole number from 0 to 2^63 - 1")
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
    device: Annotated[StrictStr, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")] | None = Field(
        None, description="cpu, mps, cuda or cuda:N"
    )
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
        if value is None:
            return None
        spec = MethodSpec.parse(value)
        if spec.name not in TASK_NAMES:
            raise UsageError(f"unknown task {spec.name!r}", where="task", fix=near(spec.name, TASK_NAMES))
        return str(spec)

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
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise UsageError("bounds are empty", expected="low < high", got=str(self.bounds), where="bounds")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise UsageError(
                "mean and std go together",
                expected="both, with as many numbers each",
                got=f"mean {self.mean} and std {self.std}",
                where="mean, std",
            )
        if self.std and min(self.std) <= 0:
            raise UsageError("std must be positive", expected="numbers > 0", got=str(self.std), where="std")
        return self

    @property
    def threat_spec(self) -> ThreatSpec:
        """Norm and radius."""
        return ThreatSpec.parse(self.threat)

    @property
    def method_specs(self) -> tuple[MethodSpec, ...]:
        """Names and options of the attacks, in order."""
        return tuple(MethodSpec.parse(text) for text in self.attacks)


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> EvaluateConfig:
    """Read a configuration file (if any) and lay the command line over it; an override of None counts as not given.

    Relative paths in the file are taken from the file's folder, those in ``overrides`` from the current folder;
    both become absolute, so that the stored configuration works from anywhere. ``eps_scale`` (in either place)
    divides the radius of the threat and is gone afterwards.

    Raises:
        UsageError: the file cannot be read, an unknown key (with the nearest name), a value of the wrong kind.
    """
    where = str(path) if path else "command line"
    stored = _located(_scaled(_known(read_yaml(path), where), where), path.resolve().parent) if path else {}
    given = _known({key: value for key, value in overrides.items() if value is not None}, "command line")
    given = _located(given, Path.cwd())
    merged = {**stored, **given}
    return validated(_scaled(merged, "command line"), where)


def dump_config(config: EvaluateConfig) -> str:
    """YAML with every option, in the order of the schema; :func:`load_config` reads it back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)


def config_digest(config: EvaluateConfig) -> str:
    """SHA-256 over the options that can change a figure (all but :data:`WITHOUT_EFFECT`)."""
    text = json.dumps(_effective(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(old: EvaluateConfig, new: EvaluateConfig) -> list[str]:
    """The options that differ and matter, as lines such as ``seed: 0 -> 1``."""
    before, after = _effective(old), _effective(new)
    return [f"{key}: {_shown(before[key])} -> {_shown(after[key])}" for key in before if before[key] != after[key]]


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


def _known(values: Any, where: str) -> dict[str, Any]:
    """The mapping, if all its keys are options."""
    known = [*EvaluateConfig.model_fields, "eps_scale"]
    if not isinstance(values, Mapping):
        raise UsageError(
            "a configuration is a mapping of options",
            expected="lines such as `model: demo:mnist-robust`",
            got=type(values).__name__,
            where=where,
        )
    for key in values:
        if key not in known:
            raise UsageError(f"unknown option {key!r}", where=where, fix=near(str(key), known))
    return dict(values)


def _scaled(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values with ``eps_scale`` worked into the threat."""
    rest = dict(values)
    scale = rest.pop("eps_scale", None)
    if scale is None or not isinstance(rest.get("threat"), str):
        return rest
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise UsageError("eps_scale cannot be used", expected="a number > 0 such as 255", got=repr(scale), where=where)
    rest["threat"] = str(ThreatSpec.parse(rest["threat"], float(scale)))
    return rest


def _located(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The values with relative paths made absolute from ``folder``."""
    found = dict(values)
    for key in ("model", "data", "surrogate"):
        if isinstance(found.get(key), str):
            found[key] = absolute_source(found[key], folder)
    if isinstance(found.get("weights"), (str, Path)):
        found["weights"] = absolute_path(str(found["weights"]), folder)
    return found


def validated(values: Mapping[str, Any], where: str) -> EvaluateConfig:
    """A configuration from plain values; ``where`` names their origin in messages.

    Raises:
        UsageError: the first value that cannot be used, or one that is missing.
    """
    try:
        return EvaluateConfig(**values)
    except ValidationError as error:
        raise _one_message(error, where) from None


def _one_message(error: ValidationError, where: str) -> RobustkitError:
    """The first complaint, as this project words them."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"][:1]))
    own = first.get("ctx", {}).get("error")
    if isinstance(own, RobustkitError):
        place = name if own.where == "number" else own.where
        return UsageError(own.what, expected=own.expected, got=own.got, where=place, fix=own.fix)
    expected = EvaluateConfig.model_fields[name].description or ""
    if first["type"] == "missing":
        return UsageError(f"no {name} given", expected=expected, where=where, fix=_MISSING[name])
    fix = f"Write a list: {name}: [...]." if first["type"] == "tuple_type" else ""
    return UsageError(f"{name} cannot be used", expected=expected, got=repr(first["input"])[:200], where=where, fix=fix)


_MISSING = {
    "model": "Write `robustkit evaluate MODEL ...`, or `model:` in the file; `robustkit list models` shows some.",
    "data": "Add --data, or `data:` in the file; `robustkit list data` shows some.",
    "attacks": "Add --attack pgd:steps=20, or `attacks:` in the file; `robustkit list attacks` shows all.",
    "threat": "Add --threat linf:8/255, or `threat:` in the file; `robustkit list threats` shows the norms.",
}


def _effective(config: EvaluateConfig) -> dict[str, Any]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in WITHOUT_EFFECT}


def _shown(value: Any) -> str:
    return "not set" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
