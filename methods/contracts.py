"""The contract between a sharing method and the harness.

A method owns its forward pass and its losses. The trainer owns weighting, backward, clipping, stepping, precision, the
order of the data, checkpoints and clocks. `Method.run` reads like the paper: stage after stage, with reductions,
affinities or draws in between, and returns the network it would deploy as a `TaskGraph`.

*Resume by replay.* After a crash `run` is executed again: `fit` of a finished stage restores its end state, a
half-finished one continues from its last checkpoint. Code between stages must therefore depend only on the state of the
stages' networks and on named streams.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from methods.parameters import MethodParams

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from datasets.contracts import Batch, DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.figures import Figure
    from methods.graph.task_graph import Operation, TaskGraph
    from methods.traits import Traits


class Role(str, Enum):
    """Disjoint sets of samples. fit: for weights; arch: for architecture parameters; select: for choices; report: for
    final numbers.
    """

    FIT = "fit"
    ARCH = "arch"
    FIT_ARCH = "fit+arch"
    SELECT = "select"
    REPORT = "report"


Tag = Literal["paper", "official code", "third party", "recalled", "derived", "default"]


@dataclasses.dataclass(frozen=True)
class Statement:
    """One statement about the implementation, and its source. Only someone who has read a source may cite it."""

    tag: Tag
    text: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """A publication.

    key: of its BibTeX entry. authors: `I. Name` each, with TeX accents. venue: the proceedings or the journal.
    """

    key: str
    kind: Literal["inproceedings", "article"]
    authors: tuple[str, ...]
    title: str
    venue: str
    year: int
    link: str = ""

    def bibtex(self) -> str:
        """The entry as BibTeX; the title in double braces, so that no style changes its capitals."""
        place = "booktitle" if self.kind == "inproceedings" else "journal"
        fields = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",
            place: self.venue,
            "year": str(self.year),
            **({"url": self.link} if self.link else {}),
        }
        lines = [f"  {name:<9} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How close an implementation is to its source. `list` prints it, and tables show it.

    citation, link: the source. statements: where each part of the implementation comes from.
    references: publications to cite when the method is used; `list` prints their BibTeX.
    """

    citation: str
    link: str
    statements: tuple[Statement, ...]
    references: tuple[Reference, ...] = ()


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that a method's paper prescribes for a group of parameters, in place of the recipe's.

    `adam` couples weight decay to the gradient (torch.optim.Adam), `adamw` decouples it. By default the learning rate
    is constant. With `decay_every` it is multiplied by `decay` every `decay_every` steps of the stage. With `poly`
    the stage is cut into n parts of `decay_every` steps; in part k (from 0) the rate is lr (1 - k / n)^poly. With
    `cosine` it falls to `end_lr` over the stage, step by step, after it has risen to lr over the part `warmup` of it.
    clip_norm: largest norm of the gradient of all parameters with this value; None does not clip. Raises ValueError for
    poly without decay_every or with decay, for cosine with decay_every, and for warmup or end_lr without cosine.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    decay_every: int | None = None
    decay: float = 1.0
    poly: float | None = None
    cosine: bool = False
    warmup: float = 0.0
    end_lr: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not self.cosine and (self.warmup or self.end_lr):
            raise ValueError(f"warmup is {self.warmup} and end_lr {self.end_lr}; only a cosine rate reads them")
        if self.cosine and self.decay_every is not None:
            raise ValueError(f"cosine is set with decay_every {self.decay_every}; the rate falls in one way")
        if self.poly is not None and (self.decay_every is None or self.decay != 1.0):
            raise ValueError(
                f"poly is {self.poly} with decay_every {self.decay_every} and decay {self.decay}; it needs decay_every "
                "and no decay"
            )


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters that a stage trains. `added` and `heads` use the heads' learning rate of the recipe (measurement 4g).

    optimizer: None takes the recipe's optimizer and schedule.
    rate_factor: multiplies the recipe's learning rate. weight_decay: None takes the recipe's.
    """

    name: Literal["backbone", "added", "heads", "arch"]
    parameters: Sequence[nn.Parameter]
    optimizer: OptimizerSpec | None = None
    rate_factor: float = 1.0
    weight_decay: float | None = None


Purpose = Literal["search", "final"]
LossFunction: TypeAlias = "Callable[[Batch, Sequence[str]], Mapping[str, Tensor]]"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    network: holds every parameter and buffer that the stage may change; a checkpoint stores it. Parameters outside
        `train` are frozen; norms stay in train mode. In a final stage it must be a network in the sense of
        `Trainer.evaluate`, so that a checkpoint can be chosen on select.
    steps: number of batches. Time inside a stage is counted in `budget.cycles` equal parts.
    role: fit, arch or fit+arch.
    train: the groups of parameters that the stage trains.
    losses: (batch, tasks) -> {task: scalar}. The trainer ignores tasks without a valid label in the batch.
    step: `joint` asks for the losses of all tasks and makes one optimizer step, `per_task` makes one step per task.
    penalty: an extra loss term that belongs to no task; added after weighting and balancing, once per backward pass.
    tasks: the tasks of this stage, None for all.
    purpose: `search` is charged to search_cost, `final` to retrain_cost.
    before_cycle: called with the number of the cycle before the stage's phase in it. It sets temperatures and curricula
        from that number. Any state it changes must be in the network's buffers, so that a checkpoint restores it. After
        a resume the latest call of every stage is repeated, in order, before the network's state is restored.
    before_step: called with each batch before its step (masks that follow gradients). It gives the entries of
        parameters, as bool tensors of their shapes, whose optimizer state is set to 0. State that it changes belongs in
        the network's buffers. Its multiply-accumulates are counted; its passes it charges itself.
    after_step: called after each optimizer step (masks).
    fresh_optimizer: `stage` makes new optimizers at the start of the stage, `cycle` clears their state every cycle.
    first_cycle: in an alternation, the first cycle in which this stage takes part.
    passes: network passes that one call of `losses` with all its tasks makes, for the cost record; None counts one per
        input of the data that the tasks read (one on single-domain sets, one per task on multi-domain sets).
    balanced: whether the cell's loss balancing acts in this stage; else weighted losses are summed.
    """

    name: str
    network: nn.Module
    steps: int
    role: Role
    train: Sequence[ParameterGroup]
    losses: LossFunction
    purpose: Purpose
    step: Literal["joint", "per_task"] = "joint"
    tasks: Sequence[str] | None = None
    penalty: Callable[[], Tensor] | None = None
    before_cycle: Callable[[int], None] | None = None
    before_step: Callable[[Batch], Sequence[tuple[nn.Parameter, Tensor]]] | None = None
    after_step: Callable[[], None] | None = None
    fresh_optimizer: Literal["stage", "cycle"] = "stage"
    first_cycle: int = 0
    passes: int | None = None
    balanced: bool = True


