"""Draw and retraining: policies from the searched logits, and the final training under each. adashare.md 2.9."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from torch import nn

from methods.adashare.deployment import PolicySpace, deploy
from methods.adashare.judging import gain, values_of
from methods.adashare.network import FixedNetwork, SearchNetwork, task_backbones
from methods.adashare.parameters import AdaShareParams
from methods.adashare.policy import Policy, draw_policy
from methods.adashare.schedule import Schedule
from methods.adashare.search import optimizer_of
from methods.contracts import Role, Stage, Trainer
from methods.control import ArchitectureSize, random_architecture, tell_deviation
from methods.graph.task_graph import TaskGraph, estimate_statistics
from methods.plain import fit_graph, parameter_groups, task_losses

_STATISTICS_IMAGES = 512  # for searched weights under a policy that their statistics have not seen


def draw_policies(params: AdaShareParams, trainer: Trainer, network: SearchNetwork | None) -> list[Policy]:
    """k policies from the best logits, or for the control random ones of the same sizes."""
    first_free = params.first_free_unit - 1
    found: list[Policy] = []
    if network is not None:
        alpha, rng = network.best_alpha(), trainer.rng("policy")
        found = [draw_policy(alpha, rng, params.policy_draw, first_free) for _ in range(params.n_policies)]
    if not params.random_policy:
        return found
    space = PolicySpace(trainer.data, trainer.backbone(), trainer.head, params.batch_norm, first_free)
    targets = [space.size(policy) for policy in found]
    if params.random_size is not None:
        targets = [ArchitectureSize(*params.random_size)] * params.n_policies
    drawn = [random_architecture(space, target, trainer.rng("random policy")) for target in targets]
    deviation = max(one.deviation for one in drawn)
    tell_deviation(trainer, "The random policy is {} from the size that it should have.", deviation)
    return [one.architecture for one in drawn]


def retrain(
    params: AdaShareParams,
    trainer: Trainer,
    plan: Schedule,
    network: SearchNetwork | None,
    policy: Policy,
    k: int,
) -> TaskGraph:
    """The final training under a policy, from the initial weights or from the searched ones."""
    data = trainer.data
    name = "retrain" if params.n_policies == 1 else f"retrain {k + 1}"
    if network is not None and params.retrain_init == "search":
        own = params.final_rule == "per_task"
        backbones = network.backbones if own else [network.backbones[0]] * len(policy)
        head = network.operations.__getitem__
    else:
        backbones = task_backbones(trainer.backbone(), len(policy), params.final_rule)
        head = functools.cache(trainer.head)
    graph = deploy(data, policy, backbones, head)
    if params.retrain_init == "search":
        estimate_statistics(graph.network(), trainer.batches(Role.FIT, _STATISTICS_IMAGES))
    if params.published is None:
        fit_graph(trainer, name, graph, plan.final_steps)
        return graph
    if not params.has_one_polluted_set:
        trainer.fit(_final_stage(params, trainer, plan, name, graph, graph.network()))
        return graph
    fixed = FixedNetwork(data, backbones, {t: head(t) for t in data.task_names}, policy, params.bn_stats_on_skip)
    trainer.fit(_final_stage(params, trainer, plan, name, graph, fixed))
    return deploy(data, policy, backbones, head)  # every node starts from the one set of statistics


def _final_stage(
    params: AdaShareParams, trainer: Trainer, plan: Schedule, name: str, graph: TaskGraph, network: nn.Module
) -> Stage:
    """The official retraining of a deployed graph."""
    groups = [
        dataclasses.replace(group, optimizer=optimizer_of(params, "retrain", group.name))
        for group in parameter_groups(graph)
    ]
    return Stage(
        name=name,
        network=network,
        steps=plan.final_steps,
        role=Role.FIT_ARCH,
        train=groups,
        losses=task_losses(trainer.data, network),
        purpose="final",
        tasks=graph.tasks,
        passes=len(graph.tasks) if isinstance(network, FixedNetwork) else None,
    )


def scores_of(trainer: Trainer, graphs: Sequence[TaskGraph]) -> list[float]:
    """The score of each final network relative to the first. A single network is not evaluated."""
    if len(graphs) == 1:
        return [0.0]
    measured = [trainer.evaluate(graph.network(), Role.SELECT) for graph in graphs]
    reference = values_of(measured[0], trainer.data)
    return [gain(metrics, reference, trainer.data) for metrics in measured]
