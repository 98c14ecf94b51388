"""What is asked of Ray and cannot be had is one line; what must be alike on all nodes. No cluster is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmark.train.cell import RunSettings
from benchmark.workers import ray_cluster
from benchmark.workers.choice import ExecutorChoice
from benchmark.workers.executors import LocalExecutor
from benchmark.workers.ray_cluster import unfit
from benchmark.workers.ray_executor import RayExecutor
from datasets.errors import UsageError

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")


def test_what_must_be_alike_on_all_nodes(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    here = ray_cluster.fitness_of(token)
    assert unfit(here, here, tmp_path) is None
    for changes, words in (
        ({"sees_results": False}, f"does not see {tmp_path}: the results folder must be one that all nodes share"),
        ({"code": "other"}, "has other code of sharebench"),
        ({"versions": {**here.versions, "torch": "1.0"}}, "has torch 1.0, this machine"),
        ({"versions": {**here.versions, "timm": None}}, "has timm None, this machine"),
    ):
        why = unfit(dataclasses.replace(here, host="far", **changes), here, tmp_path)
        assert why is not None
        assert why.startswith("Node far ")
        assert words in why
        assert "\n" not in why
    assert not ray_cluster.fitness_of(tmp_path / "absent").sees_results


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"name": "rai"}, "Unknown executor 'rai'. Nearest: 'ray'"),
        ({"address": "auto"}, "--address is of the executor ray; say --executor ray"),
        ({"gpus_per_cell": 0.5}, "--gpus-per-cell is of the executor ray"),
        ({"name": "ray", "gpus_per_cell": 0.0}, "expected a whole number, or one between 0 and 1"),
        ({"name": "ray", "gpus_per_cell": 1.5}, "--gpus-per-cell 1.5: expected a whole number"),
        ({"name": "ray", "gpus_per_cell": float("nan")}, "expected a whole number"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ExecutorChoice(**choice)


def test_the_choice_makes_the_executor_and_names_it(tmp_path: Path) -> None:
    settings = RunSettings(Path("out"), Path("data"))
    local = ExecutorChoice().executor(settings, 3)
    assert isinstance(local, LocalExecutor)
    assert local.jobs == 3
    assert ExecutorChoice().words(settings, 3, 2) == "2 workers on cpu"
    ray = ExecutorChoice("ray", "auto", 0.25).executor(dataclasses.replace(settings, device="cuda"), 3)
    assert isinstance(ray, RayExecutor)
    assert (ray.jobs, ray.address, ray.gpus) == (3, "auto", 0.25)
    assert (ray.settings.out, ray.settings.data_root) == (Path.cwd() / "out", Path.cwd() / "data")
    assert ExecutorChoice("ray").executor(settings, None).gpus == 0.0
    assert ExecutorChoice("ray").words(settings, None, 2) == "on cpu of Ray on this machine"
    assert ExecutorChoice("ray", "auto").words(settings, None, 2) == "on cpu of a Ray cluster"


def test_the_gpus_of_a_cluster_need_not_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    choice = ExecutorChoice("ray", "auto")
    assert [choice.device(name) for name in ("cuda", "cpu", "auto")] == ["cuda", "cpu", "cpu"]
    with pytest.raises(UsageError, match="--device cuda:1: with --executor ray it is cuda"):
        choice.device("cuda:1")
    with pytest.raises(UsageError, match="PyTorch sees 0 CUDA devices here"):
        ExecutorChoice().device("cuda")


def test_no_cluster_at_an_address_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself only says that it could not connect, also where a cluster runs and asks for a token."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    executor = RayExecutor(RunSettings(tmp_path), None, "no address", 1.0)
    with pytest.raises(UsageError, match=r"^No Ray cluster at .* Start one with `ray start --head`; .*MODE=token") as e:
        list(executor.run([]))
    assert "\n" not in str(e.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UsageError, match=r"Start one with `ray start --head`\.$"):
        list(executor.run([]))
