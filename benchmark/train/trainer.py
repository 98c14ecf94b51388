"""What a method sees of the harness. Implements `methods.contracts.Trainer`; it names no method, data set or backbone.

The loop itself is `benchmark.train.alternation`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from benchmark.records.documents import Fact, Movement
from benchmark.records.keys import canonical_json
from benchmark.records.record import curve_json
from benchmark.train.alternation import Alternation
from benchmark.train.checkpoints import Checkpoints
from benchmark.train.evaluate import evaluate
from benchmark.train.ledger import Ledger
from benchmark.train.stage import StageRun, TrainingContext
from benchmark.train.state import CellState
from datasets.contracts import Batch, DatasetSpec
from datasets.errors import ProtocolError, UsageError
from methods.backbones.backbone import Backbone
from methods.backbones.heads import create_head
from methods.contracts import Budget, Metrics, Purpose, Role, SingleTask, Stage, StageResult
from methods.figures import Figure
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph

FIGURE_PREFIX = "figure-"  # of the artifacts that hold figures
_OWN_ARTIFACTS = ("graph", "weights")


@dataclasses.dataclass(frozen=True)
class _Final:
    """A final training. trained: parameters. loss: {task: mean loss per cycle}. last_fifths: see `StageRun`. selected:
    which step was kept.
    """

    trained: Sequence[nn.Parameter]
    loss: Mapping[str, Sequence[float]]
    last_fifths: Mapping[str, Sequence[float]]
    selected: dict[str, int]


class CellTrainer:
    """The trainer of one cell, or of one of its tasks alone. folder: of its checkpoints. state: what checkpoints hold.

    Figures, facts, movements and elements are in no checkpoint: a resumed run repeats the code between stages.
    """

    def __init__(self, context: TrainingContext, folder: Path) -> None:
        self.context = context
        self.state = CellState(context.seed)
        self.figures: dict[str, Figure] = {}
        self.facts: dict[str, Fact] = {}
        self.search_moved: dict[str, Movement] = {}
        self.elements: list[str] = []
        self.last_fifths: dict[str, list[float]] = {}  # {task: losses of the final training}, see `StageRun`
        self.search_roles: set[Role] = set()
        self._checkpoints = Checkpoints(folder, context.version)
        self._weight_steps = WeakIdKeyDictionary()
        self._finals: list[_Final] = []
        self._trainings = 0
        self._reported = False

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
        return self.state.rng(name)

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
        n_batches: int | None = None,
    ) -> Iterator[Batch]:
        """Batches in fixed order without augmentation. Raises ProtocolError for report."""
        if role is Role.REPORT:
            raise ProtocolError("The report role is not open to methods.")
        return self.context.loaders[role].ordered(tasks or self.data.task_names, n_samples, None, draw_seed, n_batches)

    def charge(self, forward_passes: int, purpose: Purpose = "search") -> None:
        """Count forward passes that were made between stages."""
        self.ledger.account(purpose).forward_passes += forward_passes

    def single_task(self, task: str, purpose: Purpose = "search") -> SingleTask:
        """The single-task network, charged to this cell whether it was trained here or taken over."""
        if self.context.single_task is None:
            raise ProtocolError("A single-task training cannot ask for a single-task network.")
        kept = self.context.single_task(self.data.task(task).name)
        graph = kept.graph
        self.ledger.account(purpose).add(kept.spending)
        self.ledger.reused_from.append(kept.key)
        if purpose == "search":
            self.search_roles.add(Role.FIT_ARCH)  # what it was trained on
        graph.network().to(self.device)
        for parameter in graph.parameters():
            self._weight_steps[parameter] = self.budget.steps
        if purpose == "final":
            self.curves[f"loss/{task}"] = list(kept.loss)
            self.last_fifths[task] = list(kept.last_fifths)
        return SingleTask(graph, kept.loss)

    # What a record cannot hold is refused here, where the method hands it over, not after the training.

    def log(self, name: str, value: float) -> None:
        """Append a value to a named curve."""
        self.state.log(_text("name of a curve", name), value)

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
            raise UsageError(f"Artifact {name!r} is not an array of numbers or truth values ({reason})") from error
        self.artifacts[name] = copy

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

    def moved(self, what: str, start: np.ndarray | Tensor, end: np.ndarray | Tensor) -> None:
        """Store the largest and the mean change of a probability; null where one is not finite."""
        self.search_moved[_text("name of what moved", what)] = _movement(what, start, end)

    def flag(self, text: str) -> None:
        """Store a sentence about what is not as it should be."""
        self.state.flag(_text("text of a flag", text))

    # What the harness reads

    @property
    def ledger(self) -> Ledger:
        """What has been spent."""
        return self.state.ledger

    @property
    def curves(self) -> dict[str, list[float]]:
        """{name: values}: losses of stages, and what the method logged."""
        return self.state.curves

    @property
    def artifacts(self) -> dict[str, np.ndarray]:
        """{name: array} of the method."""
        return self.state.artifacts

    @property
    def selected(self) -> dict[str, int]:
        """The step of the final training that was kept; empty where there was none."""
        return self.state.selected

    @property
    def flags(self) -> list[str]:
        """Sentences about what is not as it should be."""
        return self.state.flags

    def weight_steps(self, graph: TaskGraph) -> int:
        """Most updates that any deployed weight has received."""
        return max((self._weight_steps.get(parameter, 0) for parameter in graph.parameters()), default=0)

    def report(self, graph: TaskGraph) -> tuple[Metrics, dict[str, int]]:
        """Final numbers on the report role, and samples evaluated. Raises ProtocolError the second time."""
        if self._reported:
            raise ProtocolError("The report role is evaluated once.")
        self._reported = True
        self._settle(graph)
        return self._measure(graph.network(), Role.REPORT, self.data.task_names)

    def judge(self, graph: TaskGraph) -> Metrics:
        """The numbers of a trial, on select."""
        self._settle(graph)
        return self._on_select(graph.network(), self.data.task_names)

    def _settle(self, graph: TaskGraph) -> None:
        """Where a method has trained several networks to their end, curves and step are those of the one it returns."""
        deployed = {id(parameter) for parameter in graph.parameters()}
        own = [final for final in self._finals if any(id(parameter) in deployed for parameter in final.trained)]
        for final in own or self._finals:
            self.curves.update({f"loss/{task}": list(values) for task, values in final.loss.items()})
            self.last_fifths.update({task: list(values) for task, values in final.last_fifths.items()})
            self.state.selected = final.selected

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

    def _on_select(self, network: nn.Module, tasks: Sequence[str]) -> Metrics:
        return self._evaluate(network, Role.SELECT, tasks)

    def _train(self, stages: Sequence[Stage], cycles: int) -> list[StageResult]:
        number, self._trainings = self._trainings, self._trainings + 1
        for stage in stages:
            if stage.first_cycle >= cycles:
                raise ValueError(f"Stage {stage.name!r} starts in cycle {stage.first_cycle} of {cycles}.")
            stage.network.to(self.device)
            if self.context.recipe.memory_format == "channels_last":
                stage.network.to(memory_format=torch.channels_last)
        self.search_roles |= {stage.role for stage in stages if stage.purpose == "search"}
        flags = [(p, p.requires_grad) for stage in stages for p in stage.network.parameters()]
        loop = Alternation(stages, cycles, number, self.context, self.state, self._checkpoints, self._on_select)
        results = loop.run()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for run, result in zip(loop.runs, results, strict=True):
            self._keep(run, result)
        return results

    def _keep(self, run: StageRun, result: StageResult) -> None:
        """What the record says of a stage that has been trained to its end."""
        for parameter in run.trained:
            self._weight_steps[parameter] = self._weight_steps.get(parameter, 0) + run.done
        final = run.stage.purpose == "final"
        for task, values in result.loss.items():
            self.curves[f"loss/{task}" if final else f"loss/{run.stage.name}/{task}"] = list(values)
        if not final:
            return
        self.last_fifths.update(run.last_fifths())
        self._finals.append(_Final(run.trained, result.loss, run.last_fifths(), dict(self.selected)))
        for task in run.never_labelled():
            self.flag(
                f"Task {task!r} had no valid label in any batch of its training: what only it reads is as initialised."
            )


def _text(what: str, value: object) -> str:
    """The text as a record stores it. Raises UsageError for anything but text in valid Unicode."""
    if not isinstance(value, str):
        raise UsageError(f"The {what} is {value!r}; expected text.")
    text: str = json.loads(canonical_json({what: value}))[what]
    return text


def _movement(what: str, start: np.ndarray | Tensor, end: np.ndarray | Tensor) -> Movement:
    before, after = (np.asarray(torch.as_tensor(values).detach().cpu(), np.float64) for values in (start, end))
    if before.shape != after.shape or not before.size:
        raise UsageError(f"Movement of {what!r}: {before.shape} at the start, {after.shape} at the end.")
    change = np.abs(after - before)
    largest, mean = curve_json([float(change.max()), float(change.mean())])
    return {"largest": largest, "mean": mean}
