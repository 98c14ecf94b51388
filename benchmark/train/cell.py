"""One cell, from data to record."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from benchmark.plan.cells import PlannedCell, backbone_config, cell_spec, dense_form, method_params
from benchmark.plan.role_data import Splits
from benchmark.plan.staleness import Present
from benchmark.records.documents import Audit, ErrorEntry, SelectedDocument
from benchmark.records.keys import canonical_json, cell_key
from benchmark.records.provenance import installed
from benchmark.records.record import Record, curve_json, metrics_json, utc_now
from benchmark.records.store import Store, traceback_file, write_atomic
from benchmark.train.description import audit_of, cost_of, environment_of, plain_json, versions_of, write_artifacts
from benchmark.train.floors import keep_floors
from benchmark.train.loaders import InputFormat
from benchmark.train.memory import is_out_of_memory, peak_bytes, reset_peak
from benchmark.train.roles import ClosedLoader, load_data, role_loaders
from benchmark.train.single_task import SingleTaskNetworks, made_with
from benchmark.train.stage import DivergedError, Progress, TrainingContext
from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from datasets.images.transforms import Normalise
from datasets.protocols import get_protocol
from methods.backbones.backbone import Backbone, create_backbone
from methods.contracts import Budget, Role
from methods.graph.cost import compute, size
from methods.graph.task_graph import TaskGraph
from methods.registry import get_method


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Where and how a cell runs; none of it is in its key. device and threads change the order of additions, and so the
    bits of a result; step_limit cuts the training short; the rest changes nothing.

    out: folder of the run. checkpoint_s: seconds between intermediate checkpoints; checkpoint_steps: for tests.
    plugins: files that workers load. refresh_stale: train cells again whose finished record other code made.
    step_limit: every stage ends after this number of steps; for estimates and smoke runs, in folders of their own.
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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def run_cell(
    planned: PlannedCell, settings: RunSettings, report_progress: Callable[[Progress], None] = lambda progress: None
) -> Record:
    """Train and measure a cell and store its record, whatever its end: done, diverged, failed or out of memory.

    A cell that has been finished meanwhile, by another run on the same folder, is not trained again: its record is
    returned. Raises StorageError where the record cannot be written.
    """
    store, splits = Store(settings.out), Splits(settings.data_root)
    with store.lock(planned.key, timeout_s=float("inf")):
        before = store.read(planned.key)
        if before is not None and before.status == "done" and not _to_refresh(before, planned, settings, splits):
            return before
        store.remove_torn(planned)
        attempts = before.attempts + 1 if before is not None and before.cell else 1
        started = utc_now()
        traceback_file(settings.out, planned.key).unlink(missing_ok=True)  # of an earlier attempt

        def stored(record: Record) -> Record:
            return store.write(dataclasses.replace(record, attempts=attempts, started=started, finished=utc_now()))

        try:
            cell = _CellRun(planned, settings, store, splits, report_progress)
            written = stored(cell.run())
        except DivergedError as error:
            return stored(_failed(planned, "diverged", error, error.stage, error.step, error.task))
        except Exception as error:  # a fault in a method or a plug-in ends its cell, not the run
            if is_out_of_memory(error):
                return stored(_failed(planned, "oom", error))
            if not isinstance(error, UsageError):
                text = traceback.format_exc().encode("utf-8", "backslashreplace")
                write_atomic(traceback_file(settings.out, planned.key), text)
            return stored(_failed(planned, "failed", error))
        with contextlib.suppress(OSError):  # what stays lies in the way of nothing
            cell.trainer.clear_checkpoints()  # not before the record stands
        return written


def _to_refresh(record: Record, planned: PlannedCell, settings: RunSettings, splits: Splits) -> bool:
    return settings.refresh_stale and Present(splits).stale_reason(record, planned) is not None


def _failed(
    planned: PlannedCell,
    status: str,
    error: Exception,
    stage: str | None = None,
    step: int | None = None,
    task: str | None = None,
) -> Record:
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    message = message.encode("utf-8", "backslashreplace").decode()  # a path that is not valid Unicode
    entry = ErrorEntry(kind=type(error).__name__, message=message, stage=stage, step=step, task=task)
    return Record(cell=planned.document, status=status, error=entry)


class _CellRun:
    """The parts of one cell, built once."""

    def __init__(
        self,
        planned: PlannedCell,
        settings: RunSettings,
        store: Store,
        splits: Splits,
        report_progress: Callable[[Progress], None],
    ) -> None:
        self.planned, self.store = planned, store
        cell = planned.settings
        method = get_method(cell.method.name)
        self.method = method(method_params(method, cell.method.name, cell.method.params))
        self.spec = cell_spec(cell)
        self.data = load_data(self.spec, planned, splits)
        self.device = torch.device(settings.device)
        config, dense = backbone_config(cell, self.spec), dense_form(planned.document)
        self.prototype = create_backbone(config, weights=planned.weights, seed=cell.seed, dense=dense)
        self.initial_weights = _state_hash(self.prototype)
        self.normalise = self._normalise()
        channels_last = cell.recipe.memory_format == "channels_last"
        form = InputFormat(cell.backbone.in_chans, self.normalise, self.device, channels_last)
        origin = {
            "data": self.data.content,
            "weights": self.initial_weights,
            "torch": installed("torch"),
            "timm": installed("timm"),
        }
        loaders = role_loaders(self.data, self.spec, cell.recipe, form, cell.seed)
        if cell.part == "tune":
            loaders[Role.REPORT] = ClosedLoader()
        context = TrainingContext(
            data=self.spec,
            loaders=loaders,
            prototype=self.prototype,
            budget=Budget(cell.budget.steps, cell.budget.cycles),
            recipe=cell.recipe.scaled(cell.lr_factor),
            selection=cell.selection,
            seed=cell.seed,
            device=self.device,
            version=cell_key({"method": planned.program.method, **made_with(planned.program, origin)}),
            report_progress=report_progress,
            checkpoint_s=settings.checkpoint_s,
            checkpoint_steps=settings.checkpoint_steps,
            step_limit=settings.step_limit,
        )
        self.single_task = SingleTaskNetworks(planned, context, store, origin)
        context = dataclasses.replace(context, single_task=self.single_task.network)
        self.trainer = CellTrainer(context, settings.out / "work" / planned.key)

    def _normalise(self) -> Normalise:
        """As the initial weights were trained; by the data set's own statistics where they are random."""
        flags = get_protocol(self.spec.protocol, self.spec.name)
        source = self.spec if self.planned.weights == "none" else self.prototype
        return Normalise.for_protocol(flags, source.mean, source.std)

    def run(self) -> Record:
        """Train, evaluate once on report, or a trial on select, count, and describe."""
        reset_peak(self.device)
        canonical_json(self._audit())  # what a record cannot hold of the method is found before the first step
        graph = self.method.run(self.trainer)
        self._check(graph)
        trained_in = peak_bytes(self.device)
        reset_peak(self.device)
        role = Role.REPORT if self.planned.settings.part is None else Role.SELECT
        if role is Role.REPORT:
            metrics, n_evaluated = self.trainer.report(graph)
            record = self._record(graph, (trained_in, peak_bytes(self.device)))
            artifacts = write_artifacts(self.store, self.planned.key, self.trainer, graph)
            record = dataclasses.replace(
                record, metrics=metrics_json(metrics), n_evaluated=n_evaluated, artifacts=artifacts
            )
            keep_floors(self.store, self.planned.document["data"], self.spec, self.data)
        else:  # a trial: its network is not kept, since it is never deployed
            metrics = self.trainer.judge(graph)
            record = self._record(graph, (trained_in, peak_bytes(self.device)))
            selected: SelectedDocument = {**record.selected, "metrics": metrics_json(metrics)}
            record = dataclasses.replace(record, selected=selected, graph={"hash": graph.hash()})
        nonfinite = [
            f"{task} {name}" for task, scores in metrics.items() for name, score in scores.items() if score.n_nonfinite
        ]
        if nonfinite:
            message = f"Predictions are not finite on {role.value}: {', '.join(nonfinite)}."
            error = ErrorEntry(kind="NonFinitePrediction", message=message, stage=None, step=None, task=None)
            record = dataclasses.replace(record, status="diverged", error=error)
        return record

    def _check(self, graph: TaskGraph) -> None:
        """The network that a method returns must serve the cell's tasks, with nothing left over."""
        graph.require_deployable()
        if set(graph.tasks) != set(self.spec.task_names):
            raise UsageError(
                f"Method {self.planned.settings.method.name!r} returned outputs for {sorted(graph.tasks)}; "
                f"the cell has the tasks {sorted(self.spec.task_names)}."
            )

    def _record(self, graph: TaskGraph, peaks: tuple[int | None, int | None]) -> Record:
        """Everything but the metrics and the files."""
        cell, key, trainer = self.planned.settings, self.planned.key, self.trainer
        shapes = dict.fromkeys(self.spec.inputs, (1, cell.backbone.in_chans, *self.spec.native_size))
        return Record(
            cell=self.planned.document,
            status="done",
            versions=versions_of(self.planned, self.device, data=self.data.content, weights=self.initial_weights),
            environment=environment_of(self.device),
            roles=dict(self.data.roles),
            selected={"step": trainer.selected.get("step", cell.budget.steps)},
            size=plain_json(size(graph, self.prototype.n_parameters())),
            compute=plain_json(compute(graph, shapes)),
            cost=cost_of(self.planned, trainer, graph, peaks),
            audit=self._audit(),
            reused_from=list(trainer.ledger.reused_from),
            curves={name: curve_json(values) for name, values in trainer.curves.items()},
            graph={"hash": graph.hash(), "file": f"artifacts/{key[:2]}/{key}/graph.json"},
        )

    def _audit(self) -> Audit:
        return audit_of(self.planned, self.method, self.normalise, self.trainer)


def _state_hash(backbone: Backbone) -> str:
    """sha256 over the initial weights of the backbone."""

    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.module().state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
