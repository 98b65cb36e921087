"""`path.py:factory`: a function in the user's own file, run on purpose.

This executes the file's code; it is the one source that does, and only when it is named on the command line or in a
configuration.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from robustkit.core.errors import RobustkitError, UsageError, near

FORM = re.compile(r"^(?P<file>.+\.py)(?::(?P<factory>.*))?$", re.DOTALL)


def is_user_file(spec: str) -> bool:
    """Whether the text has the form `path.py:factory` (also where the factory is missing)."""
    return FORM.match(spec) is not None


def call_factory(spec: str) -> Any:
    """What `factory()` in the file returns.

    The file is imported under a private name, so that it can neither hide nor be hidden by an installed module; its
    folder is on the import path meanwhile, so that it finds its neighbours.

    Raises:
        UsageError: no such file or function, an exception inside (named with its line), or None returned.
    """
    found = FORM.match(spec)
    path = Path(found["file"] if found else spec)
    name = found["factory"] if found else None
    if not path.is_file():
        raise UsageError("no such file", expected="path.py:factory", got=repr(spec), where=str(path.absolute()))
    with _on_import_path(path.resolve().parent):
        module = _import(path.resolve())
        result = _guarded(_factory(module, name, path), path.resolve(), f"{name}()")
    if result is None:
        raise UsageError(f"{name}() returned nothing", got="None", where=str(path), fix="Does it end with a return?")
    return result


def _import(path: Path) -> ModuleType:
    private = "_robustkit_user_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None or spec.loader is None:
        raise UsageError("the file cannot be imported", expected="a Python file", got=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses and pickling look classes up by their module's name
    loader = spec.loader
    _guarded(lambda: loader.exec_module(module), path, "the import")
    return module


def _factory(module: ModuleType, name: str | None, path: Path) -> Callable[[], Any]:
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not name:
        raise UsageError("which function of the file?", expected="path.py:factory", got=str(path), fix=near("", public))
    factory: Any = getattr(module, name, None)
    if not callable(factory):
        got = "no such name" if factory is None else type(factory).__name__
        raise UsageError(f"the file has no function {name}", got=got, where=str(path), fix=near(name, public))
    needed = [
        p.name for p in _parameters(factory) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise UsageError(
            f"{name} is called without arguments",
            expected="a function that needs none",
            got=f"one that needs {', '.join(needed)}",
            where=str(path),
            fix="Give them defaults, or write a function around it.",
        )
    call: Callable[[], Any] = factory
    return call


def _parameters(factory: Callable[[], Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # builtins without a signature
        return []


def _guarded(call: Callable[[], Any], path: Path, what: str) -> Any:
    try:
        return call()
    except RobustkitError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error}".strip()
        raise UsageError(f"{what} of {path.name} failed", got=message, where=_line(error, path)) from error


def _line(error: BaseException, path: Path) -> str:
    """Where in the user's file it happened: `path:line` of the innermost frame that lies in it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)


@contextmanager
def _on_import_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
