"""Small methods with the mechanics of AdaShare, BMTAS and DMO: what the contracts of methods and trainer must carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from datasets.contracts import Batch
from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, Trainer
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_plain, parameter_groups, plain_graph, task_losses

ADAM = OptimizerSpec("adam", lr=0.01, weight_decay=5e-4)


class SkipNetwork(nn.Module):
    """A soft choice per task between executing and skipping the last block: sampled noise, a temperature, logits."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.backbone = trainer.backbone()
        self.parts = self.backbone.module()
        self.heads = nn.ModuleDict({task: trainer.head(task).module for task in trainer.data.task_names})
        self.logits = nn.Parameter(torch.zeros(len(self.heads), 2))
        self.noise = trainer.rng("gumbel")
        self.temperature = 5.0
        self.specs = {task.name: task for task in trainer.data.tasks}

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        predictions = {}
        for number, task in enumerate(self.heads):
            draw = torch.rand(2, generator=self.noise)  # for every task, so that the stream does not depend on `tasks`
            if task not in tasks:
                continue
            gumbel = -torch.log(-torch.log(draw.clamp(1e-6, 1 - 1e-6)))
            p = torch.softmax((self.logits[number] + gumbel) / self.temperature, 0)
            x = self.parts.stem(images["image"] if "image" in images else images[task])
            for block in self.backbone.blocks[:-1]:
                x = block(x)
            last = self.backbone.blocks[-1]
            skipped = last.skip(x)
            x = p[0] * last.execute(x, skipped) + p[1] * skipped
            predictions[task] = self.heads[task](self.parts.tail(x))
        return predictions

    def weights(self) -> list[ParameterGroup]:
        return [
            ParameterGroup("backbone", list(self.parts.parameters())),
            ParameterGroup("heads", list(self.heads.parameters())),
        ]


class Alternating:
    """AdaShare: a warm-up, then weight and policy phases with fresh optimizers, regularisers, a temperature
    per cycle.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, float]] = []

    def run(self, trainer: Trainer) -> TaskGraph:
        network = SkipNetwork(trainer)
        losses = task_losses(trainer.data, network)
        weights = network.weights()
        logits = [ParameterGroup("arch", [network.logits], ADAM)]
        trainer.fit(Stage("warm-up", network, 3, Role.FIT_ARCH, weights, losses, "search"))

        def anneal(cycle: int) -> None:
            network.temperature = 5.0 * 0.5**cycle
            trainer.log("temperature", network.temperature)

        weight_phase = Stage("weights", network, 8, Role.FIT, weights, losses, "search", before_cycle=anneal)
        policy_phase = Stage(
            "policy", network, 4, Role.ARCH, logits, losses, "search", penalty=lambda: 0.05 * network.logits[:, 0].sum()
        )
        trainer.alternate([weight_phase, policy_phase])
        trainer.artifact("policy", network.logits / network.temperature)  # set by the last cycle, also after a resume
        trainer.rng("draw").seed  # noqa: B018  (the stream exists; draws follow from it)
        torch.rand(3, generator=trainer.rng("draw"))
        return fit_plain(trainer, "retrain", trainer.budget.steps)[0]


class PerTask:
    """BMTAS: one optimizer step per task and batch, optimizer state cleared every cycle, a phase that starts later."""

    def run(self, trainer: Trainer) -> TaskGraph:
        network = SkipNetwork(trainer)
        losses = task_losses(trainer.data, network)
        logits = [ParameterGroup("arch", [network.logits], ADAM)]
        arch = Stage("arch", network, 6, Role.ARCH, logits, losses, "search", fresh_optimizer="cycle", first_cycle=1)
        weights = Stage(
            "weights", network, 8, Role.FIT, network.weights(), losses, "search", "per_task", fresh_optimizer="cycle"
        )
        trainer.alternate([arch, weights], cycles=4)
        return fit_plain(trainer, "retrain", trainer.budget.steps)[0]


class Masked:
    """DMO: a mask that is applied after every step; the network continues after what it was before."""

    def run(self, trainer: Trainer) -> TaskGraph:
        graph = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
        network = graph.network()
        losses = task_losses(trainer.data, network)
        groups = parameter_groups(graph)
        trainer.fit(Stage("before", network, 5, Role.FIT_ARCH, groups, losses, "search"))
        masked = [p for p in graph.parameters("backbone") if p.dim() == 4]
        masks = [p.detach().abs() > p.detach().abs().median() for p in masked]

        @torch.no_grad()
        def prune() -> None:
            for parameter, mask in zip(masked, masks, strict=True):
                parameter.mul_(mask)

        prune()
        trainer.fit(
            Stage("after", network, trainer.budget.steps, Role.FIT_ARCH, groups, losses, "final", after_step=prune)
        )
        self.masked, self.masks = masked, masks
        return graph


def only(batch: Batch, task: str) -> Batch:
    """The batch without the labels of other tasks."""
    return Batch(batch.images, {task: batch.targets[task]}, batch.index)
