"""DAG search (DTMTL). W. Choi, S. Im, "Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network
Topologies", CVPR 2023, pp. 3779-3788, arXiv 2303.06856. No public implementation exists: this is a reconstruction.

Warm-up trains the weights with all gates as they start; the search trains gates and weights with the squeeze loss; the
flow-based reduction makes the gates 0 or 1; fine-tuning trains what remains. Symbols: `space` (states, edges, Theta),
`supernet` (alpha, beta, gamma), `flow` (F). Sections are those of the suite's specification of the method.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import numpy as np
import torch

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
from methods.contracts import (
    Budget,
    Fidelity,
    Method,
    Metrics,
    OptimizerSpec,
    ParameterGroup,
    Reference,
    Role,
    Stage,
    Statement,
    Trainer,
)
from methods.dag_search.flow import FloatArray, shape_of
from methods.dag_search.params import DagSearchParams
from methods.dag_search.pictures import gate_paths, jaccard, overlap, topology
from methods.dag_search.reduction import Reduction, reduce
from methods.dag_search.space import DagSpace, OwnOperation, build_space, edge_name
from methods.dag_search.supernet import Gates, Supernet
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph, estimate_statistics
from methods.plain import fit_graph, task_losses
from methods.registry import register_method

PROBE_IMAGES = 512  # of fit, per input: norm statistics of the network that was just cut
CLOSING_RATE = 4.0  # gate_lr x steps below which Adam cannot close a gate (specification 5)


@register_method("dag_search")
class DagSearch(Method[DagSearchParams]):
    """A DAG of states over the backbone's blocks, with long skips; every task searches its own sub-DAG in it."""

    Params = DagSearchParams
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="W. Choi, S. Im, Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network "
        "Topologies, CVPR 2023",
        link="https://arxiv.org/abs/2303.06856",
        references=(
            Reference(
                "choi2023dynamic",
                "inproceedings",
                ("W. Choi", "S. Im"),
                "Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network Topologies",
                "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
                2023,
                "https://arxiv.org/abs/2303.06856",
            ),
        ),
        statements=(
            Statement("paper", "One central network for all tasks; its states form a DAG with long skip connections."),
            Statement("paper", "A flow restriction bounds the span of edges; read-in and read-out layers per task."),
            Statement("paper", "Three stages: warm-up of weights, search of gates with a squeeze loss, fine-tuning."),
            Statement(
                "paper", "A flow-based reduction between search and fine-tuning removes edges of low importance."
            ),
            Statement("derived", "Each edge owns its weights: parameters grow quadratically with the states."),
            Statement("derived", "Fine-tuning trains with gates of 0 and 1, which stay."),
            Statement(
                "recalled", "Sigmoid gates; edges (i, j) with 1 <= j - i <= M; L_sq = sum_k max(sum gates - kappa, 0)."
            ),
            Statement("recalled", "variant: recalled puts back the recalled score, stop, aggregation and start."),
            Statement("default", "How a backbone becomes a DAG, alignments, the number of states."),
            Statement("default", "States are means of what enters, weighted by gates; sums grow with depth."),
            Statement(
                "default",
                "Gates start with the plain backbone's edges open. Pretrained features survive only so; from scratch "
                "it was chosen on the select role of multi_mnist without depth cue, with jitter, seeds 100 and 101.",
            ),
            Statement("default", "Gates: Adam, lr 1e-2, no decay; warm-up 0.2, search 0.8 of the final steps."),
            Statement("default", "Reduction by contribution to a budget of kappa inner edges per task."),
            Statement(
                "default",
                "Norm statistics per task in the search; those of the deployed network are "
                "estimated anew on fit, then trained.",
            ),
            Statement("default", "No public code exists, so nothing here could be compared with the authors'."),
        ),
    )

    def __init__(self, params: DagSearchParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.reduction.score == "random"
        self.alternates = params.search.update == "alternate"

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """M, kappa and the gates' rate against this backbone and budget. Raises UsageError."""
        n = len(backbone.blocks) + 1
        M, kappa = self._constants(backbone)
        searched = _steps(self.params.search_ratio, budget)
        notes = [f"{n} states, {M * (2 * n - M - 1) // 2} edges (M = {M}), kappa = {kappa}"]
        reach = self.params.gate_lr * searched
        if reach < CLOSING_RATE:
            notes.append(
                f"gate_lr {self.params.gate_lr:g} x {searched} search steps = {reach:.2g} < {CLOSING_RATE:g}: "
                "Adam cannot close a gate in that time"
            )
        return notes

    def run(self, trainer: Trainer) -> TaskGraph:
        """Warm-up, search, reduction, fine-tuning. Section 5."""
        backbone = trainer.backbone()
        M, kappa = self._constants(backbone)
        size = self._union_size(backbone)
        space = self._space(trainer, M)
        heads = {task: trainer.head(task) for task in trainer.data.task_names}
        gates = Gates(space.graph, len(heads), trainer.budget.cycles, self.params.gate_init).to(trainer.device)
        supernet = Supernet(
            space, trainer.data, heads, gates,
            batch_norm=self.params.batch_norm, recompute=self.params.search.recompute,
        )  # fmt: skip
        self._warm_up(trainer, supernet)
        gates.remember(0)
        self._search(trainer, supernet, kappa)
        gates.remember(trainer.budget.cycles)
        path = gates.remembered().numpy()

        found = reduce(space, path[-1], self.params.reduction, kappa, size, trainer.rng("reduction"))
        graph = self._cut(trainer, supernet, space, heads, found)
        self._tell(trainer, space, backbone, path, gates, found)
        del supernet, gates, space  # nothing of the supernet is trained, counted or stored from here on
        if self.params.reinit:
            again = self._space(trainer, M)
            graph = again.task_graph(trainer.data, found.kept, trainer.head)
        fit_graph(trainer, "fine-tuning", graph, trainer.budget.steps)
        return graph

    def _constants(self, backbone: Backbone) -> tuple[int, int]:
        """(M, kappa). Raises UsageError for what this backbone has no room for."""
        n = len(backbone.blocks) + 1
        M = n - 1 if self.params.flow_constant == "all" else self.params.flow_constant
        kappa = n - 1 if self.params.kappa is None else self.params.kappa
        if n - 1 < M:
            raise UsageError(
                f"flow_constant is {M}; backbone {backbone.config.name!r} has {n} states, "
                f"so it is 1 to {n - 1}, or all."
            )
        n_edges = M * (2 * n - M - 1) // 2
        if kappa > n_edges:
            raise UsageError(
                f"kappa is {kappa}; with flow_constant {M} backbone {backbone.config.name!r} has {n_edges} edges."
            )
        return M, kappa

    def _union_size(self, backbone: Backbone) -> float | None:
        budget = self.params.reduction.budget
        return None if budget is None else budget * backbone.n_parameters()

    def _space(self, trainer: Trainer, flow_constant: int) -> DagSpace:
        return build_space(
            trainer.backbone,
            lambda name: trainer.rng(name).initial_seed(),
            flow_constant,
            read_in=self.params.read_in,
            read_out=self.params.read_out,
            aggregate=self.params.aggregate,
        )

    # Stages

    def _warm_up(self, trainer: Trainer, supernet: Supernet) -> None:
        """Theta and heads with gates as they start: equal for all tasks, so one pass serves every head."""
        steps = _steps(self.params.warmup_ratio, trainer.budget)
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

    def _search(self, trainer: Trainer, supernet: Supernet, kappa: int) -> None:
        """Gates, and with them what `search.update` says."""
        params, gates = self.params, supernet.gates
        steps = max(1, _steps(params.search_ratio, trainer.budget))
        adam = OptimizerSpec("adam", lr=params.gate_lr)
        arch = ParameterGroup("arch", list(gates.parameters()), adam)
        theta = _theta(supernet)
        alternate = params.search.update == "alternate"
        trained = {"joint": [arch, *theta], "gates_only": [arch, *theta[1:]], "alternate": [arch]}[params.search.update]

        def penalty() -> torch.Tensor:
            return params.squeeze_weight * gates.squeeze(kappa, params.squeeze_reads)

        stage = Stage(
            name="search",
            network=supernet,
            steps=max(1, steps // 2) if alternate else steps,
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

    def _cut(
        self, trainer: Trainer, supernet: Supernet, space: DagSpace, heads: Mapping[str, Operation], found: Reduction
    ) -> TaskGraph:
        """The network of the kept edges with the searched weights, and what the cut cost on select."""
        before = trainer.evaluate(supernet, Role.SELECT)
        own = _own_operations(supernet)
        supernet.norms.release()
        graph = space.task_graph(trainer.data, found.kept, lambda task: heads[task], own)
        network = graph.network().to(trainer.device)
        estimate_statistics(network, trainer.batches(Role.FIT, PROBE_IMAGES))
        trainer.fact("gap at the cut", relative_change(before, trainer.evaluate(network, Role.SELECT)), "percent")
        return graph

    # What is told

    def _tell(
        self, trainer: Trainer, space: DagSpace, backbone: Backbone, path: FloatArray, gates: Gates, found: Reduction
    ) -> None:
        graph, tasks, kept = space.graph, trainer.data.task_names, found.kept
        counts = [graph.counts(row) for row in kept]
        shapes = [shape_of(graph, row) for row in kept]
        union = np.logical_or.reduce(kept)
        pairs = [jaccard(a, b) for n, a in enumerate(kept) for b in kept[n + 1 :]]
        final = path[-1][:, space.exists]
        facts = {
            "inner edges per task": float(np.mean([inner for inner, _, _ in counts])),
            "inner edges in union": graph.n_inner(union),
            "read-ins per task": float(np.mean([reads for _, reads, _ in counts])),
            "read-outs per task": float(np.mean([reads for _, _, reads in counts])),
            "depth": float(np.mean([shape.depth for shape in shapes])),
            "width": float(np.mean([shape.width for shape in shapes])),
            "density": float(np.mean([shape.density for shape in shapes])),
            "overlap between tasks": float(np.mean(pairs)) if pairs else None,
            "undecided gates": float(np.mean((final > 0.1) & (final < 0.9))),
            "largest gate change": float(np.abs(path[-1] - path[0]).max()),
            "steps with squeeze": float(gates.squeezed_steps),
        }
        for name, value in facts.items():
            trainer.fact(name, value)
        self._flag(trainer, facts, found)
        trainer.chosen(
            f"{task}: {edge_name(graph.edges[e], graph.n_states)}"
            for task, row in zip(tasks, kept, strict=True)
            for e in np.flatnonzero(row)
        )
        shapes_of_states = [backbone.blocks[0].in_shape, *(block.out_shape for block in backbone.blocks)]
        labels = [f"{shape.channels} ch\n1/{shape.reduction}" for shape in shapes_of_states]
        trainer.artifact("gate-paths", path)
        trainer.figure("topology", topology(space, labels, tasks, kept, found.flow))
        trainer.figure("gate-paths", gate_paths(graph, tasks, path))
        trainer.figure("overlap", overlap(tasks, kept))

    def _flag(self, trainer: Trainer, facts: Mapping[str, float | None], found: Reduction) -> None:
        """What would make the found architecture meaningless. Section 10.8."""
        change = facts["largest gate change"]
        if change is None or not math.isfinite(change) or change == 0.0:
            trainer.flag("the gates never moved: what was found is their start")
        if self.params.squeeze_weight and not facts["steps with squeeze"]:
            trainer.flag("the squeeze loss was never active")
        if found.missed:
            names = ", ".join(trainer.data.task_names[task] for task in found.missed)
            trainer.flag(f"no random draw had the searched counts of edges for {names}: the nearest was taken")


def _steps(ratio: float, budget: Budget) -> int:
    return round(ratio * budget.steps)


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
            memo = {id(p): p for p in operation.module.parameters() if id(p) not in renewed}
            module = copy.deepcopy(operation.module, cast("dict[int, object]", memo))
            with torch.no_grad():
                for name, values in norms.items():
                    for weight, value in values.items():
                        module.get_submodule(name).get_parameter(weight).copy_(value)
            made[key] = dataclasses.replace(operation, module=module)
        return made[key]

    return own


def relative_change(before: Metrics, after: Metrics) -> float | None:
    """Mean over tasks of the mean over their metrics of 100 s (after - before) / |before|, positive is better.

    Metrics without a value on either side, or with |before| < 1e-8, are left out; None where none is left.
    """
    tasks = []
    for task, scores in before.items():
        changes = []
        for name, old in scores.items():
            new = after[task][name].value
            if old.value is not None and new is not None and abs(old.value) >= 1e-8:
                sign = 1.0 if old.higher_is_better else -1.0
                changes.append(100.0 * sign * (new - old.value) / abs(old.value))
        if changes:
            tasks.append(sum(changes) / len(changes))
    return sum(tasks) / len(tasks) if tasks else None
