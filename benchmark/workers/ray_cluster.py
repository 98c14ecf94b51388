"""A Ray cluster as the harness sees it: connecting to it, and which of its nodes can do what this machine does."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.records.provenance import VARIABLES, installed, package_hash
from benchmark.records.store import write_atomic
from benchmark.version import __version__
from benchmark.workers.executors import n_workers
from benchmark.workers.processes import THREAD_VARIABLES
from datasets.errors import UsageError

_OBJECT_STORE = 100 * 2**20  # bytes, of a cluster that we start: planned cells and outcomes are a few kB each
_LOOK_S = 60.0  # for a node's first answer, which starts a process there
_LIBRARIES = ("torch", "torchvision", "timm", "numpy")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within the block this process is a driver of a Ray cluster; one that it is already is left as it is. Raises
    UsageError where Ray is not installed or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("The executor ray needs Ray, which is not installed: pip install 'sharebench[ray]'.") from None
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a cell without a GPU sees what we see
    own: dict[str, Any] = {}
    if address is None:
        own = {"num_cpus": n_workers(None, "cpu"), "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        where = "on this machine" if address is None else f"at {address}"
        help_ = "Start one with `ray start --head`"
        if address not in (None, "auto") and "RAY_AUTH_MODE" not in os.environ:  # Ray asks for no token on its own here
            help_ += "; if it runs and asks for a token (~/.ray/auth_token), set RAY_AUTH_MODE=token"
        raise UsageError(f"No Ray cluster {where}: {line} {help_}.") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def shared_token(out: Path) -> Iterator[Path]:
    """A file in the results folder that every node must see."""
    token = out / f".shared-{uuid.uuid4().hex}"
    write_atomic(token, b"")
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Fitness:
    """What must be alike on all nodes. host: which is not."""

    host: str
    sees_results: bool
    code: str
    versions: Mapping[str, str | None]


def fitness_of(token: Path) -> Fitness:
    """Of the machine that this process is on. token: a file in the results folder."""
    versions = {"sharebench": __version__, "Python": platform.python_version()}
    libraries = {name: installed(name) for name in _LIBRARIES}
    return Fitness(platform.node(), token.is_file(), package_hash(), {**versions, **libraries})


def unfit(there: Fitness, here: Fitness, out: Path) -> str | None:
    """Why a node cannot take cells, in one line; None where it can."""
    if not there.sees_results:
        return f"Node {there.host} does not see {out}: the results folder must be one that all nodes share."
    for name, version in here.versions.items():
        if there.versions.get(name) != version:
            return f"Node {there.host} has {name} {there.versions.get(name)}, this machine {version}: install the same."
    if there.code != here.code:
        return f"Node {there.host} has other code of sharebench than this machine: install the same."
    return None


def on_node(node: str) -> Any:
    """The strategy that places a task or an actor on the node with this identifier, and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def passed_on(threads: int) -> dict[str, str]:
    """Variables that a process on another node gets: those that records name, and `threads` for its libraries."""
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    found.pop("CUDA_VISIBLE_DEVICES", None)  # Ray's to set
    return {**found, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def require_fit(nodes: Sequence[Mapping[str, Any]], token: Path, here: Fitness, out: Path) -> None:
    """Raises UsageError where one of the nodes (of `ray.nodes()`) cannot do what this machine does."""
    import ray
    from ray import exceptions

    look = ray.remote(fitness_of)
    answers = {
        look.options(num_cpus=0, scheduling_strategy=on_node(node["NodeID"])).remote(token): node for node in nodes
    }
    for answer, node in answers.items():
        try:
            why = unfit(ray.get(answer, timeout=_LOOK_S), here, out)
        except (exceptions.TaskUnschedulableError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError):
            continue  # the node is gone, as the cluster now knows
        except exceptions.RayError as error:
            line = str(error).strip().splitlines()[-1]
            why = f"Node {node['NodeManagerHostname']} cannot run sharebench: {line}"
        if why is not None:
            raise UsageError(why)
