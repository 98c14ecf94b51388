"""`python -m benchmark.list [NAME]`: methods, data sets, backbones and suites; with a name, what there is to know of
it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from benchmark import boards
from benchmark.entry import start
from benchmark.run import fail
from benchmark.suite import find_suite, read_suite, suite_names
from datasets.errors import UsageError, unknown

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_WIDTH = 118


def describe(name: str | None) -> str:
    """Text for one name, or the overview. Raises UnknownNameError with the nearest names."""
    from datasets.registry import dataset_names
    from methods.backbone import supported_backbones
    from methods.registry import method_names

    if name is None:
        return "\n".join(_overview())
    kinds: list[tuple[list[str], Callable[[str], Iterator[str]]]] = [
        (method_names(), _method),
        (dataset_names(), _dataset),
        (suite_names(), _suite),
        (supported_backbones(), _backbone),
        (boards.board_names(), lambda board: boards.describe(boards.read_board(board))),
    ]
    found = [line for names, describer in kinds if name in names for line in describer(name)]
    if found:  # a suite of published settings and its board have one name
        return "\n".join(found)
    if name == "backbones":
        return "\n".join(supported_backbones())
    if name == "boards":
        return "\n".join(boards.overview())
    raise unknown("name", name, [*(known for names, _ in kinds for known in names), "backbones", "boards"])


def _overview() -> Iterator[str]:
    from datasets.registry import dataset_names, dataset_spec
    from methods.backbone import supported_backbones
    from methods.registry import get_method, method_names

    yield "Methods"
    for name in method_names():
        yield f"  {name:<20} {_first_line(get_method(name).__doc__)}"
    yield "Data sets"
    for name in dataset_names():
        spec = dataset_spec(name)
        yield f"  {name:<20} {', '.join(spec.task_names)} ({spec.tier})"
    yield "Suites"
    for name in suite_names():
        yield f"  {name:<20} {_first_line(read_suite(find_suite(name)).description)}"
    yield f"Backbones: {len(supported_backbones())} timm models; `list backbones` names them"
    yield f"Published tables: {len(boards.board_names())}; `list boards` names them"


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0][: _WIDTH - 24]


def _method(name: str) -> Iterator[str]:
    from benchmark.labels import flat_params
    from methods.registry import get_method

    method = get_method(name)
    yield f"Method {name}: {_first_line(method.__doc__)}"
    yield f"  {method.fidelity.citation}"
    yield f"  {method.fidelity.link}"
    yield "Parameters" if method.Params.model_fields else "No parameters"
    for key, value in flat_params(method.Params().model_dump(mode="json")):
        yield f"  {key} = {value}"
    for paragraph in method.about():
        yield from textwrap.wrap(paragraph, _WIDTH, subsequent_indent="  ")
    yield "Where each part comes from"
    for statement in method.fidelity.statements:
        yield from textwrap.wrap(
            f"[{statement.tag}] {statement.text}", _WIDTH, initial_indent="  ", subsequent_indent="    "
        )


def _dataset(name: str) -> Iterator[str]:
    from datasets.registry import dataset_spec

    spec = dataset_spec(name)
    yield f"Data set {name}, layout {spec.layout}, version {spec.version}: {spec.tier}"
    yield f"  {spec.home}; licence: {spec.licence}"
    yield f"  {spec.domains}-domain, {spec.native_size[0]}x{spec.native_size[1]}, " + ", ".join(
        f"{split} {count}" for split, count in spec.splits.items()
    )
    for task in spec.tasks:
        metrics = ", ".join(task.metrics)
        yield f"  {task.name:<12} {task.kind}, {task.channels} channels, weight {task.weight:g}: {metrics}"


def _suite(name: str) -> Iterator[str]:
    suite = read_suite(find_suite(name))
    yield f"Suite {name}"
    yield from textwrap.wrap(suite.description, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield f"  methods: {', '.join(method.name for method in suite.methods)}"
    yield f"  data: {', '.join(data.dataset for data in suite.data)}"
    yield f"  backbones: {', '.join(backbone.name for backbone in suite.backbones)}"
    seeds = ", ".join(map(str, suite.seeds))
    yield f"  seeds: {seeds}; {suite.budget.steps} final steps; {len(list(suite.cells()))} cells"


def _backbone(name: str) -> Iterator[str]:
    from methods.backbone import BackboneConfig, create_backbone

    config = BackboneConfig(name=name)
    try:
        backbone = create_backbone(config, seed=0)
    except UsageError:  # families with a position embedding need a size
        backbone = create_backbone(BackboneConfig(name=name, image_size=(224, 224)), seed=0)
    units = sum(block.skip is not None for block in backbone.blocks)
    yield f"Backbone {name}: {backbone.n_parameters():,} parameters (stem, blocks, tail)"
    yield f"  {len(backbone.blocks)} blocks, {units} of which can be skipped; layout {backbone.layout}"
    yield f"  stages: {', '.join(f'blocks {stage.start}-{stage.stop - 1}' for stage in backbone.stages)}"


@app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(help="A method, data set, suite, backbone, board; `backbones`, `boards`.")
    ] = None,
) -> None:
    """List what there is, or describe one thing."""
    try:
        print(describe(name))
    except UsageError as error:
        fail(error)


def main() -> None:
    """Entry point of `python -m benchmark.list`."""
    start(app)


if __name__ == "__main__":
    main()
