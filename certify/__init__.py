"""Certifiers: one file per method.

The package can be called: ``robustkit.certify(model, data, "smoothing")`` is :func:`robustkit.run.certify.certify`,
which stands above this floor and is imported when it is used.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is also the function of the same name; see docs/adr/0008-callable-packages.md."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Certify a model: :func:`robustkit.run.certify.certify`."""
        return import_module("robustkit.run.certify").certify(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        return signature(import_module("robustkit.run.certify").certify)


sys.modules[__name__].__class__ = _CallablePackage
