"""From records to speed files and tables: which networks are measured, in which modes, what is stored and skipped."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from benchmark import throughput
from benchmark.records.measurements import (
    MeasurementFile,
    NetworkEntry,
    SpeedSettings,
    Spread,
    StepTimes,
    light_settings,
    read_speed,
    write_measurement,
)
from benchmark.records.networks import load_graph
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.show import speed as show_speed
from benchmark.show.speed import CSV_COLUMNS, NamedMeasurement, as_csv, draw_speed
from benchmark.speed import light, process
from benchmark.speed.jobs import SpeedJob, TableJob, is_measured, modes_of, networks_of
from benchmark.speed.light import LIGHT_PROTOCOL, measure_light
from benchmark.speed.networks import TableNetworks, guarded
from benchmark.speed.session import measure_memory, measure_table
from benchmark.speed.sweep import Choices, settings_of
from benchmark.speed.timing import SpeedProtocol, WarmUpRule
from benchmark.workers.processes import end_of, messages_of
from datasets.errors import UsageError
from methods.graph.task_graph import TaskGraph
from tests.unit.cells import planned, store_cells
from tests.unit.made_records import make_record
from tests.unit.measuring import in_this_process

TINY = SpeedProtocol(pairs=2, warm_up=WarmUpRule(steps=1, seconds=0.0, limit_s=0.0, shared=True))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    store_cells(root, planned())
    return root


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    store_cells(root, planned("mnist_two_domains"))
    return root


def job_of(root: Path, *modes: str, batch: int = 2, **settings: Any) -> tuple[SpeedJob, TableJob]:
    ((table, records),) = networks_of(Store(root).load_all()).items()
    wanted = TableJob(table, {record.key: tuple(modes_of(record, modes)) for record in records})
    return SpeedJob(root, (wanted,), SpeedSettings(batch=batch, **settings), TINY), wanted


# Which networks


def test_a_row_is_measured_once_at_its_lowest_seed_that_is_done() -> None:
    def record(method: str, seed: int, graph: str, status: str = "done", **options: Any) -> Record:
        made = make_record(method, seed, reference=method == "separate", **options)
        return dataclasses.replace(made, status=status, graph={"hash": graph})

    records = [
        record("shared", 1, "one"),
        record("shared", 0, "one", status="failed"),
        record("shared", 2, "one"),
        record("shared", 1, "one", params={"longer": True}),  # another row with an equal network
        record("separate", 3, "many"),
        record("shared", 0, "one", data={"dataset": "other"}),
    ]
    tables = networks_of(records)
    found = sorted([[(r.cell["method"]["name"], r.cell["seed"]) for r in group] for group in tables.values()])  # type: ignore[index]
    assert found == [[("separate", 3), ("shared", 1)], [("shared", 0)]]
    assert networks_of(records, keys={records[2].key})[next(iter(networks_of([records[2]])))] == [records[2]]


def test_modes_follow_from_who_shares_images() -> None:
    single = make_record(compute={"macs_joint": 10})
    multi = make_record(compute={"macs_joint": None})
    asked = ("joint", "mixed", "task")
    assert modes_of(single, asked) == ["joint", "task:semseg", "task:depth"]
    assert modes_of(multi, asked) == ["mixed", "task:semseg", "task:depth"]
    assert modes_of(single, ["task:depth", "task:none", "train-step"]) == ["task:depth", "train-step"]


# What is called


def test_a_joint_step_is_the_stored_network_on_one_batch(folder: Path) -> None:
    """The callable computes what the graph computes, and calls nothing else."""
    store = Store(folder)
    record = next(r for r in store.load_all() if r.audit["reference"] is None)
    parts = TableNetworks(record, SpeedSettings(batch=3), CPU)
    graph = load_graph(store, record)
    calls: list[tuple[str, tuple[int, ...]]] = []
    for name, node in graph.nodes.items():
        node.module.register_forward_hook(
            lambda module, args, out, name=name: calls.append((name, tuple(args[0].shape)))
        )
    network = parts.inference(graph, "joint", "owner")
    assert (network.images, network.predictions) == (3, 6)
    network.step()
    assert [name for name, _ in calls] == [node.name for node in graph.reachable()]
    assert calls[0][1] == (3, 3, 36, 36)
    assert network.weights_bytes == sum(t.numel() * t.element_size() for t in graph.tensors().values())
    calls.clear()
    alone = parts.inference(graph, "task:right", "owner")
    assert (alone.images, alone.predictions) == (3, 3)
    alone.step()
    assert [name for name, _ in calls] == [node.name for node in graph.reachable(["right"])]


def test_networks_run_in_eval_and_inference_mode(folder: Path) -> None:
    store = Store(folder)
    record = store.load_all()[0]
    parts, graph = TableNetworks(record, SpeedSettings(batch=2), CPU), load_graph(store, record)
    before = graph.weights_hash()
    seen: list[tuple[bool, bool]] = []
    first = graph.reachable()[0].module
    first.register_forward_hook(
        lambda module, args, out: seen.append((module.training, torch.is_inference_mode_enabled()))
    )
    parts.inference(graph, "joint", "").step()
    assert seen
    assert set(seen) == {(False, True)}
    assert graph.weights_hash() == before


def test_a_mixed_step_gives_each_task_its_own_batch(domains: Path) -> None:
    store = Store(domains)
    record = next(r for r in store.load_all() if r.audit["reference"] is None)
    parts, graph = TableNetworks(record, SpeedSettings(batch=2), CPU), load_graph(store, record)
    network = parts.inference(graph, "mixed", "")
    assert (network.images, network.predictions) == (4, 4)
    calls: list[str] = []
    for name, node in graph.nodes.items():
        node.module.register_forward_hook(lambda *args, name=name: calls.append(name))
    network.step()
    assert calls == [node.name for task in graph.tasks for node in graph.reachable([task])]
    assert not torch.equal(parts.images("plain"), parts.images("inverted"))


def test_dtype_and_memory_format_are_those_of_model_and_input(folder: Path) -> None:
    store = Store(folder)
    record = store.load_all()[0]
    seen: list[tuple[torch.dtype, bool]] = []

    def outputs(dtype: str) -> set[tuple[torch.dtype, bool]]:
        settings = SpeedSettings(batch=2, dtype=dtype, memory_format="channels_last")  # type: ignore[arg-type]
        parts, graph = TableNetworks(record, settings, CPU), load_graph(store, record)
        seen.clear()
        graph.reachable()[0].module.register_forward_hook(
            lambda module, args, out: seen.append((out.dtype, out.is_contiguous(memory_format=torch.channels_last)))
        )
        parts.inference(graph, "joint", "").step()
        weights = {weight.dtype for weight in graph.parameters()}
        assert weights == {torch.bfloat16 if dtype == "bf16" else torch.float32}
        return set(seen)

    assert outputs("fp32") == {(torch.float32, True)}
    assert outputs("bf16") == {(torch.bfloat16, True)}
    assert outputs("amp-bf16") <= {(torch.bfloat16, True), (torch.float32, True)}


def test_a_training_step_updates_every_weight(folder: Path) -> None:
    store = Store(folder)
    record = next(r for r in store.load_all() if r.audit["reference"] is None)
    parts, graph = TableNetworks(record, SpeedSettings(batch=4), CPU), load_graph(store, record)
    batch = parts.training_batch(None)
    assert batch.images["image"].shape == (4, 3, 36, 36)
    network = parts.training(graph, batch, "")
    assert (network.images, network.predictions) == (4, 8)
    before = [weight.detach().clone() for weight in graph.parameters()]
    network.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, graph.parameters(), strict=True))


def test_every_form_of_running_out_of_memory_is_one() -> None:
    def failing(error: Exception) -> None:
        raise error

    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(MemoryError):
            guarded(lambda error=error: failing(error))()  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="shape"):
        guarded(lambda: failing(RuntimeError("wrong shape")))()


# One measurement


def test_a_measurement_says_everything(folder: Path) -> None:
    job, table = job_of(folder, "joint", "mixed", "task")
    measurement = measure_table(job, table)
    assert (measurement.status, measurement.form, measurement.residency) == ("done", "pairs", None)
    assert [(entry.method, entry.mode) for entry in measurement.networks] == [
        (method, mode) for method in ("single_task", "hard_sharing") for mode in ("joint", "task:left", "task:right")
    ]
    for entry in measurement.networks:
        assert entry.status == "done"
        assert (entry.batch, entry.images) == (2, 2)
        assert entry.predictions == (4 if entry.mode == "joint" else 2)
        assert len(entry.raw["network_ns"]) == len(entry.raw["reference_ns"]) == 2
        assert entry.r is not None
        assert entry.r_stl is not None
        if entry.is_reference:
            assert entry.r_stl == 1.0
    assert measurement.aa is not None
    assert measurement.reference["backbone"]["name"] == "test_resnet"
    assert measurement.reference["what"] == "plain backbone without heads"
    assert measurement.environment["threads"]["inter_op"] >= 1  # type: ignore[index]
    assert {"package_hash", "torch"} <= set(measurement.versions)
    assert set(measurement.states) == {"before", "after"}


def test_r_stl_is_taken_pair_by_pair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were paired with ref; the ratio of the ratios removes the moment, the ratio of the medians would not."""
    from benchmark.speed import session as speed_session
    from benchmark.speed.measure import Measurement, Sampled

    real = speed_session.measure_pairs

    def scripted(*args: Any, **kwargs: Any) -> Measurement:
        measured = real(*args, **kwargs)
        networks = dict(measured.networks)
        for name, ratios in zip(networks, ((0.5, 0.4, 0.1), (0.6, 0.2, 0.3)), strict=True):
            result = networks[name]
            assert isinstance(result, Sampled)
            networks[name] = dataclasses.replace(result, ratios=ratios)
        return dataclasses.replace(measured, networks=networks)

    monkeypatch.setattr(speed_session, "measure_pairs", scripted)
    job, table = job_of(folder, "joint")
    single, shared = measure_table(job, table).networks
    assert single.r_stl == 1.0
    assert shared.r_stl == pytest.approx(1.2)  # median of 1.2, 0.5, 3.0; of the medians: 0.3 / 0.4


