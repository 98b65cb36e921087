"""Saliency methods: one file per method.

The package can be called: ``robustkit.explain(model, x, "smoothgrad")`` is :func:`robustkit.run.explain.explain`, which
stands above this floor and is imported when it is used.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is also the function of the same name; see docs/adr/0008-callable-packages.md."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Explain inputs by one or several methods: :func:`robustkit.run.explain.explain`."""
        return import_module("robustkit.run.explain").explain(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        return signature(import_module("robustkit.run.explain").explain)


sys.modules[__name__].__class__ = _CallablePackage
