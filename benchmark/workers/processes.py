"""What the suite's own processes share: they start fresh, or as copies of one that has only imported what they need.
They do not import the script that started them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Generator, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
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
    """Within the block an interrupt waits for its end. A process that starts there never hears one: cut off during its
    imports it would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first process of all starts it, and it would let interrupts in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Set before torch is imported in a process; libraries read them once.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@contextlib.contextmanager
def environment(threads: int, **further: str) -> Iterator[None]:
    """Within the block the variables that libraries read when they are loaded say `threads`; others as told."""
    saved = dict(os.environ)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)) | further)
    try:
        yield
    finally:
        _set_environment(saved)


def _set_environment(values: Mapping[str, str]) -> None:
    for name in os.environ.keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


_PRELOADED = ["benchmark.train.cell"]
_one_starts = threading.RLock()  # environment and main module belong to all threads
_server_threads: int | None = None  # of the libraries that the server of this process has loaded


def start_server(threads: int = 1) -> None:
    """Start, without waiting for it, the process of which workers of cells are copies, unless it runs: what all of them
    import, five seconds of a core, is imported once, and while their cells are still being planned. threads: of the
    libraries that it loads. Only on Linux; elsewhere libraries that it has loaded may not bear a fork.
    """
    global _server_threads
    if sys.platform != "linux" or sys.version_info < (3, 11) or _server_threads not in (None, threads):
        return
    _server_threads = threads
    forkserver.set_forkserver_preload(_PRELOADED)
    # It would look for them in the working directory first, where another package may have our name.
    paths = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path)}
    with _one_starts, environment(threads, **paths), without_main(), interrupts_wait():
        forkserver.ensure_running()


def started(target: Any, threads: int, *arguments: object, copied: bool = False) -> tuple[BaseProcess, Connection]:
    """A process that runs `target(its end of a pipe, *arguments)`, and our end, at which its death is an end of file.
    threads: of the libraries that it loads. copied: it may be a copy of the server (`start_server`), which has touched
    no GPU and drawn nothing; else it is fresh. It is no daemon, which could have no loader processes of its own
    (`recipe.workers`); whoever starts it ends it.
    """
    if copied:
        start_server(threads)
    from_server = copied and _server_threads == threads
    context = multiprocessing.get_context("forkserver") if from_server else multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with _one_starts, environment(threads), without_main(), interrupts_wait():
        process = context.Process(target=_body, args=(dict(os.environ), target, theirs, *arguments))
        process.start()
    theirs.close()
    return process, ours


def _body(variables: Mapping[str, str], target: Any, *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    _set_environment(variables)  # the server has that of the time when it was started
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
    process, connection = started(target, threads, *arguments)
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
