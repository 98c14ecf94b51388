"""From a suite to the cells that will run: names looked up, defaults filled in, faults found before the first step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmark.plan.balancing import EQUAL, entry_of, resolved
from benchmark.plan.misfits import Misfit, require_fits
from benchmark.plan.program import Program, program_of
from benchmark.plan.role_data import Splits, require_batches
from benchmark.plan.suite import WEIGHTS, BalancingSettings, Cell, HeadSettings, Settings, Suite
from benchmark.plan.tuned_page import read_page
from benchmark.records.documents import CellDocument
from benchmark.records.keys import canonical_json, cell_key, flat_params, table_key
from datasets.contracts import DatasetSpec
from datasets.errors import UsageError, first_fault, unknown
from datasets.images.augmentation import augmentation, augmented_size, canonical_steps
from datasets.images.transforms import one_channel
from datasets.on_disk.sample_checks import faults, require
from datasets.protocols import get_protocol
from datasets.registry import find_layout, get_dataset, is_core, read_options
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone, supported_backbones
from methods.backbones.decoders import DenseForm
from methods.backbones.family import is_supported
from methods.backbones.heads import create_head
from methods.contracts import Budget, Method
from methods.plain import plain_graph
from methods.registry import AnyMethod, get_method

ONE_VALUE = {"bool_type", "float_type", "int_type", "string_type", "literal_error"}  # faults of pydantic


@dataclasses.dataclass(frozen=True)
class PlannedCell:
    """A cell whose names are known and whose defaults are filled in.

    document: the key is its hash; it holds no paths, so that a folder of results can move. weights: `none`,
    `pretrained` or a path. program: the code that will train it. notes, data_notes: remarks for readers of the plan, by
    the method on this pairing, and on the data.
    """

    settings: Cell
    document: CellDocument
    weights: str
    is_reference: bool
    program: Program
    notes: tuple[str, ...] = ()
    data_notes: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """Name of the cell's record."""
        return cell_key(self.document)

    @functools.cached_property
    def table_key(self) -> str:
        """The key of its table."""
        return table_key(self.document)

    @property
    def title(self) -> str:
        """For people: the row and the seed."""
        return f"{self.row_title} · seed {self.settings.seed}"

    @property
    def row_title(self) -> str:
        """For people: method with the parameters that were given and loss balancing, data, backbone."""
        cell = self.settings
        given = ", ".join(f"{name}={text}" for name, text in flat_params(cell.method.params))
        method = f"{cell.method.name} ({given})" if given else cell.method.name
        factors = set() if cell.tuning is None else {cell.lr_factor}
        if cell.tuning is not None and self.is_reference:
            factors = set(cell.tuning.single_task.values())
        if len(factors) == 1 and factors != {1.0}:
            method += f" lr x {factors.pop():.3g}"
        if cell.recipe.balancing.name != EQUAL:
            method += f" + {cell.recipe.balancing.name}"
        return f"{method} · {cell.data.dataset} · {cell.backbone.name}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cells of a suite, baselines of Delta_m first so that others find their networks. misfits: what is left out,
    as its method has no form on its data and backbone.
    """

    cells: list[PlannedCell]
    misfits: tuple[Misfit, ...] = ()


def plan(suite: Suite, data_root: Path | None = None, splits: Splits | None = None) -> list[PlannedCell]:
    """The cells of a suite in which every method must fit. Raises UsageError as `plan_grid`, and for a misfit."""
    found = plan_grid(suite, data_root, splits)
    if found.misfits:
        raise UsageError(found.misfits[0].why)
    return found.cells


def plan_grid(suite: Suite, data_root: Path | None = None, splits: Splits | None = None) -> Plan:
    """All cells of a suite, without those on which a method has no form.

    data_root: folder of the data sets; their lists are read and their files counted here. splits: keeps what is loaded
    of them, for later cells. A cell with one task appears once, whatever loss balancing the suite asks for. Rows of a
    suite that names a tuned page have its settings. Raises UsageError, also where nothing fits, and where a refusal may
    be a mistake (see `misfits.require_fits`).
    """
    cells: dict[str, PlannedCell] = {}
    page = None if suite.tuned is None else read_page(Path(suite.tuned))
    if page is not None:
        page.require_other_seeds(suite.seeds)
    for asked in suite.cells():
        cell = resolve(asked, data_root)
        if page is not None:
            cell = resolve(page.applied(cell.settings, cell.document, cell.is_reference), data_root)
        if cell.key not in cells:
            cells[cell.key] = cell
        elif cell.settings.recipe.balancing.name == asked.recipe.balancing.name:
            raise UsageError(f"Suite {suite.name!r} asks twice for the cell {cell.title}.")
    checked, misfits = _checked(list(cells.values()), splits or Splits(data_root))
    require_fits(misfits, {_row(cell) for cell in checked})
    return Plan(sorted(checked, key=lambda cell: not cell.is_reference), misfits)


def _row(cell: PlannedCell) -> bytes:
    """What a suite asks for once and crosses with data and backbones."""
    settings = cell.settings
    return canonical_json([settings.method.model_dump(mode="json"), settings.recipe.balancing.model_dump(mode="json")])


def backbone_config(cell: Cell, spec: DatasetSpec) -> BackboneConfig:
    """The backbone of a cell: trained on images of the size that augmentation leaves, evaluated on whole ones."""
    settings, trained = cell.backbone, augmented_size(cell.recipe.augmentation, spec.native_size)
    return BackboneConfig(
        name=settings.name,
        in_chans=settings.in_chans,
        image_size=trained,
        evaluation_size=None if trained == spec.native_size else spec.native_size,
        output_stride=settings.output_stride,
        zero_init_last=settings.zero_init_last,
        drop_path=settings.drop_path,
        dropout=settings.dropout,
        dilation=settings.dilation,
        patch=settings.patch,
    )


def head_document(head: HeadSettings) -> dict[str, object]:
    """A cell's entry for its heads; with the width if the decoder has one."""
    width = DenseForm.of(head.dense, head.hidden).width
    return {"pooled": "pool + linear", "dense": head.dense, **({} if width is None else {"hidden": width})}


