"""What the suite's own processes share: they start fresh, and they do not import the script that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from datasets.errors import UsageError


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Within the block a spawned process starts without the caller's script.

    `spawn` imports the main module again in every new process, so a script that runs a suite at its top level would run
    it again in each worker, unless it is written below `if __name__ == "__main__"`. Nothing that our processes are sent
    is defined there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Within the block an interrupt waits for its end: a process that is cut off while it starts prints a traceback."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if heard:
        signal.raise_signal(signal.SIGINT)


# Set before torch is imported in a process; libraries read them once.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@contextlib.contextmanager
def thread_variables(threads: int) -> Iterator[None]:
    """Within the block the variables that libraries read when they are loaded say `threads`."""
    saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def spawned(target: Any, threads: int, *arguments: object) -> tuple[BaseProcess, Connection]:
    """A fresh process that runs `target(its end of a pipe, *arguments)`, and our end, at which its death is an end of
    file. threads: of the libraries that it loads. It is no daemon, which could have no loader processes of its own
    (`recipe.workers`); whoever starts it ends it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_body, args=(target, theirs, *arguments))
    with thread_variables(threads), without_main(), interrupts_wait():
        process.start()
    theirs.close()
    return process, ours


def _body(target: Any, *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    target(*arguments)


def end_of(process: BaseProcess) -> str:
    """How a process ended, in words; waits for it."""
    process.join()
    code = process.exitcode or 0
    if code < 0:
        return f"signal {-code} (out of memory, or a crash in native code)"
    return f"exit code {code}; its message stands above"


def messages_of(target: Any, threads: int, *arguments: object) -> Generator[Any, None, None]:
    """What a fresh process sends. Raises UsageError where it dies; ends it when left."""
    process, connection = spawned(target, threads, *arguments)
    try:
        while True:
            try:
                message = connection.recv()
            except EOFError:
                raise UsageError(f"The measuring process ended with {end_of(process)}.") from None
            yield message
            with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile, as it should after its last word
                connection.send(True)
    finally:
        if process.is_alive():
            process.join(timeout=1)  # it has said its last word; what is still running was interrupted
        if process.is_alive():
            process.terminate()
        process.join()
        connection.close()
