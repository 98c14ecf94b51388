"""Speed measured without the process of its own that keeps a measurement clean and takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

from benchmark.records.measurements import MeasurementFile, write_measurement
from benchmark.speed.jobs import SpeedJob
from benchmark.speed.session import measure_table


def in_this_process(job: SpeedJob) -> Iterator[MeasurementFile]:
    for table in job.tables:
        measurement = measure_table(job, table)
        write_measurement(job.root, measurement)
        yield measurement