def dense_form(document: Mapping[str, Any]) -> DenseForm:
    """The form of dense heads that a cell's document names."""
    return DenseForm.of(document["head"]["dense"], document["head"].get("hidden"))


def _checked(cells: Sequence[PlannedCell], splits: Splits) -> tuple[list[PlannedCell], tuple[Misfit, ...]]:
    """The cells with the notes of their methods and data, and what is refused.

    Each distinct data set is listed and checked once, and each distinct backbone, at the size of image that it is
    trained on, is built once and passed to each distinct method. Missing or wrong files, sizes, options and weights
    that do not fit, and methods that cannot run on a backbone, are so found before the first step. Raises UsageError
    for all but the last.
    """
    listed: set[bytes] = set()
    remarks: dict[bytes, tuple[str, ...]] = {}
    backbones: dict[bytes, Backbone] = {}
    notes: dict[bytes, tuple[str, ...]] = {}
    alternates: dict[bytes, bool] = {}
    refused: dict[bytes, tuple[UsageError, bool]] = {}
    checked, misfits = [], dict[Misfit, None]()  # each once: seeds differ in nothing
    for cell in cells:
        spec = cell_spec(cell.settings)
        data = canonical_json([cell.document["data"], cell.settings.backbone.in_chans])
        if data not in remarks:
            remarks[data] = _check_data(cell.settings, spec, splits)
        config = backbone_config(cell.settings, spec)
        key = canonical_json([*(cell.document[part] for part in ("backbone", "data", "head")), config.image_size])
        if key not in backbones:
            backbones[key] = _backbone(cell, config)
        pair = canonical_json([key.decode(), cell.document["method"], cell.document["budget"]])
        if pair not in notes and pair not in refused:
            given = cell.settings.method.params
            made, found = _asked(cell, given, spec, backbones[key])
            if isinstance(found, UsageError):
                own = bool(given) and _fits_without(cell, spec, backbones[key])
                refused[pair] = (found, own or cell.is_reference)
            else:
                notes[pair] = found
            alternates[pair] = made.alternates
        if pair in refused:
            error, own = refused[pair]
            where = f"Method {cell.settings.method.name!r} on {spec.name!r}, {cell.settings.backbone.name!r}"
            misfits[Misfit(_row(cell), cell.row_title, cell.table_key, f"{where}: {error}", own)] = None
            continue
        batches = canonical_json(
            [key.decode(), cell.document["selection"], cell.settings.recipe.batch_size, alternates[pair]]
        )
        if batches not in listed:
            listed.add(batches)
            _require_statistics(cell.settings, spec, backbones[key])
            require_batches(cell.settings, spec, alternates[pair], splits)
        loaded = _weights_note(cell, backbones[key])
        checked.append(
            dataclasses.replace(
                cell, notes=(*loaded, *notes[pair]), data_notes=(*_data_notes(cell, spec), *remarks[data])
            )
        )
    return checked, tuple(misfits)


