"""The stages of AdaShare: warm-up, alternating search, draw, retraining. Source: adashare.md 2.8, 2.9 and 3."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from datasets.contracts import DatasetSpec
from methods.adashare.deployment import PolicySpace, deploy
from methods.adashare.fidelity import FIDELITY
from methods.adashare.judging import gain, values_of
from methods.adashare.network import FixedNetwork, SearchNetwork, task_backbones, units_of
from methods.adashare.parameters import AdaShareParams
from methods.adashare.pictures import agreement, course_figure, policy_figure
from methods.adashare.policy import Policies, Policy, draw_policy
from methods.adashare.schedule import Schedule, check_preset, check_units, schedule
from methods.backbones.backbone import Backbone, count_units
from methods.contracts import (
    Budget,
    Fidelity,
    Method,
    OptimizerSpec,
    ParameterGroup,
    Role,
    Stage,
    Trainer,
)
from methods.control import AMBER_DEVIATION, ArchitectureSize, random_architecture
from methods.graph.norms import BatchNormRule
from methods.graph.task_graph import TaskGraph, estimate_statistics
from methods.plain import fit_graph, parameter_groups, task_losses
from methods.registry import register_method

_EXAMPLES = (  # backbones whose units `list` shows
    *("resnet18", "resnet34", "resnet50", "efficientnet_b0", "mobilenetv2_100", "mobilenetv3_small_100"),
    *("mobilenetv3_large_100", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"),
)
_COIN_TOSS = 0.05  # execute probabilities that stay this near to 1/2 say nothing about a unit
_STATISTICS_IMAGES = 512  # for searched weights under a policy that their statistics have not seen


@register_method("adashare")
class AdaShare(Method[AdaShareParams]):
    """Per task and block, execute or skip: a policy is searched, drawn, and the network trained under it."""

    Params = AdaShareParams
    fidelity: ClassVar[Fidelity] = FIDELITY

    def __init__(self, params: AdaShareParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.random_policy
        self.draws = params.n_policies
        self.recipe = params.recipe
        self.alternates = params.random_size is None
        if params.batch_norm == "per_task" or self._one_polluted_set:
            self.final_batch_norm = params.batch_norm

    @classmethod
    def about(cls) -> Sequence[str]:
        """Units of well-known backbones."""
        counts = [(name, *count_units(name)) for name in _EXAMPLES]
        listed = ", ".join(f"{name} {units} of {blocks}" for name, units, blocks in counts)
        return [f"Units, the blocks that can be skipped (others always run): {listed}; any other: `list BACKBONE`"]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """How many units the backbone has. Raises UsageError for none, for a curriculum that cannot end, and for data
        that are not those of the preset.
        """
        n_units = len(units_of(backbone))
        check_units(backbone, n_units, self.params)
        check_preset(self.params, data)
        plan = schedule(self.params, data, budget, n_units)
        notes = [f"{n_units} of {len(backbone.blocks)} blocks are units that a task can skip"]
        preset = self.params.preset
        if preset is not None:
            notes.append(
                f"official recipe: {plan.warmup_steps} warm-up, {plan.weight_steps} + {plan.arch_steps} search and "
                f"{plan.final_steps} final steps x {self.draws}, whatever the budget; it used {preset.backbone} "
                f"({'pretrained' if preset.pretrained else 'from scratch'}) at output stride {preset.output_stride}, "
                f"batches of {preset.batch_size}, crops of {preset.crop}: these are the cell's to set"
            )
        return notes

    def run(self, trainer: Trainer) -> TaskGraph:
        """Search policies, draw k of them, train each from the initial weights; the best on select is deployed."""
        plan = schedule(self.params, trainer.data, trainer.budget, len(units_of(trainer.backbone())))
        network = None if self.params.random_size is not None else self._search(trainer, plan)
        policies = self._draw(trainer, network)
        graphs = [self._retrain(trainer, plan, network, policy, k) for k, policy in enumerate(policies)]
        scores = self._scores(trainer, graphs)
        best = scores.index(max(scores))
        self._tell(trainer, network, policies[best])
        trainer.artifact("policies", torch.tensor(policies))  # bool [k, K, L], True = execute
        trainer.artifact("policy_scores", torch.tensor(scores))  # float [k], on select; 0 for the first
        if len(policies) > 1:
            trainer.fact("score of the draws on select, mean", statistics.fmean(scores), "relative gain")
            trainer.fact("score of the draws on select, sd", statistics.stdev(scores), "relative gain")
            trainer.fact("score of the draws on select, best", scores[best], "relative gain")
        return graphs[best]

    # Warm-up and search

    def search_network(self, trainer: Trainer, plan: Schedule) -> SearchNetwork:
        """The network of warm-up and search at its initial weights."""
        tasks, params = trainer.data.task_names, self.params
        backbone = trainer.backbone()
        return SearchNetwork(
            trainer.data,
            task_backbones(backbone, len(tasks), params.batch_norm),
            {task: trainer.head(task) for task in tasks},
            Policies(len(tasks), len(units_of(backbone)), params, trainer.rng("logits")),
            {name: trainer.rng(name) for name in ("gumbel", "evaluation")},
            plan.n_cycles,
            params.batch_norm,
        )

    def search_stages(self, trainer: Trainer, network: SearchNetwork, plan: Schedule) -> list[Stage]:
        """The two phases of a cycle: weights on fit, then logits on arch. Only the second one is regularised."""
        policies, n_tasks = network.policies, len(network.tasks)
        losses = task_losses(trainer.data, network)

        def begin_weights(c: int) -> None:
            self._look(trainer, network, plan, c)
            policies.unlock(c, plan.n_cycles)

        optimizer = OptimizerSpec("adam", self.params.lr_logits, self.params.wd_logits)
        return [
            Stage(
                name="weights",
                network=network,
                steps=plan.weight_steps,
                role=Role.FIT,
                train=self._weight_groups(network, "search"),
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

    def warm_up_stage(self, trainer: Trainer, network: SearchNetwork, plan: Schedule) -> Stage:
        """All units run, for all tasks; logits are frozen."""
        return Stage(
            name="warm-up",
            network=network,
            steps=plan.warmup_steps,
            role=Role.FIT_ARCH,
            train=self._weight_groups(network, "warm-up"),
            losses=task_losses(trainer.data, network),
            purpose="search",
            passes=network.warm_up_passes,
        )

    def _search(self, trainer: Trainer, plan: Schedule) -> SearchNetwork:
        network = self.search_network(trainer, plan)
        trainer.fit(self.warm_up_stage(trainer, network, plan))
        network.end_warm_up()
        trainer.alternate(self.search_stages(trainer, network, plan), plan.n_cycles)
        self._look(trainer, network, plan, plan.n_cycles)
        return network

    def _look(self, trainer: Trainer, network: SearchNetwork, plan: Schedule, c: int) -> None:
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

    def _weight_groups(self, network: SearchNetwork, stage: str) -> list[ParameterGroup]:
        """Backbone, the norms that tasks have of their own, and heads; with the official optimizers where asked."""
        shared = {id(p): p for p in network.parts[0].parameters()}
        added = [p for part in network.parts[1:] for p in part.parameters() if id(p) not in shared]
        return [
            ParameterGroup("backbone", list(shared.values()), self._optimizer(stage, "backbone")),
            ParameterGroup("added", added, self._optimizer(stage, "backbone")),
            ParameterGroup("heads", list(network.heads.parameters()), self._optimizer(stage, "heads")),
        ]

    def _optimizer(self, stage: str, group: str) -> OptimizerSpec | None:
        """The recipe's (None), or the official one: Adam with StepLR; in the search a new one at constant rates.

        domainnet: Adam in the search too, where the heads' rate goes on falling.
        """
        published = self.params.published
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

    # Draw and retraining

    def _draw(self, trainer: Trainer, network: SearchNetwork | None) -> list[Policy]:
        """k policies from the best logits; or the control: random ones of the size of what would have been drawn."""
        params, first_free = self.params, self.params.first_free_unit - 1
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
        trainer.fact("deviation from the size asked for", 100 * deviation, "percent")
        if deviation > AMBER_DEVIATION:
            trainer.flag(f"The random policy is {100 * deviation:.1f} % from the size that it should have.")
        return [one.architecture for one in drawn]

    def _retrain(
        self, trainer: Trainer, plan: Schedule, network: SearchNetwork | None, policy: Policy, k: int
    ) -> TaskGraph:
        """The final training under a policy, from the initial weights or from the searched ones."""
        params, data = self.params, trainer.data
        name = "retrain" if params.n_policies == 1 else f"retrain {k + 1}"
        if network is not None and params.retrain_init == "search":
            own = self._final_rule() == "per_task"
            backbones = network.backbones if own else [network.backbones[0]] * len(policy)
            head = network.operations.__getitem__
        else:
            backbones = task_backbones(trainer.backbone(), len(policy), self._final_rule())
            head = functools.cache(trainer.head)
        graph = deploy(data, policy, backbones, head)
        if params.retrain_init == "search":
            estimate_statistics(graph.network(), trainer.batches(Role.FIT, _STATISTICS_IMAGES))
        if params.published is None:
            fit_graph(trainer, name, graph, plan.final_steps)
            return graph
        if not self._one_polluted_set:
            trainer.fit(self._final_stage(trainer, plan, name, graph, graph.network()))
            return graph
        fixed = FixedNetwork(data, backbones, {t: head(t) for t in data.task_names}, policy, params.bn_stats_on_skip)
        trainer.fit(self._final_stage(trainer, plan, name, graph, fixed))
        return deploy(data, policy, backbones, head)  # every node starts from the one set of statistics

    @property
    def _one_polluted_set(self) -> bool:
        """Whether the final network keeps one set of norm statistics that all tasks move, as the official one does."""
        return self.params.recipe == "published" and self.params.batch_norm == "shared"

    def _final_rule(self) -> BatchNormRule:
        """Of the deployed network: norms of each task's own, or one set of weights (statistics belong to nodes)."""
        return "per_task" if self.params.batch_norm == "per_task" else "shared"

    def _final_stage(self, trainer: Trainer, plan: Schedule, name: str, graph: TaskGraph, network: nn.Module) -> Stage:
        """The official retraining of what the graph holds."""
        groups = [
            dataclasses.replace(group, optimizer=self._optimizer("retrain", group.name))
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

    # Choice of the draw, and what is told

    def _scores(self, trainer: Trainer, graphs: Sequence[TaskGraph]) -> list[float]:
        """Of each final network, relative to the first; nothing is evaluated where there is nothing to choose."""
        if len(graphs) == 1:
            return [0.0]
        measured = [trainer.evaluate(graph.network(), Role.SELECT) for graph in graphs]
        reference = values_of(measured[0], trainer.data)
        return [gain(metrics, reference, trainer.data) for metrics in measured]

    def _tell(self, trainer: Trainer, network: SearchNetwork | None, policy: Policy) -> None:
        """Facts, pictures and artifacts of the policy that is deployed."""
        tasks, units = trainer.data.task_names, units_of(trainer.backbone())
        for task, executed in zip(tasks, policy, strict=True):
            trainer.fact(f"units executed, {task}", sum(executed), f"of {len(units)}")
        trainer.fact("units that no task executes", sum(not any(unit) for unit in zip(*policy, strict=True)))
        trainer.fact("decisions that two tasks share", 100 * agreement(policy), "percent")
        trainer.chosen(
            f"{task}: block {block}"
            for task, executed in zip(tasks, policy, strict=True)
            for block, runs in zip(units, executed, strict=True)
            if runs
        )
        if self.params.sharing_weight == 0 and self.params.sparsity_form == "neg_log_skip_mean":
            trainer.flag(
                "sharing_weight is 0: sparsity keeps its plain form, the released code would weigh it by depth."
            )
        if network is None:
            trainer.figure("policy", policy_figure(tasks, units, torch.tensor(policy).float(), policy))
            return
        alpha = network.best_alpha()
        trainer.fact("cycle of the policy", int(network.best_cycle))
        trainer.artifact("probabilities", alpha)
        trainer.artifact("course", network.course)
        trainer.figure("policy", policy_figure(tasks, units, alpha, policy))
        trainer.figure("policy-course", course_figure(tasks, units, network.course.cpu(), int(network.best_cycle)))
        largest = float((alpha - 0.5).abs().max())
        if largest < _COIN_TOSS and not self.params.random_policy:
            trainer.flag(
                f"The search left every execute probability within {largest:.3f} of 1/2: the policy is a coin toss."
            )
