"""What a record says beside its numbers: what a fair comparison must know, what it cost, and where it was made."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from benchmark.plan.cells import PlannedCell
from benchmark.records.documents import Audit, CostDocument, EnvironmentDocument, Movement, Reference, stayed
from benchmark.records.provenance import environment, versions
from benchmark.records.record import curve_json
from benchmark.records.store import Store
from benchmark.train.trainer import FIGURE_PREFIX, CellTrainer
from datasets.images.transforms import Normalise
from methods.backbones.weights import pretrained_tag
from methods.contracts import Method
from methods.graph.task_graph import TaskGraph
from methods.parameters import MethodParams


def audit_of(planned: PlannedCell, method: Method[MethodParams], normalise: Normalise, trainer: CellTrainer) -> Audit:
    """What a fair comparison must hold equal or say (measurement 6); read by tables, never by training.

    What the cell, the versions and the costs say already is read from there.
    """
    spec, backbone = trainer.data, planned.settings.backbone.name
    moved = {} if method.is_random_architecture else dict(trainer.search_moved)
    compared: Reference | None = "shared" if method.is_comparison_reference else None
    tuning = planned.settings.tuning
    tuned: Audit = {"tuning_trials": 1}  # one setting a row: the published defaults, or what the suite's author wrote
    if tuning is not None:
        tuned = {
            "tuning_trials": tuning.trials,
            "tuning": {
                "tried": tuning.tried,
                "chosen": dict(tuning.chosen),
                "edges": list(tuning.edges),
                "scores": list(tuning.scores),
            },
        }
    return {
        **tuned,
        "reference": "single_task" if method.is_single_task_reference else compared,
        "random_architecture": method.is_random_architecture,
        "non_default_params": method.params.model_dump(mode="json", exclude_defaults=True),
        "search_roles": sorted(role.value for role in trainer.search_roles),
        "draws": method.draws,
        "recipe": method.recipe,
        "developed_here": False,  # no default of ours was chosen by trials on a data set
        "extra_data": "none",
        "loaders": "joint" if spec.domains == "single" else "per task",
        "tier": spec.tier,
        "channels": {task.name: task.channels for task in spec.tasks},
        "weights_tag": pretrained_tag(backbone) if planned.weights == "pretrained" else "",
        "weights_entry": trainer.context.prototype.weights_entry,
        "fidelity": sorted({statement.tag for statement in method.fidelity.statements}),
        "normalisation": plain_json(normalise),
        "units": {task.name: task.unit for task in spec.tasks},
        "batch_norm": method.final_batch_norm,
        "input_size": list(spec.native_size),
        "facts": dict(trainer.facts),
        "flags": [*spec.caveats, *trainer.flags, *_search_flags(moved)],
        "chosen": list(trainer.elements),
        "search_space": method.search_space,
        "last_fifths": {task: curve_json(losses) for task, losses in trainer.last_fifths.items()},
        **({"search_moved": moved} if moved else {}),
    }


def _search_flags(moved: Mapping[str, Movement]) -> Iterator[str]:
    for what, change in moved.items():
        if stayed(change):
            largest = "not finite" if change["largest"] is None else f"at most {change['largest']:.2g}"
            yield f"the search did not leave its start: change of the {what} {largest}"


def cost_of(
    planned: PlannedCell, trainer: CellTrainer, graph: TaskGraph, peaks: tuple[int | None, int | None]
) -> CostDocument:
    """peaks: bytes in training, and in the evaluation on report; None if the system does not report it."""
    ledger = trainer.ledger
    cut_short = trainer.context.step_limit is not None
    tuning = planned.settings.tuning
    is_trial = planned.settings.part is not None
    tuned: CostDocument = {} if tuning is None or is_trial else {"tuning": {"optimizer_steps": tuning.steps}}
    return {
        "weight_steps": trainer.weight_steps(graph),
        "search": plain_json(ledger.search),
        "final": plain_json(ledger.final),
        **tuned,
        "peak_bytes": max((peak for peak in peaks if peak is not None), default=None),
        "evaluation_peak_bytes": peaks[1],
        "evaluation_seconds": ledger.evaluation_seconds,
        "io_seconds": ledger.io_seconds,
        **({"unrun_seconds": ledger.unrun_seconds} if cut_short else {}),
    }


def write_artifacts(store: Store, key: str, trainer: CellTrainer, graph: TaskGraph) -> dict[str, Any]:
    """Write the network, arrays and figures of a cell; their entries in its record. Raises StorageError."""
    document = json.dumps(graph.to_json(), sort_keys=True).encode()
    entries = {
        "graph": store.write_artifact(key, "graph", document, "json"),
        "weights": store.write_artifact(key, "weights", graph.to_bytes(), "weights"),
    }
    for name, array in trainer.artifacts.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        entries[name] = store.write_artifact(key, name, buffer.getvalue(), "array")
    for name, figure in trainer.figures.items():
        stored = f"{FIGURE_PREFIX}{name}"
        entries[stored] = store.write_artifact(key, stored, figure.model_dump_json().encode(), "figure")
    return entries


def versions_of(planned: PlannedCell, device: torch.device, *, data: str, weights: str) -> dict[str, Any]:
    """Of code, data, initial weights and libraries. data, weights: digests."""
    cuda = device.type == "cuda"
    return versions(
        training_hash=planned.program.training,
        method_hash=planned.program.method,
        data_hash=data,
        weights_hash=weights,
        cuda=torch.version.cuda if cuda else None,
        cudnn=str(torch.backends.cudnn.version()) if cuda else None,
    )


def environment_of(device: torch.device) -> EnvironmentDocument:
    """The machine, and the switches of this process."""
    return environment(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads={"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        determinism={"algorithms": torch.are_deterministic_algorithms_enabled()},
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )


def plain_json(value: Any) -> Any:
    """A dataclass as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(value)))
