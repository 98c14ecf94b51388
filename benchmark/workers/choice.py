"""Which executor runs the cells: what `--executor` and its options say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from benchmark.cli import pick_device
from benchmark.workers import executors
from benchmark.workers.executors import Executor, n_workers
from benchmark.workers.processes import start_server
from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from benchmark.train.cell import RunSettings

EXECUTORS = ("local", "ray")


@dataclasses.dataclass(frozen=True)
class ExecutorChoice:
    """Where cells run. name: `local` or `ray`. address: of a Ray cluster, `auto` or HOST:PORT; None starts one on this
    machine. gpus_per_cell: of a Ray cluster where the device is CUDA; a fraction shares a GPU between cells.

    Raises UsageError for another name, and for options of Ray without it.
    """

    name: str = "local"
    address: str | None = None
    gpus_per_cell: float | None = None

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise unknown("executor", self.name, EXECUTORS)
        options = {"address": self.address, "gpus-per-cell": self.gpus_per_cell}
        if self.name != "ray" and (given := [name for name, value in options.items() if value is not None]):
            raise UsageError(f"--{given[0]} is of the executor ray; say --executor ray.")
        gpus = self.gpus_per_cell
        if gpus is not None and not (0 < gpus <= 1 or (gpus > 1 and gpus.is_integer())):
            raise UsageError(f"--gpus-per-cell {gpus:g}: expected a whole number, or one between 0 and 1, such as 0.5.")

    def device(self, name: str) -> str:
        """The device of the cells; `auto` is what this machine has. CUDA devices of a cluster need not be here. Raises
        UsageError for a device that is not there, and for one of several where Ray decides.
        """
        if self.name == "local" or not name.startswith("cuda"):
            return pick_device(name)
        if name != "cuda":
            raise UsageError(f"--device {name}: with --executor ray it is cuda; Ray says which of a node's GPUs.")
        return name

    def prepare(self, device: str) -> None:
        """Have what workers will need be loaded meanwhile."""
        if self.name == "local" and device == "cpu":
            start_server()

    def executor(self, settings: RunSettings, jobs: int | None) -> Executor:
        """The executor. jobs: cells at once, None for what there is room for."""
        if self.name == "local":
            return executors.LocalExecutor(settings, n_workers(jobs, settings.device))
        from benchmark.workers.ray_executor import RayExecutor

        return RayExecutor(settings, jobs, self.address, 1.0 if self.gpus_per_cell is None else self.gpus_per_cell)

    def words(self, settings: RunSettings, jobs: int | None, n_cells: int) -> str:
        """For the first line of a run: `2 workers on cpu`."""
        if self.name == "local":
            return f"{min(n_workers(jobs, settings.device), max(1, n_cells))} workers on {settings.device}"
        return f"on {settings.device} of {'a Ray cluster' if self.address else 'Ray on this machine'}"
