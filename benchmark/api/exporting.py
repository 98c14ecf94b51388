"""What `export` does: the trained network of a record as a file to deploy. torch is loaded once the record is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli import say
from benchmark.deploy.export import CHECKED_BATCHES, ExportError, Form, export_network, feed_lines, file_name
from benchmark.deploy.find import find_record
from benchmark.records.store import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

EXIT_NOT_EXPORTED = 1


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """Which network to write, and how.

    record: JSON file of a record, or the folder of a run. row, seed: with a folder, as `find_record`. out: None for
    METHOD-KEY-seedN.FORM in the working directory. tasks: only these, with what they need of the network. batch: the
    one batch size that the file takes, None leaves it open.
    """

    record: Path
    row: str | None = None
    form: Form = Form.pt2
    out: Path | None = None
    tasks: Sequence[str] | None = None
    batch: int | None = None
    seed: int | None = None
    plugins: Sequence[str] = ()


def export(request: ExportRequest, console: Console, errors: Console) -> int:
    """Write the file, and print what to feed it and how it was checked; returns 0, or EXIT_NOT_EXPORTED where the
    network has no such form or does not come back the same. errors: console for that reason. Raises UsageError.
    """
    store, record = find_record(request.record, request.row, request.seed)  # before torch
    from benchmark.deploy.network import load_network

    network = load_network(record, out=store.root, tasks=request.tasks, plugins=request.plugins)
    file = request.out or Path(file_name(network, request.form, request.tasks))
    try:
        data, difference, reason = export_network(network, request.form, request.batch)
    except ExportError as error:
        say(errors, f"error: {error}")
        return EXIT_NOT_EXPORTED
    write_atomic(file, data)
    method, description = network.description.method["name"], network.description
    say(console, f"{file}: {method}, seed {description.seed}, cell {description.cell}, {len(data) / 1e6:.1f} MB")
    for line in feed_lines(network, request.form):
        say(console, line)
    batches = " and ".join(map(str, CHECKED_BATCHES if request.batch is None else (request.batch,)))
    checked = f"checked at batch {batches}: largest difference from the network"
    say(console, f"not checked: {reason}" if difference is None else f"{checked} {difference:.2g}")
    return 0
