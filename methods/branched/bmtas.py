"""BMTAS: a tree found by differentiable search over copies of every layer, with a loss on its expected compute.

D. Bruggemann, M. Kanakis, S. Georgoulis, L. Van Gool, "Automated Search for Resource-Efficient Branched Multi-Task
Networks", BMVC 2020, arXiv 2008.10292. Official code: brdav/bmtas.

From the official code: supernet, warm-up, temperature, separate passes, resource loss with its recursion, choices made
nested, training of the tree from initial weights, `recipe: published`. From its README: `variant: paper_readme`, the
paper's SGD in the search and rates divided by the tasks that share, without numbers for either. Ours: timm's blocks
with their shortcut as layers, the tail copied with the last one, time in cycles, a search of 1.2 times the final
training with the suite's recipe, one cycle of warm-up or more, the exact resource estimate, the relative resource
scale, `budget`, `random_tree`.

Symbols: T tasks (t), L layers (l), copies i; alpha [L, T, T] logits, row = task, column = copy; tau temperature;
G_l compute of one copy; E cycles, the first E_w of them warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from datasets.errors import UsageError
from methods.branched.choices import Estimator
from methods.branched.network import FinalRecipe
from methods.branched.pictures import tell_choices
from methods.branched.published import (
    MOMENTUM,
    OFFICIAL_BATCH,
    OFFICIAL_SETTING,
    OfficialParams,
    official_recipe,
    steps_per_epoch,
)
from methods.branched.schedule import Schedule, SearchParams, search_notes
from methods.branched.segments import Segments, size_budget
from methods.branched.tree_method import ChoosingMethod, Chosen
from methods.branched.trees import Tree, nested
from methods.contracts import Budget, Fidelity, OptimizerSpec, Reference, Statement, Trainer
from methods.operating import MOVEMENT
from methods.parameters import Tuned
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.branched.bmtas_supernet import BmtasSupernet

_IN_CYCLES = ("search_ratio", "n_cycles", "arch_share")  # what epochs take the place of


class BmtasParams(SearchParams):
    """The parameters of BMTAS. R: expected compute, G: compute of one copy of each layer."""

    variant: Literal["official", "paper_readme"] = Field(
        default="official",
        description="`paper_readme` searches with SGD at `published.lr_weights`, which must be given, and divides "
        "rates by the tasks that share",
    )
    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` counts epochs, and changes the defaults of batch_norm, resource_norm and search_scale",
    )

    resource_weight: Annotated[float, Field(ge=0), Tuned(5e-3, 5e-1)] = Field(
        default=0.05, description="weight of R; 0 removes it"
    )
    resource_estimator: Estimator = Field(
        default="bmtas", description="R by the official recursion, or the exact expectation"
    )
    resource_multiplicity: Literal["per_task", "once"] = Field(
        default="per_task",
        description="add R once per task backward, or once",
    )
    resource_norm: Literal["relative", "gflops"] = Field(
        default="relative",
        description="`relative` scales G to the published sum",
    )
    lut_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        description="(height, width) at which G is counted; null takes the data's",
    )
    final_bn_affine: bool = Field(
        default=False,
        description="keep scale and shift in the last norm of every copy during the search",
    )
    unused_grad: Literal["none", "zero"] = Field(
        default="none",
        description="`zero` also steps the weights that the task of a step does not use, as the official environment "
        "did",
    )
    published: OfficialParams | None = Field(
        default=None, description="the official recipe, read under `recipe: published`"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Defaults that variant and recipe change."""
        if not isinstance(values, Mapping):
            return values
        implied: dict[str, object] = {}
        if values.get("recipe") == "published":
            implied.update(batch_norm="shared", resource_norm="gflops", search_scale=0.5, lr_arch=0.01, published={})
        if values.get("variant") == "paper_readme":
            implied.update(lr_share_scaling="inverse")
            given = values.get("published")
            if not isinstance(given, Mapping) or "lr_weights" not in given:
                raise ValueError(
                    "variant: paper_readme searches with SGD, whose rate no source gives; set recipe: published and "
                    "published.lr_weights"
                )
        return {**implied, **values}

    @model_validator(mode="after")
    def _one_recipe(self) -> BmtasParams:
        if (self.recipe == "published") != (self.published is not None):
            raise ValueError("published is read under recipe: published only; give both or neither")
        if self.published is not None:
            fields = type(self).model_fields
            given = [name for name in _IN_CYCLES if getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"recipe: published counts epochs and does not read {', '.join(given)}")
        return self