def test_train_step_has_a_reference_with_heads_and_no_company(folder: Path) -> None:
    job, table = job_of(folder, "train-step", batch=4)
    measurement = measure_table(job, table)
    assert measurement.reference["what"] == "plain backbone with a head for every task"
    assert [entry.mode for entry in measurement.networks] == ["train-step"] * 2
    assert all(entry.status == "done" for entry in measurement.networks)
    mixed = TableJob(table.table, dict.fromkeys(table.wanted, ("joint", "train-step")))
    with pytest.raises(UsageError, match="apart"):
        measure_table(job, mixed)


def test_t3_the_batch_that_was_tried_is_in_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = TableNetworks.inference

    def inference(self: TableNetworks, graph: TaskGraph, mode: str, owner: str) -> Any:
        network = real(self, graph, mode, owner)
        if len(graph.parameters()) > 60:  # the single-task networks

            def too_large() -> None:
                tried.append(self.settings.batch)
                raise torch.OutOfMemoryError("CUDA out of memory.")

            network = dataclasses.replace(network, step=guarded(too_large))
        return network

    monkeypatch.setattr(TableNetworks, "inference", inference)
    job, table = job_of(folder, "joint", batch=32)
    single, shared = measure_table(job, table).networks
    assert (single.status, single.batch, single.images_per_s, single.r) == ("oom", 32, None, None)
    assert single.message is not None
    assert "out of memory" in single.message
    assert tried == [32]
    assert shared.status == "done"
    assert shared.r_stl is None  # nothing to compare with


