"""From a tree to the deployed network, and its final training. Source: branched 2.9 and 5.

Every copy of a segment is evaluated once and its output goes to all its children, so tasks share activations up to
where they part. A segment that m tasks share receives the sum of their weighted gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from methods.branched.segments import Segments, segment_operations
from methods.branched.trees import Tree, labels_of
from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, Trainer
from methods.plain import parameter_groups, task_losses

if TYPE_CHECKING:
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph

# (segment, cluster) -> the operations of that copy, in order
Copies: TypeAlias = "Callable[[int, int], list[Operation]]"
ShareScaling = Literal["none", "inverse"]


def initial_copies(trainer: Trainer, segments: Segments, tree: Tree) -> tuple[Operation, Copies]:
    """A stem, and copies of the segments, all with the cell's initial weights."""
    backbones = [trainer.backbone() for _ in range(max(map(len, tree)))]
    last = len(segments) - 1

    def copies(segment: int, cluster: int) -> list[Operation]:
        return segment_operations(backbones[cluster], segments.blocks[segment], segment == last)

    return backbones[0].stem_operation(), copies


def tree_graph(trainer: Trainer, tree: Tree, stem: Operation, copies: Copies) -> TaskGraph:
    """The network of a tree with fresh heads. On multi-domain data every task's images pass through its own copies;
    weights are shared as the tree says and statistics belong to each (copy, domain).
    """
    from methods.graph.task_graph import TaskGraph

    data = trainer.data
    made = {
        (segment, cluster): copies(segment, cluster)
        for segment, partition in enumerate(tree)
        for cluster in range(len(partition))
    }
    clusters = [labels_of(partition) for partition in tree]
    graph = TaskGraph(data.inputs)
    for number, task in enumerate(data.task_names):
        value = graph.add(stem, graph.input(data.input_of(task)))
        for segment, labels in enumerate(clusters):
            for operation in made[segment, labels[number]]:
                value = graph.add(operation, value)
        graph.output(task, graph.add(trainer.head(task), value))
    return graph


@dataclasses.dataclass(frozen=True)
class FinalRecipe:
    """A final training that a source prescribes, in place of the cell's."""

    steps: int
    optimizer: OptimizerSpec


def fit_tree(
    trainer: Trainer, graph: TaskGraph, scaling: ShareScaling = "none", recipe: FinalRecipe | None = None
) -> None:
    """The final training of a tree for all tasks. scaling: `inverse` divides the learning rate of what m tasks share
    by m. recipe: None for the cell's.
    """
    groups = parameter_groups(graph) if scaling == "none" else _groups_by_users(graph)
    if recipe is not None:
        own = recipe.optimizer
        groups = [
            dataclasses.replace(group, optimizer=dataclasses.replace(own, lr=own.lr * group.rate_factor))
            for group in groups
        ]
    network = graph.network()
    trainer.fit(
        Stage(
            name="tree",
            network=network,
            steps=trainer.budget.steps if recipe is None else recipe.steps,
            role=Role.FIT_ARCH,
            train=groups,
            losses=task_losses(trainer.data, network),
            purpose="final",
            tasks=graph.tasks,
        )
    )


def _groups_by_users(graph: TaskGraph) -> list[ParameterGroup]:
    """The backbone's parameters by the number m of tasks that read them, at 1 / m of the rate, then the heads'."""
    readers: dict[int, set[str]] = {}
    for name, tasks in graph.users().items():
        for parameter in graph.nodes[name].module.parameters():
            readers.setdefault(id(parameter), set()).update(tasks)
    backbone = graph.parameters("backbone")
    counts = sorted({len(readers[id(parameter)]) for parameter in backbone})
    groups = [
        ParameterGroup("backbone", [p for p in backbone if len(readers[id(p)]) == m], rate_factor=1 / m) for m in counts
    ]
    return [*groups, ParameterGroup("heads", graph.parameters("heads"))]