@register_method("bmtas")
class Bmtas(ChoosingMethod[BmtasParams]):
    """A tree found by a search over T copies of every layer, with a loss on its expected compute."""

    Params = BmtasParams
    traits: ClassVar[Traits] = Traits("some", "some", "1 to T", before=1.2, size_parameter="resource_weight")
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="D. Bruggemann et al., Automated Search for Resource-Efficient Branched MTL Networks, BMVC 2020",
        link="https://arxiv.org/abs/2008.10292",
        references=(
            Reference(
                "bruggemann2020automated",
                "inproceedings",
                ("D. Bruggemann", "M. Kanakis", "S. Georgoulis", "L. Van Gool"),
                "Automated Search for Resource-Efficient Branched Multi-Task Networks",
                "British Machine Vision Conference",
                2020,
                "https://arxiv.org/abs/2008.10292",
            ),
        ),
        statements=(
            Statement(
                "official code", "Supernet, Gumbel-softmax mixture of activations, warm-up, temperature, passes."
            ),
            Statement("official code", "Resource loss: the recursion, added once per task backward, weight 0.05."),
            Statement("official code", "Argmax choices made nested; the tree restarts from the initial weights."),
            Statement(
                "official code",
                "recipe: published. Adam in a search of 160 epochs, then 130 of SGD with a rate that falls as a "
                "polynomial per epoch; batches of 16, tasks weighed as for PASCAL-Context.",
            ),
            Statement(
                "official code",
                "variant: paper_readme, after the README on the paper: SGD in the search, rates of the final training "
                "divided by the tasks that share. The rate in the search is not given; that it is constant, its "
                "momentum and its decay are ours.",
            ),
            Statement("default", "Layers are timm blocks with shortcut and tail; norms of copies keep one set a task."),
            Statement(
                "default", "Cycles for epochs, search of 1.2 S, recipe of the suite, at least one warm-up cycle."
            ),
            Statement(
                "default",
                f"recipe: suite. Architecture by Adam at {MOVEMENT:g} / updates, so that it can move at any budget; "
                "the official 0.01 over 160 epochs of PASCAL-Context (94 in all) is that of published.",
            ),
            Statement("default", "Exact estimate beside the official one; compute relative to the published sum."),
            Statement("default", "budget: the most probable nested tree within a size; off as published."),
            Statement("default", "random_tree: the control, a uniform draw from the trees of the size found."),
        ),
    )

    def __init__(self, params: BmtasParams) -> None:
        super().__init__(params)
        self.recipe = params.recipe
        self.unfit_for_balancing = params.unfit_for_balancing
        self.alternates = params.fixed_tree is None

    def final_recipe(self, data: DatasetSpec) -> FinalRecipe | None:
        """The official one where it is asked for."""
        return None if self.params.published is None else official_recipe(data, self.params.published)

    def recipe_notes(self, data: DatasetSpec) -> Sequence[str]:
        """The parts of the official recipe that the cell must set."""
        if self.params.published is None:
            return ()
        steps = official_recipe(data, self.params.published).steps
        return (
            f"official recipe: {steps} final steps, whatever the budget; it used {OFFICIAL_SETTING}, batches of "
            f"{OFFICIAL_BATCH}: these are the cell's to set",
        )

    def schedule(self, data: DatasetSpec, budget: Budget) -> Schedule:
        """The schedule of the search."""
        published = self.params.published
        if published is None:
            return Schedule.of(budget.steps, self.params)
        weights, arch, _ = steps_per_epoch(data, OFFICIAL_BATCH)
        return Schedule.in_epochs(published.search_epochs, weights, arch, self.params)

    def weight_optimizer(self) -> OptimizerSpec | None:
        """The optimizer of weights in the search: Adam, or SGD as the README says of the paper; None for the cell's."""
        p = self.params.published
        if p is None:
            return None
        if self.params.variant == "paper_readme":
            return OptimizerSpec("sgd", p.lr_weights, p.wd_weights, MOMENTUM)
        return OptimizerSpec("adam", p.lr_weights, p.wd_weights)

    def check_search(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """Its length, copy passes, norms that lose scale and shift, and the budget."""
        from methods.branched.resource import MOST_TASKS

        p, n_tasks = self.params, len(data.tasks)
        if n_tasks > MOST_TASKS and (p.resource_weight or p.budget is not None):
            raise UsageError(
                f"The resource loss and the budget list partitions of up to {MOST_TASKS} tasks, not {n_tasks}; set "
                "resource_weight: 0 and no budget."
            )
        n_cycles = p.n_cycles if p.published is None else p.published.search_epochs
        notes = search_notes(p, data, backbone, segments, self.schedule(data, budget), n_cycles)
        return [*notes, f"{n_tasks**2} copy passes per layer and batch", *self._norm_note(backbone)]

    def _norm_note(self, backbone: Backbone) -> list[str]:
        if self.params.final_bn_affine:
            return []
        from methods.branched.supernet import last_norm

        found = sum(last_norm(block) is not None for block in backbone.blocks)
        return [f"{found} of {len(backbone.blocks)} layers end in a batch norm, without scale and shift in the search"]

    def find(self, trainer: Trainer, segments: Segments) -> Chosen:
        """Search, discretise."""
        from methods.branched.supernet import searched_copies

        network = self._search(trainer, segments)
        tree = self._discretise(trainer, network, segments)
        if self.params.branch_init == "initial":
            return Chosen(tree)
        choice = np.argmax(network.alpha.detach().cpu().numpy(), axis=2)

        def choose(layer: int, cluster: int) -> tuple[int, int]:
            """The copy that the cluster's first task chose."""
            task = tree[layer][cluster][0]
            return int(choice[layer, task]), task

        return Chosen(tree, searched_copies(network, trainer, tree, choose))

    def _search(self, trainer: Trainer, segments: Segments) -> BmtasSupernet:
        from methods.branched.bmtas_supernet import BmtasLosses, BmtasSupernet, layer_costs
        from methods.branched.resource import MOST_TASKS, expected_resource
        from methods.branched.supernet import Search

        p, n_tasks = self.params, len(trainer.data.tasks)
        network = BmtasSupernet(trainer, p)
        cost = layer_costs(trainer.backbone(), trainer.data, p, segments)
        losses = BmtasLosses(trainer.data, network)

        def penalty() -> Tensor:
            """w_res R, as often as there are task backwards."""
            times = losses.n_labelled if p.resource_multiplicity == "per_task" else 1
            return times * p.resource_weight * expected_resource(network.alpha, cost, p.resource_estimator).float()

        Search(
            network,
            self.schedule(trainer.data, trainer.budget),
            losses,
            passes=n_tasks**2,
            penalty=penalty if p.resource_weight else None,
            weight_optimizer=self.weight_optimizer(),
        ).run(trainer)
        if n_tasks <= MOST_TASKS:
            estimators: tuple[tuple[str, Estimator], ...] = (("official", "bmtas"), ("exact", "exact"))
            for label, estimator in estimators:
                value = expected_resource(network.alpha.detach(), cost, estimator)
                trainer.fact(f"expected compute, {label} estimate", float(value) / sum(cost), "x one encoder")
        return network

    def _discretise(self, trainer: Trainer, network: BmtasSupernet, segments: Segments) -> Tree:
        """Source: branching search 2.5. The most probable tree where the nested argmax choices exceed a budget."""
        from methods.branched.bmtas_supernet import argmax_groupings, most_probable_tree

        p, data = self.params, trainer.data
        alpha = network.alpha.detach().cpu()
        groupings = argmax_groupings(alpha.numpy())
        tree = nested(groupings)
        probabilities = alpha.softmax(2)
        trainer.artifact("alpha", alpha)
        trainer.moved("choices of copies", alpha.new_zeros(alpha.shape).softmax(2), probabilities)
        trainer.fact("mean probability of the chosen copy", float(probabilities.amax(2).mean()))
        undone = sum(own != kept for own, kept in zip(groupings, tree, strict=True))
        trainer.fact("layers whose choices were undone by nesting", undone)
        if p.budget is not None:
            limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
            if not limit.holds(segments, tree):
                constant = segments.constant(limit.unit, limit.scope)
                tree = most_probable_tree(alpha, segments, limit.total, limit.unit, constant)
            trainer.fact("budget", limit.relative, "x plain backbone")
        tell_choices(trainer, segments.names, list(probabilities), data.task_names, "task", "copy")
        return tree