def notes_on(cell: PlannedCell) -> Callable[[PlannedCell, dict[str, Any]], tuple[str, ...]]:
    """What the method of another cell of the same table notes under other parameters; nothing where it has no form."""
    spec = cell_spec(cell.settings)
    backbone = functools.cache(lambda: _backbone(cell, backbone_config(cell.settings, spec)))

    def notes(other: PlannedCell, params: dict[str, Any]) -> tuple[str, ...]:
        _, found = _asked(other, params, spec, backbone())
        return () if isinstance(found, UsageError) else found

    return notes


def _backbone(cell: PlannedCell, config: BackboneConfig) -> Backbone:
    """The backbone as plans look at it: pretrained weights may be a download of hundreds of megabytes, which the first
    cell that needs them fetches.
    """
    weights = "none" if cell.weights == "pretrained" else cell.weights
    return create_backbone(config, weights=weights, seed=0, dense=dense_form(cell.document))


def _asked(
    cell: PlannedCell, params: dict[str, Any], spec: DatasetSpec, backbone: Backbone
) -> tuple[Method[Any], tuple[str, ...] | UsageError]:
    """A cell's method with these parameters, and its notes on data and backbone, or why it has no form there."""
    name, budget = cell.settings.method.name, cell.settings.budget
    method = get_method(name)
    made = method(method_params(method, name, params))
    if method.needs_all_labels and spec.domains == "multi":
        return made, UsageError(f"It needs every label on one image; {spec.name!r} gives each task its own images.")
    try:
        return made, tuple(made.check(spec, backbone, Budget(budget.steps, budget.cycles)))
    except UsageError as error:
        return made, error


def _fits_without(cell: PlannedCell, spec: DatasetSpec, backbone: Backbone) -> bool:
    """Whether a refused cell's parameters are at fault: its method fits without them, or cannot be without."""
    try:
        _, found = _asked(cell, {}, spec, backbone)
    except UsageError:
        return True
    return not isinstance(found, UsageError)


def _require_statistics(cell: Cell, spec: DatasetSpec, backbone: Backbone) -> None:
    """Raise UsageError if batches of one image leave a batch norm one value per channel, which has no statistics."""
    if cell.recipe.batch_size > 1:
        return
    height, width = backbone.input_size

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].numel() == given[0].shape[1]:
            raise UsageError(
                f"recipe.batch_size is 1, and images of {height}x{width} become a map of 1x1 in {cell.backbone.name!r} "
                "with its heads: batch norm needs more than one value per channel. Set recipe.batch_size to at least 2."
            )

    graph = plain_graph(spec, spec.task_names, backbone.clone(), lambda task: create_head(spec.task(task), backbone, 0))
    network = graph.network().to("meta").train()
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.register_forward_pre_hook(look)
    image = torch.empty(1, cell.backbone.in_chans, height, width, device="meta")
    network(dict.fromkeys(spec.inputs, image), spec.task_names)


