"""How every command starts: one place for what a command line program owes its shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_NO_READER = 141  # 128 + SIGPIPE, as of programs that the signal ends


def start(app: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code.

    Where whoever reads the output has gone (`| head`) it ends quietly with 141. The signal itself stays ignored, as
    Python has it: it would also end a run whose worker dies while it is spoken to.
    """
    stdout = sys.stdout
    try:
        try:
            app()
        finally:
            stdout.flush()  # here and not at the end of the interpreter, which would print what failed
    except BrokenPipeError:
        _leave()
    except SystemExit as end:
        if _is_of_broken_pipe(end):  # click and rich make it an exit with code 1, which here says something else
            _leave()
        sys.exit(end.code)
    sys.exit(0)


def _is_of_broken_pipe(end: BaseException) -> bool:
    context = end.__context__
    while context is not None and not isinstance(context, BrokenPipeError):
        context = context.__context__
    return context is not None


def _leave() -> NoReturn:
    # What is still buffered must go somewhere when the interpreter flushes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    sys.exit(EXIT_NO_READER)