def test_where_the_reference_fails_nothing_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(self: TableNetworks) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(TableNetworks, "reference", out_of_memory)
    job, table = job_of(folder, "joint")
    measurement = measure_table(job, table)
    assert (measurement.status, measurement.aa) == ("oom", None)
    assert {entry.status for entry in measurement.networks} == {"oom"}
    write_measurement(folder / "elsewhere", measurement)
    assert read_speed(folder / "elsewhere").problems == ()


def test_a_network_whose_files_are_gone_fails_alone(tmp_path: Path) -> None:
    records = store_cells(tmp_path, planned())
    (tmp_path / records["hard_sharing"].artifacts["weights"]["file"]).unlink()
    job, table = job_of(tmp_path, "joint")
    single, shared = measure_table(job, table).networks
    assert (single.status, shared.status) == ("done", "failed")
    assert shared.message is not None
    assert "weights.safetensors" in shared.message


def test_memory_of_one_network(folder: Path) -> None:
    job, table = job_of(folder, "joint")
    key = next(iter(table.wanted))
    memory = measure_memory(job, TableJob(table.table, {key: ("joint",)}))
    assert memory["weights_bytes"]
    assert memory["peak_bytes"] is None or memory["peak_bytes"] > memory["weights_bytes"]
    assert memory["reserved_bytes"] is None


