"""`python -m benchmark.data verify|show|prepare NAME`: is a data set right, what does it look like, make it fast.

Exit codes: 0 fine, 1 something is bad, 2 usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.api import data
from benchmark.cli import PluginOption, make_console, split_names, start, usage_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A data set; `python -m benchmark.list` names them.")]
Root = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with a folder a data set; else SHAREBENCH_DATA.")
]
LayoutOption = Annotated[str | None, typer.Option("--layout", help="Where two layouts lie side by side.")]
Protocol = Annotated[str, typer.Option(help="Whose labels: standard, adashare, mtan, ...")]
Twin = Annotated[bool, typer.Option("--twin", help="A part of the data: published counts and checksums do not apply.")]
Tasks = Annotated[
    str | None, typer.Option(help="Only these tasks, comma-separated; of sets on disk, all of the layout if left out.")
]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="An option of the data set, `list NAME` names them: size=40x30.")
]
Workers = Annotated[int, typer.Option(min=1, help="Samples that are decoded side by side.")]


@app.command()
def verify(
    name: Name,
    data_root: Root = None,
    layout: LayoutOption = None,
    protocol: Protocol = "standard",
    full: Annotated[
        bool, typer.Option("--full", help="Decode every sample, not the first and last of a split.")
    ] = False,
    twin: Twin = False,
    tasks: Tasks = None,
    workers: Workers = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every bad file there.")] = None,
    plugin: PluginOption = None,
) -> None:
    """Counts, files, checksums, shapes, ranges, ids; every bad file is named."""
    request = data.DataRequest(name, data_root, layout, protocol, twin, split_names(tasks), (), plugin or ())
    with usage_errors():
        code = data.verify(request, make_console(), full=full, workers=workers, json_file=json_file)
    raise typer.Exit(code)


@app.command()
def show(
    name: Name,
    data_root: Root = None,
    layout: LayoutOption = None,
    protocol: Protocol = "standard",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    tasks: Tasks = None,
    options: Options = None,
    samples: Annotated[int, typer.Option(min=1, help="Rows of the sheet; of multi-domain data, columns.")] = 6,
    twin: Twin = False,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("results") / "data",
    plugin: PluginOption = None,
) -> None:
    """A contact sheet: images of a split with every label beside them."""
    request = data.DataRequest(name, data_root, layout, protocol, twin, split_names(tasks), options or (), plugin or ())
    with usage_errors():
        data.show(request, make_console(), split=split, samples=samples, out=out)


@app.command()
def prepare(
    name: Name,
    data_root: Root = None,
    layout: LayoutOption = None,
    protocol: Protocol = "standard",
    twin: Twin = False,
    tasks: Tasks = None,
    options: Options = None,
    workers: Workers = 4,
    plugin: PluginOption = None,
) -> None:
    """A lossless, memory-mapped copy that later runs read instead of the files; goes on where it was interrupted."""
    request = data.DataRequest(name, data_root, layout, protocol, twin, split_names(tasks), options or (), plugin or ())
    with usage_errors():
        data.prepare(request, make_console(), workers=workers)


@app.command("convert-weights")
def convert_weights(
    file: Annotated[Path, typer.Argument(help="A state dict with EfficientNet-PyTorch's names, or timm's own.")],
    to: Annotated[Path, typer.Option("--to", help="The .safetensors file to write.")],
    backbone: Annotated[str, typer.Option(help="timm's name of the model, such as tf_efficientnet_lite0.")],
) -> None:
    """Bring a file of weights to timm's names, once; every shape is checked, and nothing is unpickled."""
    with usage_errors():
        data.convert_weights(file, to, backbone, make_console())


if __name__ == "__main__":
    start(app)
