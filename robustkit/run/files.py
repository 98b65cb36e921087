"""The names of :mod:`robustkit.core.files`, under the name they had before reports needed them, too."""

from robustkit.core.files import read_json, read_lines, replace_file, slug

__all__ = ["read_json", "read_lines", "replace_file", "slug"]
