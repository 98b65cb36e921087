"""Methods are frozen, keyword-only dataclasses whose fields are their options.

Pydantic checks types and ranges, so that the same rules hold in Python, in YAML and on the command line. A field
with a description is an option; what the command line, ``robustkit show`` and the docs say about it comes from there.
"""

from __future__ import annotations

from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def method(cls: type[T]) -> type[T]:
    """Make a class a method: frozen, keyword-only, checked."""
    return dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)  # type: ignore[return-value]
