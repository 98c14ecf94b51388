"""What `list` prints: methods, data sets, backbones, suites, boards and loss balancing, or one of them in full."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel

from benchmark.api import glossary
from benchmark.compare import boards
from benchmark.escape import plain
from benchmark.plan.plugins import load_plugins
from benchmark.plan.suite_file import find_suite, read_suite, suite_names
from datasets.errors import UsageError, unknown

_WIDTH = 118


def describe(name: str | None, plugins: Sequence[str | Path] = ()) -> str:
    """Text about one name, or the overview for None, without control characters.

    plugins: files that register more names. Backbones and ways to balance losses are looked through last: their names
    come with timm and torch. Raises UnknownNameError with the nearest names.
    """
    load_plugins(plugins)
    return plain("\n".join(_described(name)), keep="\n")


def _described(name: str | None) -> Iterator[str]:
    from datasets.registry import dataset_names
    from methods.registry import method_names

    if name is None:
        return _overview()
    whole: dict[str, Callable[[], Iterator[str]]] = {
        "augmentation": _all_augmentation,
        "balancing": _all_balancing,
        "backbones": _all_backbones,
        "boards": boards.overview,
        "heads": glossary.heads,
        "kinds": glossary.kinds,
        "methods": _all_methods,
        "metrics": glossary.metrics,
    }
    if name in whole:
        return whole[name]()
    kinds: list[tuple[list[str], Callable[[str], Iterator[str]]]] = [
        (method_names(), _method),
        (dataset_names(), _dataset),
        (suite_names(), _suite),
        (boards.board_names(), lambda board: boards.describe(boards.read_board(board))),
    ]
    # A suite of published settings and its board have one name.
    found = [line for names, describer in kinds if name in names for line in describer(name)]
    if not found:
        from benchmark.plan.balancing import balancing_names
        from methods.backbones.backbone import supported_backbones

        kinds += [(balancing_names(), _balancing), (supported_backbones(), _backbone)]
        found = [line for names, describer in kinds if name in names for line in describer(name)]
    if not found:
        raise unknown("name", name, [*(known for names, _ in kinds for known in names), *whole])
    return iter(found)


def _overview() -> Iterator[str]:
    """What the files say of themselves: no method, data set or backbone is imported."""
    from datasets.registry import dataset_names, declared_datasets, get_dataset

    yield from _all_methods()
    yield "Data sets"
    data = declared_datasets()
    for name in dataset_names():
        yield f"  {name:<20} {_first_line(data[name].about if name in data else get_dataset(name).__doc__)}"
    yield "Suites"
    for name in suite_names():
        yield f"  {name:<20} {_first_line(read_suite(find_suite(name)).description)}"
    yield "Tasks: `list kinds` tells what labels hold, `list metrics` how they are judged, `list heads` what draws"
    yield "Augmentation: `list augmentation` names the steps"
    yield "Loss balancing: `list balancing` names the ways"
    yield "Backbones: timm models; `list backbones` names them"
    yield f"Published tables: {len(boards.board_names())}; `list boards` names them"


def _all_methods() -> Iterator[str]:
    from methods.registry import declared_methods, get_method, method_names

    yield "Methods (`list methods --table` puts them side by side)"
    methods = declared_methods()
    for name in method_names():
        yield f"  {name:<20} {_first_line(methods[name].about if name in methods else get_method(name).__doc__)}"


def _all_backbones() -> Iterator[str]:
    from methods.backbones.backbone import supported_backbones

    yield from supported_backbones()


def _all_balancing() -> Iterator[str]:
    """Every way to balance losses, with its paper."""
    from benchmark.plan.balancing import BALANCERS, EQUAL

    yield "Loss balancing"
    yield f"  {EQUAL:<16} the sum of the weighted losses"
    for name, entry in BALANCERS.items():
        about = f"{entry.kind}: {entry.paper}"
        yield from textwrap.wrap(about, _WIDTH, initial_indent=f"  {name:<16} ", subsequent_indent=" " * 19)
    yield "In a suite: `balancing: [equal, pcgrad]` makes a row of each, for all methods or in the entry of one."


def _all_augmentation() -> Iterator[str]:
    """Every step of augmentation, with its options."""
    from datasets.images.augmentation import STEPS

    yield "Steps of augmentation, as a recipe names them: `augmentation: [shift, {name: rotation, degrees: 10}]`"
    for name, step in STEPS.items():
        yield from _wrapped(f"{name}: {_sentence(step.__doc__)}", "")
        for key, field in step.model_fields.items():
            yield from _option(f"{key} = {_value(field.get_default())}", field.description)


def _balancing(name: str) -> Iterator[str]:
    from benchmark.plan.balancing import BALANCERS, EQUAL

    if name == EQUAL:
        yield f"Loss balancing {EQUAL}: the sum of the weighted losses. No parameters."
        return
    entry = BALANCERS[name]
    losses = entry.kind == "scalarizer"
    yield f"Loss balancing {name}: " + ("one loss of the losses" if losses else "one gradient of the tasks' gradients")
    yield from textwrap.wrap(entry.paper, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield f"  {entry.link}; torchjd.{'scalarization' if losses else 'aggregation'}.{entry.title}"
    yield "Parameters" if entry.parameters() else "No parameters"
    for key, default in entry.parameters().items():
        if entry.takes_vector(key):
            yield f"  {key} = {{task: number}}{', left out by default' if default is None else ''}"
        else:
            yield f"  {key} = {'null' if default is None else default}"


def _sentence(text: str | None) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _first_line(text: str | None) -> str:
    """What fits beside a name in the overview."""
    return (text or "").strip().split("\n")[0][: _WIDTH - 24]


def _method(name: str) -> Iterator[str]:
    from methods.registry import get_method

    method = get_method(name)
    yield f"Method {name}: {_sentence(method.__doc__)}"
    yield f"  {method.fidelity.citation}"
    yield f"  {method.fidelity.link}"
    yield "Parameters" if method.Params.model_fields else "No parameters"
    yield from _parameters(method.Params)
    for paragraph in method.about():
        yield from textwrap.wrap(paragraph, _WIDTH, subsequent_indent="  ")
    yield "Where each part comes from"
    for statement in method.fidelity.statements:
        yield from textwrap.wrap(
            f"[{statement.tag}] {statement.text}", _WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    if method.fidelity.references:
        yield "To cite"
        for reference in method.fidelity.references:
            yield from textwrap.indent(reference.bibtex(), "  ").splitlines()


def _parameters(params: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Name, default, type and meaning of every parameter, and the range in which it is tuned; those of nested settings
    by their dotted names.
    """
    from methods.parameters import Tuned

    for key, field in params.model_fields.items():
        parts = get_args(field.annotation) or (field.annotation,)
        nested = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        default = "required" if field.is_required() else _value(field.get_default())
        if not isinstance(field.default, BaseModel):
            about = f"{prefix}{key} = {default} ({_choices(field.annotation)})"
            about += f": {field.description}" if field.description else ""  # a plug-in may have none
            about += "".join(
                f" [tuned: {one.low:g} to {one.high:g}]" for one in field.metadata if isinstance(one, Tuned)
            )
            yield from textwrap.wrap(about, _WIDTH, initial_indent="  ", subsequent_indent="      ")
        for model in nested:
            yield from _parameters(model, f"{prefix}{key}.")


