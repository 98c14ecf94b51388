"""Training, resuming, measuring and exporting on a CUDA device: the cells of the CPU, within what float32 allows.

Losses of the first step are compared, before training amplifies what sums in another order differ by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.api.throughput import Choices, ThroughputRequest, throughput
from benchmark.cli import make_console
from benchmark.deploy.export import Form, export_network
from benchmark.deploy.network import load_network
from benchmark.records.measurements import read_speed
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.loaders import RoleLoader
from methods.registry import method_names
from tests.unit.cells import toy_cells
from tests.unit.kills import Killed

pytestmark = pytest.mark.usefixtures("toy_data")
STEPS = {"budget": {"steps": 12, "cycles": 3}}
METHODS = [name for name in method_names() if name != "task_switching"]  # whose one output is of one kind


def run_one(folder: Path, device: str, method: str = "hard_sharing", **changes: Any) -> Record:
    params = {"tau_sim": 0.5} if method == "dmo" else {}
    (cell,) = toy_cells(methods=[{"name": method, "params": params}], **{**STEPS, **changes})
    record = run_cell(cell, RunSettings(folder, device=device))
    assert record.status == "done", record.error
    return record


def first_losses(record: Record) -> list[float]:
    found = [curve[0] for name, curve in sorted(record.curves.items()) if name.startswith("loss")]
    return [value for value in found if value is not None]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_as_on_the_cpu(method: str, tmp_path: Path, device: str) -> None:
    there, here = (run_one(tmp_path / name, name, method) for name in (device, "cpu"))
    assert first_losses(there) == pytest.approx(first_losses(here), rel=2e-2, abs=2e-2)
    assert there.size["total"] == here.size["total"] or method in ("adashare", "dag_search", "dmo", "taps")
    assert there.environment["device"] != "cpu" or device == "cpu"
    for scores in there.metrics.values():
        assert all(math.isfinite(entry["value"]) for entry in scores.values() if entry["value"] is not None)


@pytest.mark.parametrize("precision", ["amp-bf16", "amp-fp16"])
def test_half_precision_trains_and_reports_in_float32(precision: str, tmp_path: Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("is of CUDA")
    half = run_one(tmp_path / "half", device, recipe={"batch_size": 16, "precision": precision})
    full = run_one(tmp_path / "full", device)
    assert first_losses(half) == pytest.approx(first_losses(full), rel=0.05, abs=0.05)


def test_both_memory_formats_start_alike(tmp_path: Path, device: str) -> None:
    losses = [
        first_losses(run_one(tmp_path / form, device, recipe={"batch_size": 16, "memory_format": form}))
        for form in ("contiguous", "channels_last")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("method", ["hard_sharing", "dag_search", "adashare", "bmtas"])
def test_a_stopped_cell_goes_on_from_its_checkpoint(
    method: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = toy_cells(methods=[method], **STEPS)
    settings = RunSettings(tmp_path / "stopped", device=device, checkpoint_steps=2)
    training, seen = RoleLoader.training, 0

    def counted(*args: Any) -> Iterator[Any]:
        nonlocal seen
        for batch in training(*args):
            seen += 1
            if seen == 9:
                raise Killed
            yield batch

    monkeypatch.setattr(RoleLoader, "training", counted)
    with pytest.raises(Killed):
        run_cell(cell, settings)
    record = run_cell(cell, settings)
    assert record.status == "done"
    stopped, seen = seen, 0
    straight = run_cell(cell, dataclasses.replace(settings, out=tmp_path / "straight"))
    assert stopped < seen + 9  # it did not begin anew
    assert first_losses(record) == pytest.approx(first_losses(straight), rel=1e-2)
    assert record.cost["final"]["optimizer_steps"] == straight.cost["final"]["optimizer_steps"]


def test_peak_memory_of_the_device_is_recorded(tmp_path: Path, device: str) -> None:
    record = run_one(tmp_path, device)
    peaks = [value for name, value in record.cost.items() if "peak" in name]
    assert peaks
    assert all(value is None or value > 0 for value in peaks)


@pytest.mark.parametrize("execution", ["eager", "compiled", "folded"])
def test_throughput_by_the_protocol(execution: str, tmp_path: Path, device: str) -> None:
    for method in ("single_task", "hard_sharing"):
        run_one(tmp_path, device, method)
    choices = Choices(
        devices=(device,), batches=(8,), dtypes=("fp32",) if device == "cpu" else ("fp32", "bf16"),
        modes=("joint",), executions=(execution,), memory=execution == "eager", threads=(1,),
    )  # fmt: skip
    assert throughput(ThroughputRequest(tmp_path, choices), make_console()) == 0
    found = read_speed(tmp_path)
    assert not found.problems
    assert len(found.networks) == 2
    for by_settings in found.networks.values():
        assert len(by_settings) == len(choices.dtypes or ())
        for by_mode in by_settings.values():
            assert by_mode["joint"].entry.status == "done"
            assert execution != "eager" or by_mode["joint"].entry.memory is not None


def test_the_state_of_the_device_is_known(device: str) -> None:
    if device == "cpu":
        pytest.skip("is of CUDA")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed (extra gpu)")
    from benchmark.speed.device import device_state

    state = device_state(torch.device(device))
    assert all(state[name] is not None for name in ("clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"))


def test_what_was_trained_there_runs_and_is_exported_here(tmp_path: Path, device: str) -> None:
    run_one(tmp_path, device)
    network = load_network(tmp_path, "hard_sharing")
    images = torch.rand(4, 3, 8, 8)
    with torch.inference_mode():
        here = network(network.normalise(images))
        there = network.to(device)(network.normalise(images).to(device))
    for task, values in here.items():
        torch.testing.assert_close(there[task].cpu(), values, rtol=1e-3, atol=1e-3)
    data, difference, _ = export_network(network.to("cpu"), Form.pt2, None)
    assert data
    assert difference < 1e-4


def test_a_cell_that_exceeds_the_memory_says_so_and_leaves_room_for_the_next(tmp_path: Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("is of CUDA")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(2e-4, 32 * 2**20 / total), device)
    try:
        (cell,) = toy_cells(methods=["hard_sharing"], backbones=["resnet50"], **STEPS)
        assert run_cell(cell, RunSettings(tmp_path, device=device)).status == "oom"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert Store(tmp_path).load_all()[0].status == "oom"
    run_one(tmp_path / "next", device)
