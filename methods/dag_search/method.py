"""DAG search (DTMTL). W. Choi, S. Im, "Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network
Topologies", CVPR 2023, pp. 3779-3788, arXiv 2303.06856. No public implementation exists: this is a reconstruction.

Warm-up trains the weights with all gates as they start; the search trains gates and weights with the squeeze loss; the
flow-based reduction makes the gates 0 or 1; fine-tuning trains what remains. Symbols: `space` (states, edges, Theta),
`supernet` (alpha, beta, gamma), `flow` (F). Sections are those of the suite's specification of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from datasets.errors import UsageError
from methods.contracts import Budget, Fidelity, Method, Reference, Statement, Trainer
from methods.dag_search.params import GATE_MOVEMENT, DagSearchParams
from methods.operating import reach_notes
from methods.plain import fit_graph
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph


@register_method("dag_search")
class DagSearch(Method[DagSearchParams]):
    """A DAG of states over the backbone's blocks, with long skips; every task searches its own sub-DAG in it."""

    Params = DagSearchParams
    traits: ClassVar[Traits] = Traits("some", "some", "up to T", before=1, size_parameter="kappa")
    search_space: ClassVar[str] = "directed acyclic graphs"
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
            Statement(
                "paper",
                "The authors' pipeline figure cuts read-ins, inner edges and read-outs. Of its gates the scores "
                "magnitude and ratio rank exactly the cut edges lowest, contribution does not; stop: threshold gives "
                "the figure, no stop by reachability does.",
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
            Statement(
                "default",
                f"Gates: Adam without decay, at {GATE_MOVEMENT:g} / updates, so that they can close at any budget; no "
                "rate of the authors is known. Warm-up 0.2, search 0.8 of the final steps.",
            ),
            Statement("default", "Reduction by contribution to a budget of kappa inner edges per task."),
            Statement(
                "default",
                "score: random, the control: the searched counts of edges per task; of 20,000 such cuts the nearest in "
                "parameters and MACs. Where none is within 5 %, of as many in which tasks share more edges than by "
                "chance; where that does not suffice either, counts may differ by an edge or two.",
            ),
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
        return [
            f"{n} states, {M * (2 * n - M - 1) // 2} edges (M = {M}), kappa = {kappa}",
            *reach_notes("gate_lr", self.params.gate_rate(budget), self.params.search_steps(budget)[1]),
        ]

    def run(self, trainer: Trainer) -> TaskGraph:
        """Warm-up, search, reduction, fine-tuning. Section 5."""
        from methods.dag_search.reduction import reduce
        from methods.dag_search.stages import cut, search, space_of, warm_up
        from methods.dag_search.supernet import Gates, Supernet
        from methods.dag_search.telling import tell

        params, backbone = self.params, trainer.backbone()
        M, kappa = self._constants(backbone)
        budget = params.reduction.budget
        size = None if budget is None else budget * backbone.n_parameters()
        space = space_of(params, trainer, M)
        heads = {task: trainer.head(task) for task in trainer.data.task_names}
        size_of = space.sizes(trainer.data, backbone, heads)
        gates = Gates(space.graph, len(heads), trainer.budget.cycles, params.gate_init).to(trainer.device)
        supernet = Supernet(
            space, trainer.data, heads, gates, batch_norm=params.batch_norm, recompute=params.search.recompute
        )
        warm_up(params, trainer, supernet)
        gates.remember(0)
        search(params, trainer, supernet, kappa)
        gates.remember(trainer.budget.cycles)
        path = gates.remembered().numpy()

        found = reduce(space, path[-1], params.reduction, kappa, size, trainer.rng("reduction"), size_of)
        graph = cut(trainer, supernet, heads, found)
        tell(params, trainer, space, backbone, path, gates, found)
        del supernet, gates, space, size_of  # nothing of the supernet is trained, counted or stored from here on
        if params.reinit:
            again = space_of(params, trainer, M)
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
