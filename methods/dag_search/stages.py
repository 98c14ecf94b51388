"""The stages before fine-tuning: warm-up, search, and the cut. Section 5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, Trainer
from methods.dag_search.params import DagSearchParams
from methods.dag_search.reduction import Reduction
from methods.dag_search.space import DagSpace, OwnOperation, build_space
from methods.dag_search.supernet import Supernet
from methods.graph.copies import copied
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph, estimate_statistics
from methods.judging import relative_change
from methods.plain import task_losses

PROBE_IMAGES = 512  # of fit, per input: norm statistics of the network that was just cut


def space_of(params: DagSearchParams, trainer: Trainer, flow_constant: int) -> DagSpace:
    """The DAG over the cell's backbone at its initial weights."""
    return build_space(
        trainer.backbone,
        lambda name: trainer.rng(name).initial_seed(),
        flow_constant,
        read_in=params.read_in,
        read_out=params.read_out,
        aggregate=params.aggregate,
    )


def warm_up(params: DagSearchParams, trainer: Trainer, supernet: Supernet) -> None:
    """Theta and heads with gates as they start: equal for all tasks, so one pass serves every head."""
    steps = round(params.warmup_ratio * trainer.budget.steps)
    if not steps:
        return
    supernet.one_pass = True
    stage = Stage(
        name="warm-up",
        network=supernet,
        steps=steps,
        role=Role.FIT_ARCH,
        train=_theta(supernet),
        losses=task_losses(trainer.data, supernet),
        purpose="search",
    )
    trainer.fit(stage)
    if trainer.data.domains == "single":
        supernet.norms.broadcast()
    supernet.one_pass = False


def search(params: DagSearchParams, trainer: Trainer, supernet: Supernet, kappa: int) -> None:
    """Gates, and with them what `search.update` says."""
    gates = supernet.gates
    steps, updates = params.search_steps(trainer.budget)
    adam = OptimizerSpec("adam", lr=params.gate_rate(trainer.budget))
    arch = ParameterGroup("arch", list(gates.parameters()), adam)
    theta = _theta(supernet)
    alternate = params.search.update == "alternate"
    trained = {"joint": [arch, *theta], "gates_only": [arch, *theta[1:]], "alternate": [arch]}[params.search.update]

    def penalty() -> torch.Tensor:
        return params.squeeze_weight * gates.squeeze(kappa, params.squeeze_reads)

    stage = Stage(
        name="search",
        network=supernet,
        steps=updates,
        role=Role.ARCH if alternate else Role.FIT_ARCH,
        train=trained,
        losses=task_losses(trainer.data, supernet),
        purpose="search",
        penalty=penalty if params.squeeze_weight else None,
        before_cycle=gates.remember,
        passes=len(trainer.data.tasks),
    )
    if not alternate:
        trainer.fit(stage)
        return
    weights = Stage(
        name="search, weights",
        network=supernet,
        steps=max(1, steps - steps // 2),
        role=Role.FIT,
        train=theta,
        losses=stage.losses,
        purpose="search",
        passes=stage.passes,
    )
    trainer.alternate([weights, stage])


def cut(trainer: Trainer, supernet: Supernet, heads: Mapping[str, Operation], found: Reduction) -> TaskGraph:
    """The network of the kept edges with the searched weights, and what the cut cost on select."""
    before = trainer.evaluate(supernet, Role.SELECT)
    own = _own_operations(supernet)
    supernet.norms.release()
    graph = supernet.space.task_graph(trainer.data, found.kept, lambda task: heads[task], own)
    network = graph.network().to(trainer.device)
    estimate_statistics(network, trainer.batches(Role.FIT, PROBE_IMAGES))
    trainer.fact("gap at the cut", relative_change(before, trainer.evaluate(network, Role.SELECT)), "percent")
    return graph


def _theta(supernet: Supernet) -> list[ParameterGroup]:
    """Theta, then alignments, then heads; per-task norm weights belong to the backbone."""
    operations = supernet.space.operations()
    groups = {}
    for origin in ("backbone", "added"):
        modules = [operation.module for operation in operations if operation.origin == origin]
        groups[origin] = list({id(p): p for module in modules for p in module.parameters()}.values())
    if supernet.norms.weights is not None:
        groups["backbone"].append(supernet.norms.weights)
    heads = list(supernet.heads.parameters())
    return [ParameterGroup("backbone", groups["backbone"]), ParameterGroup("added", groups["added"]),
            ParameterGroup("heads", heads)]  # fmt: skip


def _own_operations(supernet: Supernet) -> OwnOperation:
    """A task's version of an operation: the operation itself, or under `batch_norm: per_task` a copy that shares all
    weights but the norms'. To be asked for before the norms are released, and used after it.
    """
    tasks = range(len(supernet.data.tasks))
    weights = [supernet.norms.weights_of(task) for task in tasks]
    made: dict[tuple[int, int], Operation] = {}

    def own(operation: Operation, task: int) -> Operation:
        norms = {name: weights[task][id(m)] for name, m in operation.module.named_modules() if id(m) in weights[task]}
        if not norms:
            return operation
        key = (id(operation), task)
        if key not in made:
            renewed = {id(p) for name in norms for p in operation.module.get_submodule(name).parameters()}
            module = copied(operation.module, [p for p in operation.module.parameters() if id(p) not in renewed])
            with torch.no_grad():
                for name, values in norms.items():
                    for weight, value in values.items():
                        module.get_submodule(name).get_parameter(weight).copy_(value)
            made[key] = dataclasses.replace(operation, module=module)
        return made[key]

    return own
