"""Text forms: ``8/255``, ``linf:8/255``, ``pgd:steps=20,loss=margin``. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator

from robustkit.core.errors import UsageError, near

NORMS = ("linf", "l2", "l1")


def parse_fraction(value: object, where: str = "number") -> float:
    """A finite number from ``0.03``, ``"0.03"`` or ``"8/255"``.

    >>> parse_fraction("8/255") == 8 / 255
    True

    Raises:
        UsageError: not a finite number.
    """
    top, _, bottom = str(value).partition("/")
    try:
        number = float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UsageError("not a number", expected="a finite number such as 0.03 or 8/255", got=repr(value), where=where)
    return number


Fraction = Annotated[float, BeforeValidator(parse_fraction)]
"""A float field that also accepts text such as ``2/255``."""


@dataclass(frozen=True)
class ThreatSpec:
    """A norm and a radius, as they stand in files and on the command line.

    >>> str(ThreatSpec.parse("Linf: 8/255"))
    'linf:8/255'
    >>> ThreatSpec.parse("linf:8", eps_scale=255).eps == 8 / 255
    True
    """

    norm: str
    eps: float
    text: str = ""

    @classmethod
    def parse(cls, text: str, eps_scale: float = 1.0) -> ThreatSpec:
        """Read ``NORM:EPS``; eps is divided by ``eps_scale``.

        Raises:
            UsageError: unknown norm, missing or negative eps.
        """
        norm, colon, radius = (part.strip() for part in text.partition(":"))
        norm = norm.lower()
        if norm not in NORMS:
            raise UsageError(
                "unknown norm",
                expected=f"one of {', '.join(NORMS)}",
                got=repr(norm),
                where=f"threat {text!r}",
                fix=near(norm, NORMS),
            )
        if not colon or not radius:
            raise UsageError(
                "a threat needs a radius",
                expected="NORM:EPS",
                got=repr(text),
                where="threat",
                fix="Write for example linf:8/255.",
            )
        eps = parse_fraction(radius, f"eps of threat {text!r}") / eps_scale
        if eps < 0:
            raise UsageError(
                "eps is negative",
                expected="eps >= 0",
                got=radius,
                where=f"threat {text!r}",
                fix="The radius of a ball is positive, for example linf:8/255.",
            )
        shown = radius if eps_scale == 1 else f"{radius}/{eps_scale:g}" if "/" not in radius else repr(eps)
        return cls(norm, eps, f"{norm}:{shown}")

    def __str__(self) -> str:
        return self.text or f"{self.norm}:{self.eps:g}"


@dataclass(frozen=True)
class MethodSpec:
    """A method and its options: ``NAME`` or ``NAME:key=value,key=value``.

    Methods that stand for the classes of a library take the class first: a word with a capital, the option ``name``.

    >>> MethodSpec.parse("pgd:steps=20,loss=margin")
    MethodSpec(name='pgd', options={'steps': 20, 'loss': 'margin'})
    >>> str(MethodSpec.parse("pgd: loss=margin, steps=20"))
    'pgd:loss=margin,steps=20'
    >>> MethodSpec.parse("torchattacks:APGD,steps=20").options
    {'name': 'APGD', 'steps': 20}
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """Read the text form; values are YAML scalars.

        Raises:
            UsageError: an option without ``=``, a repeated key, a value that is no scalar.
        """
        name, _, rest = text.strip().partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in rest.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals and not options and part[0].isupper():
                options["name"] = part
                continue
            if not key or not equals or key in options:
                raise unreadable(part, text)
            options[key] = _scalar(value, text)
        if not name.strip():
            raise UsageError("a method needs a name", expected="NAME or NAME:key=value", got=repr(text))
        return cls(name.strip().lower(), options)

    def __str__(self) -> str:
        first = str(self.options.get("name", ""))[:1].isupper()
        named = [self.options["name"]] if first else []
        parts = [*named, *(f"{k}={_show(v)}" for k, v in self.options.items() if not (first and k == "name"))]
        return self.name + (":" + ",".join(parts) if parts else "")


def split_methods(text: str) -> list[str]:
    """The methods of a list; their options are parted by commas, too: what has the form ``key=value`` is an option.

    >>> split_methods("smoothgrad:samples=20,noise_level=0.1, xrai,captum:Saliency,abs=false,gradient")
    ['smoothgrad:samples=20,noise_level=0.1', 'xrai', 'captum:Saliency,abs=false', 'gradient']
    """
    found: list[str] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        key, equals, _ = piece.partition("=")
        if found and ((equals and ":" not in key) or (found[-1].endswith(":") and piece[0].isupper())):
            found[-1] += ("" if found[-1].endswith(":") else ",") + piece
        else:
            found.append(piece)
    return found


def unreadable(part: object, text: str) -> UsageError:
    """What to raise for a piece of a method's text that is no option."""
    return UsageError(
        "cannot read a method's options",
        expected="NAME:key=value,key=value with each key once",
        got=repr(part),
        where=repr(text),
        fix="Write for example pgd:steps=20,loss=margin or torchattacks:PGD,steps=20.",
    )


def _scalar(value: str, where: str) -> Any:
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = {}
    if isinstance(parsed, (dict, list)):
        raise UsageError("an option's value must be a number or a word", got=repr(value), where=repr(where))
    return parsed


def _show(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )
