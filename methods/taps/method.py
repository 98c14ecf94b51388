"""TAPS: a frozen base network, of which every task replaces the layers that it needs to.

M. Wallingford, H. Li, A. Achille, A. Ravichandran, C. Fowlkes, R. Bhotika, S. Soatto, "Task Adaptive Parameter Sharing
for Multi-Task Learning", CVPR 2022, https://arxiv.org/abs/2203.16708; re-implementation (by its own word unofficial)
https://github.com/MattWallingford/TAPS. Symbols: w_t = w + 1[s >= threshold] * delta; s a task's score of a layer.

From the paper: the weights, the straight-through gradient to s, the penalty on |s|. Third party: initial values, norms
and heads of each task, the start from one network of all tasks. Ours: all tasks in one stage (they share nothing that
is trained), the deployed form. Not supported: the choice of an epoch on the test split, optimizer steps every eighth
batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from methods.contracts import (
    Budget,
    Fidelity,
    Method,
    OptimizerSpec,
    ParameterGroup,
    Reference,
    Role,
    Stage,
    Statement,
    Trainer,
)
from methods.figures import Figure, Heatmap
from methods.operating import rate_of, reach_notes
from methods.parameters import MethodParams, Tuned
from methods.plain import require_tasks, task_losses
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph
    from methods.taps.weights import TaskWeights

NonNegative = Annotated[float, Field(ge=0)]
_PUBLISHED_DELAY = 2 / 30  # the penalty waits for 2 of 30 epochs


class TapsParams(MethodParams):
    """The parameters of TAPS."""

    base: Literal["auto", "pretrained", "joint"] = Field(
        default="auto",
        description="what is frozen: the cell's initial weights (`pretrained`), or one network trained on all tasks "
        "first (`joint`); `auto` takes the former where the weights are not random",
    )
    threshold: float = Field(default=0.1, description="a task changes the layers whose score is at least this")
    score_init: float = Field(default=0.15, description="scores at the start")
    sparsity_weight: Annotated[NonNegative, Tuned(1e-1, 1e1)] = Field(
        default=1.0, description="weight of the mean |s| over layers, of each task"
    )
    penalty_delay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="share of the training without that penalty",
    )
    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` trains by SGD with momentum .9 and a rate that falls as a cosine",
    )
    lr_scores: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="learning rate of the scores (Adam), read under `recipe: suite` only; null: a score can move by "
        "four times its distance from the threshold",
    )
    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="learning rate; read under `recipe: published` only, where it is 0.01 unless it is given",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Defaults that `recipe: published` changes."""
        if not isinstance(values, Mapping) or values.get("recipe") != "published":
            return values
        return {"penalty_delay": _PUBLISHED_DELAY, "lr": 0.01, **values}

    @property
    def reach(self) -> float:
        """What a score must be able to move: to the threshold, and as far beyond it."""
        return 2 * abs(self.score_init - self.threshold)

    def score_rate(self, steps: int) -> float:
        """Learning rate of the scores under `recipe: suite`."""
        return rate_of(self.lr_scores, steps, 2 * self.reach)

    @model_validator(mode="after")
    def _one_recipe(self) -> TapsParams:
        if self.score_init == self.threshold:
            raise ValueError(f"score_init is the threshold, {self.threshold:g}; a score must have a way to go to it")
        if self.recipe == "suite" and self.lr is not None:
            raise ValueError("lr is read under recipe: published only")
        if self.recipe == "published" and self.lr_scores is not None:
            raise ValueError("lr_scores is read under recipe: suite only; under published scores learn at lr")
        if self.recipe == "published" and self.lr is None:
            raise ValueError("recipe: published needs lr; leave it out for 0.01")
        return self


