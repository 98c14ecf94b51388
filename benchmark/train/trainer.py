"""The only training loop. Implements `methods.contracts.Trainer`; it names no method, data set or backbone.

`fit` is an alternation of one stage, so there is a single loop: cycles, in each of them a phase of every stage, in each
phase its share of the steps. A step reads no value back from the device; losses are written to a buffer there and are
looked at every `CHECK_EVERY` steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from benchmark.records.documents import Fact
from benchmark.records.keys import canonical_json
from benchmark.records.record import curve_json
from benchmark.train.checkpoints import Checkpoints
from benchmark.train.evaluate import evaluate
from benchmark.train.ledger import Ledger
from benchmark.train.selection import BestOnSelect
from benchmark.train.stage import Progress, StageRun, TrainingContext
from datasets.contracts import Batch, DatasetSpec
from datasets.errors import ProtocolError, UsageError
from methods.backbones.backbone import Backbone
from methods.backbones.heads import create_head
from methods.contracts import Budget, Metrics, Purpose, Role, SingleTask, Stage, StageResult
from methods.figures import Figure
from methods.graph.cost import MacCounter
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.streams import generator, seed_of

CHECK_EVERY = 50  # steps between looks at the losses; each look waits for the device
FIGURE_PREFIX = "figure-"  # of the artifacts that hold figures
_OWN_ARTIFACTS = ("graph", "weights")


@dataclasses.dataclass(frozen=True)
class _Final:
    """A final training. trained: parameters. loss: {task: mean loss per cycle}. selected: which step was kept."""

    trained: Sequence[nn.Parameter]
    loss: Mapping[str, Sequence[float]]
    selected: dict[str, int]


class CellTrainer:
    """The trainer of one cell. folder: of its checkpoints. task_names: the cell's tasks, or the one of a nested
    training.
    """

    def __init__(self, context: TrainingContext, folder: Path) -> None:
        self.context = context
        self.ledger = Ledger()
        self.curves: dict[str, list[float]] = {}
        self.artifacts: dict[str, np.ndarray] = {}
        self.figures: dict[str, Figure] = {}
        self.facts: dict[str, Fact] = {}
        self.flags: list[str] = []
        self.elements: list[str] = []
        self.selected: dict[str, int] = {}
        self.search_roles: set[Role] = set()
        self._checkpoints = Checkpoints(folder, context.version)
        self._generators: dict[str, torch.Generator] = {}
        self._weight_steps = WeakIdKeyDictionary()
        self._finals: list[_Final] = []
        self._stages = 0
        self._reported = False
        self._last_checkpoint = time.monotonic()
        self._last_progress = 0.0

    # What a method sees

    @property
    def data(self) -> DatasetSpec:
        """The data set with the tasks of this cell."""
        return self.context.data

    @property
    def budget(self) -> Budget:
        """Steps of the final training, and cycles per stage."""
        return self.context.budget

    @property
    def device(self) -> torch.device:
        """Where networks and batches live."""
        return self.context.device

    def backbone(self) -> Backbone:
        """A fresh copy of the backbone with the cell's initial weights, on the device."""
        backbone = self.context.prototype.clone()
        backbone.module().to(self.device)
        return backbone

    def head(self, task: str) -> Operation:
        """A fresh head for a task, from the stream `head-init/<task>`, on the device."""
        operation = create_head(self.data.task(task), self.context.prototype, self.context.seed)
        operation.module.to(self.device)
        return operation

    def rng(self, name: str) -> torch.Generator:
        """The stream `method/<name>`; the same object each time, its state part of checkpoints."""
        if name not in self._generators:
            self._generators[name] = generator(self.context.seed, f"method/{name}")
        return self._generators[name]

    def fit(self, stage: Stage) -> StageResult:
        """Train one stage."""
        return self._train([stage], self.budget.cycles)[0]

    def alternate(self, stages: Sequence[Stage], cycles: int | None = None) -> list[StageResult]:
        """Train stages in turn, cycle after cycle."""
        return self._train(stages, self.budget.cycles if cycles is None else cycles)

    def evaluate(self, network: nn.Module, role: Role, tasks: Sequence[str] | None = None) -> Metrics:
        """Metrics on fit, arch or select. Raises ProtocolError for report."""
        if role is Role.REPORT:
            raise ProtocolError("The report role is evaluated once, by the harness, after the method has returned.")
        return self._evaluate(network, role, tasks or self.data.task_names)

    def batches(
        self,
        role: Role,
        n_samples: int | None = None,
        tasks: Sequence[str] | None = None,
        draw_seed: int | None = None,
    ) -> Iterator[Batch]:
        """Batches in fixed order without augmentation. Raises ProtocolError for report."""
        if role is Role.REPORT:
            raise ProtocolError("The report role is not open to methods.")
        return self.context.loaders[role].ordered(tasks or self.data.task_names, n_samples, draw_seed=draw_seed)

    def charge(self, forward_passes: int, purpose: Purpose = "search") -> None:
        """Count forward passes that were made between stages."""
        self.ledger.account(purpose).forward_passes += forward_passes

    def single_task(self, task: str, purpose: Purpose = "search") -> SingleTask:
        """The single-task network, charged to this cell whether it was trained here or taken over."""
        if self.context.single_task is None:
            raise ProtocolError("A single-task training cannot ask for a single-task network.")
        graph, loss, spending, key = self.context.single_task(self.data.task(task).name)
        self.ledger.account(purpose).add(spending)
        self.ledger.reused_from.append(key)
        if purpose == "search":
            self.search_roles.add(Role.FIT_ARCH)  # what it was trained on
        graph.network().to(self.device)
        for parameter in graph.parameters():
            self._weight_steps[parameter] = self.budget.steps
        if purpose == "final":
            self.curves[f"loss/{task}"] = list(loss)
        return SingleTask(graph, loss)

    # What a record cannot hold is refused here, where the method hands it over, not after the training.

    def log(self, name: str, value: float) -> None:
        """Append a value to a named curve."""
        self.curves.setdefault(_text("name of a curve", name), []).append(float(value))

    def artifact(self, name: str, array: np.ndarray | Tensor) -> None:
        """Store a copy of an array of numbers with the record; a later one of that name replaces it."""
        name = _text("name of an artifact", name)
        if name in _OWN_ARTIFACTS or name.startswith(FIGURE_PREFIX):
            raise UsageError(f"Artifact {name!r}: a record keeps its own under that name; choose another.")
        try:
            copy = np.array(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)
            torch.from_numpy(copy)  # as checkpoints hold it
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"Artifact {name!r} is no array of numbers or truth values ({reason})") from error
        self.artifacts[name] = copy

    # What follows comes from code between stages, which a resumed run repeats; of it checkpoints hold only flags.

    def figure(self, name: str, figure: Figure) -> None:
        """Store a picture, as data."""
        if not isinstance(figure, Figure):
            raise UsageError(f"Figure {name!r} is a {type(figure).__name__}; expected a methods.figures.Figure.")
        name = _text("name of a figure", name)
        canonical_json({f"figure {name!r}": figure.model_dump(mode="json")})
        self.figures[name] = figure

    def fact(self, name: str, value: float | None, unit: str = "") -> None:
        """Store a number about what was found; null where it is not finite, as metrics."""
        name = _text("name of a fact", name)
        number = None if value is None else curve_json([float(value)])[0]
        self.facts[name] = {"value": number, "unit": _text(f"unit of fact {name!r}", unit)}

    def chosen(self, elements: Iterable[str]) -> None:
        """Store the names of what was chosen."""
        self.elements = sorted(_text("name of what was chosen", element) for element in elements)

    def flag(self, text: str) -> None:
        """Store a sentence about what is not as it should be."""
        text = _text("text of a flag", text)
        if text not in self.flags:
            self.flags.append(text)

    # What the harness adds

    def weight_steps(self, graph: TaskGraph) -> int:
        """Most updates that any deployed weight has received."""
        return max((self._weight_steps.get(parameter, 0) for parameter in graph.parameters()), default=0)

    def report(self, graph: TaskGraph) -> tuple[Metrics, dict[str, int]]:
        """Final numbers on the report role, and samples evaluated; once a cell. Raises ProtocolError the
        second time.
        """
        if self._reported:
            raise ProtocolError("The report role is evaluated once.")
        self._reported = True
        self._settle(graph)
        return self._measure(graph.network(), Role.REPORT, self.data.task_names)

    def _settle(self, graph: TaskGraph) -> None:
        """Where a method has trained several networks to their end, curves and step are those of the one it returns."""
        deployed = {id(parameter) for parameter in graph.parameters()}
        own = [final for final in self._finals if any(id(parameter) in deployed for parameter in final.trained)]
        for final in own or self._finals:
            self.curves |= {f"loss/{task}": list(values) for task, values in final.loss.items()}
            self.selected = final.selected

    def clear_checkpoints(self) -> None:
        """Remove this cell's checkpoints, once its record stands."""
        self._checkpoints.clear()

    def _evaluate(self, network: nn.Module, role: Role, tasks: Sequence[str]) -> Metrics:
        return self._measure(network, role, tasks)[0]

    def _measure(self, network: nn.Module, role: Role, tasks: Sequence[str]) -> tuple[Metrics, dict[str, int]]:
        start = time.perf_counter()
        measured = evaluate(network, self.context.loaders[role], tasks)
        self.ledger.evaluation_seconds += time.perf_counter() - start
        return measured

    # The loop

    def _train(self, stages: Sequence[Stage], cycles: int) -> list[StageResult]:
        number, self._stages = self._stages, self._stages + 1
        for stage in stages:
            if stage.first_cycle >= cycles:
                raise ValueError(f"Stage {stage.name!r} starts in cycle {stage.first_cycle} of {cycles}.")
            stage.network.to(self.device)
            if self.context.recipe.memory_format == "channels_last":
                stage.network.to(memory_format=torch.channels_last)
        self.search_roles |= {stage.role for stage in stages if stage.purpose == "search"}
        flags = [(p, p.requires_grad) for stage in stages for p in stage.network.parameters()]
        runs = [StageRun(stage, self.context) for stage in stages]
        signature = [[s.name, s.steps, s.role.value, s.purpose, s.step, cycles] for s in stages]
        stored = self._checkpoints.load(number, signature)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout and random balancers read the global stream
            torch.manual_seed(seed_of(self.context.seed, f"noise/{number}/{stages[0].name}"))
            best = self._selector(runs)
            if stored is not None and stored[1]:
                _repeat_cycle_starts(runs, cycles, cycles - 1, None)
                self._restore(runs, stored[0], best, finished=True)
            else:
                self._run_cycles(number, runs, cycles, signature, best, stored[0] if stored else None)
        for run in runs:
            for parameter in run.trained:
                self._weight_steps[parameter] = self._weight_steps.get(parameter, 0) + run.done
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        results = [run.result(cycles) for run in runs]
        for stage, result in zip(stages, results, strict=True):
            final = stage.purpose == "final"
            for task, values in result.loss.items():
                self.curves[f"loss/{task}" if final else f"loss/{stage.name}/{task}"] = list(values)
            if final:
                trained = [parameter for group in stage.train for parameter in group.parameters]
                self._finals.append(_Final(trained, result.loss, dict(self.selected)))
        unlabelled = [run.never_labelled() for run in runs if run.stage.purpose == "final"]
        for task in itertools.chain(*unlabelled):
            self.flag(
                f"Task {task!r} had no valid label in any batch of its training: what only it reads is as initialised."
            )
        return results

    def _run_cycles(
        self,
        number: int,
        runs: Sequence[StageRun],
        cycles: int,
        signature: list[Any],
        best: BestOnSelect | None,
        resumed: dict[str, Any] | None,
    ) -> None:
        for run, state in zip(runs, resumed["runs"] if resumed else [], strict=False):
            run.done = state["done"]
        for cycle in range(cycles):
            for run in runs:
                end = run.steps_until(cycle, cycles)
                if run.done >= end:
                    continue
                if resumed is not None:
                    _repeat_cycle_starts(runs, cycles, cycle, run)
                if resumed is not None and not resumed["mid_phase"]:
                    self._restore(runs, resumed, best, finished=False)
                    resumed = None
                run.begin_phase(cycle, fresh=resumed is None)
                if resumed is not None:  # after `before_cycle`, which may reset what the checkpoint then puts back
                    self._restore(runs, resumed, best, finished=False)
                    resumed = None
                self._run_phase(number, runs, run, end, signature, best)
                run.check_losses()
                run.balancer.end_cycle()
                if self._checkpoint_due(run):
                    self._save(number, runs, signature, best)
        if resumed is not None:  # stopped after the last step, before the end was written
            _repeat_cycle_starts(runs, cycles, cycles - 1, None)
            self._restore(runs, resumed, best, finished=False)
        if best is not None:
            best.restore()
            self.selected = {"step": best.step}
            if best.note():
                self.flag(best.note())
        self._save(number, runs, signature, best, finished=True)

    def _run_phase(
        self,
        number: int,
        runs: Sequence[StageRun],
        run: StageRun,
        end: int,
        signature: list[Any],
        best: BestOnSelect | None,
    ) -> None:
        """Train a stage up to step `end`."""
        account = self.ledger.account(run.stage.purpose)
        batches = run.batches()
        started = time.perf_counter()
        waited = paused = 0.0
        while run.done < end:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            # A step is as large as the largest so far: where a task has no label, nothing is traced back for it.
            n_labelled = len(run.tasks) if run.tasks_counted == len(run.tasks) else len(run.labelled(batch, run.tasks))
            counter = MacCounter() if n_labelled > run.tasks_counted else contextlib.nullcontext()
            with counter:
                account.optimizer_steps += run.step(batch)
            if isinstance(counter, MacCounter):
                run.macs_per_step, run.tasks_counted = max(run.macs_per_step, counter.macs), n_labelled
            account.train_macs += run.macs_per_step
            account.images += sum(len(index) for index in batch.index.values())
            passes = run.stage.passes if run.stage.passes is not None else len(batch.index)
            account.forward_passes += passes * (1 + run.balancer.needs_losses_after_step)
            if run.done % CHECK_EVERY == 0:
                run.check_losses()
            pause = time.perf_counter()
            if best is not None:
                best.look(run)
            self._tell(run)
            if self._checkpoint_due(run) and run.done < end:
                now = time.perf_counter()
                self._spend(run, now - started - waited - paused, waited)
                self._save(number, runs, signature, best, mid_phase=True)
                started, waited, paused, pause = time.perf_counter(), 0.0, 0.0, time.perf_counter()
            paused += time.perf_counter() - pause
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._spend(run, time.perf_counter() - started - waited - paused, waited)

    def _spend(self, run: StageRun, trained: float, waited: float) -> None:
        """Charge seconds of a stage: of its training, and of waiting for its data."""
        self.ledger.account(run.stage.purpose).seconds += trained
        self.ledger.io_seconds += waited
        self.ledger.unrun_seconds += run.unrun * (trained + waited)

    def _tell(self, run: StageRun) -> None:
        now = time.monotonic()
        if now - self._last_progress > 0.25 or run.done == run.stage.steps:
            self._last_progress = now
            self.context.report_progress(Progress(run.stage.name, run.done, run.stage.steps))

    def _checkpoint_due(self, run: StageRun) -> bool:
        if self.context.checkpoint_steps is not None:
            return run.done % self.context.checkpoint_steps == 0
        return time.monotonic() - self._last_checkpoint > self.context.checkpoint_s

    def _selector(self, runs: Sequence[StageRun]) -> BestOnSelect | None:
        """Who watches the select role: only the final training, and only where the cell's rule asks for it."""
        rule = self.context.selection.rule
        if rule == "last" or len(runs) != 1 or runs[0].stage.purpose != "final":
            return None
        return BestOnSelect(runs[0], lambda network, tasks: self._evaluate(network, Role.SELECT, tasks), self.log)

    # Checkpoints

    def _save(
        self,
        number: int,
        runs: Sequence[StageRun],
        signature: list[Any],
        best: BestOnSelect | None,
        *,
        finished: bool = False,
        mid_phase: bool = False,
    ) -> None:
        networks = {id(run.stage.network): run.stage.network for run in runs}
        states = [run.state_dict() for run in runs]
        if finished:
            for state in states:
                state.update(optimizers=[], scaler={}, balancer={})
        payload = {
            "signature": signature,
            "runs": states,
            "networks": [network.state_dict() for network in networks.values()],
            "generators": {name: random.get_state() for name, random in self._generators.items()},
            "global_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "curves": {name: list(values) for name, values in self.curves.items()},
            "artifacts": {name: torch.from_numpy(np.array(array)) for name, array in self.artifacts.items()},
            "ledger": self.ledger.to_json(),
            "selected": dict(self.selected),
            "flags": list(self.flags),
            "mid_phase": mid_phase,
            "best": best.state_dict() if best is not None and not finished else None,
        }
        self._checkpoints.save(number, payload, finished=finished)
        self._last_checkpoint = time.monotonic()

    def _restore(
        self, runs: Sequence[StageRun], payload: dict[str, Any], best: BestOnSelect | None, *, finished: bool
    ) -> None:
        networks = {id(run.stage.network): run.stage.network for run in runs}
        for network, state in zip(networks.values(), payload["networks"], strict=True):
            network.load_state_dict(state)
        for run, state in zip(runs, payload["runs"], strict=True):
            run.load_state_dict(state, finished=finished)
        for name, state in payload["generators"].items():
            self.rng(name).set_state(state)
        torch.set_rng_state(payload["global_random"])
        if payload["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(payload["cuda_random"], self.device)
        self.curves = {name: list(values) for name, values in payload["curves"].items()}
        self.artifacts = {name: array.numpy() for name, array in payload["artifacts"].items()}
        self.ledger = Ledger.from_json(payload["ledger"])
        self.selected = dict(payload["selected"])
        for text in payload["flags"]:
            self.flag(text)
        if best is not None and payload["best"] is not None:
            best.load_state_dict(payload["best"])


def _text(what: str, value: object) -> str:
    """The text as a record stores it. Raises UsageError for what is no text, or no valid Unicode."""
    if not isinstance(value, str):
        raise UsageError(f"The {what} is {value!r}; expected text.")
    text: str = json.loads(canonical_json({what: value}))[what]
    return text


def _repeat_cycle_starts(runs: Sequence[StageRun], cycles: int, cycle: int, current: StageRun | None) -> None:
    """Let every stage set again what it had set at the start of its latest phase, in order.

    current: the stage whose phase in `cycle` comes next; None where all phases up to `cycle` are over.
    """
    latest: dict[int, int] = {}
    for past in range(cycle + 1):
        for number, run in enumerate(runs):
            if past == cycle and run is current:
                break
            before = run.steps_until(past - 1, cycles) if past else 0
            if run.steps_until(past, cycles) > before:
                latest.pop(number, None)
                latest[number] = past  # dictionaries keep the order of insertion: the order in time
    for number, past in latest.items():
        start = runs[number].stage.before_cycle
        if start is not None:
            start(past)
