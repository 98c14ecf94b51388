"""What a sharing method and the harness promise each other.

A method owns its forward pass and its losses. The trainer owns weighting, backward, clipping, stepping, precision, the
order of the data, checkpoints and clocks. `Method.run` reads like the paper: stage after stage, with reductions,
affinities or draws in between, and returns the network it would deploy as a `TaskGraph`.

*Resume by replay.* After a crash `run` is executed again: `fit` of a finished stage restores its end state, a
half-finished one goes on from its last checkpoint. So code between stages must be a function of the state of the
stages' networks and of named streams, and of nothing else.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from datasets.settings import Checked

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from datasets.contracts import Batch, DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.figures import Figure
    from methods.graph.task_graph import Operation, TaskGraph


class Role(str, Enum):
    """Disjoint sets of samples. fit: weights; arch: architecture parameters; select: any choice; report: final
    numbers.
    """

    FIT = "fit"
    ARCH = "arch"
    FIT_ARCH = "fit+arch"
    SELECT = "select"
    REPORT = "report"


Tag = Literal["paper", "official code", "third party", "recalled", "derived", "default"]


@dataclasses.dataclass(frozen=True)
class Statement:
    """One statement about what is implemented, with where it comes from."""

    tag: Tag
    text: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """A publication. key: of its BibTeX entry; authors: `I. Name` each, with TeX accents; venue: of the kind."""

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
    """How close a method stands to its source. Shown by `list` and under tables; a tag is raised only by whoever read
    it.

    references: what who uses the method cites; `list` prints their BibTeX.
    """

    citation: str
    link: str
    statements: tuple[Statement, ...]
    references: tuple[Reference, ...] = ()


class MethodParams(Checked):
    """Base of every method's parameters: unknown keys are errors, values are frozen."""


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that a method's paper prescribes for a group of parameters, in place of the recipe's.

    `adam` couples weight decay to the gradient (torch.optim.Adam), `adamw` decouples it. The rate is constant, or falls
    every `decay_every` steps of the stage: multiplied by `decay`, or with `poly` to lr (1 - k / n)^poly in part k = 0,
    1, .. of the stage's n parts of so many steps; with `cosine` it falls to 0 over the stage, step by step. Raises
    ValueError for poly without its steps or with a decay, and for cosine beside either.
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

    def __post_init__(self) -> None:
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

    optimizer: None takes the recipe's optimizer and schedule; else its own, with its own rate.
    rate_factor: on the recipe's learning rate. weight_decay: in place of the recipe's, None takes that.
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

    network: everything the stage may change, parameters and buffers; what a checkpoint holds. What is not in `train`
        is frozen; norms stay in train mode. In a final stage it is a network in the sense of `Trainer.evaluate`, so
        that a checkpoint can be chosen on select.
    steps: batches drawn; time inside a stage counts in `budget.cycles` equal parts.
    role: fit, arch or fit+arch.
    losses: (batch, tasks) -> {task: scalar} for the tasks asked for. The trainer leaves out those without a valid label
        in the batch, whatever is given for them.
        The trainer asks for all of them at once (`joint`) or one after another with an optimizer step each
        (`per_task`).
    penalty: a term that is no task's, added after weighting and balancing, once per backward pass.
    tasks: the tasks of this stage, None for all.
    purpose: `search` is charged to search_cost, `final` to retrain_cost.
    before_cycle: called with the number of the cycle before the stage's phase in it. Sets temperatures and curricula
        from that number; what it makes of the network's state it must keep in the network (as buffers). After a resume
        the latest call of every stage is repeated, in order, before the state of the network is put back.
    after_step: called after each optimizer step (masks).
    fresh_optimizer: `stage` makes new optimizers at the start of the stage, `cycle` clears their state every cycle.
    first_cycle: in an alternation, the first cycle in which this stage takes part.
    passes: network passes that one call of `losses` with all its tasks makes, for the cost record; None counts one per
        input of the data that the tasks read (one on single-domain sets, one per task on multi-domain sets).
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
    after_step: Callable[[], None] | None = None
    fresh_optimizer: Literal["stage", "cycle"] = "stage"
    first_cycle: int = 0
    passes: int | None = None


@dataclasses.dataclass(frozen=True)
class Budget:
    """steps: the final training, equal for every method of a table. cycles: equal parts that time in a stage
    counts in.
    """

    steps: int
    cycles: int = 20


@dataclasses.dataclass(frozen=True)
class Score:
    """One measured value. value: None where no unit was valid; n_units: what it was averaged over."""

    value: float | None
    unit: str
    higher_is_better: bool
    n_units: int
    n_nonfinite: int = 0
    detail: Mapping[str, float | int | Sequence[int]] = dataclasses.field(default_factory=dict)


Metrics = Mapping[str, Mapping[str, Score]]  # {task: {metric: score}}


@dataclasses.dataclass(frozen=True)
class StageResult:
    """loss: {task: mean training loss per cycle}, NaN where a cycle had no labelled sample; steps: batches drawn."""

    loss: Mapping[str, Sequence[float]]
    steps: int