@register_method("taps")
class Taps(Method[TapsParams]):
    """A frozen base; every task learns which layers to change, and how."""

    Params = TapsParams
    traits: ClassVar[Traits] = Traits("some", "none", "T", before=1, size_parameter="sparsity_weight")
    final_batch_norm = "per_task"
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="M. Wallingford et al., Task Adaptive Parameter Sharing for Multi-Task Learning, CVPR 2022",
        link="https://arxiv.org/abs/2203.16708",
        references=(
            Reference(
                "wallingford2022task",
                "inproceedings",
                (
                    "M. Wallingford",
                    "H. Li",
                    "A. Achille",
                    "A. Ravichandran",
                    "C. Fowlkes",
                    "R. Bhotika",
                    "S. Soatto",
                ),
                "Task Adaptive Parameter Sharing for Multi-Task Learning",
                "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
                2022,
                "https://arxiv.org/abs/2203.16708",
            ),
        ),
        statements=(
            Statement("paper", "w_t = w + 1[s >= threshold] delta on a frozen base; straight-through gradient to s."),
            Statement("paper", "Penalty sparsity_weight sum |s| for each task."),
            Statement("third party", "sparsity_weight 1 (.5 and 1 on DomainNet, .1 on CUB)."),
            Statement("third party", "Threshold .1, scores start at .15, delta at 0; batch norms and heads per task."),
            Statement("third party", "The penalty is divided by 52; here by the true number of layers."),
            Statement("third party", "base: joint. One network of all tasks first, and TAPS from it."),
            Statement("third party", "recipe: published. SGD .01, momentum .9, cosine, no penalty for 2 of 30 epochs."),
            Statement("default", "A joint base is trained by the cell's recipe, also under recipe: published."),
            Statement("default", "Task weights multiply losses, not penalties; the penalties of all tasks are summed."),
            Statement(
                "default",
                "recipe: suite. Scores learn by Adam, undecayed, at four times their distance from the threshold / "
                "steps, so that they can cross it at any budget; the third party's SGD moves them by more.",
            ),
            Statement("default", "All tasks train in one stage of the budget's steps; heads go on from a joint base."),
            Statement("default", "Every other parameter (biases, layer norms, embeddings) stays shared and frozen."),
            Statement("default", "Deployed with w + delta; a base weight that all tasks replace is not stored."),
            Statement("default", "The official loop steps every 8th batch and picks epochs on test; neither is kept."),
        ),
    )

    def __init__(self, params: TapsParams) -> None:
        super().__init__(params)
        self.recipe = params.recipe

    @classmethod
    def about(cls) -> Sequence[str]:
        """How to read its rows."""
        return [
            "A pass of the backbone for every task, and no interference: nothing that one task trains is read by "
            "another. `x_backbone` grows with the layers that tasks replace. With a frozen base of random weights the "
            "row is flagged as taps-scratch: it is not the method of the paper.",
            "`parameters with the base kept` is the paper's count without heads: the base, a copy of each active layer "
            "for each task, and norms for each task. The deployed network leaves out base weights that no task runs.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The frozen base. Raises UsageError for one task."""
        require_tasks(data)
        notes = []
        if self._joint(backbone):
            notes.append(
                f"base: one network trained on all tasks for {budget.steps} steps, then TAPS from it for {budget.steps}"
            )
        elif backbone.from_scratch:
            notes.append("taps-scratch: the frozen base has random weights; use base: joint, or pretrained weights")
        p = self.params
        if p.recipe == "published":
            notes.append(f"published recipe: SGD at {p.lr:g}; steps and batch size are the cell's")
        else:
            notes += reach_notes("lr_scores", p.score_rate(budget.steps), budget.steps, p.reach)
        return notes

    def _joint(self, backbone: Backbone) -> bool:
        return self.params.base == "joint" or (self.params.base == "auto" and backbone.from_scratch)

    def run(self, trainer: Trainer) -> TaskGraph:
        """Train a joint base if it is asked for, then the changes of each task."""
        from methods.taps.base import copies, joint_base

        require_tasks(trainer.data)
        backbone = trainer.backbone()
        heads = {task: trainer.head(task) for task in trainer.data.task_names}
        joint = self._joint(backbone)
        if not joint and backbone.from_scratch:
            trainer.flag("taps-scratch: the frozen base has random weights, where the method needs a trained one.")
        backbones = joint_base(trainer, backbone, heads) if joint else copies(backbone, len(heads))
        network = self.network(trainer.data, backbones, heads)
        trainer.fit(self.stage(trainer, network))
        self._tell(trainer, network)
        return network.deployed()

    def network(self, data: DatasetSpec, backbones: Sequence[Backbone], heads: Mapping[str, Operation]) -> TaskWeights:
        """All tasks over one base, before any of them changes it."""
        from methods.taps.weights import TaskWeights

        return TaskWeights(data, backbones, heads, self.params.threshold, self.params.score_init)

    def stage(self, trainer: Trainer, network: TaskWeights) -> Stage:
        """The training of the weights that tasks change, on fit and arch together."""
        p, steps = self.params, trainer.budget.steps
        own = None if p.lr is None else OptimizerSpec("sgd", p.lr, momentum=0.9, cosine=True)
        of_scores = own or OptimizerSpec("adam", p.score_rate(steps))
        start = round(p.penalty_delay * steps)

        def penalty() -> Tensor:
            return p.sparsity_weight * network.sparsity() * (network.steps >= start)

        return Stage(
            name="taps",
            network=network,
            steps=steps,
            role=Role.FIT_ARCH,
            train=[
                ParameterGroup("backbone", [*network.deltas.parameters(), *network.norm_parameters()], own),
                ParameterGroup("arch", [network.scores], of_scores),
                ParameterGroup("heads", list(network.heads.parameters()), own),
            ],
            losses=task_losses(trainer.data, network),
            purpose="final",
            penalty=penalty,
            after_step=network.count_step,
            passes=len(trainer.data.tasks),
        )

    def _way(self, scores: Tensor) -> Tensor:
        """In [0, 1], as probabilities: 1/2 at the threshold, the end at the start and as far beyond the threshold."""
        return (0.5 + (scores - self.params.threshold) / self.params.reach).clamp(0, 1)

    def _tell(self, trainer: Trainer, network: TaskWeights) -> None:
        tasks, layers = trainer.data.task_names, network.layers
        active, scores = network.active(), network.scores.detach().cpu()
        start = scores.new_full(scores.shape, self.params.score_init)
        trainer.moved("scores", self._way(start), self._way(scores))
        for t, task in enumerate(tasks):
            trainer.fact(f"active layers, {task}", int(active[t].sum()), f"of {len(layers)}")
        trainer.fact("active layers", 100 * float(active.float().mean()), "percent")
        trainer.fact("parameters with the base kept", network.parameters_with_base())
        trainer.artifact("scores", scores)  # float [T, L]
        cells = [(t, number) for t, number in active.nonzero().tolist()]
        trainer.chosen(f"{tasks[t]}: {layers[number]}" for t, number in cells)
        panel = Heatmap(
            title="after training",
            rows=tuple(tasks),
            columns=tuple(name.replace(".module.", ".") for name in layers),
            values=tuple(tuple(map(float, row)) for row in scores.tolist()),
            row_title="task",
            column_title="layer",
            value_title="score s",
            marks=tuple(cells),
            mark_title=f"weights of the task's own (s >= {self.params.threshold:g})",
        )
        trainer.figure("scores", Figure(title="Which layers each task changes", panels=(panel,)))
        if bool(active.all()):
            trainer.flag("No score fell below the threshold, so every task changed every layer: nothing is shared.")
