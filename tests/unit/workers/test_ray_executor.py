"""Cells on a Ray cluster: the records are those of local workers, and whatever dies takes no finished work with it.

A cluster of several nodes is one of several raylets on this machine.
"""

from __future__ import annotations

import dataclasses
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmark.api import throughput
from benchmark.plan.cells import PlannedCell
from benchmark.records.measurements import SpeedSettings
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.speed import ray_node
from benchmark.speed.jobs import SpeedJob
from benchmark.speed.sweep import Choices
from benchmark.speed.timing import SpeedProtocol, WarmUpRule
from benchmark.train.cell import RunSettings, run_cell
from benchmark.workers import ray_cluster, ray_executor
from benchmark.workers.choice import ExecutorChoice
from benchmark.workers.executors import Event, Outcome
from benchmark.workers.ray_executor import RayExecutor
from datasets.errors import UsageError
from tests.unit.cells import planned, store_cells, toy_cells

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytestmark = pytest.mark.cluster
LONG = {"budget": {"steps": 200, "cycles": 10}}  # seconds, so that there is something to kill


def cells(**changes: Any) -> list[PlannedCell]:
    return toy_cells(**{"seeds": [0, 1], **changes})


def settings_of(folder: Path, toy_data: Path) -> RunSettings:
    return RunSettings(folder, plugins=(str(toy_data),), checkpoint_steps=50)


def hashes(folder: Path) -> dict[str, str | None]:
    return {record.key: record.result_hash for record in Store(folder).load_all() if record.status == "done"}


@pytest.fixture(scope="module", autouse=True)
def _normal_priority() -> Iterator[None]:
    """Ray gives its workers a low priority, under which they wait for all other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[list[PlannedCell]], dict[str, str | None]]]:
    """What cells end with in this process."""
    folder = tmp_path_factory.mktemp("straight")

    def run(wanted: list[PlannedCell]) -> dict[str, str | None]:
        return {cell.key: run_cell(cell, RunSettings(folder)).result_hash for cell in wanted}

    return run


class Nodes:
    """A cluster of raylets on this machine, the first of which takes no cells."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address: str = self.cluster.address
        self.alive: list[tuple[int, Any]] = []

    def exactly(self, *cpus: int) -> list[Any]:
        """Nodes of so many CPUs and no others. Those of an earlier test are taken, with worker processes that have
        imported what they need.
        """
        wanted, kept = list(cpus), []
        for size, node in self.alive:
            if size in wanted:
                wanted.remove(size)
                kept.append((size, node))
            else:
                self.cluster.remove_node(node, allow_graceful=False)
        self.alive = kept
        for size in wanted:
            self.add(size)
        return [node for _, node in self.alive]

    def add(self, cpus: int) -> None:
        self.alive.append((cpus, self.cluster.add_node(num_cpus=cpus)))

    def kill(self, node: Any) -> None:
        self.alive = [one for one in self.alive if one[1] is not node]
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    yield found
    found.cluster.shutdown()


@pytest.fixture(scope="module")
def connected_nodes(nodes: Nodes) -> Iterator[Nodes]:
    """This process stays a driver from here on: worker processes belong to a driver, and start in seconds."""
    with ray_cluster.connected(nodes.address):
        yield nodes


def statuses(events: list[Event]) -> dict[int, tuple[str, str]]:
    return {event.cell: (event.status, event.message) for event in events if event.kind == "finished"}