def _weights_note(cell: PlannedCell, backbone: Backbone) -> tuple[str, ...]:
    """Which of a checkpoint's state dicts is loaded: averaged weights and raw ones are two networks."""
    return (f"weights are {backbone.weights_entry!r} of {cell.weights}",) if backbone.weights_entry else ()


def _check_data(cell: Cell, spec: DatasetSpec, splits: Splits) -> tuple[str, ...]:
    """Load every split of a data set that is not part of the core, and make the checks that take seconds. Returns what
    its reader notes.

    Raises UsageError for files that are absent, miscounted, truncated, of another size or illegal, and for colour
    images if the backbone takes one channel.
    """
    one = cell.backbone.in_chans == 1
    if is_core(get_dataset(spec.name)) and not one:  # which tests have looked at, and which takes seconds to compose
        return ()
    notes: dict[str, None] = {}  # each once: what holds of a set is noted with every split
    for listed in splits.of(cell).values():
        require(listed, faults)
        for part in listed.inputs.values():
            notes |= dict.fromkeys(part.notes)
            if one:
                one_channel(part[0]["image"])
    return tuple(notes)


def _data_notes(cell: PlannedCell, spec: DatasetSpec) -> tuple[str, ...]:
    """Remarks on the data: the recognised layout, if the data set has several, and caveats."""
    found = (f"layout {spec.layout} ({spec.tier})",) if len(get_dataset(spec.name).layouts) > 1 else ()
    return (*found, *spec.caveats)


def resolve(cell: Cell, data_root: Path | None = None) -> PlannedCell:
    """A cell with every name looked up and every default filled in, the layout of its data among them.

    Raises UsageError with the nearest valid name, and DatasetMissingError if the layout cannot be recognised.
    """
    if cell.data.layout is None and get_dataset(cell.data.dataset).layouts:
        _, layout = find_layout(cell.data.dataset, data_root)
        cell = cell.model_copy(update={"data": cell.data.model_copy(update={"layout": layout})})
    method = get_method(cell.method.name)
    params = method_params(method, cell.method.name, cell.method.params)
    spec = cell_spec(cell)
    if not is_supported(cell.backbone.name.partition(".")[0]):
        raise unknown("backbone", cell.backbone.name, supported_backbones())
    augmentation(cell.recipe.augmentation, spec.native_size, get_protocol(spec.protocol, spec.name))
    balancing = _balancing(cell, method, spec, params)
    cell = cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"balancing": balancing})})
    n_train, fewest = min((spec.count("train", name), name) for name in spec.inputs)
    if cell.recipe.batch_size > n_train:
        where = repr(spec.name) if spec.domains == "single" else f"{fewest!r} of {spec.name!r}"
        raise UsageError(f"recipe.batch_size is {cell.recipe.batch_size}; {where} has {n_train} training samples.")
    weights = cell.backbone.weights
    document = {
        "method": {"name": cell.method.name, "params": params.document(), **_own_rate(cell, method)},
        "data": {
            "dataset": spec.name,
            "layout": spec.layout,
            "version": spec.version,
            "protocol": spec.protocol,
            "options": read_options(spec.name, cell.data.options).model_dump(mode="json"),
            "tasks": list(spec.task_names),
            "task_weights": {task.name: float(task.weight) for task in spec.tasks},
        },
        "backbone": {**_only_if_asked(cell.backbone, dilation="timm", patch=None), "weights": weights_tag(weights)},
        "head": head_document(cell.head),
        # The number of loader processes changes no result, so it is not part of a cell's identity.
        "recipe": {
            **cell.recipe.model_dump(mode="json", exclude={"workers"}),
            "augmentation": canonical_steps(cell.recipe.augmentation),
        },
        "selection": _only_if_asked(cell.selection, select_on="select"),
        "budget": cell.budget.model_dump(mode="json"),
        "seed": cell.seed,
        **_tuning_document(cell),
    }
    program = program_of(method, spec, cell.backbone.name)
    return PlannedCell(cell, cast(CellDocument, document), weights, method.is_single_task_reference, program)


