"""Workers start in no time as copies of a process that has imported what they need, and are as good as fresh ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from benchmark.workers.processes import THREAD_VARIABLES, start_server, started

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info < (3, 11), reason="processes are copied on Linux, from Python 3.11 on"
)


def tell(connection: Connection) -> None:
    """What a process knows at its start."""
    loaded = "benchmark.train.cell" in sys.modules
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    connection.send((loaded, os.getppid(), dict(os.environ), list(sys.path), blocked))


def told(threads: int = 1, **how: Any) -> Any:
    process, connection = started(tell, threads, **how)
    answer = connection.recv()
    process.join()
    assert process.exitcode == 0
    return answer


def test_a_copy_has_the_imports_and_the_environment_of_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    told(copied=True)
    monkeypatch.setenv("SHAREBENCH_DATA", "set after the server was started")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.syspath_prepend("a folder of plug-ins")
    loaded, parent, environment, path, blocked = told(copied=True)
    assert loaded
    assert parent == forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert blocked
    assert path == sys.path
    assert environment == dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, "1")


@pytest.mark.parametrize("how", [{}, {"copied": True, "threads": 2}])
def test_a_fresh_process_where_it_must_be_or_loads_its_libraries_for_other_threads(how: dict[str, Any]) -> None:
    start_server()
    loaded, parent, environment, *_ = told(**how)
    assert not loaded
    assert parent == os.getpid()
    assert {environment[name] for name in THREAD_VARIABLES} == {str(how.get("threads", 1))}


SCRIPT = """
import os, signal
from multiprocessing import forkserver
from benchmark.workers.processes import start_server
from tests.unit.workers.test_processes import told

start_server()
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)  # it is in the middle of its imports
print(told(copied=True)[0])
"""


def test_imports_are_not_cut_off_and_come_from_where_ours_come(tmp_path: Path) -> None:
    """The working directory holds another package of our name, as a repository with benchmarks of its own does."""
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    for package in ("benchmark", "torch"):
        other = tmp_path / package / "__init__.py"
        other.parent.mkdir()
        other.write_text("print('another package')\n")
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "True\n", "")


def test_a_server_that_died_is_started_again() -> None:
    told(copied=True)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    assert told(copied=True)[0]
    assert not multiprocessing.active_children()
