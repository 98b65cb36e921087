"""Names for methods: a name is bound once, found without importing anything, and loaded when it is asked for.

A family is a package with one module per method. Its names are read from the ``@FAMILY.register("name", ...)``
decorators in the source, so that listing them needs no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from robustkit.core.errors import UsageError, near
from robustkit.core.specs import MethodSpec, unreadable

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Listing:
    """What the source says about a method: enough for a list."""

    name: str
    summary: str
    paper: str
    module: str


@dataclass(frozen=True)
class Option:
    """One option of a method, read from its dataclass field."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Entry:
    """A loaded method."""

    name: str
    cls: type
    paper: str
    version: int
    family: str = "attack"

    @property
    def summary(self) -> str:
        return (self.cls.__doc__ or "").strip().partition("\n")[0]

    def options(self) -> list[Option]:
        """The method's own options, with defaults and help."""
        found: dict[str, FieldInfo] = getattr(self.cls, "__pydantic_fields__", {})
        return [
            Option(name, type_name(info.annotation), info.default, info.description)
            for name, info in found.items()
            if info.description
        ]

    def build(self, options: dict[str, Any]) -> Any:
        """An instance with these options; those that a ``free`` class does not know are put into its ``options``.

        Raises:
            UsageError: an unknown option (with the nearest name), a wrong type, a value out of range.
        """
        known = [option.name for option in self.options()]
        others = {key: value for key, value in options.items() if key not in known}
        if is_free(self.cls):
            options = {**{key: options[key] for key in options if key in known}, "options": others}
        elif "name" in others:  # the form without a key, which only methods with a name take
            raise unreadable(others["name"], str(MethodSpec(self.name, options)))
        elif others:
            key = next(iter(others))
            raise UsageError(f"{self.name} has no option {key!r}", fix=near(key, known), where=f"{self.name}:{key}=")
        try:
            return self.cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise UsageError(
                    f"options of {self.name} that do not go together",
                    expected=_wanted(error, ()),
                    got=str(MethodSpec(self.name, options)),
                    fix=f"See `robustkit show {self.family} {self.name}`.",
                ) from None
            name = str(first["loc"][0])
            raise UsageError(
                f"{self.name} cannot take this {name}",
                expected=_wanted(error, first["loc"][:1]),
                got=repr(first["input"]),
                where=f"{self.name}:{name}=",
                fix=f"See `robustkit show {self.family} {self.name}`.",
            ) from None


class Registry:
    """All methods of one family.

    Args:
        package: where its modules lie, such as robustkit.attacks.
        family: what one member is called.
    """

    def __init__(self, package: str, family: str = "attack") -> None:
        self.package, self.family = package, family
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, *, paper: str, version: int = 1) -> Callable[[T], T]:
        """Bind ``name``; ``version`` rises when the meaning of the method's numbers changes.

        Raises:
            ValueError: the name is bound already (a module imported under two paths does this, too).
        """

        def bind(cls: T) -> T:
            if name in self._entries:
                old = self._entries[name].cls
                raise ValueError(f"{name!r} is {old.__module__}.{old.__qualname__}; {cls.__module__} may not rebind it")
            self._entries[name] = Entry(name, cls, paper, version, self.family)
            return cls

        return bind

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        spec = find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        paths = sorted(path for folder in folders for path in Path(folder).glob("*.py"))
        return {item.name: item for path in paths for item in _read(path, f"{self.package}.{path.stem}")}

    def catalogue(self) -> dict[str, Listing]:
        """Name -> listing, read from the sources; methods registered elsewhere (by a user) are included."""
        own = {n: Listing(n, e.summary, e.paper, e.cls.__module__) for n, e in self._entries.items()}
        return dict(sorted({**own, **self._listings}.items()))

    def names(self) -> tuple[str, ...]:
        return tuple(self.catalogue())

    def get(self, name: str) -> Entry:
        """The method of that name; its module is imported now.

        Raises:
            UsageError: no such name; the message holds near matches.
        """
        if name not in self._entries:
            if name not in self._listings:
                raise UsageError(f"unknown {self.family} {name!r}", fix=near(name, self.names()))
            import_module(self._listings[name].module)
        return self._entries[name]

    def entry_of(self, method: object) -> Entry:
        """The entry of an instance.

        Raises:
            UsageError: the class was never registered.
        """
        for entry in self._entries.values():
            if entry.cls is type(method):
                return entry
        raise UsageError(
            f"{type(method).__name__} is not a registered {self.family}",
            fix='Decorate the class with @FAMILY.register("name", paper="...").',
        )


def _read(path: Path, module: str) -> Iterator[Listing]:
    """The registrations in one source file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "register":
                name = ast.literal_eval(call.args[0])
                paper = next((ast.literal_eval(k.value) for k in call.keywords if k.arg == "paper"), "")
                yield Listing(name, (ast.get_docstring(node) or "").partition("\n")[0], paper, module)


def _wanted(error: ValidationError, place: tuple[int | str, ...]) -> str:
    """What pydantic says that an option should be; every form of it, where there are several."""
    complaints = [found for found in error.errors() if found["loc"][:1] == place]
    owns = [found.get("ctx", {}).get("error") for found in complaints]
    said = [getattr(own, "expected", "") or found["msg"] for own, found in zip(owns, complaints, strict=True)]
    return " or ".join(dict.fromkeys(m.removeprefix("Input should be ").removeprefix("Value error, ") for m in said))


def type_name(annotation: Any) -> str:
    """A type as one would say it; what only Python can give, a function, is left out.

    >>> type_name(Literal["ce", "dlr"]), type_name(float | None), type_name(Annotated[int, "> 0"] | Literal["auto"])
    ('ce, dlr', 'float or null', 'int or auto')
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(parts[0])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(type_name(part) for part in parts if get_origin(part) is not Callable)
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def is_free(cls: type) -> bool:
    """Whether a class takes options that it does not know, for somebody else, in its field ``options``."""
    return bool(getattr(cls, "free", False))


def options_of(method: Any) -> dict[str, Any]:
    """The options of an instance as plain values, for results and configuration."""
    described = {n for n, info in type(method).__pydantic_fields__.items() if info.description}
    found = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name in described}
    return {**found, **{k: _plain(v) for k, v in method.options.items()}} if is_free(type(method)) else found


def text_of(registry: Registry, method: Any, leave_out: Collection[str] = ()) -> str:
    """``pgd:steps=20``: the name and the options that are not the defaults; all of a method of another library."""
    given = {name: value for name, value in options_of(method).items() if name not in leave_out}
    if not is_free(type(method)):
        defaults = {f.name: getattr(f.default, "default", f.default) for f in dataclasses.fields(method)}
        given = {name: value for name, value in given.items() if value != defaults[name]}
    return str(MethodSpec(registry.entry_of(method).name, given))


def _plain(value: Any) -> Any:
    """A value as files and the text form hold it: what is neither a finite number nor a word is spelt out.

    >>> _plain(2), _plain("8/255"), _plain((2, 10)), _plain(float("inf"))
    (2, '8/255', '2 10', 'inf')
    """
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if hasattr(value, "shape"):  # a tensor is named, not spelt out
        return " ".join([type(value).__name__, *map(str, value.shape)])
    return " ".join(re.findall(r"[\w.+/-]+", str(value)))
