"""Warm-up and search. Source: adashare.md 2.8 and 3."""

from __future__ import annotations

import torch

from methods.adashare.judging import gain, values_of
from methods.adashare.network import SearchNetwork, task_backbones
from methods.adashare.parameters import AdaShareParams
from methods.adashare.policy import Policies
from methods.adashare.schedule import Schedule
from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, Trainer
from methods.operating import rate_of
from methods.plain import task_losses


def search_network(params: AdaShareParams, trainer: Trainer, plan: Schedule) -> SearchNetwork:
    """The network of warm-up and search at its initial weights."""
    tasks = trainer.data.task_names
    backbone = trainer.backbone()
    return SearchNetwork(
        trainer.data,
        task_backbones(backbone, len(tasks), params.batch_norm),
        {task: trainer.head(task) for task in tasks},
        Policies(len(tasks), len(backbone.units), params, trainer.rng("logits")),
        {name: trainer.rng(name) for name in ("gumbel", "evaluation")},
        plan.n_cycles,
        params.batch_norm,
    )


def search_stages(params: AdaShareParams, trainer: Trainer, network: SearchNetwork, plan: Schedule) -> list[Stage]:
    """The two phases of a cycle: weights on fit, then logits on arch. Only the second one is regularised."""
    policies, n_tasks = network.policies, len(network.tasks)
    losses = task_losses(trainer.data, network)

    def begin_weights(c: int) -> None:
        _look(trainer, network, plan, c)
        policies.unlock(c, plan.n_cycles)

    optimizer = OptimizerSpec("adam", rate_of(params.lr_logits, plan.arch_steps), params.wd_logits)
    return [
        Stage(
            name="weights",
            network=network,
            steps=plan.weight_steps,
            role=Role.FIT,
            train=weight_groups(params, network, "search"),
            losses=losses,
            purpose="search",
            before_cycle=begin_weights,
            passes=n_tasks,
        ),
        Stage(
            name="policy",
            network=network,
            steps=plan.arch_steps,
            role=Role.ARCH,
            train=[ParameterGroup("arch", [policies.logits], optimizer)],
            losses=losses,
            purpose="search",
            penalty=policies.penalty,
            before_cycle=lambda c: policies.unlock(c, plan.n_cycles),
            passes=n_tasks,
        ),
    ]


def warm_up_stage(params: AdaShareParams, trainer: Trainer, network: SearchNetwork, plan: Schedule) -> Stage:
    """All units run, for all tasks; logits are frozen."""
    return Stage(
        name="warm-up",
        network=network,
        steps=plan.warmup_steps,
        role=Role.FIT_ARCH,
        train=weight_groups(params, network, "warm-up"),
        losses=task_losses(trainer.data, network),
        purpose="search",
        passes=network.warm_up_passes,
    )


def search(params: AdaShareParams, trainer: Trainer, plan: Schedule) -> SearchNetwork:
    """Warm-up, then the two phases in turn. Returns the network with the best policies among its buffers."""
    network = search_network(params, trainer, plan)
    trainer.fit(warm_up_stage(params, trainer, network, plan))
    network.end_warm_up()
    network.course[0].copy_(network.policies.alpha().detach())  # also where the first cycle has no step
    trainer.alternate(search_stages(params, trainer, network, plan), plan.n_cycles)
    _look(trainer, network, plan, plan.n_cycles)
    return network


def _look(trainer: Trainer, network: SearchNetwork, plan: Schedule, c: int) -> None:
    """Note the course after c completed cycles; where the plan says so, judge the policies on select.

    Everything goes into the network's buffers, which a resumed run gets back.
    """
    network.course[c].copy_(network.policies.alpha().detach())
    trainer.log("search/tau", network.policies.tau)
    trainer.log("search/unlocked units", network.policies.n)
    if c not in plan.looks:
        return
    metrics = trainer.evaluate(network, Role.SELECT)
    if network.best_cycle < 0:
        network.reference.copy_(torch.tensor(values_of(metrics, trainer.data), dtype=torch.float64))
    score = gain(metrics, network.reference.tolist(), trainer.data)
    trainer.log("search/score on select", score)
    if score > network.best_score:
        network.best_logits.copy_(network.policies.logits.detach())
        network.best_score.fill_(score)
        network.best_cycle.fill_(c)


def weight_groups(params: AdaShareParams, network: SearchNetwork, stage: str) -> list[ParameterGroup]:
    """Backbone, the norms that tasks have of their own, and heads; with the official optimizers where asked."""
    shared = {id(p): p for p in network.parts[0].parameters()}
    added = [p for part in network.parts[1:] for p in part.parameters() if id(p) not in shared]
    return [
        ParameterGroup("backbone", list(shared.values()), optimizer_of(params, stage, "backbone")),
        ParameterGroup("added", added, optimizer_of(params, stage, "backbone")),
        ParameterGroup("heads", list(network.heads.parameters()), optimizer_of(params, stage, "heads")),
    ]


def optimizer_of(params: AdaShareParams, stage: str, group: str) -> OptimizerSpec | None:
    """The recipe's (None), or the official one: Adam with StepLR; in the search a new one at constant rates.

    domainnet: Adam in the search too; there the heads' rate keeps falling.
    """
    published = params.published
    if published is None:
        return None
    lr = published.lr_head if group == "heads" else published.lr_backbone
    if stage == "search" and published.search_weight_optimizer == "sgd":
        return OptimizerSpec("sgd", lr, weight_decay=1e-4, momentum=0.9)
    falls = stage != "search" or group == "heads"
    return OptimizerSpec(
        "adam",
        lr,
        weight_decay=1e-4,
        betas=(0.5, 0.999),
        decay_every=published.lr_step if falls else None,
        decay=published.lr_gamma if falls else 1.0,
    )
