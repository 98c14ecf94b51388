"""Branched multi-task network (BMTN): task affinities decide, for a budget, which layers are shared.

S. Vandenhende, S. Georgoulis, B. De Brabandere, L. Van Gool, "Branched Multi-Task Networks: Deciding What Layers To
Share", BMVC 2020, arXiv 1904.02920. No official code is known.

From the paper's abstract: affinities under a budget of learnable parameters give a tree whose deeper layers are more
task-specific. Recalled, not checked: representation similarity analysis of single-task networks, the mean of the
clusters' largest dissimilarity as cost, K = 500 held-out probe images, beam search with spectral clustering for many
tasks, training from initial weights. Ours: which affinity judges which segment, probe images from fit, ties, how the
beam is completed. Not supported: the paper's own training recipe, which is not known.

Symbols: N tasks, D segments, A [D, N, N] affinities, delta = 1 - A, pi_d partition of the tasks at segment d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from datasets.contracts import Batch, DatasetSpec
from datasets.errors import UsageError
from methods.backbone import Backbone
from methods.branched.affinity import Affinity, Degenerate, FeatureDtype, affinity, features_of
from methods.branched.network import Copies, ShareScaling, fit_tree, initial_copies, tree_graph
from methods.branched.pictures import affinity_picture, budget_picture, tell_tree
from methods.branched.segments import (
    BudgetScope,
    BudgetUnit,
    Granularity,
    Segments,
    SizeBudget,
    budget_notes,
    segments_of,
    size_budget,
)
from methods.branched.selection import (
    MOST_TASKS_EXHAUSTIVE,
    Beam,
    Candidate,
    Candidates,
    ClusterCost,
    LocationSemantics,
    affinity_problem,
    beam_front,
    exhaustive_front,
    within,
)
from methods.branched.trees import Labels, Tree, read_tree
from methods.contracts import Budget, Fidelity, Method, MethodParams, Role, SingleTask, Statement, Trainer
from methods.operations import Operation
from methods.registry import register_method
from methods.task_graph import TaskGraph

MOST_TASKS_AUTO = 6  # up to here `search: auto` is exhaustive
Size = Annotated[float, Field(ge=1)] | Annotated[int, Field(ge=1)]


class TreeParams(MethodParams):
    """What every method that ends in a tree takes.

    fixed_tree: a row per segment with the number of each task's copy; skips the search. lr_share_scaling: `inverse`
    divides the learning rate of what m tasks share by m in the final training.
    """

    fixed_tree: Labels | None = None
    lr_share_scaling: ShareScaling = "none"


class BudgetParams(TreeParams):
    """granularity: segments are stages or blocks. budget: a float is relative to the plain backbone, an integer
    absolute. budget_unit: parameters or MACs. budget_scope: encoder (stem, segments, tail), or with the heads.
    """

    granularity: Granularity = "stage"
    budget: Size = 1.8
    budget_unit: BudgetUnit = "params"
    budget_scope: BudgetScope = "encoder"


class BranchedParams(BudgetParams):
    """variant: bmvc judges segment d by A[d], third_party_b by A[d - 1] with segment 1 always shared;
    location_semantics overrides it. n_probe: K; probe_split: select re-enacts held-out images; probe_seed: which K.
    feature_dtype: of the products of features. degenerate: distances of an image whose features are all equal: an
    error, or 1. cluster_cost: mean_max is the method, others are ablations. search: auto is exhaustive up to 6 tasks.
    branch_init: single_task copies from the single-task networks, an ablation.
    """

    variant: Literal["bmvc", "third_party_b"] = "bmvc"
    location_semantics: LocationSemantics | None = None
    n_probe: Annotated[int, Field(ge=3)] = 500
    probe_split: Literal["fit", "select"] = "fit"
    probe_seed: Annotated[int, Field(ge=0)] = 0
    feature_dtype: FeatureDtype = "float64"
    degenerate: Degenerate = "error"
    cluster_cost: ClusterCost = "mean_max"
    search: Literal["auto", "exhaustive", "beam"] = "auto"
    beam_width: Annotated[int, Field(ge=1)] = 10
    beam_candidates: Candidates = "spectral"
    cluster_seed: Annotated[int, Field(ge=0)] = 0
    branch_init: Literal["initial", "single_task"] = "initial"

    @property
    def semantics(self) -> LocationSemantics:
        """Which affinity judges which segment."""
        return self.location_semantics or ("own_segment" if self.variant == "bmvc" else "next_segment")

    def is_exhaustive(self, n_tasks: int) -> bool:
        """Whether all trees are compared."""
        return self.search == "exhaustive" or (self.search == "auto" and n_tasks <= MOST_TASKS_AUTO)


def require_tasks(data: DatasetSpec) -> None:
    """Raise UsageError where there is nothing to branch."""
    if len(data.tasks) < 2:
        raise UsageError(f"A tree needs at least two tasks; the cell has {list(data.task_names)}.")


@register_method("branched")
class Branched(Method[BranchedParams]):
    """A tree chosen under a size budget by how similarly single-task networks represent the same images."""

    Params = BranchedParams
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="S. Vandenhende et al., Branched Multi-Task Networks: Deciding What Layers To Share, BMVC 2020",
        link="https://arxiv.org/abs/1904.02920",
        statements=(
            Statement("paper", "Abstract: affinities and a budget of learnable parameters decide a tree of layers."),
            Statement("recalled", "Similarity analysis: 1 - Pearson of unpooled features, Spearman between tasks."),
            Statement("recalled", "Cost: per location the mean over clusters of the largest dissimilarity inside."),
            Statement("third party", "An independent implementation agrees on both and on trees as refining chains."),
            Statement("recalled", "500 probe images and beam width 10, with low confidence; here images of fit."),
            Statement("recalled", "The tree starts from the initial weights, not from the single-task networks."),
            Statement("default", "A[d] judges who shares segment d; stem shared, tail copied with the last segment."),
            Statement("default", "Ties: smaller, then lexicographic; completion of the beam; recipe is the suite's."),
        ),
    )

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The budget in numbers, and what a further copy of each segment costs on this backbone."""
        require_tasks(data)
        segments, limit = self._limits(data, backbone)
        if self.params.fixed_tree is not None:
            read_tree(self.params.fixed_tree, len(data.tasks), len(segments))
            return ()
        if self.params.is_exhaustive(len(data.tasks)) and len(data.tasks) > MOST_TASKS_EXHAUSTIVE:
            raise UsageError(
                f"search: exhaustive takes up to {MOST_TASKS_EXHAUSTIVE} tasks, not {len(data.tasks)}; use beam."
            )
        return budget_notes(segments, limit)

    def _limits(self, data: DatasetSpec, backbone: Backbone) -> tuple[Segments, SizeBudget]:
        p = self.params
        segments = segments_of(backbone, data, p.granularity)
        return segments, size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)

    def run(self, trainer: Trainer) -> TaskGraph:
        """Single-task networks, affinities, the tree, its training."""
        data = trainer.data
        require_tasks(data)
        segments, limit = self._limits(data, trainer.backbone())
        if self.params.fixed_tree is not None:
            tree = read_tree(self.params.fixed_tree, len(data.tasks), len(segments))
        else:
            found = self._affinities(trainer, segments)
            tree = self._select(trainer, found, segments, limit)
        graph = tree_graph(trainer, tree, *self._start(trainer, segments, tree))
        tell_tree(trainer, tree, segments, graph, self.params.fixed_tree is None)
        fit_tree(trainer, graph, self.params.lr_share_scaling)
        return graph

    def _affinities(self, trainer: Trainer, segments: Segments) -> Affinity:
        """Steps 1 to 3: N single-task networks, their features on the same K images, A."""
        p, tasks = self.params, trainer.data.task_names
        probes = probe_batches(trainer, p.n_probe, Role.FIT if p.probe_split == "fit" else Role.SELECT, p.probe_seed)

        def features() -> Iterator[tuple[int, int, Tensor]]:
            for i, task in enumerate(tasks):
                network = trainer.single_task(task)
                for d, values in features_of(network.graph, task, segments.blocks, probes):
                    yield i, d, values
                trainer.charge(len(probes))

        locations = [f"the end of {name}" for name in segments.names]
        found = affinity(features(), tasks, locations, p.degenerate, p.feature_dtype)
        trainer.artifact("affinity", found.values)
        trainer.fact("probe images", found.n_images)
        if found.n_images < n_asked(trainer.data, p.n_probe):
            trainer.flag(f"{found.n_images} probe images instead of {p.n_probe}: {p.probe_split} has no more to give")
        if p.probe_split == "select":
            trainer.flag("affinities were measured on images of select, as the paper's held-out ones")
        for task, location in found.constant:
            trainer.flag(f"all dissimilarities of {task} at {location} are equal; its affinities there count as 0")
        return found

    def _select(self, trainer: Trainer, found: Affinity, segments: Segments, limit: SizeBudget) -> Tree:
        """Steps 4 to 6: the cheapest tree within the budget, and the curve over all budgets."""
        p, n_tasks = self.params, len(trainer.data.tasks)
        constant = segments.constant(limit.unit, limit.scope)
        posed = affinity_problem(found.values, segments.per_copy(limit.unit), constant, p.semantics, p.cluster_cost)
        exact = p.is_exhaustive(n_tasks)
        if exact:
            front = exhaustive_front(posed)
        else:
            beam = Beam(p.beam_width, p.beam_candidates, p.cluster_seed)
            front = beam_front(posed, found.values, limit.total, beam)
        chosen = within(front, limit.total)
        self._tell_choice(trainer, chosen, limit, segments)
        if not exact and n_tasks <= MOST_TASKS_AUTO:
            optimum = within(exhaustive_front(posed), limit.total)
            trainer.fact("clustering cost above the optimum", chosen.clustering_cost - optimum.clustering_cost)
        trainer.figure("affinity", affinity_picture(found.values, chosen.tree, segments, trainer.data.task_names))
        trainer.figure("budget", budget_picture(front, chosen, segments, limit, exact))
        return chosen.tree

    @staticmethod
    def _tell_choice(trainer: Trainer, chosen: Candidate, limit: SizeBudget, segments: Segments) -> None:
        reference = segments.reference(limit.unit)
        trainer.fact("budget", limit.relative, "x plain backbone")
        trainer.fact("attained", chosen.size / reference, "x plain backbone")
        trainer.fact("clustering cost", chosen.clustering_cost)

    def _start(self, trainer: Trainer, segments: Segments, tree: Tree) -> tuple[Operation, Copies]:
        """Step 7: what the tree starts from."""
        if self.params.branch_init == "initial":
            return initial_copies(trainer, segments, tree)
        trained = [plain_parts(trainer.single_task(task), task) for task in trainer.data.task_names]
        if self.params.fixed_tree is None:
            trainer.flag("copies start from single-task weights: an ablation, not the method")

        def copies(segment: int, cluster: int) -> list[Operation]:
            """Of the first task of the cluster: a cluster has no network of its own yet."""
            parts = trained[tree[segment][cluster][0]]
            members = segments.blocks[segment]
            last = segment == len(segments) - 1
            return parts[1 + members[0] : None if last else 1 + members[-1] + 1]

        return trained[0][0], copies


def plain_parts(network: SingleTask, task: str) -> list[Operation]:
    """The operations of a plain network in order: stem, blocks, and the tail where it does anything."""
    return [node.operation for node in network.graph.reachable([task]) if node.operation.origin == "backbone"]


def n_asked(data: DatasetSpec, n_probe: int) -> int:
    """K as far as equal parts of all domains can make it up."""
    return max(1, n_probe // len(data.inputs)) * len(data.inputs)


def probe_batches(trainer: Trainer, n_probe: int, role: Role, seed: int) -> list[Batch]:
    """The K probe images, the same in the same order for every network; on multi-domain data in equal parts from every
    domain (DESIGN 5).
    """
    each = n_asked(trainer.data, n_probe) // len(trainer.data.inputs)
    return list(trainer.batches(role, each, draw_seed=seed))
