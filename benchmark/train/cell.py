"""One cell, from data to record."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.plan.cells import PlannedCell, backbone_config, cell_spec, dense_form, method_params
from benchmark.plan.program import Program, program_of
from benchmark.plan.staleness import Present
from benchmark.records.documents import Audit, CostDocument, EnvironmentDocument, ErrorEntry, Reference
from benchmark.records.keys import canonical_json, cell_key, unbalanced
from benchmark.records.provenance import environment, installed, versions
from benchmark.records.record import Record, curve_json, metrics_json
from benchmark.records.store import Store, remove_torn, traceback_file, write_atomic
from benchmark.train.ledger import Spending
from benchmark.train.loaders import InputFormat, InputLoader, RoleLoader
from benchmark.train.memory import peak_bytes, reset_peak
from benchmark.train.roles import load_data
from benchmark.train.stage import DivergedError, Progress, TrainingContext
from benchmark.train.trainer import FIGURE_PREFIX, CellTrainer
from datasets.errors import UsageError
from datasets.images.augmentation import augmentation_of
from datasets.images.transforms import Normalise
from datasets.kinds import get_kind
from datasets.protocols import get_protocol
from methods.backbones.backbone import Backbone, create_backbone
from methods.backbones.weights import pretrained_tag
from methods.contracts import Budget, Fidelity, Role
from methods.graph.cost import compute, size
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_plain
from methods.registry import get_method


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Where and how a cell runs; none of it is in its key. device and threads change the order of additions, and so the
    bits of a result; step_limit cuts the training short; the rest changes nothing.

    out: folder of the run. checkpoint_s: seconds between intermediate checkpoints; checkpoint_steps: for tests.
    plugins: files that workers load. refresh_stale: train cells again whose finished record other code made.
    step_limit: every stage ends after so many steps; for estimates and smoke runs, in folders of their own.
    """

    out: Path
    data_root: Path | None = None
    device: str = "cpu"
    threads: int = 1
    checkpoint_s: float = 60.0
    checkpoint_steps: int | None = None
    plugins: tuple[str, ...] = ()
    refresh_stale: bool = False
    step_limit: int | None = None


