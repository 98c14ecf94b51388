"""Cells on a Ray cluster, behind the same door as local worker processes: many machines, many GPUs.

A cell is a Ray task with its threads, its memory once a cell of its kind has told it, and its share of a GPU; Ray
decides where it runs. The results folder is shared by all nodes; the store's locks in it keep a cell, and a single-task
network that several cells ask for, from being trained twice. A cell whose node is lost is given to another node and
goes on from its checkpoint there; one whose process dies alone fails, as that of a local worker does, since what killed
it would do so again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.workers.executors import Event, Outcome, carry_out, finished
from benchmark.workers.ray_cluster import (
    Fitness,
    connected,
    fitness_of,
    on_node,
    passed_on,
    require_fit,
    shared_token,
    unfit,
)
from benchmark.workers.room import Room
from datasets.errors import UsageError

if TYPE_CHECKING:
    from benchmark.plan.cells import PlannedCell
    from benchmark.train.cell import RunSettings
    from benchmark.train.stage import Progress

_TELL_S = 0.5  # a cell tells its progress no more often
_WAIT_S = 0.5  # for an outcome, before the messages are read
_MOST_NODES = 3  # that may be lost under one cell
_AHEAD = 2  # cells given to Ray for each that has room: the next one starts at once, and Ray sees what is wanted


class RayExecutor:
    """A Ray cluster. address: `auto` or HOST:PORT of one that runs, of which this machine is a node; None starts one
    on this machine and ends it. jobs: how many cells at once, None for as many as there is room for. gpus: of a cell,
    where the device is CUDA; a fraction shares a GPU.
    """

    def __init__(self, settings: RunSettings, jobs: int | None, address: str | None, gpus: float) -> None:
        absolute = None if settings.data_root is None else settings.data_root.absolute()
        self.settings = dataclasses.replace(settings, out=settings.out.absolute(), data_root=absolute)
        self.jobs, self.address = jobs, address
        self.gpus = gpus if settings.device != "cpu" else 0.0

    def run(self, cells: Sequence[PlannedCell]) -> Iterator[Event]:
        """As of `Executor`. Raises UsageError where no cluster answers, or a node cannot do what this machine does."""
        with connected(self.address), shared_token(self.settings.out) as token:
            work = _Work(self, cells, token)
            work.require_fit_nodes()
            try:
                yield from work.events()
            finally:
                work.stop()


# On a node


@dataclasses.dataclass(frozen=True)
class _Unfit:
    """Answer of a node that joined later and cannot take cells."""

    node: str
    why: str


def _run_cell(
    number: int, planned: PlannedCell, settings: RunSettings, token: Path, here: Fitness, mailbox: Any
) -> Outcome | _Unfit:
    """Body of a task: one cell."""
    why = unfit(fitness_of(token), here, settings.out)
    if why is not None:
        import ray

        return _Unfit(ray.get_runtime_context().get_node_id(), why)
    mailbox.put.remote(Event("started", number))
    last = 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_S:
            last = time.monotonic()
            mailbox.put.remote(Event("progress", number, -1, progress.stage, progress.done, progress.steps))

    return carry_out(planned, settings, tell)


class _Mailbox:
    """An actor beside the driver, which takes what the cells tell."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        """Keep an event until the driver asks."""
        self.events.append(event)

    def take(self) -> list[Event]:
        """What has come since the last time."""
        taken, self.events = self.events, []
        return taken


# In the driver


class _Work:
    """Cells of one run on a cluster to which this process is connected."""

    def __init__(self, executor: RayExecutor, cells: Sequence[PlannedCell], token: Path) -> None:
        import ray

        self.ray, self.executor, self.cells, self.token = ray, executor, cells, token
        self.here = fitness_of(token)
        threads = executor.settings.threads
        self.task = ray.remote(_run_cell)
        self.wanted: dict[str, Any] = {
            "num_cpus": threads,
            "num_gpus": executor.gpus,
            "max_retries": 0,
            "runtime_env": {"env_vars": passed_on(threads)},
        }
        node = ray.get_runtime_context().get_node_id()
        self.mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=on_node(node)).remote()
        self.sizes = Room(cells, executor.settings.out)
        self.waiting = deque(range(len(cells)))
        self.running: dict[Any, int] = {}
        self.slots: dict[int, int] = {}  # of cells that have started, for the bars of a terminal
        self.started: dict[int, float] = {}  # when a cell was heard to start, on this machine's clock
        self.moved: dict[int, int] = {}  # nodes lost under a cell
        self.refused: dict[str, str] = {}  # {node: why it takes no cells}

    def require_fit_nodes(self) -> None:
        """Raises UsageError where a node does not see the results, or has other code or versions than this machine,
        and where no node is large enough for a cell.
        """
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        if not any(self._holds(node["Resources"]) for node in nodes):
            gpus = f" and {self.executor.gpus:g} GPUs" if self.executor.gpus else ""
            raise UsageError(
                f"No node of the Ray cluster has the {self.executor.settings.threads} CPUs{gpus} of a cell."
            )
        require_fit(nodes, self.token, self.here, self.executor.settings.out)

    def _holds(self, resources: Mapping[str, float]) -> int:
        """How many cells have room in these resources at once."""
        n = int(resources.get("CPU", 0) / self.executor.settings.threads)
        return n if not self.executor.gpus else min(n, int(resources.get("GPU", 0) / self.executor.gpus))

    def events(self) -> Iterator[Event]:
        """What happens, until every cell has ended."""
        while self.waiting or self.running:
            room = self.executor.jobs or max(1, _AHEAD * self._holds(self.ray.cluster_resources()))
            while self.waiting and len(self.running) < room:
                self._submit(self.waiting.popleft())
            ended, _ = self.ray.wait(list(self.running), timeout=_WAIT_S)
            yield from self._told()
            for answer in ended:
                yield from self._ended(answer)

    def _submit(self, number: int) -> None:
        wanted = dict(self.wanted)
        if self.refused:
            wanted["label_selector"] = {"ray.io/node-id": f"!in({','.join(self.refused)})"}
        if self.executor.settings.device == "cpu" and (peak := self.sizes.peak_bytes(number)):
            wanted["memory"] = min(peak, self._largest_memory())
        answer = self.task.options(**wanted).remote(
            number, self.cells[number], self.executor.settings, self.token, self.here, self.mailbox
        )
        self.running[answer] = number

    def _largest_memory(self) -> int:
        """Bytes that Ray gives out on the node that has the most, of those that take cells: more would be waited for
        in vain.
        """
        nodes = (node for node in self.ray.nodes() if node["Alive"] and node["NodeID"] not in self.refused)
        return int(max((n["Resources"].get("memory", 0) for n in nodes if self._holds(n["Resources"])), default=0))

    def _told(self) -> Iterator[Event]:
        """Messages of cells that run, with the number of their slot."""
        running = set(self.running.values())
        for event in self.ray.get(self.mailbox.take.remote()):
            if event.cell in running:  # else its end has been told already
                taken = set(self.slots.values())
                slot = self.slots.setdefault(event.cell, next(n for n in itertools.count() if n not in taken))
                self.started.setdefault(event.cell, time.monotonic())
                yield dataclasses.replace(event, worker=slot)

    def _ended(self, answer: Any) -> Iterator[Event]:
        """The end of a task: of its cell, or of the node that it was on."""
        exceptions = self.ray.exceptions
        number = self.running.pop(answer)
        slot = self.slots.pop(number, -1)
        seconds = time.monotonic() - self.started.pop(number, time.monotonic())
        try:
            outcome = self.ray.get(answer)
        except (exceptions.NodeDiedError, exceptions.LocalRayletDiedError):
            self.moved[number] = self.moved.get(number, 0) + 1
            if self.moved[number] < _MOST_NODES:
                self.waiting.appendleft(number)
                yield Event("note", message="A node was lost; its cells go on elsewhere.")
                return
            outcome = Outcome("failed", f"{_MOST_NODES} nodes were lost under this cell.", seconds)
        except exceptions.OutOfMemoryError:
            outcome = Outcome("failed", "Its node ran out of memory, and Ray ended the worker process.", seconds)
        except exceptions.WorkerCrashedError:
            why = "The worker process ended (out of memory, or a crash in native code)."
            outcome = Outcome("failed", why, seconds)
        except exceptions.RayError as error:
            outcome = Outcome("failed", f"Ray: {str(error).strip().splitlines()[-1]}", seconds)
        if isinstance(outcome, _Unfit):
            self.waiting.appendleft(number)
            if outcome.node not in self.refused:
                self.refused[outcome.node] = outcome.why
                yield Event("note", message=f"{outcome.why} It takes no cells.")
            return
        self.sizes.learn(number)
        yield finished(number, slot, outcome)

    def stop(self) -> None:
        """End what still runs, and wait until it has ended."""
        for answer in self.running:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.cancel(answer, force=True)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=10)
