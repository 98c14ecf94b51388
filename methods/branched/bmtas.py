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
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
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
from methods.branched.resource import MOST_TASKS, Estimator, expected_resource, grouping_table
from methods.branched.schedule import Schedule, SearchParams, search_notes
from methods.branched.segments import Segments, size_budget
from methods.branched.selection import Problem, exhaustive_front, within
from methods.branched.supernet import Labelled, Search, Supernet, last_norm, mixture, searched_copies
from methods.branched.tree_method import ChoosingMethod, Chosen
from methods.branched.trees import Partition, Tree, nested, of_labels
from methods.contracts import Budget, Fidelity, OptimizerSpec, Reference, Statement, Trainer
from methods.graph.cost import count
from methods.registry import register_method

PUBLISHED_SUM = 4.7605  # GFLOPs of all layers at 512 x 512, for which resource_weight 0.05 was set (official code)
SMALLEST_PROBABILITY = 1e-30  # of a grouping, where its logarithm is taken
_IN_CYCLES = ("search_ratio", "n_cycles", "arch_share")  # what epochs take the place of


class BmtasParams(SearchParams):
    """resource_weight: w_res; 0 removes R. resource_estimator: the official recursion or the exact expectation.
    resource_multiplicity: R once per task backward, or once. resource_norm: relative scales G to the published sum.
    lut_size: (height, width) at which G is counted, None for the data's. final_bn_affine: scale and shift in the last
    norm of every copy during the search. unused_grad: zero steps what the task of a step does not use, as the official
    environment did. recipe: published counts epochs, takes `published` and, where they are not given, one set of norms,
    GFLOPs and half the image size in the search. variant: paper_readme searches with SGD at `published.lr_weights`,
    which must be given, and divides rates by the tasks that share.
    """

    variant: Literal["official", "paper_readme"] = "official"
    recipe: Literal["suite", "published"] = "suite"

    resource_weight: Annotated[float, Field(ge=0)] = 0.05
    resource_estimator: Estimator = "bmtas"
    resource_multiplicity: Literal["per_task", "once"] = "per_task"
    resource_norm: Literal["relative", "gflops"] = "relative"
    lut_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    final_bn_affine: bool = False
    unused_grad: Literal["none", "zero"] = "none"
    published: OfficialParams | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What variant and recipe imply, where it is not given."""
        if not isinstance(values, Mapping):
            return values
        implied: dict[str, object] = {}
        if values.get("recipe") == "published":
            implied.update(batch_norm="shared", resource_norm="gflops", search_scale=0.5, published={})
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


class BmtasSupernet(Supernet):
    """Every task chooses, at every layer, among T copies; activations are mixed, not weights."""

    params: BmtasParams

    def __init__(self, trainer: Trainer, params: BmtasParams) -> None:
        n_layers, n_tasks = len(trainer.backbone().blocks), len(trainer.data.tasks)
        super().__init__(trainer, params, [n_tasks] * n_layers, trainer.data.task_names)
        self.alpha = nn.Parameter(torch.zeros(n_layers, n_tasks, n_tasks, device=trainer.device))

    def prepare(self, backbones: Sequence[Backbone]) -> int:
        """Take scale and shift from the last norm of every copy (official code)."""
        assert isinstance(self.params, BmtasParams)
        if self.params.final_bn_affine:
            return 0
        norms = [norm for backbone in backbones for norm in map(last_norm, backbone.blocks) if norm is not None]
        for norm in norms:
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
        return len(norms)

    def choices(self) -> list[nn.Parameter]:
        """alpha."""
        return [self.alpha]

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """x_{t,l} = sum_i w_i f_{l,i}(x_{t,l-1}), one draw of w per task, layer and pass."""
        stems: dict[str, Tensor] = {}
        predictions = {}
        for task in tasks:
            name = self.data.input_of(task)
            if name not in stems:
                stems[name] = self.stem(images, name)
            x, t = stems[name], self.tasks.index(task)
            for number in range(len(self.layers)):
                x = self._mixed(number, t, x)
            predictions[task] = self.heads[task](x)
        return predictions

    def _mixed(self, number: int, t: int, x: Tensor) -> Tensor:
        copies = [cast(nn.ModuleList, copy)[t] for copy in cast(nn.ModuleList, self.layers[number])]
        if self.warm:  # w = e_t: T independent encoders behind the stem
            return copies[t](x)
        alpha = self.alpha[number, t]
        w = mixture(alpha, self.noise(alpha.shape, alpha), self.tau, self.params.hard_samples)
        return torch.stack([w[i] * copy(x) for i, copy in enumerate(copies)]).sum(0)


class _Losses(Labelled):
    """With `unused_grad: zero`, every weight that has ever had a gradient gets one of zero where it has none."""

    network: BmtasSupernet

    def __call__(self, batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        losses = dict(super().__call__(batch, tasks))
        network = self.network
        if network.params.unused_grad == "none" or not losses or network.alpha.requires_grad:
            return losses
        own = [network.tasks.index(task) for task in losses]
        first = next(iter(losses))
        for other in network.seen.nonzero().flatten().tolist():
            if other not in own:
                losses[first] = losses[first] + 0.0 * self._unused(other)
        network.seen[own] = True
        return losses

    def _unused(self, other: int) -> Tensor:
        """A sum over what only that task's steps reach: its head, and in the warm-up its copies."""
        modules: list[nn.Module] = [self.network.heads[self.network.tasks[other]]]
        if self.network.warm:
            modules += [layer[other] for layer in self.network.layers]  # type: ignore[index]
        return torch.stack([p.sum() for module in modules for p in module.parameters()]).sum()