def _balancing(cell: Cell, method: AnyMethod, spec: DatasetSpec, params: Any) -> BalancingSettings:
    """The loss balancing of a cell with its defaults filled in; equal if there is one task. Raises UsageError for a
    balancing that the method, its parameters or the precision rule out.
    """
    asked, name = cell.recipe.balancing, cell.method.name
    found = resolved(asked, spec.task_names)
    if found.name == EQUAL:
        return found
    if method.is_single_task_reference or len(spec.tasks) == 1:
        if cell.own_balancing:
            why = "trains each task alone" if method.is_single_task_reference else "has one task here"
            raise UsageError(f"Loss balancing {found.name!r}: {name} {why}, so nothing is to be balanced; use 'equal'.")
        return BalancingSettings()
    reason = method(params).unfit_for_balancing
    if reason:
        raise UsageError(f"Loss balancing {found.name!r} cannot act on {name}: {reason}; use 'equal'.")
    if cell.recipe.precision == "amp-fp16" and entry_of(found.name).kind == "aggregator":
        raise UsageError(
            f"Loss balancing {found.name!r} combines gradients, which precision amp-fp16 scales; use amp-bf16 or fp32, "
            "or a balancing of losses such as 'uncertainty'."
        )
    return found


def _own_rate(cell: Cell, method: AnyMethod) -> dict[str, object]:
    """The factor on the learning rate of a tuned row; that of single-task networks differs by task, see `tuned`."""
    return {} if cell.tuning is None or method.is_single_task_reference else {"lr_factor": cell.tuning.lr_factor}


def _tuning_document(cell: Cell) -> dict[str, object]:
    """What only trials and tuned rows have: others keep their keys."""
    found: dict[str, object] = {} if cell.part is None else {"part": cell.part}
    if cell.tuning is not None:
        found["tuned"] = {"seed": cell.tuning.seed, "single_task": dict(cell.tuning.single_task)}
    return found


def _only_if_asked(settings: Settings, **usual: object) -> dict[str, object]:
    """Settings as a cell stores them. Fields that were added later, {name: usual value}, are stored only where they
    differ from it, so that older cells keep their keys.
    """
    values: dict[str, object] = settings.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


def cell_spec(cell: Cell) -> DatasetSpec:
    """The data set's spec with the tasks and weights that the cell asks for."""
    return cell.data.choice.spec().with_weights(cell.data.task_weights)


def method_params(method: AnyMethod, name: str, given: dict[str, Any]) -> Any:
    """The method's validated parameters. Raises UsageError that names the parameter and the nearest valid one."""
    try:
        return method.Params(**given)
    except ValidationError as error:
        fault = first_fault(error)
        if fault.kind == "extra_forbidden":
            raise unknown(f"parameter of {name}", fault.where, method.Params.model_fields) from error
        if not fault.where:  # a fault of several parameters together
            raise UsageError(f"Parameters of {name}: {fault.text}.") from error
        listed = isinstance(fault.given, list) and fault.kind in ONE_VALUE
        hint = f" For a row of each value: sweep: {{{fault.where.split('.')[0]}: [...]}}." if listed else ""
        raise UsageError(f"Parameter {name}.{fault} (given: {fault.given!r}).{hint}") from error


def weights_tag(weights: str) -> str:
    """A cell's entry for its initial weights: `none`, `pretrained`, or `file-` and the start of its sha256."""
    if weights in WEIGHTS:
        return weights
    path = Path(weights)
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise UsageError(
            f"Weights file {weights!r} {state}; expected none, pretrained, or a path relative to the suite's file."
        )
    return f"file-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
