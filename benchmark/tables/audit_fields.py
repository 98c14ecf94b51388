"""The audited fields, as data: everything that a fair comparison must hold equal or state. A row, and what is found in
a field. Spec: measurement 6.

Everything is read from the records, including settings that the table key already holds equal: a key is a claim of the
program that wrote the record, whereas data hashes, roles and counts show what it did.
Images seen per task follow from steps and batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from benchmark.records.documents import Account, Reference
from benchmark.records.keys import flat_params
from benchmark.records.record import Record

Rule = Literal["red", "amber"]
Scope = Literal["rows", "rows at one seed", "seeds of a row"]


class _Unknown:
    """The type of UNKNOWN."""


NOT_TUNED = "not tuned"  # a row that the page of a tuning does not hold
OF_MACHINE = "code and machine"  # the group of what differs between two places, see `audit.other_machines`
UNKNOWN: Final = _Unknown()  # in place of a value that a record does not hold; it never equals another row's
Read = Callable[[Record], object]


@dataclasses.dataclass(frozen=True)
class Field:
    """One property that a fair comparison holds equal or states.

    read: its value in a done record. group: printed in its place if all fields of the group are equal. shows_value:
    printed with its value even if all rows agree. scope: the records that must agree: all, those of one seed (for a
    field that depends on the seed), or those of one row (for a field that depends on the method).
    """

    name: str
    rule: Rule
    read: Read
    group: str = ""
    shows_value: bool = False
    scope: Scope = "rows"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A field in which rows differ. rows: positions of the flagged ones; text: the values, ready to print."""

    field: str
    rule: Rule
    rows: tuple[int, ...]
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class AuditedRow:
    """A row under audit. records: the done ones, at least one; seeds: all that were tried."""

    position: int
    label: str
    records: Sequence[Record]
    seeds: Sequence[int]

    @property
    def reference(self) -> Reference | None:
        """What others are compared with, where its method is that."""
        return self.records[0].audit.get("reference")

    @property
    def is_comparison_reference(self) -> bool:
        """Whether all rows are tested against it."""
        return self.records[0].is_comparison_reference


def _at(*paths: str) -> Read:
    """Reader of the values at dotted paths of a record; unknown if one of them is missing or null."""

    def read(record: Record) -> object:
        values = [record.value_at(path) for path in paths]
        if any(value is None for value in values):
            return UNKNOWN
        return values[0] if len(values) == 1 else values

    return read


def _rest(section: str, *named_apart: str) -> Read:
    """Reader of a section of the cell, without the settings that are separate fields of the audit."""

    def read(record: Record) -> object:
        settings = record.value_at(f"cell.{section}")
        if not isinstance(settings, Mapping):
            return UNKNOWN
        return {name: value for name, value in settings.items() if name not in named_apart}

    return read


_OWN_FIELDS = ("augmentation", "balancing", "batch_size", "memory_format", "optimizer", "precision", "schedule")


def _recipe(record: Record) -> object:
    """The settings of the recipe that are not separate fields, and whether the method trains by its own recipe."""
    settings = _rest("recipe", *_OWN_FIELDS)(record)
    return [settings, "the method's own"] if record.audit.get("recipe") == "published" else settings


def _balancing(record: Record) -> object:
    name, params = (record.value_at(f"cell.recipe.balancing.{part}") for part in ("name", "params"))
    return UNKNOWN if name is None else [name, params] if params else name


def _tuning_trials(record: Record) -> object:
    """Of a row beside tuned ones that was trained as the suite has it: that it was not tuned."""
    tuning = record.audit.get("tuning")
    return NOT_TUNED if tuning is not None and not tuning["chosen"] else record.audit.get("tuning_trials", UNKNOWN)


def _loss_weights(record: Record) -> object:
    """The weights of the loss terms that a method adds: by convention its parameters named `..._weight`."""
    flat = flat_params(record.params)
    return {name: value for name, value in flat if name.endswith("_weight")}


def _averaged_classes(record: Record) -> object:
    """The classes that entered a mean over classes: those present, which can differ with the predictions."""
    return {
        f"{task} {name}": entry["detail"]["classes"]
        for task, scores in record.metrics.items()
        for name, entry in scores.items()
        if "classes" in entry["detail"]
    }


