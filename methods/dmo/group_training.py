"""The network of each group: merged from single-task networks, then trained (dmo 2, steps 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from methods.contracts import Role, Stage, Trainer
from methods.dmo.network import GroupNetwork, group_graph, group_updates
from methods.dmo.parameters import DmoParams
from methods.dmo.pruning import Survivors, hardest_last, merged_weights
from methods.dmo.singles import Single, fit_stage, trained_groups
from methods.graph.task_graph import GraphNetwork, TaskGraph
from methods.plain import body_of, task_losses
from methods.sparsity import prunable, with_masks


def merge(
    p: DmoParams,
    trainer: Trainer,
    singles: Sequence[Single],
    pruned: Sequence[Survivors],
    d: Sequence[float],
    members: Sequence[int],
) -> tuple[TaskGraph, list[tuple[nn.Parameter, Tensor]]]:
    """The group's network before its training, and which of its weights survive."""
    data = trainer.data
    order = hardest_last(members, d)
    tensors = [[weight.detach() for weight in singles[t].weights.values()] for t in order]
    values, union = merged_weights(tensors, [pruned[t].masks for t in order], p.merge_rule)
    body = singles[order[-1]].body
    if p.reinit:
        body = body_of(trainer.backbone())
        initial = list(prunable(body).values())
        values = [weight.detach() * mask for weight, mask in zip(initial, union, strict=True)]
    weights = list(prunable(body).values())
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
    tasks = [data.task_names[t] for t in members]
    graph = group_graph(data, tasks, [with_masks(operation) for operation in body], trainer.head, p.batch_norm)
    return graph, list(zip(weights, union, strict=True))


def fit_group(
    p: DmoParams,
    trainer: Trainer,
    graph: TaskGraph,
    members: Sequence[int],
    masks: Sequence[tuple[nn.Parameter, Tensor]],
) -> None:
    """The training of a group, in which pruned weights stay 0."""
    data = trainer.data
    tasks = [data.task_names[t] for t in members]
    steps, updates = trainer.budget.steps, dict.fromkeys(tasks, trainer.budget.steps)
    lr, epochs = None, None
    if p.published is not None:
        lr, epochs = p.published.retrain_lr or p.published.lr, p.published.retrain_epochs or p.published.epochs
        updates = group_updates(data, tasks, p.published, p.sampler)
        steps = max(updates.values())
    network: GraphNetwork | GroupNetwork = graph.network()
    losses, advance = task_losses(data, network), _nothing
    if min(updates.values()) < steps:
        network = GroupNetwork(graph, data, updates, steps)
        losses, advance = network.losses, network.advance
    pruned = [(weight, ~mask) for weight, mask in masks]

    @torch.no_grad()
    def after_step() -> None:
        """Momentum and weight decay move what was pruned: back to 0 (P15)."""
        for weight, is_pruned in pruned:
            weight.masked_fill_(is_pruned.to(weight.device), 0.0)
        advance()

    stage = Stage(
        name=f"group {'+'.join(tasks)}",
        network=network,
        steps=steps,
        role=Role.FIT_ARCH,
        train=trained_groups(p, graph, lr),
        losses=losses,
        purpose="final",
        tasks=tasks,
        after_step=after_step,
        passes=len(tasks) if p.batch_norm == "per_task" else None,  # norms of their own: nothing is computed once
    )
    fit_stage(p, trainer, stage, epochs)


def _nothing() -> None:
    """Nothing follows a step."""