def _dataset(name: str) -> Iterator[str]:
    """What is the same for all layouts, then each layout with its tasks and caveats."""
    from datasets.registry import get_dataset

    loader = get_dataset(name)
    first = loader.spec(loader.protocols[0], loader.Options())
    yield f"Data set {name}, version {first.version}: {_sentence(loader.__doc__)}"
    yield f"  {first.home}; licence: {first.licence}"
    yield f"  protocols: {', '.join(loader.protocols)}"
    if loader.package:
        yield f"  files: from the package {loader.package}"
    fields = loader.Options.model_fields
    yield "Options" if fields else "No options"
    for key, field in fields.items():
        yield from _option(f"{key} = {_value(field.get_default())} ({_choices(field.annotation)})", field.description)
    for layout in loader.layouts or (first.layout,):
        yield from _layout(name, layout)


def _layout(name: str, layout: str) -> Iterator[str]:
    """One layout of a data set, by the first protocol that it has labels for."""
    from datasets.errors import ProtocolError
    from datasets.registry import get_dataset, spec_of

    loader = get_dataset(name)
    options, chosen = loader.Options(), layout if loader.layouts else None
    for protocol in loader.protocols:
        try:
            spec = spec_of(loader, protocol, options, chosen)
        except ProtocolError:
            continue
        break
    else:
        yield f"Layout {layout}: none of the protocols with default options"
        return
    usual = " (the usual one)" if loader.layouts and layout == next(iter(loader.layouts)) else ""
    beside = "" if protocol == loader.protocols[0] else f", protocol {protocol}"
    yield f"Layout {layout}{usual}: {spec.tier}{beside}"
    if loader.layouts:
        files = loader.layouts[layout]
        yield from _wrapped(f"files: {name}/{files.tree} ({files.size})", "  ")
        if files.source:
            yield from _wrapped(f"from: {files.source}", "  ")
        if files.commands:
            yield f"  to get it: {' && '.join(files.pasted(name))}"  # one line, so that it can be pasted
    yield f"  {spec.domains}-domain, {spec.native_size[0]}x{spec.native_size[1]}, " + ", ".join(
        f"{split} {count}" for split, count in spec.splits.items()
    )
    unavailable = loader.unavailable(options, chosen)
    column = max(len(task) for task in spec.task_names)
    for task in spec.tasks:
        if task.name in unavailable:
            yield from _wrapped(f"{task.name}: not available: {unavailable[task.name]}", "  ")
        else:
            unit = f" in {task.unit}" if task.unit else ""
            yield (
                f"  {task.name:<{column}}  {task.kind}{unit}, {task.channels} channels, weight {task.weight:g}: "
                f"{', '.join(task.metrics)}"
            )
    for caveat in spec.caveats:
        yield from _wrapped(f"caveat: {caveat}", "  ")