def _searched_images(record: Record) -> object:
    """The roles whose images updated weights before the final training."""
    if not cost_of(record, "search"):
        return "none"
    return record.audit.get("search_roles") or UNKNOWN


def cost_of(record: Record, part: Account) -> float | None:
    """Cost of `search` or `final` in images of the batches drawn, whatever the number of optimizer steps per batch."""
    return record.cost.get(part, {}).get("images")


FIELDS: tuple[Field, ...] = (
    Field(
        "data",
        "red",
        _at("cell.data.dataset", "cell.data.layout", "cell.data.version", "cell.data.options"),
        group="data",
    ),
    Field("data hash", "red", _at("versions.data_hash"), group="data"),
    Field("protocol", "red", _at("cell.data.protocol"), group="data"),
    Field("tasks", "red", _at("cell.data.tasks"), group="data"),
    Field("task weights", "red", _at("cell.data.task_weights")),
    Field("roles", "red", _at("roles.fit", "roles.arch", "roles.select", "roles.report"), group="data"),
    Field("n_evaluated", "red", _at("n_evaluated"), group="data"),
    Field(
        "backbone",
        "red",
        _at("cell.backbone.name", "cell.backbone.in_chans", "cell.backbone.zero_init_last"),
        group="network",
    ),
    Field("weights", "red", _at("cell.backbone.weights"), group="network"),
    Field("initial weights", "red", _at("versions.weights_hash"), group="network", scope="rows at one seed"),
    Field("output stride", "red", _at("cell.backbone.output_stride"), group="network"),
    Field("head", "red", _at("cell.head"), group="network"),
    Field("dropout", "red", _at("cell.backbone.drop_path", "cell.backbone.dropout"), group="network"),
    Field("input size", "red", _at("audit.input_size"), group="input"),
    Field("normalisation", "red", _at("audit.normalisation"), group="input"),
    Field("augmentation", "red", _at("cell.recipe.augmentation"), group="input"),
    Field("extra data", "red", _at("audit.extra_data"), group="input"),
    Field("selection", "red", _rest("selection", "rule", "evaluations"), group="selection"),
    Field("epoch rule", "red", _at("cell.selection.rule"), group="selection"),
    Field("evaluations", "red", _at("cell.selection.evaluations"), group="selection"),
    Field("recipe", "red", _recipe, group="recipe"),
    Field("optimizer", "red", _at("cell.recipe.optimizer"), group="recipe"),
    Field("schedule", "red", _at("cell.recipe.schedule"), group="recipe"),
    Field("steps", "red", _at("cell.budget"), group="recipe"),
    Field("batch size", "red", _at("cell.recipe.batch_size"), group="recipe"),
    Field("precision", "red", _at("cell.recipe.precision", "cell.recipe.memory_format"), group="recipe"),
    Field("batch norm", "red", _at("audit.batch_norm"), shows_value=True),
    Field("tuning trials", "amber", _tuning_trials, shows_value=True),
    Field("draws", "red", _at("audit.draws"), shows_value=True),
    Field("loss weights", "amber", _loss_weights),
    Field("balancing", "amber", _balancing, shows_value=True),
    Field("loaders", "amber", _at("audit.loaders"), shows_value=True),
    Field("classes averaged", "amber", _averaged_classes),
    Field("search steps", "amber", _at("cost.search.optimizer_steps"), shows_value=True),
    Field("images in search", "amber", _searched_images),
    Field("fidelity", "amber", _at("audit.fidelity")),
    Field("data tier", "amber", _at("audit.tier")),
    Field("determinism", "amber", _at("environment.determinism"), group=OF_MACHINE),
    Field("device", "amber", _at("environment.device"), group=OF_MACHINE),
    Field("machine", "amber", _at("environment.cpu", "environment.cpu_capability"), group=OF_MACHINE),
    Field("training code", "amber", _at("versions.training_hash"), group=OF_MACHINE),
    Field(
        "program",
        "red",
        _at("versions.training_hash", "versions.method_hash"),
        group=OF_MACHINE,
        scope="seeds of a row",
    ),
    Field("torch", "amber", _at("versions.torch"), group=OF_MACHINE),
    Field("timm", "amber", _at("versions.timm"), group=OF_MACHINE),
)
