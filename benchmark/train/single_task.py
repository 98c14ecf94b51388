"""Single-task networks, kept for every cell whose method needs them: one process trains each once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.plan.cells import PlannedCell
from benchmark.plan.program import Program, program_of
from benchmark.records.keys import cell_key, unbalanced
from benchmark.records.record import curve_json
from benchmark.records.store import Store, remove_torn, write_atomic
from benchmark.train.ledger import Spending
from benchmark.train.stage import KeptNetwork, TrainingContext
from benchmark.train.trainer import CellTrainer
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_plain
from methods.registry import get_method


@dataclasses.dataclass(frozen=True)
class SingleTaskNetworks:
    """The networks of one task that go with a cell. context: of the cell. origin: of what it is trained on and with,
    see `made_with`.
    """

    planned: PlannedCell
    context: TrainingContext
    store: Store
    origin: Mapping[str, object]

    def network(self, task: str) -> KeptNetwork:
        """The network of a task: read where it was trained before, else trained now."""
        key = self.key(task)
        folder = self.store.root / "single_task" / key[:2] / key
        with self.store.lock(key, timeout_s=float("inf")):
            remove_torn(folder)
            kept = _read(folder, key)
            if kept is None:
                spec = self.context.data.with_tasks([task])
                recipe = self.planned.settings.recipe.scaled(self.planned.settings.single_task_factor(task))
                context = dataclasses.replace(self.context, data=spec, version=key, recipe=recipe)
                trainer = CellTrainer(context, folder / "work")
                graph, result = fit_plain(trainer, f"single task {task}", self.context.budget.steps)
                _write(folder, graph, result.loss[task], trainer.last_fifths[task], trainer.ledger.final)
                trainer.clear_checkpoints()
                kept = _read(folder, key)
        if kept is None:
            raise RuntimeError(f"Single-task network {key} was written and cannot be read.")
        return kept

    def key(self, task: str) -> str:
        """The cell without its method, its loss balancing and its other tasks, and the code: another version trains its
        own. Of a tuning only the learning rate counts, so that a trial and its tuned row share the network.
        """
        cell, spec = self.planned.settings, self.context.data
        balanced = unbalanced(self.planned.document).items()
        document = {name: value for name, value in balanced if name not in ("part", "tuned")}
        data = {
            **self.planned.document["data"],
            "tasks": [task],
            "task_weights": {task: float(spec.task(task).weight)},
        }
        program = program_of(get_method(cell.method.name), spec.with_tasks([task]), cell.backbone.name)
        versions = made_with(program, self.origin)
        factor = cell.single_task_factor(task)
        method = {"single_task": task, **({} if factor == 1.0 else {"lr_factor": factor})}
        return cell_key({**document, "method": method, "data": data, "versions": versions})


def made_with(program: Program, origin: Mapping[str, object]) -> dict[str, object]:
    """What decides what is trained beside the cell and the method's code. What other code, data or libraries have left,
    checkpoints and networks of one task, is not taken over. origin: digests of data and initial weights, and versions
    of libraries.
    """
    return {"training": program.training, **origin}


def _write(
    folder: Path, graph: TaskGraph, loss: Sequence[float], last_fifths: Sequence[float], spending: Spending
) -> None:
    """Network, then what it cost: the last file says what the others must be."""
    files = {"graph.json": json.dumps(graph.to_json()).encode(), "weights.safetensors": graph.to_bytes()}
    for name, data in files.items():
        write_atomic(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    summary = {
        "loss": curve_json(loss),
        "last_fifths": curve_json(last_fifths),
        "spending": dataclasses.asdict(spending),
        "sha256": digests,
    }
    write_atomic(folder / "summary.json", json.dumps(summary).encode())


def _read(folder: Path, key: str) -> KeptNetwork | None:
    """The network, or None where none was finished or a file is not what was written."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        whole = all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in summary["sha256"].items()
        )
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        return None
    graph = TaskGraph.load(folder / "graph.json", folder / "weights.safetensors")
    loss, last_fifths = (_numbers(summary[name]) for name in ("loss", "last_fifths"))
    return KeptNetwork(graph, loss, last_fifths, Spending(**summary["spending"]), key)


def _numbers(values: Sequence[float | None]) -> list[float]:
    """A stored curve, with NaN for null."""
    return [float("nan") if value is None else value for value in values]
