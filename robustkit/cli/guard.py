"""One message instead of a traceback, and the exit code that belongs to it."""

from __future__ import annotations

import errno
import functools
import os
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

from robustkit.core.errors import Incomplete, RobustkitError

P = ParamSpec("P")
INTERNAL = 70
"""Exit code of a fault of robustkit itself (EX_SOFTWARE): 1 would read as a failed gate."""


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """The verb, with exceptions turned into messages on stderr. ROBUSTKIT_DEBUG=1 shows their tracebacks, too."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except typer.Exit:
            raise
        except RobustkitError as error:
            raise _exit(str(error), error, error.exit_code) from error
        except KeyboardInterrupt as error:
            raise _exit("stopped", error, Incomplete.exit_code) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `robustkit list attacks | head -1`
                raise
            traceback.print_exception(error)
            text = (f"internal error: {type(error).__name__}: {error}. This is a fault of robustkit, not of your "
                    "input: please report it with the lines above and the output of `robustkit doctor`.")
            raise _exit(text, None, INTERNAL) from error

    return run


def _exit(text: str, error: BaseException | None, code: int) -> typer.Exit:
    """Say it in one red message, after the traceback if that was asked for."""
    if error is not None and os.environ.get("ROBUSTKIT_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    Console(stderr=True).print(f"[bold red]Error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    return typer.Exit(code)