def configure_process(threads: int) -> None:
    """Threads and determinism of a worker process. On one CPU everything repeats bit for bit with the same versions and
    number of threads; on CUDA what PyTorch can.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Nothing here reads memory that it has not written; filling it first costs 6 to 14 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def run_cell(
    planned: PlannedCell, settings: RunSettings, report_progress: Callable[[Progress], None] = lambda progress: None
) -> Record:
    """Train and measure a cell and store its record, whatever its end: done, diverged, failed or out of memory.

    A cell that has been finished meanwhile, by another run on the same folder, is not trained again: its record is
    returned. Raises StorageError where the record cannot be written.
    """
    store = Store(settings.out)
    with store.lock(planned.key, timeout_s=float("inf")):
        before = store.read(planned.key)
        if before is not None and before.status == "done" and not _to_refresh(before, planned, settings):
            return before
        store.remove_torn(planned)
        attempts = before.attempts + 1 if before is not None and before.cell else 1
        started = _now()
        traceback_file(settings.out, planned.key).unlink(missing_ok=True)  # of an earlier attempt

        def stored(record: Record) -> Record:
            return store.write(dataclasses.replace(record, attempts=attempts, started=started, finished=_now()))

        try:
            cell = _CellRun(planned, settings, store, report_progress)
            written = stored(cell.run())
        except DivergedError as error:
            return stored(_failed(planned, "diverged", error, error.stage, error.step, error.task))
        except torch.OutOfMemoryError as error:
            return stored(_failed(planned, "oom", error))
        except UsageError as error:
            return stored(_failed(planned, "failed", error))
        except Exception as error:  # a fault in a method or a plug-in ends its cell, not the run
            text = traceback.format_exc().encode("utf-8", "backslashreplace")
            write_atomic(traceback_file(settings.out, planned.key), text)
            return stored(_failed(planned, "failed", error))
        with contextlib.suppress(OSError):  # what stays lies in the way of nothing
            cell.trainer.clear_checkpoints()  # not before the record stands
        return written


def _to_refresh(record: Record, planned: PlannedCell, settings: RunSettings) -> bool:
    return settings.refresh_stale and Present(settings.data_root).stale_reason(record, planned) is not None


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _folder(settings: RunSettings, planned: PlannedCell) -> Path:
    return settings.out / "work" / planned.key


def _failed(
    planned: PlannedCell,
    status: str,
    error: Exception,
    stage: str | None = None,
    step: int | None = None,
    task: str | None = None,
) -> Record:
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    message = message.encode("utf-8", "backslashreplace").decode()  # a path that is no Unicode text
    entry = ErrorEntry(kind=type(error).__name__, message=message, stage=stage, step=step, task=task)
    return Record(cell=planned.document, status=status, error=entry)


class _CellRun:
    """The parts of one cell, built once."""

    def __init__(
        self,
        planned: PlannedCell,
        settings: RunSettings,
        store: Store,
        report_progress: Callable[[Progress], None],
    ) -> None:
        self.planned, self.settings, self.store = planned, settings, store
        cell = planned.settings
        self.cell = cell
        self.method = get_method(cell.method.name)
        self.spec = cell_spec(cell)
        self.data = load_data(self.spec, planned, settings.data_root)
        self.device = torch.device(settings.device)
        self.prototype = self._prototype()
        self.initial_weights = _state_hash(self.prototype)
        self.context = TrainingContext(
            data=self.spec,
            loaders=self._loaders(),
            prototype=self.prototype,
            budget=Budget(cell.budget.steps, cell.budget.cycles),
            recipe=cell.recipe,
            selection=cell.selection,
            seed=cell.seed,
            device=self.device,
            version=cell_key({"method": planned.program.method, **self._made_with(planned.program)}),
            single_task=self._single_task,
            report_progress=report_progress,
            checkpoint_s=settings.checkpoint_s,
            checkpoint_steps=settings.checkpoint_steps,
            step_limit=settings.step_limit,
        )
        self.trainer = CellTrainer(self.context, _folder(settings, planned))

    def _prototype(self) -> Backbone:
        config = backbone_config(self.cell, self.spec)
        dense = dense_form(self.planned.document)
        return create_backbone(config, weights=self.planned.weights, seed=self.cell.seed, dense=dense)

    def _loaders(self) -> dict[Role, RoleLoader]:
        recipe, backbone = self.cell.recipe, self.prototype
        flags = get_protocol(self.spec.protocol, self.spec.name)
        own = self.planned.weights == "none"
        mean, std = (self.spec.mean, self.spec.std) if own else (backbone.mean, backbone.std)
        self.normalise = Normalise.for_protocol(flags, mean, std)
        form = InputFormat(
            self.cell.backbone.in_chans, self.normalise, self.device, recipe.memory_format == "channels_last"
        )
        loaders = {}
        for role, samples in self.data.samples.items():
            inputs = {}
            for name, part in samples.items():
                tasks = [task for task in self.spec.task_names if self.spec.input_of(task) == name]
                augment = augmentation_of(recipe.augmentation, self.spec, name)
                inputs[name] = InputLoader(
                    part,
                    tasks,
                    form,
                    augment=augment,
                    seed=self.cell.seed,
                    workers=recipe.workers,
                    valid={task: get_kind(self.spec.task(task).kind).valid for task in tasks},
                )
            loaders[role] = RoleLoader(role, self.spec, inputs, recipe.batch_size, self.cell.seed)
        return loaders

    def run(self) -> Record:
        """Train, evaluate once on report, count, and describe."""
        reset_peak(self.device)
        trainer = self.trainer
        canonical_json(self._audit(trainer))  # what a record cannot hold of the method is found before the first step
        params = method_params(self.method, self.cell.method.name, self.cell.method.params)
        graph = self.method(params).run(trainer)
        self._check(graph)
        trained_in = peak_bytes(self.device)
        reset_peak(self.device)
        metrics, n_evaluated = trainer.report(graph)
        peaks = (trained_in, peak_bytes(self.device))
        record = Record(
            cell=self.planned.document,
            status="done",
            versions=self._versions(),
            environment=self._environment(),
            roles=dict(self.data.roles),
            n_evaluated=n_evaluated,
            selected={"step": trainer.selected.get("step", self.cell.budget.steps)},
            metrics=metrics_json(metrics),
            size=_plain(size(graph, self.prototype.n_parameters())),
            compute=_plain(compute(graph, self._input_shapes())),
            cost=self._cost(trainer, graph, peaks),
            audit=self._audit(trainer),
            reused_from=list(trainer.ledger.reused_from),
            curves={name: curve_json(values) for name, values in trainer.curves.items()},
            artifacts=self._artifacts(trainer, graph),
            graph={"hash": graph.hash(), "file": f"artifacts/{self.planned.key[:2]}/{self.planned.key}/graph.json"},
        )
        nonfinite = [
            f"{task} {name}" for task, scores in metrics.items() for name, score in scores.items() if score.n_nonfinite
        ]
        if nonfinite:
            message = f"Predictions are not finite on report: {', '.join(nonfinite)}."
            error = ErrorEntry(kind="NonFinitePrediction", message=message, stage=None, step=None, task=None)
            record = dataclasses.replace(record, status="diverged", error=error)
        return record

    def _check(self, graph: TaskGraph) -> None:
        """The network that a method returns must serve the cell's tasks, with nothing left over."""
        graph.require_deployable()
        if set(graph.tasks) != set(self.spec.task_names):
            raise UsageError(
                f"Method {self.cell.method.name!r} returned outputs for {sorted(graph.tasks)}; "
                f"the cell has the tasks {sorted(self.spec.task_names)}."
            )

    def _input_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.spec.inputs, (1, self.cell.backbone.in_chans, *self.spec.native_size))

    def _cost(self, trainer: CellTrainer, graph: TaskGraph, peaks: tuple[int | None, int | None]) -> CostDocument:
        """peaks: bytes in training, and in the evaluation on report."""
        ledger = trainer.ledger
        return {
            "weight_steps": trainer.weight_steps(graph),
            "search": _plain(ledger.search),
            "final": _plain(ledger.final),
            "peak_bytes": max((peak for peak in peaks if peak is not None), default=None),
            "evaluation_peak_bytes": peaks[1],
            "evaluation_seconds": ledger.evaluation_seconds,
            "io_seconds": ledger.io_seconds,
            **({} if self.settings.step_limit is None else {"unrun_seconds": ledger.unrun_seconds}),
        }

    def _audit(self, trainer: CellTrainer) -> Audit:
        """What a fair comparison must hold equal or say (measurement 6); read by tables, never by training.

        What the cell, the versions and the costs say already is read from there.
        """
        fidelity: Fidelity = self.method.fidelity
        params = method_params(self.method, self.cell.method.name, self.cell.method.params)
        method = self.method(params)
        compared: Reference | None = "shared" if self.method.is_comparison_reference else None
        return {
            "reference": "single_task" if self.method.is_single_task_reference else compared,
            "random_architecture": method.is_random_architecture,
            "non_default_params": params.model_dump(mode="json", exclude_defaults=True),
            "tuning_trials": 1,  # one setting a row: the published defaults, or what the suite's author wrote
            "search_roles": sorted(role.value for role in trainer.search_roles),
            "draws": method.draws,
            "recipe": method.recipe,
            "developed_here": False,  # no default of ours was chosen by trials on a data set
            "extra_data": "none",
            "loaders": "joint" if self.spec.domains == "single" else "per task",
            "tier": self.spec.tier,
            "channels": {task.name: task.channels for task in self.spec.tasks},
            "weights_tag": pretrained_tag(self.cell.backbone.name) if self.planned.weights == "pretrained" else "",
            "weights_entry": self.prototype.weights_entry,
            "fidelity": sorted({statement.tag for statement in fidelity.statements}),
            "normalisation": _plain(self.normalise),
            "units": {task.name: task.unit for task in self.spec.tasks},
            "batch_norm": method.final_batch_norm,
            "input_size": list(self.spec.native_size),
            "facts": dict(trainer.facts),
            "flags": [*self.spec.caveats, *trainer.flags],
            "chosen": list(trainer.elements),
        }

    def _artifacts(self, trainer: CellTrainer, graph: TaskGraph) -> dict[str, Any]:
        document = json.dumps(graph.to_json(), sort_keys=True).encode()
        entries = {
            "graph": self.store.write_artifact(self.planned.key, "graph", document, "json"),
            "weights": self.store.write_artifact(self.planned.key, "weights", graph.to_bytes(), "weights"),
        }
        for name, array in trainer.artifacts.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            entries[name] = self.store.write_artifact(self.planned.key, name, buffer.getvalue(), "array")
        for name, figure in trainer.figures.items():
            text = figure.model_dump_json().encode()
            stored = f"{FIGURE_PREFIX}{name}"
            entries[stored] = self.store.write_artifact(self.planned.key, stored, text, "figure")
        return entries

    def _versions(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return versions(
            training_hash=self.planned.program.training,
            method_hash=self.planned.program.method,
            data_hash=self.data.content,
            weights_hash=self.initial_weights,
            cuda=torch.version.cuda if cuda else None,
            cudnn=str(torch.backends.cudnn.version()) if cuda else None,
        )

    def _environment(self) -> EnvironmentDocument:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        threads = {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}
        deterministic = {"algorithms": torch.are_deterministic_algorithms_enabled()}
        return environment(
            device=device,
            threads=threads,
            determinism=deterministic,
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
        )

    # Single-task networks, kept for every method that needs them

    def _single_task(self, task: str) -> tuple[TaskGraph, Sequence[float], Spending, str]:
        """The network of one task: read where it was trained before, else trained now; one process trains it once."""
        key = self._single_task_key(task)
        folder = self.settings.out / "single_task" / key[:2] / key
        with self.store.lock(key, timeout_s=float("inf")):
            remove_torn(folder)
            kept = _read_single_task(folder)
            if kept is None:
                spec = self.spec.with_tasks([task])
                nested = dataclasses.replace(self.context, data=spec, version=key, single_task=None)
                trainer = CellTrainer(nested, folder / "work")
                graph, result = fit_plain(trainer, f"single task {task}", self.cell.budget.steps)
                loss = list(result.loss[task])
                _write_single_task(folder, graph, loss, trainer.ledger.final)
                trainer.clear_checkpoints()
                kept = _read_single_task(folder)
        if kept is None:
            raise RuntimeError(f"Single-task network {key} was written and cannot be read.")
        return (*kept, key)

    def _single_task_key(self, task: str) -> str:
        """The cell without its method, its loss balancing and its other tasks, and the code: another version trains its
        own.
        """
        document = unbalanced(self.planned.document)
        data = {
            **self.planned.document["data"],
            "tasks": [task],
            "task_weights": {task: float(self.spec.task(task).weight)},
        }
        program = program_of(self.method, self.spec.with_tasks([task]), self.cell.backbone.name)
        versions = self._made_with(program)
        return cell_key({**document, "method": {"single_task": task}, "data": data, "versions": versions})

    def _made_with(self, program: Program) -> dict[str, object]:
        """What decides what is trained beside the cell and the method's code. What other code, data or libraries have
        left, checkpoints and networks of one task, is not taken over.
        """
        return {
            "training": program.training,
            "data": self.data.content,
            "weights": self.initial_weights,
            "torch": installed("torch"),
            "timm": installed("timm"),
        }


def _write_single_task(folder: Path, graph: TaskGraph, loss: Sequence[float], spending: Spending) -> None:
    """Network, then what it cost: the last file says what the others must be."""
    files = {"graph.json": json.dumps(graph.to_json()).encode(), "weights.safetensors": graph.to_bytes()}
    for name, data in files.items():
        write_atomic(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    summary = {"loss": curve_json(loss), "spending": dataclasses.asdict(spending), "sha256": digests}
    write_atomic(folder / "summary.json", json.dumps(summary).encode())


def _read_single_task(folder: Path) -> tuple[TaskGraph, Sequence[float], Spending] | None:
    """(network, loss per cycle, cost), or None where none was finished or a file is not what was written."""
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
    loss = [float("nan") if value is None else value for value in summary["loss"]]
    return graph, loss, Spending(**summary["spending"])


def _state_hash(backbone: Backbone) -> str:
    """sha256 over the initial weights of the backbone."""

    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.module().state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """A dataclass as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(value)))
