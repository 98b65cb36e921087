"""What the options of every kind of run share: one schema for command line, ``--config`` files and ``config.yaml``.

A kind of run is a subclass of :class:`RunConfig`. Nothing here imports torch.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from robustkit.core.errors import RobustkitError, UsageError, near
from robustkit.core.specs import Fraction, MethodSpec
from robustkit.run.sources import absolute_path, absolute_source
from robustkit.run.yaml_file import read_yaml

TASK_NAMES = ("classification", "segmentation", "regression")

Text = Annotated[StrictStr, Field(min_length=1, pattern=r"\S")]
Numbers = Annotated[tuple[Fraction, ...], Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Device = Annotated[StrictStr, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]


class RunConfig(BaseModel):
    """Options of one kind of run. The description of a field says what it expects, in messages too.

    A subclass says in class variables:
        kind: what such a run is called, as in ``results.json``.
        mark: a required option that no other kind has: by it a stored ``config.yaml`` is told from those of others.
        without_effect: options that change no figure: they are in no digest, and a run may go on with others.
        missing: option -> what to do where it is not given.
        extra: keys that are worked into other options on reading (see :meth:`worked_in`), and no options themselves.
        sources, paths, lists_of_paths: options that hold a source with a path in it, a path, or several paths.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
    mark: ClassVar[str]
    without_effect: ClassVar[frozenset[str]] = frozenset({"progress"})
    missing: ClassVar[Mapping[str, str]] = {}
    extra: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[tuple[str, ...]] = ("model", "data")
    paths: ClassVar[tuple[str, ...]] = ("weights",)
    lists_of_paths: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def worked_in(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values without the keys of ``extra``."""
        return dict(values)

    @property
    @abstractmethod
    def stem(self) -> str:
        """What folders of such runs are named after."""


C = TypeVar("C", bound=RunConfig)


def load_options(schema: type[C], path: Path | None, overrides: Mapping[str, Any]) -> C:
    """Read a configuration file (if any) and lay the command line over it; an override of None counts as not given.

    Relative paths in the file are taken from the file's folder, those in ``overrides`` from the current folder;
    both become absolute, so that the stored configuration works from anywhere.

    Raises:
        UsageError: the file cannot be read, an unknown key (with the nearest name), a value of the wrong kind.
    """
    where = str(path) if path else "command line"
    stored = _read(schema, path, where) if path else {}
    given = _known(schema, {key: value for key, value in overrides.items() if value is not None}, "command line")
    merged = {**stored, **_located(schema, given, Path.cwd())}
    return validated(schema, schema.worked_in(merged, "command line"), where)


def validated(schema: type[C], values: Mapping[str, Any], where: str) -> C:
    """A configuration from plain values; ``where`` names their origin in messages.

    Raises:
        UsageError: the first value that cannot be used, or one that is missing.
    """
    try:
        return schema(**values)
    except ValidationError as error:
        raise _one_message(schema, error, where) from None


def dump_config(config: RunConfig) -> str:
    """YAML with every option, in the order of the schema; :func:`load_options` reads it back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)


def config_digest(config: RunConfig) -> str:
    """SHA-256 over the options that can change a figure (all but those ``without_effect``)."""
    text = json.dumps(_effective(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(old: C, new: C) -> list[str]:
    """The options that differ and matter, as lines such as ``seed: 0 -> 1``."""
    before, after = _effective(old), _effective(new)
    return [f"{key}: {_shown(before[key])} -> {_shown(after[key])}" for key in before if before[key] != after[key]]


def canonical_task(value: str | None) -> str | None:
    """The text of a task as it is stored.

    Raises:
        UsageError: no such task.
    """
    if value is None:
        return None
    spec = MethodSpec.parse(value)
    if spec.name not in TASK_NAMES:
        raise UsageError(f"unknown task {spec.name!r}", where="task", fix=near(spec.name, TASK_NAMES))
    return str(spec)


def check_range(
    bounds: tuple[float, float] | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> None:
    """Whether bounds, mean and std can be meant.

    Raises:
        UsageError: they cannot.
    """
    if bounds and not bounds[0] < bounds[1]:
        raise UsageError("bounds are empty", expected="low < high", got=str(bounds), where="bounds")
    if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
        raise UsageError(
            "mean and std go together",
            expected="both, with as many numbers each",
            got=f"mean {mean} and std {std}",
            where="mean, std",
        )
    if std and min(std) <= 0:
        raise UsageError("std must be positive", expected="numbers > 0", got=str(std), where="std")


def _read(schema: type[RunConfig], path: Path, where: str) -> dict[str, Any]:
    values = schema.worked_in(_known(schema, read_yaml(path), where), where)
    return _located(schema, values, path.resolve().parent)


def _known(schema: type[RunConfig], values: Any, where: str) -> dict[str, Any]:
    """The mapping, if all its keys are options."""
    known = [*schema.model_fields, *schema.extra]
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


def _located(schema: type[RunConfig], values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The values with relative paths made absolute from ``folder``."""
    found = dict(values)
    for key in schema.sources:
        if isinstance(found.get(key), str):
            found[key] = absolute_source(found[key], folder)
    for key in schema.paths:
        if isinstance(found.get(key), (str, Path)):
            found[key] = absolute_path(str(found[key]), folder)
    for key in schema.lists_of_paths:
        if isinstance(found.get(key), (list, tuple)):
            found[key] = [absolute_path(item, folder) if isinstance(item, str) else item for item in found[key]]
    return found


def _one_message(schema: type[RunConfig], error: ValidationError, where: str) -> RobustkitError:
    """The first complaint, as this project words them."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"][:1]))
    own = first.get("ctx", {}).get("error")
    if isinstance(own, RobustkitError):
        place = name if own.where == "number" else own.where
        return UsageError(own.what, expected=own.expected, got=own.got, where=place, fix=own.fix)
    expected = schema.model_fields[name].description or ""
    if first["type"] == "missing":
        return UsageError(f"no {name} given", expected=expected, where=where, fix=schema.missing[name])
    fix = f"Write a list: {name}: [...]." if first["type"] == "tuple_type" else ""
    return UsageError(f"{name} cannot be used", expected=expected, got=repr(first["input"])[:200], where=where, fix=fix)


def _effective(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in config.without_effect}


def _shown(value: Any) -> str:
    return "not set" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
