"""The joint training that all four methods end in, and their notes for a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from methods.contracts import Budget, Method, ParameterGroup, Role, Stage, Trainer
from methods.plain import task_losses
from methods.soft_sharing.parameters import SoftSharingParams, TowerParams

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import DatasetSpec
    from methods.graph.task_graph import TaskGraph

S = TypeVar("S", bound=SoftSharingParams)


class SoftSharing(Method[S]):
    """The base of all four methods: recipe and final norm rule follow from the parameters."""

    def __init__(self, params: S) -> None:
        super().__init__(params)
        self.recipe = params.recipe
        if params.batch_norm != "per_task_stats":
            self.final_batch_norm = params.batch_norm


def parameter_groups(graph: TaskGraph, params: SoftSharingParams) -> list[ParameterGroup]:
    """Backbone, added layers and heads. Added layers learn at the heads' rate of the recipe, or under `published` at
    unit_lr times the network's (soft_sharing 0).
    """
    backbone, added, heads = (graph.parameters(origin) for origin in ("backbone", "added", "heads"))
    published = params.published
    if published is None:
        units = ParameterGroup("added", added, weight_decay=params.unit_weight_decay)
        return [ParameterGroup("backbone", backbone), units, ParameterGroup("heads", heads)]
    return [
        ParameterGroup("backbone", backbone, published.spec()),
        ParameterGroup("added", added, published.spec(params.unit_lr, params.unit_weight_decay)),
        ParameterGroup("heads", heads, published.spec()),
    ]


def joint_steps(params: SoftSharingParams, budget: Budget) -> int:
    """Steps of the joint training: the budget's, or those of the published recipe."""
    published = params.published
    return budget.steps if published is None or published.steps is None else published.steps


def joint_stage(
    trainer: Trainer,
    graph: TaskGraph,
    params: SoftSharingParams,
    *,
    passes: int | None = None,
    penalty: Callable[[], Tensor] | None = None,
    before_cycle: Callable[[int], None] | None = None,
) -> Stage:
    """Everything trains, on fit and arch together. passes: tower passes of a step."""
    network = graph.network()
    return Stage(
        name="joint",
        network=network,
        steps=joint_steps(params, trainer.budget),
        role=Role.FIT_ARCH,
        train=parameter_groups(graph, params),
        losses=task_losses(trainer.data, network),
        purpose="final",
        tasks=graph.tasks,
        penalty=penalty,
        before_cycle=before_cycle,
        passes=passes,
    )


def tower_passes(data: DatasetSpec) -> int:
    """Tower passes of one step: T, or T^2 where every task has images of its own."""
    return len(data.tasks) * len(data.inputs)


def recipe_notes(params: SoftSharingParams, budget: Budget) -> list[str]:
    """Notes for a plan: what the published recipe does, and what the cell must set."""
    if params.published is None:
        return []
    return [
        f"published recipe: {joint_steps(params, budget)} joint steps of {params.published.optimizer}, added layers at "
        f"{params.unit_lr:g} x {params.published.lr:g}; batch size, crops, augmentation and task weights are the cell's"
    ]


def tower_notes(params: TowerParams, data: DatasetSpec, budget: Budget) -> list[str]:
    """Notes for a plan: what towers cost, and which weights they start from."""
    n_tasks, notes = len(data.tasks), []
    if data.domains == "multi":
        notes.append(
            f"tasks of {data.name!r} have images of their own: each batch passes through all {n_tasks} towers, "
            f"{tower_passes(data)} tower passes a step"
        )
    if not params.reinit:
        notes.append(
            f"towers go on from {n_tasks} single-task networks, so weights receive {budget.steps} more updates than "
            "those of methods that restart; reinit: true is the twin that restarts"
        )
    return [*notes, *recipe_notes(params, budget)]
