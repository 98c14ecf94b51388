"""The single-task networks that everything else starts from (dmo 2, step 1), and how a stage is trained."""

from __future__ import annotations

import dataclasses

from torch import nn

from methods.backbones.backbone import create_backbone
from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, StageResult, Trainer
from methods.dmo.network import batches_of
from methods.dmo.parameters import DmoParams
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.plain import parameter_groups, plain_graph, task_losses
from methods.sparsity import prunable


@dataclasses.dataclass(frozen=True)
class Single:
    """A trained single-task network. body: stem, blocks and tail; weights: W by name; loss: c_t."""

    graph: TaskGraph
    body: list[Operation]
    weights: dict[str, nn.Parameter]
    loss: list[float]


def train_single(p: DmoParams, trainer: Trainer, task: str) -> Single:
    """The network of one task and its loss curve: the table's, or one that only this method trains."""
    if p.init == "shared" and p.published is None:
        found = trainer.single_task(task)
        graph, loss = found.graph, list(found.loss)
    else:
        graph, loss = _own_single(p, trainer, task)
    body = [node.operation for node in graph.reachable([task])[:-1]]
    return Single(graph, body, prunable(body), loss)


def _own_single(p: DmoParams, trainer: Trainer, task: str) -> tuple[TaskGraph, list[float]]:
    backbone = trainer.backbone()
    if p.init == "independent":
        backbone = create_backbone(backbone.config, seed=trainer.rng(f"initial/{task}").initial_seed())
        backbone.module().to(trainer.device)
    graph = plain_graph(trainer.data, [task], backbone, trainer.head)
    network = graph.network()
    steps, lr, epochs = trainer.budget.steps, None, None
    if p.published is not None:
        lr, epochs = p.published.lr, p.published.epochs
        steps = epochs * batches_of(trainer.data, task, p.published.batch_size)
    stage = Stage(
        name=f"single task {task}",
        network=network,
        steps=steps,
        role=Role.FIT_ARCH,
        train=trained_groups(p, graph, lr),
        losses=task_losses(trainer.data, network),
        purpose="search",
        tasks=[task],
    )
    return graph, list(fit_stage(p, trainer, stage, epochs).loss[task])


def fit_stage(p: DmoParams, trainer: Trainer, stage: Stage, epochs: int | None) -> StageResult:
    """Train a stage in the cycles of the budget, or in epochs where loss curves are read by epoch."""
    if p.loss_axis == "epoch":
        return trainer.alternate([stage], epochs)[0]
    return trainer.fit(stage)


def trained_groups(p: DmoParams, graph: TaskGraph, lr: float | None) -> list[ParameterGroup]:
    """The groups that a stage trains: by the recipe, or at rate lr with the published optimizer."""
    published = p.published
    if published is None or lr is None:
        return parameter_groups(graph)
    spec = OptimizerSpec("sgd", lr, published.weight_decay, published.momentum, cosine=True)
    return [dataclasses.replace(group, optimizer=spec) for group in parameter_groups(graph)]