@dataclasses.dataclass(frozen=True)
class Budget:
    """The length of a training.

    steps: of the final training, equal for every method of a table. cycles: equal parts in which time inside a stage is
    counted.
    """

    steps: int
    cycles: int = 20


@dataclasses.dataclass(frozen=True)
class Score:
    """One measured value.

    value: None if no unit was valid. n_units: number of units in the average.
    """

    value: float | None
    unit: str
    higher_is_better: bool
    n_units: int
    n_nonfinite: int = 0
    detail: Mapping[str, float | int | Sequence[int]] = dataclasses.field(default_factory=dict)


Metrics = Mapping[str, Mapping[str, Score]]  # {task: {metric: score}}


@dataclasses.dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    loss: {task: mean training loss per cycle}, NaN for a cycle without a labelled sample. steps: number of batches.
    """

    loss: Mapping[str, Sequence[float]]
    steps: int


@dataclasses.dataclass(frozen=True)
class SingleTask:
    """A trained single-task network and its mean training loss per cycle. A copy, which the caller may change."""

    graph: TaskGraph
    loss: Sequence[float]


class Trainer(Protocol):
    """The training loop as a method sees it. Implemented by `benchmark.train.trainer`."""

    @property
    def data(self) -> DatasetSpec:
        """The specification of the data set, with the tasks of this cell."""

    @property
    def budget(self) -> Budget:
        """Steps of the final training, and cycles per stage."""

    @property
    def device(self) -> torch.device:
        """The device of networks and batches."""

    def backbone(self) -> Backbone:
        """A fresh copy of the backbone with the cell's initial weights.

        On one machine every method and every call gets equal bits.
        """

    def head(self, task: str) -> Operation:
        """A fresh head for a task, initialised from the stream `head-init/<task>`.

        On one machine every method gets equal bits.
        """

    def rng(self, name: str) -> torch.Generator:
        """The random stream `method/<name>` of this cell. Checkpoints store its state."""

    def fit(self, stage: Stage) -> StageResult:
        """Train one stage."""

    def alternate(self, stages: Sequence[Stage], cycles: int | None = None) -> list[StageResult]:
        """Train stages in turn, each for its share of a cycle. Each stage keeps its optimizers and its schedule.

        cycles: None takes the budget's.
        """

    def evaluate(self, network: nn.Module, role: Role, tasks: Sequence[str] | None = None) -> Metrics:
        """Metrics on select, fit or arch; only the harness evaluates on report. The network's mode is restored.

        network: called as `network(images, tasks)` with {input: [B, C, H, W]} for the inputs that `tasks` read; returns
        {task: prediction}. `TaskGraph.network()` is such a network, and so is a supernet.
        """

    def batches(
        self,
        role: Role,
        n_samples: int | None = None,
        tasks: Sequence[str] | None = None,
        draw_seed: int | None = None,
        n_batches: int | None = None,
    ) -> Iterator[Batch]:
        """Batches in fixed order without augmentation.

        n_samples: number of samples of each input, the first ones; None for all. draw_seed: take a random `n_samples`
        instead, the same for every cell. n_batches: so many batches of each input, of the recipe's size and in random
        order instead, as a training has them; fewer where there are fewer images. On multi-domain sets each batch holds
        the images of one input; the inputs follow one another.
        """

    def charge(self, forward_passes: int, purpose: Purpose = "search") -> None:
        """Charge forward passes that a method made outside its stages, for example over probe images."""

    def single_task(self, task: str, purpose: Purpose = "search") -> SingleTask:
        """The plain network for one task, trained once per (data, backbone, recipe, budget, seed).

        Every method that asks for it is charged for the training. purpose: `final` only for a method that deploys this
        network itself.
        """

    def log(self, name: str, value: float) -> None:
        """Append a value to a named curve of the record."""

    def artifact(self, name: str, array: np.ndarray | Tensor) -> None:
        """Store an array with the record, for example affinities or policies."""

    def figure(self, name: str, figure: Figure) -> None:
        """Store a picture with the record, as data that reports draw. It replaces an earlier one of that name."""

    def fact(self, name: str, value: float | None, unit: str = "") -> None:
        """Store one number about the result, for example the edges kept or the accuracy lost at a cut.

        name: head of a column of the tables, in full words; a later number replaces an earlier one of that name.
        value: None if it could not be measured.
        """

    def chosen(self, elements: Iterable[str]) -> None:
        """Name the elements that were chosen, for example edges or executed units. Tables show how much the choices of
        different seeds have in common.
        """

    def moved(self, what: str, start: np.ndarray | Tensor, end: np.ndarray | Tensor) -> None:
        """Say how far a search went: the probabilities that it chooses by, at its start and at its end, of one shape.

        what: of what they are, for example gates. Tables point at a search that stayed where it began; a method that
        is a random control says nothing by this.
        """

    def flag(self, text: str) -> None:
        """Warn beneath the tables about this run, for example that a loss was never active."""


P = TypeVar("P", bound=MethodParams)


class Method(abc.ABC, Generic[P]):
    """A sharing method: registered with `@register_method(name)`, constructed with validated parameters.

    Params: class of the parameters. fidelity: how close the implementation is to its source.
    traits: its row in the table of all methods, None for a plug-in's that does not say.
    needs_all_labels: every image must be labelled for every task; the method refuses multi-domain sets.
    is_single_task_reference: its rows are the baseline of Delta_m.
    is_comparison_reference: with its defaults it is the row that every other row is tested against.
    twice_as_long: parameters under which such a reference trains twice the budget, which shows whether the budget
    suffices.
    search_space: name of the space in which it looks for an architecture, empty if it does not. Rows with a random
    architecture of the same space are the control.

    The audit compares rows by the following attributes; a method whose parameters change them sets them in __init__.
    is_random_architecture: the architecture is drawn at random, the control of a search.
    draws: number of final networks trained for one row.
    recipe: `published` if the final network is trained by the method's own recipe.
    final_batch_norm: norm rule of the final network; task graphs have `per_sub_expression`.

    The plan reads two more. alternates: some stages train on fit alone or on arch alone, so each of these roles needs a
    whole batch. unfit_for_balancing: why losses must be weighted equally, in words that follow "cannot act on it:";
    empty if any loss balancing can act.
    """

    Params: ClassVar[type[MethodParams]]
    fidelity: ClassVar[Fidelity]
    traits: ClassVar[Traits | None] = None
    needs_all_labels: ClassVar[bool] = False
    is_single_task_reference: ClassVar[bool] = False
    is_comparison_reference: ClassVar[bool] = False
    twice_as_long: ClassVar[Mapping[str, object]] = {}
    search_space: ClassVar[str] = ""
    is_random_architecture: bool = False
    draws: int = 1
    recipe: str = "suite"
    final_batch_norm: str = "per_sub_expression"
    alternates: bool = False
    unfit_for_balancing: str = ""

    def __init__(self, params: P) -> None:
        self.params = params

    @classmethod
    def about(cls) -> Sequence[str]:
        """Paragraphs that `list` prints besides parameters and fidelity."""
        return ()

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Notes for the plan of a run; called before anything is trained.

        Raises UsageError if this method with its parameters cannot run on this data, backbone and budget.
        """
        return ()

    @abc.abstractmethod
    def run(self, trainer: Trainer) -> TaskGraph:
        """Train, and return the network to deploy."""
