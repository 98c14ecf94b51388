"""`python -m benchmark.export RECORD`: the trained network of a record as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from benchmark.api import exporting
from benchmark.cli import PluginOption, make_console, split_names, start, usage_errors
from datasets.errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch {text!r}: expected dynamic, or a whole number above 0.")
    return int(text)


@app.command()
def export(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record's JSON file, or the folder of a run.")],
    row: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="ROW", help="With a folder: a row's label, a method, or a cell key's start."),
    ] = None,
    to: Annotated[exporting.Form, typer.Option("--to", help="Form of the file.")] = exporting.Form.pt2,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Default: METHOD-KEY-seedN.FORM in this folder."),
    ] = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--task", help="Only these tasks, comma-separated, and what they need of the network."),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="dynamic, or the one batch size that the file takes.")] = (
        "dynamic"
    ),
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--seed", help="Seed of the row. Default: the lowest that is done."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write the trained network of a record to a file: pt2 (torch.export), onnx, or safetensors (weights and graph).

    The network takes normalised images; what to feed it is printed and stored in the file. Exit codes: 0 written, 1 the
    network has no such form or did not come back the same, 2 usage.

    Examples:

      python -m benchmark.export results/runs/quick hard_sharing --to onnx

      python -m benchmark.export results/runs/quick 1f3a09c2 --task left --out left.pt2
    """
    with usage_errors():
        request = exporting.ExportRequest(
            record,
            row,
            form=to,
            out=out,
            tasks=split_names(task),
            batch=_batch(batch),
            seed=seed,
            plugins=[str(path) for path in plugin or ()],
        )
        code = exporting.export(request, make_console(), make_console(stderr=True))
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.export`."""
    start(app)


if __name__ == "__main__":
    main()