def layer_costs(backbone: Backbone, data: DatasetSpec, params: BmtasParams, segments: Segments) -> list[float]:
    """G_l = 2 MACs / 1e9 of one copy of every layer at `lut_size`; relative: scaled to the published sum.

    Raises UsageError where the backbone has a fixed size and another is asked for.
    """
    macs: Sequence[int] = segments.macs
    if params.lut_size is not None and params.lut_size != data.native_size:
        if backbone.layout == "tokens":
            raise UsageError(f"lut_size {params.lut_size}: {backbone.config.name!r} takes {data.native_size} only.")
        shape: tuple[int, ...] = (1, backbone.config.in_chans, *params.lut_size)
        shape = count(backbone.stem, [shape]).output
        macs = []
        for number, block in enumerate(backbone.blocks):
            parts = [block.module, backbone.tail] if number == len(backbone.blocks) - 1 else [block.module]
            cost = count(nn.Sequential(*parts), [shape])
            macs, shape = [*macs, cost.macs], cost.output
    gflops = [2 * value / 1e9 for value in macs]
    scale = PUBLISHED_SUM / sum(gflops) if params.resource_norm == "relative" else 1.0
    return [value * scale for value in gflops]


def argmax_groupings(alpha: npt.NDArray[np.float32]) -> list[Partition]:
    """Per layer the tasks that choose the same copy; the first of equal logits. alpha: [L, T, copies]."""
    return [of_labels(row.tolist()) for row in np.argmax(alpha, axis=2)]


def most_probable_tree(alpha: Tensor, segments: Segments, total: int, unit: str, constant: int) -> Tree:
    """Within a size: the tree that maximises the product over layers of P(sampled grouping = pi_l). Ours."""
    table = grouping_table(alpha.shape[1])
    logs = [table.sampled(layer).clamp_min(SMALLEST_PROBABILITY).log().tolist() for layer in alpha.double().softmax(2)]
    place = {partition: number for number, partition in enumerate(table.partitions)}
    posed = Problem(
        lambda layer, partition: -logs[layer][place[partition]],
        segments.per_copy("params" if unit == "params" else "macs"),
        constant,
        alpha.shape[1],
    )
    return within(exhaustive_front(posed), total).tree


@register_method("bmtas")
class Bmtas(ChoosingMethod[BmtasParams]):
    """A tree found by a search over T copies of every layer, with a loss on its expected compute."""

    Params = BmtasParams
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
        """What of the official recipe is the cell's to set."""
        if self.params.published is None:
            return ()
        steps = official_recipe(data, self.params.published).steps
        return (
            f"official recipe: {steps} final steps, whatever the budget; it used {OFFICIAL_SETTING}, batches of "
            f"{OFFICIAL_BATCH}: these are the cell's to set",
        )

    def schedule(self, data: DatasetSpec, budget: Budget) -> Schedule:
        """Of the search."""
        published = self.params.published
        if published is None:
            return Schedule.of(budget.steps, self.params)
        weights, arch, _ = steps_per_epoch(data, OFFICIAL_BATCH)
        return Schedule.in_epochs(published.search_epochs, weights, arch, self.params)

    def weight_optimizer(self) -> OptimizerSpec | None:
        """Of the search, None for the cell's: Adam, or SGD as the README says of the paper."""
        p = self.params.published
        if p is None:
            return None
        if self.params.variant == "paper_readme":
            return OptimizerSpec("sgd", p.lr_weights, p.wd_weights, MOMENTUM)
        return OptimizerSpec("adam", p.lr_weights, p.wd_weights)

    def check_search(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """Its length, copy passes, norms that lose scale and shift, and the budget."""
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
        found = sum(last_norm(block) is not None for block in backbone.blocks)
        return [f"{found} of {len(backbone.blocks)} layers end in a batch norm, without scale and shift in the search"]

    def find(self, trainer: Trainer, segments: Segments) -> Chosen:
        """Search, discretise."""
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
        p, n_tasks = self.params, len(trainer.data.tasks)
        network = BmtasSupernet(trainer, p)
        cost = layer_costs(trainer.backbone(), trainer.data, p, segments)
        losses = _Losses(trainer.data, network)

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
        p, data = self.params, trainer.data
        alpha = network.alpha.detach().cpu()
        groupings = argmax_groupings(alpha.numpy())
        tree = nested(groupings)
        trainer.artifact("alpha", alpha)
        trainer.fact("mean probability of the chosen copy", float(alpha.softmax(2).amax(2).mean()))
        undone = sum(own != kept for own, kept in zip(groupings, tree, strict=True))
        trainer.fact("layers whose choices were undone by nesting", undone)
        if bool((alpha == alpha[:, :, :1]).all()):
            trainer.flag("alpha never moved from equal choices: the tree is the tie rule's, not the search's")
        if p.budget is not None:
            limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
            if not limit.holds(segments, tree):
                constant = segments.constant(limit.unit, limit.scope)
                tree = most_probable_tree(alpha, segments, limit.total, limit.unit, constant)
            trainer.fact("budget", limit.relative, "x plain backbone")
        tell_choices(trainer, segments.names, list(alpha.softmax(2)), data.task_names, "task", "copy")
        return tree