# Files


def measurement(
    started: str = "2030-01-01T00:00:00Z", r: float = 0.9, graph: str = "g", **changes: Any
) -> MeasurementFile:
    entry = NetworkEntry(
        graph=graph, mode="joint", status="done", batch=8, method="shared", params={}, seed=0, is_reference=False,
        images=8, predictions=16, images_per_s=Spread(100.0, 90.0, 110.0), predictions_per_s=200.0,
        step_ms=StepTimes(80.0, 75.0, 90.0, 5.0), r=r, r_stl=1.9, flags=("unstable",), raw={"network_ns": [1, 2]},
    )  # fmt: skip
    values: dict[str, Any] = {
        "schema": 1, "status": "done", "message": None, "started": started, "seconds": 3.0, "table": "0123456789ab",
        "settings": SpeedSettings(batch=8), "form": "pairs", "protocol": {"pairs": 60}, "aa": 1.01,
        "reference": {"what": "ref", "ref": {"images_per_s": {"median": 110.0}, "flags": []}}, "flags": ("noisy",),
        "cpu_share": 0.99, "residency": None, "device": "a CPU", "versions": {"package_hash": "p"}, "environment": {},
        "states": {}, "networks": (entry,),
    }  # fmt: skip
    return MeasurementFile(**{**values, **changes})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = measurement()
    path = write_measurement(tmp_path, written)
    assert path.parent == tmp_path / "speed" / "cpu-b8-fp32-contiguous-t1-eager"
    assert path.name == "20300101t000000z-0123456789ab-joint.json"
    results = read_speed(tmp_path)
    assert results.problems == ()
    found = results.find("g", SpeedSettings(batch=8).name, "joint")
    assert found is not None
    assert found.measurement == written
    assert found.flags == ("noisy", "unstable")
    assert results.find("g", SpeedSettings(batch=1).name, "joint") is None
    assert results.find("other", SpeedSettings(batch=8).name, "joint") is None


def test_the_latest_measurement_counts_and_none_is_overwritten(tmp_path: Path) -> None:
    write_measurement(tmp_path, measurement("2030-01-02T00:00:00Z", r=0.8))
    write_measurement(tmp_path, measurement("2030-01-01T00:00:00Z", r=0.7))
    first = write_measurement(tmp_path, measurement("2030-01-01T00:00:00Z", r=0.6))
    assert len(list(first.parent.iterdir())) == 3
    found = read_speed(tmp_path).find("g", SpeedSettings(batch=8).name, "joint")
    assert found is not None
    assert found.entry.r == 0.8