def _option(declared: str, description: str | None) -> list[str]:
    return _wrapped(f"{declared}: {description}" if description else declared, "  ")


def _value(value: object) -> str:
    """As YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, tuple) else str(value)


def _choices(annotation: object) -> str:
    """The values that an annotation takes: those of a Literal, else names of types."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _choices(parts[0])
    if origin is tuple:
        return f"[{', '.join('..' if part is ... else _choices(part) for part in parts)}]"
    if origin is dict:
        return f"{{{': '.join(map(_choices, parts))}}}"
    if origin is not None:
        return ", ".join(_choices(part) for part in parts)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False)


def _suite(name: str) -> Iterator[str]:
    suite = read_suite(find_suite(name))
    yield f"Suite {name}"
    yield from textwrap.wrap(suite.description, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield f"  methods: {', '.join(method.name for method in suite.methods)}"
    yield f"  data: {', '.join(data.dataset for data in suite.data)}"
    yield f"  backbones: {', '.join(backbone.name for backbone in suite.backbones)}"
    seeds = ", ".join(map(str, suite.seeds))
    yield f"  seeds: {seeds}; {suite.budget.steps} final steps; {len(list(suite.cells()))} cells"


def check_backbones(target: str, plugins: Sequence[str | Path] = ()) -> Iterator[tuple[str, bool]]:
    """(line, whether all is right) for a timm model, or for each model of the families that the file `target` adds.

    Raises UsageError for an unknown name, and for a file that adds none.
    """
    from methods.backbones.backbone import supported_backbones
    from methods.backbones.check import summary
    from methods.backbones.family import find_family

    load_plugins(plugins)
    names = [target]
    if target.endswith(".py"):
        before = set(supported_backbones())
        load_plugins([target])
        names = sorted(set(supported_backbones()) - before)
        if not names:
            raise UsageError(f"{target} registers no family of backbones with a model that is new.")
    for name in names:
        find_family(name)
        lines, right = summary(name)
        yield "\n".join(map(plain, lines)), right


def _backbone(name: str) -> Iterator[str]:
    from methods.backbones.backbone import BackboneConfig, create_backbone

    config = BackboneConfig(name=name)
    try:
        backbone = create_backbone(config, seed=0)
    except UsageError:  # families with a position embedding need a size
        backbone = create_backbone(BackboneConfig(name=name, image_size=(224, 224)), seed=0)
    units = sum(block.skip is not None for block in backbone.blocks)
    yield f"Backbone {name}: {backbone.n_parameters():,} parameters (stem, blocks, tail)"
    yield f"  {len(backbone.blocks)} blocks, {units} of which can be skipped; layout {backbone.layout}"
    yield f"  stages: {', '.join(f'blocks {stage.start}-{stage.stop - 1}' for stage in backbone.stages)}"
