"""Reading a YAML file somebody else wrote: plain values only, no aliases, each key once, of a bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from robustkit.core.errors import UsageError

MAX_BYTES = 1_000_000


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without anchors and aliases (a few lines of them can stand for gigabytes) and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: anchors (&) and aliases (*) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key.value, str) else False:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands there twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a file; an empty one is an empty mapping.

    Raises:
        UsageError: no such file, larger than 1 MB, not UTF-8, not YAML, or with aliases, tags or repeated keys.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            "cannot read the configuration",
            expected="a YAML file",
            got=error.strerror or str(error),
            where=str(path),
            fix="Check the path and its permissions.",
        ) from None
    if len(raw) > MAX_BYTES:
        raise UsageError(
            "the configuration is too large",
            expected="at most 1 MB",
            got="more",
            where=str(path),
            fix="A configuration holds options, no data.",
        )
    try:
        loader = _PlainLoader(raw.decode("utf-8"))
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(
            "cannot read the configuration",
            expected="plain YAML in UTF-8",
            got=_one_line(error),
            where=str(path),
            fix="Write `key: value` lines, as in a stored config.yaml.",
        ) from None
    return {} if value is None else value


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values nested too deep"
    return " ".join(str(error).split())[:300]