def test_files_that_cannot_be_read_are_said_not_raised(tmp_path: Path) -> None:
    good = write_measurement(tmp_path, measurement())
    document = json.loads(good.read_bytes())
    for name, text in {
        "torn": good.read_text()[:100],
        "old": json.dumps({**document, "schema": 0}),
        "wrong": json.dumps({**document, "aa": "fast"}),
        "list": "[]",
    }.items():
        (good.parent / f"{name}.json").write_text(text)
    results = read_speed(tmp_path)
    assert len(results.networks) == 1
    assert len(results.problems) == 4
    assert any("wrong.json: aa: " in line for line in results.problems)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1, "dtype": "fp23"}, "Nearest: 'fp32'"),
        ({"batch": 1, "dtype": "tf32"}, "CUDA only"),
        ({"batch": 1, "device": "gpu"}, "Unknown device 'gpu'"),
        ({"batch": 1, "memory_format": "nhwc"}, "channels_last"),
        ({"batch": 1, "threads": 0}, "threads is 0"),
    ],
)
def test_settings_that_do_not_exist_are_errors(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SpeedSettings(**wrong)


def test_names_of_settings_differ_and_are_safe() -> None:
    variants = [
        SpeedSettings(batch=batch, device=device, memory_format=form, threads=threads, execution=execution)  # type: ignore[arg-type]
        for batch, device, form, threads, execution in itertools.product(
            (1, 11), ("cpu", "cuda"), ("contiguous", "channels_last"), (1, 2), ("eager", "compiled", "folded")
        )
    ]
    assert len({settings.name for settings in variants}) == len(variants)
    assert all(set(settings.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for settings in variants)


# The light measurement


def test_the_light_setting_is_the_specified_one() -> None:
    assert light_settings("cpu") == SpeedSettings(batch=8, device="cpu", dtype="fp32", threads=1)
    assert light_settings("cuda:1") == SpeedSettings(
        batch=32, device="cuda", dtype="amp-bf16", memory_format="channels_last", threads=1
    )
    assert (LIGHT_PROTOCOL.pairs, LIGHT_PROTOCOL.rounds) == (60, 7)
    rule = LIGHT_PROTOCOL.warm_up
    assert (rule.steps, rule.seconds, rule.tolerance) == (10, 2.0, 0.03)


def test_light_in_a_process_of_its_own_then_not_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = store_cells(tmp_path, planned())
    before = dict(os.environ)
    first = measure_light(Store(tmp_path), protocol=TINY)
    assert dict(os.environ) == before
    assert (first.measured, first.kept, first.failures) == (2, 0, ())
    name = light_settings("cpu").name
    results = read_speed(tmp_path)
    found = results.find(str(records["hard_sharing"].graph["hash"]), name, "task:left")
    assert found is not None
    assert found.measurement.environment["threads"] == {"intra_op": 1, "inter_op": 1}
    assert found.measurement.environment["env"]["OMP_NUM_THREADS"] == "1"

    started: list[SpeedJob] = []

    def recorded(job: SpeedJob) -> Iterator[MeasurementFile]:
        started.append(job)
        return in_this_process(job)

    monkeypatch.setattr(light, "run_job", recorded)
    again = measure_light(Store(tmp_path), protocol=TINY)
    assert (again.measured, again.kept) == (0, 2)
    assert not started
    monkeypatch.setattr(light, "package_hash", lambda: "other code")
    measure_light(Store(tmp_path), protocol=TINY)
    assert len(started) == 1
    assert is_measured(results, records["hard_sharing"], "joint", light_settings("cpu"), "other code", "") is False


def test_light_takes_the_single_task_networks_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is added later is compared with them in its own measurement, not across two."""
    monkeypatch.setattr(light, "run_job", in_this_process)
    single, shared = planned()
    store_cells(tmp_path, [single])
    assert measure_light(Store(tmp_path), protocol=TINY).measured == 1
    records = store_cells(tmp_path, [shared])
    assert measure_light(Store(tmp_path), protocol=TINY).measured == 2
    found = read_speed(tmp_path).find(str(records["hard_sharing"].graph["hash"]), light_settings("cpu").name, "joint")
    assert found is not None
    assert found.entry.r_stl is not None
    assert measure_light(Store(tmp_path), keys={single.key}, protocol=TINY).kept == 1


def test_beside_records_without_networks_an_own_row_is_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a copy of a shipped leaderboard: nothing is tried that cannot be, and speeds that were shipped stay."""
    monkeypatch.setattr(light, "run_job", in_this_process)
    store, (single, shared) = Store(tmp_path), planned()
    records = store_cells(tmp_path, [single])
    assert measure_light(store, protocol=TINY).absent == 0
    (tmp_path / records["single_task"].artifacts["weights"]["file"]).unlink()
    store_cells(tmp_path, [shared])
    found = measure_light(store, protocol=TINY)
    assert (found.measured, found.absent, found.failures) == (1, 1, ())
    old = str(records["single_task"].graph["hash"])
    kept = read_speed(tmp_path).find(old, light_settings("cpu").name, "joint")
    assert kept is not None
    assert kept.entry.status == "done"
    monkeypatch.setattr(process, "run_job", lambda job: in_this_process(dataclasses.replace(job, protocol=TINY)))
    said = invoke(tmp_path, "--batch", "1", "--threads", "1", "--mode", "joint", "--no-memory")
    assert said.exit_code == 1
    assert "Records without networks here are left out: 1." in said.output
    for path in (tmp_path / "artifacts").rglob("graph.json"):
        path.unlink()
    said = invoke(tmp_path)
    assert said.exit_code == 2
    assert "holds 2 finished records without networks; run their cells to have them" in " ".join(said.output.split())


def test_a_measuring_process_that_dies_is_one_line() -> None:
    messages = messages_of(os._exit, 1)  # which takes no connection and ends in a TypeError
    with pytest.raises(UsageError, match="ended with exit code 1"):
        next(messages)


@pytest.mark.parametrize(
    ("code", "said"),
    [(-9, "signal 9 (out of memory, or a crash in native code)"), (3, "exit code 3; its message stands above")],
)
def test_how_a_process_ended_is_said_in_words(code: int, said: str) -> None:
    process = mock.Mock(exitcode=code)
    assert end_of(process) == said
    process.join.assert_called_once_with()


def test_what_the_measuring_process_cannot_do_is_one_line(tmp_path: Path) -> None:
    sent: list[object] = []

    class Connection:
        send = sent.append

    job = SpeedJob(tmp_path, (TableJob("0" * 12, {"0" * 32: ("joint",)}),), SpeedSettings(batch=1), TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.speed.device.configure_for_speed", lambda settings: None)
        patch.setattr("signal.signal", lambda *args: None)
        process.work(Connection(), job)  # type: ignore[arg-type]
    assert sent == [f"Record {'0' * 32} is gone; it was there when the measurement was planned."]


# The command


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(throughput.app, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_a_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[SpeedJob] = []

    def recorded(job: SpeedJob) -> Iterator[MeasurementFile]:
        jobs.append(job)
        return in_this_process(dataclasses.replace(job, protocol=TINY))

    monkeypatch.setattr(process, "run_job", recorded)
    result = invoke(folder, "--device", "cpu", "--batch", "1,2", "--threads", "1", "--mode", "joint,train-step")
    assert result.exit_code == 0, result.output
    assert [job.settings.batch for job in jobs] == [1, 2, 4]  # train-step at the training batch, once
    assert {job.protocol for job in jobs} == {SpeedProtocol()}
    assert all(job.memory for job in jobs)
    assert "latency ms" in result.output
    assert "step ms" in result.output
    assert "A/A" in result.output
    assert "hard_sharing" in result.output


def test_the_full_protocol_is_the_default() -> None:
    def settings(device: str) -> list[tuple[object, ...]]:
        found = settings_of(Choices(), device, cores=4)
        return [(s.batch, s.threads, s.dtype, s.memory_format, s.execution) for s in found]

    assert settings("cpu") == [
        (batch, threads, "fp32", "contiguous", "eager") for threads in (1, 4) for batch in (1, 8)
    ]
    assert settings("cuda:0") == [
        (batch, 1, dtype, form, "eager")
        for dtype, form in (("amp-bf16", "channels_last"), ("fp32", "contiguous"))
        for batch in (1, 8, 32, 128)
    ]


def test_every_choice_is_swept() -> None:
    choices = Choices(
        batches=(1, 4),
        threads=(1, 2),
        dtypes=("fp32", "bf16"),
        memory_formats=("contiguous", "channels_last"),
        executions=("eager", "compiled"),
    )
    found = settings_of(choices, "cpu", cores=2)
    assert len(found) == len(set(found)) == 2**5
    assert {(s.batch, s.threads, s.dtype, s.memory_format, s.execution) for s in found} == set(
        itertools.product((1, 4), (1, 2), ("fp32", "bf16"), ("contiguous", "channels_last"), ("eager", "compiled"))
    )


def test_folded_networks_are_measured_beside_eager_ones_and_say_what_they_gain(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "run_job", lambda job: in_this_process(dataclasses.replace(job, protocol=TINY)))
    arguments = ("--batch", "2", "--threads", "1", "--mode", "joint", "--no-memory")
    result = invoke(folder, *arguments, "--execution", "eager,folded", "--csv", tmp_path / "speed.csv")
    assert result.exit_code == 0, result.output
    written = list(csv.DictReader(io.StringIO((tmp_path / "speed.csv").read_text(encoding="utf-8"))))
    assert {(row["execution"], row["memory_format"], row["status"]) for row in written} == {
        ("eager", "contiguous", "done"),
        ("folded", "channels_last", "done"),
    }
    assert result.output.count("x eager") == 1
    speeds = {(row["execution"], row["graph"]): float(row["images_per_s"]) for row in written}
    graph = written[0]["graph"]
    assert f"{speeds['folded', graph] / speeds['eager', graph]:.2f}" in result.output
    refused = invoke(folder, "--mode", "train-step", "--execution", "folded")
    assert refused.exit_code == 2
    assert "a folded network cannot be trained" in refused.output


def test_a_sweep_is_printed_whole_and_written_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal a line has 120 characters; a long name must not push the numbers out of the table."""
    long = "a_method_with_a_name (" + ", ".join(f"parameter_{number}=value_{number}" for number in range(12)) + ")"
    monkeypatch.setattr(
        "benchmark.tables.labels.row_labels", lambda records: [f"{n} {long}" for n in range(len(records))]
    )
    monkeypatch.setattr(process, "run_job", lambda job: in_this_process(dataclasses.replace(job, protocol=TINY)))
    arguments = ("--device", "cpu,cpu", "--batch", "1,2", "--threads", "1", "--mode", "joint")
    arguments += ("--memory-format", "contiguous,channels_last", "--no-memory")
    result = invoke(folder, *arguments, "--csv", tmp_path / "speed.csv", "--plot", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if long in line]
    assert len(lines) == 8  # two networks, two batch sizes, two memory formats
    written = list(csv.DictReader(io.StringIO((tmp_path / "speed.csv").read_text(encoding="utf-8"))))
    assert len(written) == 8
    assert tuple(written[0]) == CSV_COLUMNS
    for line, values in zip(lines, written, strict=True):
        assert values["network"] in line
        assert f"{float(values['images_per_s']):,.0f}" in line
        assert f"{float(values['r']):.3f}" in line
        assert float(values["images_per_s_low"]) <= float(values["images_per_s"])
    assert {(row["batch"], row["memory_format"], row["execution"]) for row in written} == set(
        itertools.product(("1", "2"), ("contiguous", "channels_last"), ("eager",))
    )
    ((table, _),) = networks_of(Store(folder).load_all()).items()
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"throughput-{table[:8]}-joint.png",
        f"throughput-{table[:8]}-joint.svg",
    }


def test_a_picture_shows_every_network_setting_and_the_whole_of_long_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    monkeypatch.setattr("matplotlib.rc_context", lambda rc: contextlib.nullcontext())  # text stays text
    long = "shared (" + "x" * 90 + "=1)"
    measured = [
        NamedMeasurement(measurement(settings=SpeedSettings(batch=batch, dtype=dtype)), "digits", "tiny", {"g": long})
        for batch in (1, 8)
        for dtype in ("fp32", "bf16")
    ]
    png, svg = draw_speed(measured, tmp_path / "speed.png")
    assert (png.name, svg.name) == ("speed.png", "speed.svg")
    text = svg.read_text(encoding="utf-8")
    for word in (
        long,
        "ref (ref)",
        "cpu, fp32, contiguous, 1 thread, eager",
        "cpu, bf16",
        "digits · tiny",
        "batch size",
    ):
        assert word in text
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])
    edges = [float(x) for x in re.findall(r"translate\(([\d.]+) [\d.]+\)", text)]
    assert edges
    assert max(edges) < width


def test_what_was_not_measured_is_in_the_csv_too() -> None:
    failed = dataclasses.replace(
        measurement().networks[0], status="oom", message="no memory", images_per_s=None, step_ms=None, r=None
    )
    whole = measurement(status="failed", message="ref: no memory", aa=None, networks=(), reference={"what": "ref"})
    text = as_csv([NamedMeasurement(one, "d", "b", {}) for one in (measurement(networks=(failed,)), whole)])
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["status"], first["message"], first["images_per_s"]) == ("oom", "no memory", "")
    assert (second["status"], second["message"], second["network"]) == ("failed", "ref: no memory", "")
    with pytest.raises(UsageError, match="Nothing was measured"):
        draw_speed([NamedMeasurement(whole, "d", "b", {})], Path("unused"))


def test_cuda_says_that_it_has_not_been_tried(capsys: pytest.CaptureFixture[str]) -> None:
    for device, words in (("cuda", 1), ("cpu", 0)):
        settings = SpeedSettings(batch=8, device=device)
        assert list(show_speed._about(measurement(settings=settings))).count(show_speed.NEVER_ON_CUDA) == words


def test_exit_code_1_where_a_network_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = store_cells(tmp_path, planned())
    (tmp_path / records["hard_sharing"].artifacts["graph"]["file"]).write_text("{}")
    monkeypatch.setattr(process, "run_job", lambda job: in_this_process(dataclasses.replace(job, protocol=TINY)))
    result = invoke(tmp_path, "--device", "cpu", "--batch", "1", "--threads", "1", "--mode", "joint")
    assert result.exit_code == 1
    assert "hard_sharing joint: failed at batch 1" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "1,zero"], "whole numbers"),
        (["--dtype", "fp23"], "Nearest: 'fp32'"),
        (["--mode", "jiont"], "Nearest: 'joint'"),
        (["--mode", "mixed"], "no table here has it"),
        (["--execution", "eagre"], "Nearest: 'eager'"),
        (["--memory-format", "contiguous,nhwc"], "Unknown memory format 'nhwc'"),
        (["--plot", "speed.pdf"], "expected a folder, or a file that ends in .png or .svg"),
        (["--device", "gpu"], "expected auto, cpu, cuda"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    result = invoke(folder, *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_folder_without_records_is_exit_code_2(tmp_path: Path) -> None:
    assert invoke(tmp_path).exit_code == 2


def test_the_command_and_the_reader_start_without_torch() -> None:
    modules = "benchmark.throughput, benchmark.records.measurements, benchmark.speed.jobs"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