def process_of(folder: Path, key: str) -> int:
    """The process that holds the lock of a cell."""
    inode = (folder / "locks" / f"{key}.lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    raise AssertionError(f"nobody holds {key}")


def test_what_a_cluster_on_this_machine_trains_is_what_local_workers_train(
    tmp_path: Path, toy_data: Path, expected: Callable[..., dict[str, str | None]]
) -> None:
    wanted = cells()
    events = list(ExecutorChoice("ray").executor(settings_of(tmp_path, toy_data), None).run(wanted))
    assert statuses(events) == dict.fromkeys(range(4), ("done", ""))
    assert next(event.kind for event in events if event.cell == 0) == "started"
    assert hashes(tmp_path) == expected(wanted)
    assert [record.attempts for record in Store(tmp_path).load_all()] == [1] * 4
    assert len(list((tmp_path / "single_task").glob("*/*/summary.json"))) == 4  # two tasks, two seeds: each once
    assert not list(tmp_path.glob(".shared-*"))


def test_cells_of_a_lost_node_go_on_at_one_that_joined_later(
    tmp_path: Path, toy_data: Path, nodes: Nodes, expected: Callable[..., dict[str, str | None]]
) -> None:
    (first,) = nodes.exactly(1)
    wanted, events, killed = cells(methods=["hard_sharing"], **LONG), [], False
    for event in RayExecutor(settings_of(tmp_path, toy_data), None, nodes.address, 1.0).run(wanted):
        events.append(event)
        if event.kind == "progress" and not killed:
            killed = True
            nodes.kill(first)
            nodes.add(1)
    assert statuses(events) == dict.fromkeys(range(2), ("done", ""))
    assert [event.message for event in events if event.kind == "note"] == [
        "A node was lost; its cells go on elsewhere."
    ]
    assert hashes(tmp_path) == expected(wanted)


def test_a_killed_worker_fails_its_cell_and_no_other(
    tmp_path: Path, toy_data: Path, connected_nodes: Nodes, expected: Callable[..., dict[str, str | None]]
) -> None:
    connected_nodes.exactly(2)
    wanted, events, killed = cells(methods=["hard_sharing"], **LONG), [], False
    for event in RayExecutor(settings_of(tmp_path, toy_data), None, connected_nodes.address, 1.0).run(wanted):
        events.append(event)
        if event.kind == "progress" and event.cell == 0 and not killed:
            killed = True
            os.kill(process_of(tmp_path, wanted[0].key), signal.SIGKILL)
    assert statuses(events)[0] == ("failed", "The worker process ended (out of memory, or a crash in native code).")
    assert statuses(events)[1] == ("done", "")
    assert all(event.seconds > 0 for event in events if event.kind == "finished")
    list(RayExecutor(settings_of(tmp_path, toy_data), None, connected_nodes.address, 1.0).run(wanted[:1]))
    assert hashes(tmp_path) == expected(wanted)


def test_nothing_runs_on_once_the_events_are_left(tmp_path: Path, toy_data: Path, connected_nodes: Nodes) -> None:
    """As at an interrupt: the cell's process is gone, its lock free, and a later run takes it up."""
    connected_nodes.exactly(1)
    wanted = cells(methods=["hard_sharing"], seeds=[0], **LONG)
    executor = RayExecutor(settings_of(tmp_path, toy_data), None, connected_nodes.address, 1.0)
    for event in (events := executor.run(wanted)):
        if event.kind == "progress":
            break
    events.close()
    with Store(tmp_path).lock(wanted[0].key, timeout_s=300):
        assert not hashes(tmp_path)
    assert not list(tmp_path.glob(".shared-*"))


def test_a_node_that_joins_later_and_has_other_code_takes_no_cells(
    tmp_path: Path, toy_data: Path, connected_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's code is another one than the nodes' after they were looked at."""
    connected_nodes.exactly(1)
    executor = RayExecutor(settings_of(tmp_path, toy_data), None, connected_nodes.address, 1.0)
    monkeypatch.setattr(ray_cluster, "package_hash", lambda: "other")
    with pytest.raises(UsageError, match="has other code of sharebench than this machine: install the same"):
        list(executor.run(cells(methods=["hard_sharing"])))
    monkeypatch.setattr(ray_executor._Work, "require_fit_nodes", lambda work: None)
    notes = []
    for event in (events := executor.run(cells(methods=["hard_sharing"]))):
        if event.kind == "note":
            notes.append(event.message)
            break
    events.close()
    assert notes[0].endswith("install the same. It takes no cells.")
    assert not hashes(tmp_path)


def test_cells_go_to_nodes_that_take_them_with_the_memory_of_their_kind(
    tmp_path: Path, toy_data: Path, connected_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two nodes refuses; the cells ask for the memory that another seed took, or for all that a node has."""
    import ray

    wanted = toy_cells(seeds=[0, 1])
    for cell, peak in zip(toy_cells(seeds=[9]), (2**20, 2**60), strict=True):
        Store(tmp_path).write(Record(cell=cell.document, status="done", cost={"peak_bytes": peak}))
    refuses, takes = (node.node_id for node in connected_nodes.exactly(1, 1))
    largest: list[float] = []

    def told(number: int, *_: object) -> Any:
        node = ray.get_runtime_context().get_node_id()
        if node == refuses:
            return ray_executor._Unfit(node, "Node far has other code.")
        return Outcome("failed", str(ray.get_runtime_context().get_assigned_resources()["memory"]), 0.1)

    monkeypatch.setattr(ray_executor, "_run_cell", told)
    events = []
    for event in RayExecutor(settings_of(tmp_path, toy_data), None, connected_nodes.address, 1.0).run(wanted):
        events.append(event)
        largest += [node["Resources"]["memory"] for node in ray.nodes() if node["NodeID"] == takes]
    assert [event.message for event in events if event.kind == "note"] == [
        "Node far has other code. It takes no cells."
    ]
    memory = {cell: float(message) for cell, (_, message) in statuses(events).items()}
    assert memory == {n: 2**20 if cell.is_reference else int(largest[0]) for n, cell in enumerate(wanted)}


def test_a_cluster_without_room_for_a_cell_is_refused(tmp_path: Path, toy_data: Path, connected_nodes: Nodes) -> None:
    settings = dataclasses.replace(settings_of(tmp_path, toy_data), threads=3)
    connected_nodes.exactly(1, 2)
    with pytest.raises(UsageError, match="No node of the Ray cluster has the 3 CPUs of a cell"):
        list(RayExecutor(settings, None, connected_nodes.address, 1.0).run(cells()))
    settings = dataclasses.replace(settings_of(tmp_path, toy_data), device="cuda")
    with pytest.raises(UsageError, match=r"has the 1 CPUs and 0\.5 GPUs of a cell"):
        list(RayExecutor(settings, None, connected_nodes.address, 0.5).run(cells()))


def test_one_node_measures_throughput_and_is_held_whole(
    tmp_path: Path, connected_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on this machine, from a relative folder; what runs beside a measurement would be measured with it."""
    connected_nodes.exactly(1, 2)
    store_cells(tmp_path / "run", planned())
    monkeypatch.chdir(tmp_path)
    choices = Choices(batches=(2,), threads=(1,), modes=("joint",), memory=False)
    protocol = SpeedProtocol(pairs=2, warm_up=WarmUpRule(steps=1, seconds=0.0, limit_s=0.0, shared=True))
    console = Console(file=io.StringIO(), width=120)
    executor = ExecutorChoice("ray", connected_nodes.address)
    code, measured = throughput.measure(Path("run"), choices, console, protocol, executor)
    assert code == 0
    assert [one.measurement.status for one in measured] == ["done"]
    assert {entry.status for entry in measured[0].measurement.networks} == {"done"}
    assert len(list(Path("run", "speed").rglob("*.json"))) == 1

    def held(job: SpeedJob) -> list[Any]:
        return [ray.get_runtime_context().get_assigned_resources(), job.root, job.plugins]

    import ray

    monkeypatch.setattr(ray_node, "_measured", held)
    job = SpeedJob(Path("run"), (), SpeedSettings(batch=2), plugins=("own.py",))
    with ray_node.ray_node(connected_nodes.address, tmp_path / "run", on_gpu=False) as node:
        assert list(node.run_job(job)) == [{"CPU": 2.0}, tmp_path / "run", (str(tmp_path / "own.py"),)]
        assert node.cores >= 1
        gone = [{"NodeID": "0" * 56, "Alive": True, "Resources": {"CPU": 99.0}}, *ray.nodes()]
        monkeypatch.setattr(ray, "nodes", lambda: gone)
        with ray_node.ray_node(connected_nodes.address, tmp_path / "run", on_gpu=False) as next_one:
            assert next_one == node  # the larger one died before the cluster knew
        monkeypatch.setattr(ray_node, "_measured", lambda job: "Record 0 is gone.")
        with pytest.raises(UsageError, match=r"^Record 0 is gone\.$"):
            list(node.run_job(job))
    with (
        pytest.raises(UsageError, match="No node of the Ray cluster has a GPU to measure on"),
        ray_node.ray_node(connected_nodes.address, tmp_path / "run", on_gpu=True),
    ):
        pass
