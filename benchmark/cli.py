"""What all commands share: start and exit codes, options that are lists, the console and its lines."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer
from rich.console import Console
from rich.text import Text

from benchmark.escape import plain
from datasets.errors import UsageError

EXIT_NO_READER = 141  # 128 + SIGPIPE, as of programs that the signal ends
EXIT_OUTPUT = 74  # EX_IOERR of sysexits.h; no command gives it another meaning


def replace_what_cannot_be_shown() -> None:
    """Make standard output print a question mark for what its encoding lacks: a Δ must not end hours of training.

    An error handler that the user chose (PYTHONIOENCODING=ascii:backslashreplace) is kept.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        of_locale = stream.errors == "surrogateescape" and codecs.lookup(stream.encoding).name != "utf-8"
        if stream.errors == "strict" or of_locale:
            stream.reconfigure(errors="replace")


def start(app: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code.

    If the reader of standard output is gone (`| head`), exit quietly with 141. SIGPIPE itself stays ignored, as Python
    has it: otherwise writing to a dead worker would end the whole run. If output cannot be written (a full disk), print
    one line and exit with 74. If there is no output (`>&-`), run on without printing.
    """
    if sys.stdout is None:
        sys.stdout = _nowhere()
    replace_what_cannot_be_shown()
    stdout = sys.stdout
    try:
        try:
            app()
        finally:
            stdout.flush()  # here and not at the end of the interpreter, which would print what failed
    except BrokenPipeError:
        _leave(EXIT_NO_READER)
    except OSError as error:
        if error.filename is not None or error.errno not in _OUTPUT_ERRORS:
            raise
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        _leave(EXIT_OUTPUT)
    except SystemExit as end:
        if _is_of_broken_pipe(end):  # click and rich make it an exit with code 1, which here says something else
            _leave(EXIT_NO_READER)
        sys.exit(end.code)
    sys.exit(0)


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)


def _nowhere() -> io.TextIOWrapper:
    """An output that keeps nothing, on descriptor 1, which the next file that is opened would get otherwise."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(1)
    except OSError:
        os.dup2(descriptor, 1)
    return io.TextIOWrapper(os.fdopen(descriptor, "wb"), encoding="utf-8")


def _is_of_broken_pipe(end: BaseException) -> bool:
    context = end.__context__
    while context is not None and not isinstance(context, BrokenPipeError):
        context = context.__context__
    return context is not None


def _leave(code: int) -> NoReturn:
    # What is still buffered must go somewhere when the interpreter flushes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    sys.exit(code)


EXIT_NOT_DONE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

PluginOption = Annotated[
    Optional[list[Path]],  # noqa: UP045  (typer reads it in modules of any age)
    typer.Option(
        "--plugin", metavar="FILE", help="Python file that registers methods, data sets or backbones; may be repeated."
    ),
]

ExecutorOption = Annotated[
    str, typer.Option("--executor", help="Where cells run: local worker processes, or ray (extra `ray`).")
]
AddressOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--address", help="With --executor ray: auto or HOST:PORT of a cluster. Default: start one here."),
]
GpusOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--gpus-per-cell", help="With --executor ray on CUDA: 1, or a fraction that shares a GPU."),
]


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Within the block a usage error is one line on stderr and exit code 2, without a traceback."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None


@contextlib.contextmanager
def resumable(context: typer.Context, kept: str) -> Iterator[None]:
    """Within the block an interrupt is one line on stderr, which says how to go on, and exit code 130.

    kept: the parts of the work that are not lost.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished {kept} are kept. Resume with: {typed_line(context)}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def typed_line(context: typer.Context) -> str:
    """What was typed, with the program's name in place of its path."""
    import shlex

    return f"{context.find_root().info_name} {shlex.join(sys.argv[1:])}".rstrip()


def split_names(text: str | None) -> list[str] | None:
    """The parts of a text with commas, those within parentheses apart; None where an option is not given."""
    return None if text is None else [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def split_numbers(option: str, text: str | None, least: int, example: str) -> list[int] | None:
    """The whole numbers of a text with commas; None where the option is not given. Raises UsageError."""
    parts = split_names(text)
    if parts is None:
        return None
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise UsageError(f"{option} {text!r}: expected whole numbers from {least} on, for example {example}.")
    return [int(part) for part in parts]


def pick_device(name: str) -> str:
    """The device that is asked for, `cpu` or `cuda[:n]`; `auto` takes CUDA where there is one. Raises UsageError."""
    if name == "cpu":
        return name
    if name not in ("auto", "cuda") and not name.startswith("cuda:"):
        raise UsageError(f"--device {name!r}: expected auto, cpu, cuda or cuda:0.")
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count()
    index = name.partition(":")[2]
    if not count or (index and not (index.isdigit() and int(index) < count)):
        raise UsageError(f"--device {name!r}: PyTorch sees {count} CUDA devices here; use --device cpu.")
    return name


def data_root_of_environment() -> Path | None:
    """The folder that SHAREBENCH_DATA names, None where it is not set."""
    value = os.environ.get("SHAREBENCH_DATA")
    return Path(value) if value else None


WIDTH_OF_FILES = 120  # characters a line where no terminal says how wide it is


class _PlainConsole(Console):
    """A console in which text of others is text: control characters are shown, not obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of the text without control characters."""
        return super().render_str(plain(text, keep="\n"), **options)


def make_console(stderr: bool = False) -> Console:
    """A console that does not squeeze lines into 80 columns where there is no terminal, and prints on any encoding."""
    replace_what_cannot_be_shown()  # also in a script of one's own, which no command has started
    console = _PlainConsole(stderr=stderr)
    return console if console.is_terminal else _PlainConsole(stderr=stderr, width=WIDTH_OF_FILES)


def say(console: Console, line: object) -> None:
    """Print a line as it is: without markup, emoji codes, colours of numbers, and breaks."""
    console.print(str(line), markup=False, emoji=False, highlight=False, soft_wrap=True)
