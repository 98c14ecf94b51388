"""What a run of the DAG search reports about the architecture that it found."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from methods.backbones.backbone import Backbone
from methods.contracts import Trainer
from methods.control import tell_deviation
from methods.dag_search.flow import FloatArray, shape_of
from methods.dag_search.params import DagSearchParams
from methods.dag_search.pictures import gate_paths, jaccard, overlap, shapes_of_tasks, topology
from methods.dag_search.reduction import Reduction
from methods.dag_search.space import DagSpace, edge_name
from methods.dag_search.supernet import Gates


def tell(
    params: DagSearchParams,
    trainer: Trainer,
    space: DagSpace,
    backbone: Backbone,
    path: FloatArray,
    gates: Gates,
    found: Reduction,
) -> None:
    """Facts, flags, pictures and artifacts of what was found. path: sigma of all gates, [cycles + 1, K, edges]."""
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
        "sparsity": float(np.mean([shape.sparsity for shape in shapes])),
        "overlap between tasks": float(np.mean(pairs)) if pairs else None,
        "undecided gates": float(np.mean((final > 0.1) & (final < 0.9))),
        "largest gate change": float(np.abs(path[-1] - path[0]).max()),
        "steps with squeeze": float(gates.squeezed_steps),
    }
    for name, value in facts.items():
        trainer.fact(name, value)
    trainer.moved("gates", path[0][:, space.exists], final)
    _flag(params, trainer, facts, found)
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
    trainer.figure("shapes", shapes_of_tasks(tasks, shapes))


def _flag(params: DagSearchParams, trainer: Trainer, facts: Mapping[str, float | None], found: Reduction) -> None:
    """Warn about whatever makes the found architecture meaningless. Section 10.8."""
    if params.squeeze_weight and not facts["steps with squeeze"]:
        trainer.flag("the squeeze loss was never active")
    if found.missed:
        names = ", ".join(trainer.data.task_names[task] for task in found.missed)
        trainer.flag(f"the random cuts of {names} have other counts of edges than the searched ones, for an equal size")
    if found.deviation is not None:
        tell_deviation(trainer, "The random cut is {} from the size that it should have.", found.deviation)