@dataclasses.dataclass(frozen=True)
class SingleTask:
    """A trained single-task network and its mean training loss per cycle. Yours to change: each call returns a copy."""

    graph: TaskGraph
    loss: Sequence[float]


class Trainer(Protocol):
    """The only training loop, as a method sees it. Implemented by `benchmark.train.trainer`."""

    @property
    def data(self) -> DatasetSpec:
        """The data set with the tasks of this cell."""

    @property
    def budget(self) -> Budget:
        """Steps of the final training, and cycles per stage."""

    @property
    def device(self) -> torch.device:
        """Where networks and batches live."""

    def backbone(self) -> Backbone:
        """A fresh copy of the backbone with the cell's initial weights: equal bits for every method and every call on
        one machine.
        """

    def head(self, task: str) -> Operation:
        """A fresh head for a task, initialised from the stream `head-init/<task>`: equal bits for every method on one
        machine.
        """

    def rng(self, name: str) -> torch.Generator:
        """The named stream `method/<name>` of this cell; part of checkpoints."""

    def fit(self, stage: Stage) -> StageResult:
        """Train one stage."""

    def alternate(self, stages: Sequence[Stage], cycles: int | None = None) -> list[StageResult]:
        """Train stages in turn, each for its share of a cycle, keeping each one's optimizers and schedule
        throughout.
        """

    def evaluate(self, network: nn.Module, role: Role, tasks: Sequence[str] | None = None) -> Metrics:
        """Metrics on select, fit or arch; report is the harness's own. The network is put into eval mode and back.

        network: called as `network(images, tasks)` with {input: [B, C, H, W]} for the inputs that `tasks` read, gives
        {task: prediction}. `TaskGraph.network()` is one; a supernet is another.
        """

    def batches(
        self,
        role: Role,
        n_samples: int | None = None,
        tasks: Sequence[str] | None = None,
        draw_seed: int | None = None,
    ) -> Iterator[Batch]:
        """Batches in fixed order without augmentation: the first `n_samples` of each input, None for all of them.

        On multi-domain sets each batch holds the images of one input, all of the first one's first.
        draw_seed: with it a random `n_samples` instead of the first, the same for every cell.
        """

    def charge(self, forward_passes: int, purpose: Purpose = "search") -> None:
        """Add forward passes that a method made outside its stages (over probe images) to what it has spent."""

    def single_task(self, task: str, purpose: Purpose = "search") -> SingleTask:
        """The plain network for one task, trained once per (data, backbone, recipe, budget, seed) and charged to each
        user.

        purpose: `final` only for a method that deploys these very networks.
        """

    def log(self, name: str, value: float) -> None:
        """Append a value to a named curve that is stored with the record."""

    def artifact(self, name: str, array: np.ndarray | Tensor) -> None:
        """Store an array with the record (affinities, policies, gate paths)."""

    def figure(self, name: str, figure: Figure) -> None:
        """Store a picture with the record, as data; reports draw it. A later one of that name replaces it."""

    def fact(self, name: str, value: float | None, unit: str = "") -> None:
        """Store one number about what was found (edges kept, units executed, accuracy lost at a cut): a column of the
        tables. None: it could not be had. Full words; the later one of a name holds.
        """

    def chosen(self, elements: Iterable[str]) -> None:
        """Name what was chosen, element by element (edges, executed units): tables say how much of it seeds have in
        common.
        """

    def flag(self, text: str) -> None:
        """Say beneath the tables that something of this run is not as it should be (gates that never moved)."""


P = TypeVar("P", bound=MethodParams)


class Method(abc.ABC, Generic[P]):
    """A sharing method: registered with `@register_method(name)`, constructed with validated parameters.

    Params: class of the parameters. needs_all_labels: every image must be labelled for every task, so the method
    refuses multi-domain sets. is_single_task_reference: its rows are the baseline of Delta_m.
    is_comparison_reference: with its defaults it is the row that every other is tested against.
    For the audit, set by methods of which they are not true: is_random_architecture (drawn from a search space, not
    searched: the control of search cost), draws (final networks trained for one row), recipe (`published` where the
    final network is trained by the method's own) and final_batch_norm (the norm rule of the final network; that of
    graphs is `per_sub_expression`).
    For the plan: alternates (some stages train on fit and on arch apart, so that each needs a whole batch);
    unfit_for_balancing (why losses must be weighted equally, in words that follow "cannot act on it:";
    empty where any loss balancing can act).
    """

    Params: ClassVar[type[MethodParams]]
    fidelity: ClassVar[Fidelity]
    needs_all_labels: ClassVar[bool] = False
    is_single_task_reference: ClassVar[bool] = False
    is_comparison_reference: ClassVar[bool] = False
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
        """What `list` says beyond parameters and fidelity, a paragraph each."""
        return ()

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Called when a run is planned, before anything is trained: notes for whoever reads the plan.

        Raises UsageError where this method with its parameters cannot run on this data, backbone and budget.
        """
        return ()

    @abc.abstractmethod
    def run(self, trainer: Trainer) -> TaskGraph:
        """Train, and return the network that would be deployed."""
