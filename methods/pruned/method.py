"""The course of pruning: saliencies of each task and their union, then training under the mask; or masks that come
about in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from datasets.errors import UsageError
from methods.contracts import (
    Budget,
    Fidelity,
    Method,
    OptimizerSpec,
    ParameterGroup,
    Purpose,
    Role,
    Stage,
    Trainer,
)
from methods.operating import REACH, reach_notes
from methods.plain import body_of, parameter_groups, task_losses
from methods.pruned.fidelity import FIDELITY
from methods.pruned.parameters import PrunedParams
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from datasets.contracts import Batch, DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph
    from methods.sparsity import Masks

_ADAM_BETAS = (0.5, 0.999)  # AdapMTL's


@register_method("pruned")
class Pruned(Method[PrunedParams]):
    """Hard sharing with a sparse backbone: a weight goes only if no task wants to keep it."""

    Params = PrunedParams
    search_space: ClassVar[str] = "masks of weights"
    fidelity: ClassVar[Fidelity] = FIDELITY
    traits: ClassVar[Traits] = Traits("all", "all", "1", size_parameter="density")

    def __init__(self, params: PrunedParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.rule == "random"

    @classmethod
    def about(cls) -> Sequence[str]:
        """What the density means, and what the counts mean."""
        return [
            "density is the realised share of the backbone's weights that all tasks' sets keep together; with T tasks "
            "it lies between keep and T x keep. Controls of equal size: rule: random and rule: magnitude at that "
            "density; dmo at the same number of nonzero parameters.",
            "Masks are unstructured: dense counts are what is stored and what runs without sparse kernels; counts that "
            "are not zero leave out what is pruned, as do total parameters and x_backbone; the bits of the masks come "
            "on top of them.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Raises UsageError for a density below the layer floor."""
        from methods.sparsity import n_survivors, prunable

        p, steps, n_tasks = self.params, budget.steps, len(data.tasks)
        sizes = [weight.numel() for weight in prunable(body_of(backbone)).values()]
        least = sum(min(p.layer_floor, size) for size in sizes)
        name, share = ("density", p.density) if p.keep == "solved" else ("keep", p.keep)
        kept = n_survivors(share, sum(sizes))
        if p.rule != "soft_threshold" and kept < least:
            raise UsageError(
                f"{name} {share:g} keeps {kept:,} of {sum(sizes):,} weights, but layer_floor {p.layer_floor} keeps "
                f"{least:,} in {len(sizes)} tensors; take {name} {least / sum(sizes):.2g} or more, or a lower floor."
            )
        match p.rule:
            case "static" | "pretrained" if p.score != "magnitude":
                notes = [f"saliency: {p.n_batches} batches of fit, a backward pass for each of {n_tasks} tasks"]
            case "dynamic":
                from methods.pruned.dynamic import Schedule

                schedule = Schedule.of(p, steps)
                notes = [
                    f"masks change {schedule.changes} times, every {schedule.every} steps before step {schedule.end}, "
                    f"with a backward pass for each of {n_tasks} tasks"
                ]
            case "soft_threshold":
                needed = -p.threshold_init - REACH  # sigmoid(-4) = .018 is among the weights of common layers
                notes = reach_notes("lr_threshold", p.threshold_rate(steps), steps, needed)
            case _:
                notes = []
        if p.rule in ("pretrained", "magnitude"):
            notes.append(f"a dense network trains for {steps} steps first")
            if not p.reinit:
                notes.append("its weights go on, so they receive twice the budget's updates; reinit: true restarts")
        return notes

    def run(self, trainer: Trainer) -> TaskGraph:
        """Find masks and train under them."""
        match self.params.rule:
            case "dynamic":
                return self._dynamic(trainer)
            case "soft_threshold":
                return self._soft_threshold(trainer)
            case _:
                return self._fixed(trainer)

    def _fixed(self, trainer: Trainer) -> TaskGraph:
        """static, pretrained, magnitude and random: one mask M for the whole training."""
        from methods.pruned.network import MaskedNetwork, shared_graph
        from methods.pruned.saliency import overlaps
        from methods.pruned.telling import tell
        from methods.sparsity import union_of

        p = self.params
        graph, weights = shared_graph(trainer)
        if p.rule in ("pretrained", "magnitude"):
            trainer.fit(self._stage(trainer, "dense", graph, graph.network(), "search"))
        sets = self.sets(trainer, graph, list(weights.values()))
        if p.reinit:
            graph, weights = shared_graph(trainer)
        network = MaskedNetwork(graph, list(weights.values()), union_of(sets))
        stage = self._stage(trainer, "masked", graph, network, "final")
        trainer.fit(dataclasses.replace(stage, after_step=network.prune))
        by_task = overlaps(sets) if p.rule in ("static", "pretrained") else None
        tell(p, trainer, graph, dict(zip(weights, network.masks, strict=True)), by_task)
        return graph

    def sets(self, trainer: Trainer, graph: TaskGraph, weights: Sequence[nn.Parameter]) -> list[Masks]:
        """K_t of each task, the masks of weights that it keeps; a single set where tasks have no say."""
        from methods.pruned.saliency import ranks, scores, sets_of, solved_size
        from methods.sparsity import n_survivors

        p, n_tasks = self.params, len(trainer.data.tasks)
        n = sum(weight.numel() for weight in weights)
        values: list[Sequence[Tensor]]
        if p.rule == "random":
            values = [_random_scores(trainer, weights)]
        elif p.rule == "magnitude":
            values = [scores("magnitude", weights, weights)]
        elif p.score == "magnitude":  # heads are left out, so that all tasks want the same
            values = [scores("magnitude", weights, weights)] * n_tasks
        else:
            sums = self._gradients(trainer, graph, weights)
            values = [scores(p.score, own, weights) for own in sums]
        all_ranks = [ranks(own, p.layer_floor) for own in values]
        if isinstance(p.keep, float):
            k = n_survivors(p.keep, n)
        else:
            k = solved_size(all_ranks, n_survivors(p.density, n))
            trainer.fact("share kept for each task, solved", 100 * k / n, "percent")
        return sets_of(all_ranks, k, [weight.shape for weight in weights])

    def _gradients(self, trainer: Trainer, graph: TaskGraph, weights: Sequence[nn.Parameter]) -> list[list[Tensor]]:
        """sum_b |dL_t / dw| of each task over B batches of fit."""
        from methods.pruned.saliency import gradient_sums, require_labels
        from methods.streams import seeded

        seed = trainer.rng("saliency").initial_seed()
        batches = trainer.batches(Role.FIT, n_batches=self.params.n_batches, draw_seed=seed)
        with seeded(seed, "noise"):  # of dropout, so that a replay finds the same
            sums, counts = gradient_sums(trainer.data, graph.network(), weights, batches)
        require_labels(trainer.data, counts)
        trainer.charge(sum(counts))
        trainer.fact("batches of the saliency", min(counts))
        return sums

    def _dynamic(self, trainer: Trainer) -> TaskGraph:
        """Masks change inside the training."""
        from methods.pruned.dynamic import DynamicNetwork
        from methods.pruned.network import shared_graph
        from methods.pruned.telling import tell

        p, data, steps = self.params, trainer.data, trainer.budget.steps
        graph, weights = shared_graph(trainer)
        network = DynamicNetwork(graph, list(weights.values()), data, p, steps, trainer.rng("masks"))

        def before_step(batch: Batch) -> Sequence[tuple[nn.Parameter, Tensor]]:
            grown = network.change(batch)
            if grown is None:
                return ()
            trainer.charge(len(data.tasks), "final")
            trainer.log("density", network.density)
            return grown

        stage = self._stage(trainer, "dynamic", graph, network, "final")
        trainer.fit(dataclasses.replace(stage, before_step=before_step, after_step=network.prune))
        tell(p, trainer, graph, dict(zip(weights, network.masks, strict=True)), network.overlap.cpu())
        return graph

    def _soft_threshold(self, trainer: Trainer) -> TaskGraph:
        """A threshold is learned with the weights."""
        from methods.pruned.network import shared_graph
        from methods.pruned.soft_threshold import SoftThresholdNetwork
        from methods.pruned.telling import tell
        from methods.sparsity import n_kept, n_survivors

        p, steps = self.params, trainer.budget.steps
        graph, weights = shared_graph(trainer)
        n = sum(weight.numel() for weight in weights.values())
        network = SoftThresholdNetwork(graph, list(weights.values()), n_survivors(p.density, n), p.threshold_init)
        own = OptimizerSpec("adam", p.threshold_rate(steps), weight_decay=p.threshold_decay, betas=_ADAM_BETAS)
        stage = self._stage(trainer, "soft threshold", graph, network, "final")
        trainer.fit(
            dataclasses.replace(
                stage,
                train=[*stage.train, ParameterGroup("arch", [network.s], own)],
                before_cycle=lambda cycle: trainer.log("density", n_kept(network.masks) / n),
                after_step=network.look,
            )
        )
        masks = dict(zip(weights, network.masks, strict=True))
        trainer.fact("threshold", float(network.s.detach().sigmoid()))
        network.deploy()
        tell(p, trainer, graph, masks, None)
        return graph

    def _stage(self, trainer: Trainer, name: str, graph: TaskGraph, network: nn.Module, purpose: Purpose) -> Stage:
        """A training of all tasks on fit and arch together, for the steps of the budget."""
        return Stage(
            name=name,
            network=network,
            steps=trainer.budget.steps,
            role=Role.FIT_ARCH,
            train=parameter_groups(graph),
            losses=task_losses(trainer.data, network),
            purpose=purpose,
        )


def _random_scores(trainer: Trainer, weights: Sequence[Tensor]) -> list[Tensor]:
    """Distinct random numbers in the shapes of W."""
    import torch

    sizes = [weight.numel() for weight in weights]
    drawn = torch.randperm(sum(sizes), generator=trainer.rng("masks")).to(weights[0].device)
    return [part.view(weight.shape) for part, weight in zip(drawn.split(sizes), weights, strict=True)]
