"""The stages of DMO: single-task networks, similarity and difficulty, groups, pruning and merging, group training."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, create_backbone
from methods.contracts import (
    Budget,
    Fidelity,
    Method,
    OptimizerSpec,
    ParameterGroup,
    Role,
    Stage,
    StageResult,
    Trainer,
)
from methods.dmo.difficulty import CROSS_ENTROPIES, difficulties, mean_loss, sample_losses
from methods.dmo.fidelity import FIDELITY
from methods.dmo.grouping import Groups, groups_of, maximal_cliques, random_groups, read_groups
from methods.dmo.network import GroupNetwork, batches_of, group_graph, group_updates
from methods.dmo.parameters import DmoParams
from methods.dmo.pictures import similarity_figure
from methods.dmo.pruning import (
    Survivors,
    hardest_last,
    kept_fraction,
    merged_weights,
    prunable,
    survivors,
    with_masks,
)
from methods.dmo.similarity import combined, loss_similarity, resolved_threshold, weight_similarity
from methods.dmo.telling import tell_cliques, tell_groups, tell_kept, tell_similarity
from methods.graph.operations import Operation
from methods.graph.task_graph import GraphNetwork, TaskGraph, merged
from methods.plain import parameter_groups, plain_graph, task_losses
from methods.registry import register_method

_FEWEST_POINTS = 3  # two points of two curves always correlate perfectly


@dataclasses.dataclass(frozen=True)
class Single:
    """A trained single-task network. body: stem, blocks and tail; weights: W by name; loss: c_t."""

    graph: TaskGraph
    body: list[Operation]
    weights: dict[str, nn.Parameter]
    loss: list[float]


@register_method("dmo")
class Dmo(Method[DmoParams]):
    """Similar tasks share one sparse network, merged from single-task networks that are pruned by difficulty."""

    Params = DmoParams
    fidelity: ClassVar[Fidelity] = FIDELITY

    def __init__(self, params: DmoParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.random_groups
        self.recipe = params.recipe
        if params.batch_norm != "per_task_stats":
            self.final_batch_norm = params.batch_norm

    @classmethod
    def about(cls) -> Sequence[str]:
        """How the kept fraction follows from the difficulty, and what the counts mean."""
        kept = ", ".join(f"{d:g} keeps {100 * kept_fraction(d, 1.0):.2g} %" for d in (0.001, 0.01, 0.1, 0.5, 1.0))
        return [
            f"Difficulty is the fraction of a task's samples above the mean loss of all tasks; at tau 1, {kept}; a "
            "smaller tau keeps more, and nothing keeps less than keep_floor.",
            "Masks are unstructured: dense counts are what is stored and what runs without sparse kernels; counts that "
            "are not zero leave out what is pruned, as do total parameters, x_backbone and weight sharing; the bits of "
            "the masks come on top of them.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Raises UsageError for a threshold that can group nobody, groups that are no partition, independent starts
        from given weights, and loss curves of too few points.
        """
        p = self.params
        if p.init == "independent" and not backbone.from_scratch:
            raise UsageError(
                f"init: independent draws initial weights anew, but {backbone.config.name!r} starts from given ones; "
                "use init: shared."
            )
        if p.groups is not None:
            read_groups(p.groups, data.task_names)
        elif len(data.tasks) > 1:
            self._check_search(data, budget)
        notes = [
            "single-task networks go on in their groups, so weights receive twice the budget's updates; reinit: true "
            "is the twin that restarts"
        ]
        if p.published is not None:
            notes.append(
                f"published recipe: {p.published.epochs} epochs in batches of {p.published.batch_size}, whatever the "
                "budget; batch size, crops and flips are the cell's"
            )
        return notes if not p.reinit else notes[1:]

    def _check_search(self, data: DatasetSpec, budget: Budget) -> None:
        p = self.params
        if isinstance(p.threshold, str) and len(data.tasks) == 2:
            raise UsageError(
                f"tau_sim is {p.threshold!r} and the cell has 2 tasks {list(data.task_names)}: their one similarity "
                "never exceeds its own quantile. Set tau_sim to a number, or give groups."
            )
        if p.alpha < 1 and p.loss_axis == "cycle" and min(budget.cycles, budget.steps) < _FEWEST_POINTS:
            raise UsageError(
                f"budget has {budget.steps} steps in {budget.cycles} cycles; loss curves of fewer than "
                f"{_FEWEST_POINTS} points cannot be correlated. Take more, or alpha 1."
            )

    def run(self, trainer: Trainer) -> TaskGraph:
        """Steps 1 to 9 of the article; the groups' networks side by side."""
        data = trainer.data
        singles = [self._single(trainer, task) for task in data.task_names]
        groups = self._groups(trainer, singles)
        d = self._difficulties(trainer, singles)
        pruned = self._prune(trainer, singles, d)
        graphs, kept = [], []
        for members in groups:
            graph, masks = self._merge(trainer, singles, pruned, d, members)
            self._fit(trainer, graph, members, masks)
            graphs.append(graph)
            kept.append([mask for _, mask in masks])
        tell_groups(trainer, groups, graphs, kept, trainer.backbone().config.in_chans)
        tell_kept(trainer, groups, [one.masks for one in pruned], kept, list(singles[0].weights))
        return merged(graphs)

    # Step 1

    def _single(self, trainer: Trainer, task: str) -> Single:
        """The network of one task and its loss curve: the table's, or one that only this method trains."""
        p = self.params
        if p.init == "shared" and p.published is None:
            found = trainer.single_task(task)
            graph, loss = found.graph, list(found.loss)
        else:
            graph, loss = self._own_single(trainer, task)
        body = [node.operation for node in graph.reachable([task])[:-1]]
        return Single(graph, body, prunable(body), loss)

    def _own_single(self, trainer: Trainer, task: str) -> tuple[TaskGraph, list[float]]:
        p, backbone = self.params, trainer.backbone()
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
            train=self._trained(graph, lr),
            losses=task_losses(trainer.data, network),
            purpose="search",
            tasks=[task],
        )
        return graph, list(self._run(trainer, stage, epochs).loss[task])

    def _run(self, trainer: Trainer, stage: Stage, epochs: int | None) -> StageResult:
        """Train a stage in the cycles of the budget, or in epochs where loss curves are read by epoch."""
        if self.params.loss_axis == "epoch":
            return trainer.alternate([stage], epochs)[0]
        return trainer.fit(stage)

    def _trained(self, graph: TaskGraph, lr: float | None) -> list[ParameterGroup]:
        """What a stage trains: by the recipe, or at rate lr with the published optimizer."""
        published = self.params.published
        if published is None or lr is None:
            return parameter_groups(graph)
        spec = OptimizerSpec("sgd", lr, published.weight_decay, published.momentum, cosine=True)
        return [dataclasses.replace(group, optimizer=spec) for group in parameter_groups(graph)]

    # Steps 2 to 4 and 6

    def _groups(self, trainer: Trainer, singles: Sequence[Single]) -> Groups:
        p, tasks = self.params, trainer.data.task_names
        if p.groups is not None:
            return read_groups(p.groups, tasks)
        if len(tasks) == 1:
            return ((0,),)
        s_w = weight_similarity([list(single.weights.values()) for single in singles])
        s_l = loss_similarity([single.loss for single in singles])
        s = combined(s_w, s_l, p.alpha)
        known = np.nan_to_num(s, nan=0.0)
        tau_sim = resolved_threshold(known, p.threshold)
        cliques = maximal_cliques(known, tau_sim, p.clique_order)
        groups = groups_of(cliques)
        matrices = {"S_W": s_w, "S_L": s_l, "S": s}
        tell_similarity(trainer, matrices, p)
        tell_cliques(trainer, matrices, tau_sim, cliques, p)
        if p.random_groups:
            groups = random_groups(groups, trainer.rng("groups"))
        trainer.figure("similarity", similarity_figure(matrices, groups, tasks))
        return groups

    # Step 5

    def _difficulties(self, trainer: Trainer, singles: Sequence[Single]) -> list[float]:
        """d_t of every task, on fit without augmentation."""
        p, data = self.params, trainer.data
        losses = []
        for task, single in zip(data.tasks, singles, strict=True):
            values, n_batches = sample_losses(
                data, single.graph, task.name, trainer.batches(Role.FIT, tasks=[task.name])
            )
            trainer.charge(n_batches)
            losses.append(values / self._scale(data, single) if len(values) else values)
        empty = [task.name for task, values in zip(data.tasks, losses, strict=True) if not len(values)]
        if empty:
            raise UsageError(f"Tasks {empty} have no valid label on fit, so dmo cannot tell how hard they are.")
        mu = mean_loss(losses, p.mu)
        d = difficulties(losses, mu)
        trainer.fact("mean loss mu", mu)
        for task, value in zip(data.tasks, d, strict=True):
            trainer.fact(f"difficulty, {task.name}", value)
        trainer.artifact("d", np.array(d))
        return d

    def _scale(self, data: DatasetSpec, single: Single) -> float:
        """What a task's losses are divided by: 1, or its mean loss in the first cycle."""
        rule = self.params.difficulty_normalise
        if rule is None:
            rule = "none" if all(task.kind in CROSS_ENTROPIES for task in data.tasks) else "initial"
        if rule == "none":
            return 1.0
        first = next((value for value in single.loss if math.isfinite(value) and value > 0), None)
        if first is None:
            raise UsageError("difficulty_normalise: initial needs a positive loss in the first cycle; there is none.")
        return first

    # Step 7

    def _prune(self, trainer: Trainer, singles: Sequence[Single], d: Sequence[float]) -> list[Survivors]:
        p, tasks = self.params, trainer.data.task_names
        q = [kept_fraction(value, p.tau) for value in d]
        if p.pruning == "equal":
            q = [statistics.fmean(q)] * len(q)
        elif p.pruning == "none":
            q = [1.0] * len(q)
        floored = sum(value < p.keep_floor for value in q)
        q = [max(value, p.keep_floor) for value in q]
        found = [
            survivors(list(single.weights.values()), value, p.prune_scope, p.layer_floor)
            for single, value in zip(singles, q, strict=True)
        ]
        for task, one, value in zip(tasks, found, q, strict=True):
            trainer.fact(f"kept, {task}", 100 * value, "percent")
            trainer.fact(f"survivors, {task}", sum(one.counts))
        trainer.fact("networks at keep_floor", floored, f"of {len(tasks)}")
        trainer.fact("tensors at layer_floor", sum(one.n_floored for one in found))
        trainer.artifact("q", np.array(q))
        trainer.artifact("survivors", np.array([one.counts for one in found]))  # int [T, tensors]
        return found

    # Step 8

    def _merge(
        self,
        trainer: Trainer,
        singles: Sequence[Single],
        pruned: Sequence[Survivors],
        d: Sequence[float],
        members: Sequence[int],
    ) -> tuple[TaskGraph, list[tuple[nn.Parameter, Tensor]]]:
        """The group's network before its training, and which of its weights survive."""
        p, data = self.params, trainer.data
        order = hardest_last(members, d)
        tensors = [[weight.detach() for weight in singles[t].weights.values()] for t in order]
        values, union = merged_weights(tensors, [pruned[t].masks for t in order], p.merge_rule)
        body = singles[order[-1]].body
        if p.reinit:
            backbone = trainer.backbone()
            blocks = [backbone.block_operation(index) for index in range(len(backbone.blocks))]
            body = [backbone.stem_operation(), *blocks, backbone.tail_operation()]
            initial = list(prunable(body).values())
            values = [weight.detach() * mask for weight, mask in zip(initial, union, strict=True)]
        weights = list(prunable(body).values())
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)
        tasks = [data.task_names[t] for t in members]
        graph = group_graph(data, tasks, [with_masks(operation) for operation in body], trainer.head, p.batch_norm)
        return graph, list(zip(weights, union, strict=True))

    # Step 9

    def _fit(
        self, trainer: Trainer, graph: TaskGraph, members: Sequence[int], masks: Sequence[tuple[nn.Parameter, Tensor]]
    ) -> None:
        p, data = self.params, trainer.data
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
            train=self._trained(graph, lr),
            losses=losses,
            purpose="final",
            tasks=tasks,
            after_step=after_step,
            passes=len(tasks) if p.batch_norm == "per_task" else None,  # norms of their own: nothing is computed once
        )
        self._run(trainer, stage, epochs)


def _nothing() -> None:
    """Nothing follows a step."""
