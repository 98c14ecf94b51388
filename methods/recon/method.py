"""The course of Recon: joint training in which conflicts are counted, the copies, training from the initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from datasets.errors import UsageError
from methods.contracts import Budget, Fidelity, Method, Trainer
from methods.recon.fidelity import FIDELITY
from methods.recon.parameters import ReconParams
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph
    from methods.recon.conflicts import Conflicts
    from methods.recon.layers import Layer


@register_method("recon")
class Recon(Method[ReconParams]):
    """Layers in which gradients conflict most often get a copy for every task; all others stay shared."""

    Params = ReconParams
    search_space: ClassVar[str] = "layers with copies"
    fidelity: ClassVar[Fidelity] = FIDELITY
    traits: ClassVar[Traits] = Traits("some", "some", "1 to T", before=0.25, size_parameter="top_k")

    def __init__(self, params: ReconParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.is_random
        self.alternates = params.searches

    @classmethod
    def about(cls) -> Sequence[str]:
        """How to read its rows."""
        return [
            "Parameters: the backbone, and T - 1 copies of the selected layers. They say little of compute: from the "
            "first selected layer on every task has a pass of its own, so the first norm alone makes T passes of the "
            "backbone. The paper counts parameters only.",
            "The search is a quarter of a joint training with a further backward pass for every task; hard sharing of "
            "1.25 times the steps (steps_factor) and the random controls stand beside it.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Layers, copies and search of this cell. Raises UsageError for more copies than layers, and for a budget that
        no copy fits.
        """
        from methods.recon.layers import layers_of

        p, layers = self.params, layers_of(backbone, self.params.granularity)
        notes = [self._cut_note(data, backbone, layers)]
        if len(data.tasks) == 1:
            return ["one task: nothing conflicts, so the plain network is trained without a search"]
        if p.searches:
            n = len(data.tasks)
            notes.append(
                f"search: {p.search_steps(budget)} steps of joint training with {n} further backward passes each"
            )
            if data.domains == "multi":
                notes.append("tasks have images of their own: gradients of different images are compared, noisier ones")
        return notes

    def _cut_note(self, data: DatasetSpec, backbone: Backbone, layers: Sequence[Layer]) -> str:
        from methods.recon.selection import number_of

        p, n, name = self.params, len(layers), backbone.config.name
        what = "layers" if p.granularity == "layer" else "blocks (with stem and tail)"
        if p.budget is None:
            if number_of(p, n) > n:
                raise UsageError(
                    f"top_k is {p.top_k}; backbone {name!r} has {n} {what}, so it is 0 to {n}, or a share."
                )
            return f"{number_of(p, n)} of {n} {what} get a copy per task"
        reference = backbone.n_parameters()
        least = 1 + (len(data.tasks) - 1) * min(layer.size for layer in layers) / reference
        if p.budget < least:
            raise UsageError(
                f"budget is {p.budget:g} backbones; with copies of the smallest of the {n} {what} of {name!r} it is "
                f"{least:.6g}, so nothing fits."
            )
        return f"of {n} {what} those get a copy per task that fit {p.budget:g} backbones, in order of score"

    def run(self, trainer: Trainer) -> TaskGraph:
        """Search, selection, final training."""
        from methods.plain import body_of
        from methods.recon.conflicts import count_conflicts
        from methods.recon.layers import layers_of
        from methods.recon.network import fit_split, split_graph
        from methods.recon.telling import tell_layers

        p, data, backbone = self.params, trainer.data, trainer.backbone()
        layers, n_tasks = layers_of(backbone, p.granularity), len(data.tasks)
        found = count_conflicts(p, trainer, layers) if p.searches and n_tasks > 1 else None
        selected = self._select(trainer, backbone, layers, found) if n_tasks > 1 else []
        graph = split_graph(data, backbone, [layers[k] for k in selected], trainer.head)
        tell_layers(trainer, layers, selected, len(body_of(backbone)), found)
        fit_split(trainer, graph)
        return graph

    def _select(
        self, trainer: Trainer, backbone: Backbone, layers: Sequence[Layer], found: Conflicts | None
    ) -> list[int]:
        """Positions of the layers that get copies, in the order of the network. found: by a search."""
        from methods.recon.layers import Sizes
        from methods.recon.selection import cut, of_equal_size, order_of
        from methods.recon.telling import tell_conflicts

        p, data = self.params, trainer.data
        sizes = Sizes(data, backbone, layers, {task: trainer.head(task) for task in data.task_names})
        selected = cut(p, sizes, order_of(p, trainer, len(layers), found))
        if found is not None:
            tell_conflicts(p, trainer, layers, found, len(selected))
        if p.select == "random_parameters":
            selected = of_equal_size(trainer, sizes, selected)
        return sorted(selected)
