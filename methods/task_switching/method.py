"""Task Switching Network: one network for all tasks; a code selects the task.

G. Sun, T. Probst, D. P. Paudel, N. Popovic, M. Kanakis, J. Patel, D. Dai, L. Van Gool, "Task Switching Network for
Multi-Task Learning", ICCV 2021; official code (test only) https://github.com/GuoleiSun/TSNs. Symbols: y = gamma * IN(x)
+ beta (AdaIN), gamma and beta affine in a task's style, which a mapping network makes of its code.

Official code: one unconditioned encoder, U-Net decoder 512/256/256/128/64, mapping of 8 layers, block one-hot codes,
gamma's bias at 1, one output width for all tasks. Ours, because the training code is absent: initial weights, the
training, how skips join, decoder widths on small backbones, and the whole form for tasks with one label per image. Not
supported: dense and pooled tasks in one network, NHWC and token layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from methods.contracts import Budget, Fidelity, Method, Reference, Statement, Trainer
from methods.figures import Figure, Heatmap
from methods.parameters import MethodParams
from methods.plain import fit_graph, require_maps, require_tasks
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph
    from methods.task_switching.codes import Code

Count = Annotated[int, Field(ge=1)]


class TaskSwitchingParams(MethodParams):
    """The parameters of task switching."""

    code_width: Count = Field(
        default=100,
        description="numbers in a task's code; fixed, so that the network does not depend on the number of tasks",
    )
    style_width: Count | None = Field(
        default=None,
        description="width of the mapping network; null takes the channels of the last stage, at most 512",
    )
    mapping_layers: Count = Field(default=8, description="layers of the mapping network")
    conditioned_places: Count = Field(
        default=2,
        description="features between stages that pass through AdaIN where tasks have one label per image: the last "
        "ones of 9 pixels or more",
    )


@register_method("task_switching")
class TaskSwitching(Method[TaskSwitchingParams]):
    """One network and one output for all tasks; a code of the task sets the norms of its later part."""

    Params = TaskSwitchingParams
    traits: ClassVar[Traits] = Traits(
        "all",
        "some",
        "1 to T",
        size_parameter="conditioned_places",
        backbones="maps",
        labels="one form",
    )
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="G. Sun et al., Task Switching Network for Multi-Task Learning, ICCV 2021",
        link="https://github.com/GuoleiSun/TSNs",
        references=(
            Reference(
                "sun2021task",
                "inproceedings",
                (
                    "G. Sun",
                    "T. Probst",
                    "D. P. Paudel",
                    "N. Popović",
                    "M. Kanakis",
                    "J. Patel",
                    "D. Dai",
                    "L. Van Gool",
                ),
                "Task Switching Network for Multi-Task Learning",
                "IEEE/CVF International Conference on Computer Vision",
                2021,
                "https://github.com/GuoleiSun/TSNs",
            ),
        ),
        statements=(
            Statement("official code", "One encoder, not conditioned; AdaIN in every skip and decoder convolution."),
            Statement(
                "official code", "Mapping of 8 layers with PixelNorm and LeakyReLU .2; gamma's bias starts at 1."
            ),
            Statement("official code", "Block one-hot codes (5 blocks of 20); decoder 512/256/256/128/64; one output."),
            Statement("official code", "Training code of the method appears absent: training is the suite's."),
            Statement("default", "Codes of 100 numbers for any number of tasks, so parameters do not grow with it."),
            Statement(
                "default", "Decoder: a level a stage and the stem, 3x3 on the upsampled map joined to a 1x1 skip."
            ),
            Statement("default", "Decoder and style are scaled by the last stage's channels / 512 where it has fewer."),
            Statement(
                "default",
                "One label per image: AdaIN in front of the last stages whose maps have 9 pixels or more, since an "
                "instance norm leaves little of fewer; tasks share the stages' weights.",
            ),
            Statement("default", "The output has the channels of the widest task; others read the first of them."),
            Statement("default", "The output stands in for the suite's heads, and on dense tasks for their decoder."),
            Statement("default", "Mapping and affine layers are deployed, not folded to constants of each task."),
        ),
    )

    @classmethod
    def about(cls) -> Sequence[str]:
        """How to read its rows."""
        return [
            "Parameters do not grow with the number of tasks. One task a forward pass: the encoder runs once an image, "
            "what is conditioned once a task. Its one output is not the head that other rows have: they are equal in "
            "backbone, data and steps only.",
            "Runs on features [B, C, H, W], on tasks that all have a label per pixel or all one per image.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The parts that replace the heads. Raises UsageError for one task, for more tasks than the code has places,
        for tasks of both forms, for other layouts than nchw and for maps of one pixel.
        """
        from methods.task_switching import network

        self._codes(data)
        require_maps(backbone, "task_switching")
        channels = max(network.channels_of(data))
        if network.output_form(data) == "dense":
            widths = "/".join(map(str, network.decoder_widths(backbone)))
            return [f"a decoder of its own ({widths}) and one output of {channels} channels in place of the heads"]
        grids = network.place_grids(backbone)
        places = network.conditioned_places(backbone, self.params.conditioned_places)
        names = [f"{backbone.place_names[place]} ({grids[place]} pixels)" for place in places]
        return [f"AdaIN after {' and '.join(names)}; one output of {channels} channels in place of the heads"]

    def _codes(self, data: DatasetSpec) -> list[Code]:
        from methods.task_switching.codes import block_code

        require_tasks(data)
        return [block_code(t, len(data.tasks), self.params.code_width) for t in range(len(data.tasks))]

    def run(self, trainer: Trainer) -> TaskGraph:
        """One joint training."""
        from methods.task_switching.network import switching_network

        codes, backbone = self._codes(trainer.data), trainer.backbone()
        require_maps(backbone, "task_switching")
        graph = switching_network(self.params, trainer, backbone, codes)
        fit_graph(trainer, "joint", graph, trainer.budget.steps)
        self._tell(trainer, graph)
        return graph

    @staticmethod
    def _tell(trainer: Trainer, graph: TaskGraph) -> None:
        import torch

        from methods.task_switching.network import likeness

        tasks = trainer.data.task_names
        trainer.fact("parameters of mapping, norms and decoder", sum(p.numel() for p in graph.parameters("added")))
        alike = likeness(graph, tasks)
        trainer.artifact("likeness of norms", alike)  # float [T, T]
        others = alike[~torch.eye(len(tasks), dtype=torch.bool)]
        trainer.fact("likeness of two tasks' norms", float(others.mean()), "cosine")
        panel = Heatmap(
            title="after training",
            rows=tuple(tasks),
            columns=tuple(tasks),
            values=tuple(tuple(map(float, row)) for row in alike.tolist()),
            row_title="task",
            column_title="task",
            value_title="cosine of (gamma - 1, beta)",
            low=-1.0,
            high=1.0,
            centre=0.0,
        )
        trainer.figure("likeness", Figure(title="How alike the norms of two tasks are", panels=(panel,)))
