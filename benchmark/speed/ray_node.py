"""Measuring on one node of a Ray cluster, which is held whole meanwhile, so that no cell runs beside it.

All measurements of a sweep are made on the same node: rows of one table are never of different hardware.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.records.measurements import MeasurementFile
from benchmark.speed.jobs import SpeedJob
from benchmark.workers.ray_cluster import connected, fitness_of, on_node, passed_on, require_fit, shared_token
from datasets.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class _GoneError(UsageError):
    """A node was lost."""


@dataclasses.dataclass(frozen=True)
class RayNode:
    """A node that measures. identifier: Ray's. cpus, gpus: of Ray's resources there, all of which a job holds. cores:
    physical ones.
    """

    identifier: str
    cpus: float
    gpus: float
    cores: int = 0

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> RayNode:
        """The node of an entry of `ray.nodes()`. Raises _GoneError."""
        from benchmark.speed.device import physical_cores

        found = cls(node["NodeID"], _count(node, "CPU"), _count(node, "GPU"))
        return dataclasses.replace(found, cores=int(found._call(physical_cores, threads=1, whole=False)))

    def run_job(self, job: SpeedJob) -> Iterator[MeasurementFile]:
        """As of `benchmark.speed.process`, once the node is free. Raises UsageError where it cannot."""
        job = dataclasses.replace(
            job,
            root=job.root.absolute(),
            data_root=None if job.data_root is None else job.data_root.absolute(),
            plugins=tuple(str(Path(plugin).absolute()) for plugin in job.plugins),
        )
        found: list[MeasurementFile] | str = self._call(_measured, job, threads=job.settings.threads, whole=True)
        if isinstance(found, str):
            raise UsageError(found)
        yield from found

    def _call(self, function: Any, *arguments: object, threads: int, whole: bool) -> Any:
        import ray

        task = ray.remote(function).options(
            num_cpus=self.cpus if whole else 0,
            num_gpus=self.gpus if whole else 0,
            max_retries=0,
            scheduling_strategy=on_node(self.identifier),
            runtime_env={"env_vars": passed_on(threads)},
        )
        answer = task.remote(*arguments)
        try:
            return ray.get(answer)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError) as error:
            raise _GoneError(f"The node that measures was lost: {str(error).strip().splitlines()[0]}") from None
        except ray.exceptions.RayError as error:
            raise UsageError(f"Nothing was measured: {str(error).strip().splitlines()[-1]}") from None
        except BaseException:  # an interrupt: the process there ends too
            ray.cancel(answer, force=True)
            raise


def _measured(job: SpeedJob) -> list[MeasurementFile] | str:
    """Body of the task: the measurements, or why there are none."""
    from benchmark.speed.process import run_job

    try:
        return list(run_job(job))
    except UsageError as error:
        return str(error)


@contextlib.contextmanager
def ray_node(address: str | None, out: Path, on_gpu: bool) -> Iterator[RayNode]:
    """The node with the most CPUs, of those with a GPU where one is measured. out: folder of the results, absolute.
    Raises UsageError where no cluster answers, or where the node cannot do what this machine does.
    """
    with connected(address), shared_token(out) as token:
        import ray

        kind = "GPU" if on_gpu else "CPU"
        nodes = [node for node in ray.nodes() if node["Alive"] and _count(node, kind) >= 1]
        if not nodes:
            raise UsageError(f"No node of the Ray cluster has a {kind} to measure on.")
        for node in sorted(nodes, key=lambda node: (-_count(node, "CPU"), node["NodeID"])):
            require_fit([node], token, fitness_of(token), out)
            try:
                measuring = RayNode.of(node)
            except _GoneError:  # it died a moment ago, before the cluster knew
                continue
            yield measuring
            return
        raise UsageError("No node of the Ray cluster is left to measure on.")


def _count(node: Mapping[str, Any], resource: str) -> float:
    return float(node["Resources"].get(resource, 0.0))
