"""Branched multi-task network (BMTN): task affinities decide, for a budget, which layers are shared.

S. Vandenhende, S. Georgoulis, B. De Brabandere, L. Van Gool, "Branched Multi-Task Networks: Deciding What Layers To
Share", BMVC 2020, arXiv 1904.02920. No official code is known.

From the paper's abstract: affinities under a budget of learnable parameters give a tree whose deeper layers are more
task-specific. Recalled, not checked: representation similarity analysis of single-task networks, the mean of the
clusters' largest dissimilarity as cost, K = 500 held-out probe images, beam search with spectral clustering for many
tasks, training from initial weights. Ours: which affinity judges which segment, probe images from fit, ties, how the
beam is completed, `random_tree`. Borrowed from other code: `recipe: published`, as the paper's own is not known.

Symbols: N tasks, D segments, A [D, N, N] affinities, delta = 1 - A, pi_d partition of the tasks at segment d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from datasets.errors import UsageError
from methods.branched.choices import Degenerate, FeatureDtype
from methods.branched.network import Copies, FinalRecipe
from methods.branched.pictures import affinity_picture, budget_picture
from methods.branched.published import BORROWED, BorrowedParams, borrowed_recipe
from methods.branched.segments import (
    BudgetScope,
    BudgetUnit,
    Granularity,
    Segments,
    SizeBudget,
    budget_notes,
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
from methods.branched.tree_method import ChoiceParams, ChoosingMethod, Chosen, Size, TreeParams
from methods.branched.trees import Tree
from methods.contracts import Budget, Fidelity, Reference, Role, SingleTask, Statement, Trainer
from methods.parameters import Later
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import Batch, DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.branched.affinity import Affinity
    from methods.graph.operations import Operation

VANDENHENDE = Reference(
    "vandenhende2020branched",
    "inproceedings",
    ("S. Vandenhende", "S. Georgoulis", "B. De Brabandere", "L. Van Gool"),
    "Branched Multi-Task Networks: Deciding What Layers To Share",
    "British Machine Vision Conference",
    2020,
    "https://arxiv.org/abs/1904.02920",
)
MOST_TASKS_AUTO = 6  # up to here `search: auto` is exhaustive


class BudgetParams(TreeParams):
    """The size of a tree."""

    granularity: Granularity = Field(default="stage", description="segments are stages or blocks")
    budget: Size = Field(
        default=1.8, description="size: a float is relative to the plain backbone, an integer absolute"
    )
    budget_unit: BudgetUnit = Field(default="params", description="parameters or MACs")
    budget_scope: BudgetScope = Field(
        default="encoder",
        description="`encoder`: stem, segments and tail; `encoder_heads`: with the heads",
    )


class BranchedParams(BudgetParams, ChoiceParams):
    """The parameters of BMTN. A[d]: affinities of tasks at segment d."""

    variant: Literal["bmvc", "third_party_b"] = Field(
        default="bmvc",
        description="`bmvc` judges segment d by A[d]; `third_party_b` by A[d - 1], with segment 1 always shared",
    )
    location_semantics: LocationSemantics | None = Field(
        default=None,
        description="which affinity judges which segment, in place of the variant's",
    )
    n_probe: Annotated[int, Field(ge=3)] = Field(default=500, description="K, the number of probe images")
    probe_split: Literal["fit", "select"] = Field(
        default="fit",
        description="role of the probe images; `select` re-enacts held-out images",
    )
    probe_seed: Annotated[int, Field(ge=0)] = Field(default=0, description="which K images are taken")
    feature_dtype: FeatureDtype = Field(default="float64", description="precision of the products of features")
    degenerate: Degenerate = Field(
        default="error",
        description="distances of an image whose features are all equal: an error, or 1",
    )
    center_images: Annotated[bool, Later()] = Field(
        default=False, description="take from every feature its mean over the probe images before images are compared"
    )
    cluster_cost: ClusterCost = Field(default="mean_max", description="`mean_max` is the method, others are ablations")
    search: Literal["auto", "exhaustive", "beam"] = Field(
        default="auto", description="`auto` compares all trees up to 6 tasks"
    )
    beam_width: Annotated[int, Field(ge=1)] = Field(default=10, description="partial trees kept by the beam search")
    beam_candidates: Candidates = Field(default="spectral", description="partitions that the beam search tries")
    cluster_seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the spectral clustering")
    branch_init: Literal["initial", "single_task"] = Field(
        default="initial",
        description="`single_task` copies from the single-task networks, an ablation",
    )
    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` trains the tree by a borrowed recipe, as the paper's is not known; single-task "
        "networks stay the table's",
    )
    published: BorrowedParams | None = Field(
        default=None, description="the borrowed recipe, read under `recipe: published`"
    )

    @model_validator(mode="after")
    def _one_recipe(self) -> BranchedParams:
        if (self.recipe == "published") != (self.published is not None):
            raise ValueError("recipe: published and published.preset belong together; give both or neither")
        return self

    @property
    def semantics(self) -> LocationSemantics:
        """Which affinity judges which segment."""
        return self.location_semantics or ("own_segment" if self.variant == "bmvc" else "next_segment")

    def is_exhaustive(self, n_tasks: int) -> bool:
        """Whether all trees are compared."""
        return self.search == "exhaustive" or (self.search == "auto" and n_tasks <= MOST_TASKS_AUTO)


@register_method("branched")
class Branched(ChoosingMethod[BranchedParams]):
    """A tree chosen under a size budget by how similarly single-task networks represent the same images."""

    Params = BranchedParams
    traits: ClassVar[Traits] = Traits("some", "some", "1 to T", before_per_task=1, size_parameter="budget")
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="S. Vandenhende et al., Branched Multi-Task Networks: Deciding What Layers To Share, BMVC 2020",
        link="https://arxiv.org/abs/1904.02920",
        references=(VANDENHENDE,),
        statements=(
            Statement("paper", "Abstract: affinities and a budget of learnable parameters decide a tree of layers."),
            Statement("recalled", "Similarity analysis: 1 - Pearson of unpooled features, Spearman between tasks."),
            Statement(
                "third party",
                "center_images: later versions of an analysis script take from every feature its mean over the probe "
                "images; an affinity then depends on that mean. Which form the paper used is not known; off here.",
            ),
            Statement("recalled", "Cost: per location the mean over clusters of the largest dissimilarity inside."),
            Statement("third party", "An independent implementation agrees on both and on trees as refining chains."),
            Statement("recalled", "500 probe images and beam width 10, with low confidence; here images of fit."),
            Statement("recalled", "The tree starts from the initial weights, not from the single-task networks."),
            Statement("default", "A[d] judges who shares segment d; stem shared, tail copied with the last segment."),
            Statement("default", "Ties: smaller, then lexicographic; completion of the beam; recipe is the suite's."),
            Statement(
                "third party",
                "recipe: published is borrowed: the paper's own is not known. Final training as the multi-task "
                "baselines of the first author's survey repository, which has no branching code: Adam, a rate that "
                "falls as a polynomial per epoch, their task weights.",
            ),
            Statement("default", "random_tree: the control, a uniform draw from the trees of the size found."),
        ),
    )

    def __init__(self, params: BranchedParams) -> None:
        super().__init__(params)
        self.recipe = params.recipe

    @property
    def granularity(self) -> Granularity:
        """Whether a segment is a stage or a block."""
        return self.params.granularity

    def final_recipe(self, data: DatasetSpec) -> FinalRecipe | None:
        """The borrowed one where it is asked for."""
        return None if self.params.published is None else borrowed_recipe(data, self.params.published)

    def recipe_notes(self, data: DatasetSpec) -> Sequence[str]:
        """The borrowed recipe, and the parts of it that the cell must set."""
        if self.params.published is None:
            return ()
        preset = BORROWED[self.params.published.preset]
        return (
            f"borrowed recipe, not the paper's: {borrowed_recipe(data, self.params.published).steps} final steps, "
            f"whatever the budget; its setting is {preset.setting}, batches of {preset.batch_size}: these are the "
            "cell's to set, and so is the training of the single-task networks",
        )

    def n_copies(self, n_tasks: int, n_segments: int) -> list[range]:
        """Any number of copies; if affinities judge the next segment, the first one is always shared."""
        own = self.params.semantics == "own_segment"
        return [range(1, n_tasks + 1) if own or segment else range(1, 2) for segment in range(n_segments)]

    def check_search(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """The budget in numbers, and what a further copy of each segment costs on this backbone."""
        if self.params.is_exhaustive(len(data.tasks)) and len(data.tasks) > MOST_TASKS_EXHAUSTIVE:
            raise UsageError(
                f"search: exhaustive takes up to {MOST_TASKS_EXHAUSTIVE} tasks, not {len(data.tasks)}; use beam."
            )
        return budget_notes(segments, self._limit(data, segments))

    def _limit(self, data: DatasetSpec, segments: Segments) -> SizeBudget:
        p = self.params
        return size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)

    def find(self, trainer: Trainer, segments: Segments) -> Chosen:
        """Single-task networks, affinities, the tree."""
        limit = self._limit(trainer.data, segments)
        return Chosen(self._select(trainer, self._affinities(trainer, segments), segments, limit))

    def _affinities(self, trainer: Trainer, segments: Segments) -> Affinity:
        """Steps 1 to 3: N single-task networks, their features on the same K images, A."""
        from methods.branched.affinity import affinity, features_of

        p, tasks = self.params, trainer.data.task_names
        probes = probe_batches(trainer, p.n_probe, Role.FIT if p.probe_split == "fit" else Role.SELECT, p.probe_seed)

        def features() -> Iterator[tuple[int, int, Tensor]]:
            for i, task in enumerate(tasks):
                network = trainer.single_task(task)
                for d, values in features_of(network.graph, task, segments.blocks, probes):
                    yield i, d, values
                trainer.charge(len(probes))

        locations = [f"the end of {name}" for name in segments.names]
        found = affinity(features(), tasks, locations, p.degenerate, p.feature_dtype, p.center_images)
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

    def start(self, trainer: Trainer, segments: Segments, tree: Tree) -> tuple[Operation, Copies]:
        """Step 7: what the tree starts from."""
        if self.params.branch_init == "initial":
            return super().start(trainer, segments, tree)
        trained = [plain_parts(trainer.single_task(task), task) for task in trainer.data.task_names]
        if self.params.fixed_tree is None:
            trainer.flag("copies start from single-task weights: an ablation, not the method")

        def copies(segment: int, cluster: int) -> list[Operation]:
            """The operations of the first task's network: a cluster has no trained network."""
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
