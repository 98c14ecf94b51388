"""One stage while it is trained: its optimizers, batches, losses, and the state that a checkpoint needs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.plan.suite import BalancingSettings, RecipeSettings, SelectionSettings
from benchmark.train.balancer import Balancer
from benchmark.train.ledger import Spending
from benchmark.train.loaders import RoleLoader
from benchmark.train.optimizers import StageOptimizers
from datasets.contracts import Batch, DatasetSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from methods.backbones.backbone import Backbone
from methods.contracts import Budget, Role, Stage, StageResult
from methods.graph.task_graph import TaskGraph


class DivergedError(RuntimeError):
    """A training loss that is not finite, or larger than the recipe's bound."""

    def __init__(self, stage: str, step: int, task: str, value: float) -> None:
        super().__init__(f"Training loss of task {task!r} is {value} at step {step} of stage {stage!r}.")
        self.stage, self.step, self.task = stage, step, task


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a cell is: printed by the command, never recorded."""

    stage: str
    done: int
    steps: int


@dataclasses.dataclass(frozen=True)
class KeptNetwork:
    """A single-task network that cells share. loss: mean per cycle; last_fifths: see `StageRun.last_fifths`; spending:
    what it cost; key: of its files.
    """

    graph: TaskGraph
    loss: Sequence[float]
    last_fifths: Sequence[float]
    spending: Spending
    key: str


@dataclasses.dataclass(frozen=True)
class TrainingContext:
    """What a cell's trainings share. prototype: the backbone with the initial weights, on the CPU, never trained.

    single_task: returns the network of a task, trained if it is not stored yet. version: of the code, for checkpoints.
    checkpoint_s: seconds between intermediate checkpoints; checkpoint_steps: steps between them, for tests.
    step_limit: most steps of a stage.
    """

    data: DatasetSpec
    loaders: Mapping[Role, RoleLoader]
    prototype: Backbone
    budget: Budget
    recipe: RecipeSettings
    selection: SelectionSettings
    seed: int
    device: torch.device
    version: str
    single_task: Callable[[str], KeptNetwork] | None = None
    report_progress: Callable[[Progress], None] = lambda progress: None
    checkpoint_s: float = 60.0
    checkpoint_steps: int | None = None
    step_limit: int | None = None


class StageRun:
    """A stage with its optimizers, its batches and its losses, while it is trained.

    unrun: steps that the context's limit leaves out, for each one that runs.
    """

    def __init__(self, stage: Stage, context: TrainingContext) -> None:
        steps = stage.steps if context.step_limit is None else min(stage.steps, context.step_limit)
        self.unrun = stage.steps / steps - 1
        self.stage, self.context = dataclasses.replace(stage, steps=steps), context
        self.tasks: tuple[str, ...] = tuple(stage.tasks) if stage.tasks is not None else context.data.task_names
        self.weights = {task: context.data.task(task).weight for task in self.tasks}
        self.kinds = {task: get_kind(context.data.task(task).kind) for task in self.tasks}
        self.done = 0
        balancing = context.recipe.balancing if stage.balanced else BalancingSettings()
        self.balancer = Balancer(balancing, self.tasks, context.device)
        if stage.step == "per_task" and self.balancer.name != "equal":
            raise UsageError(
                f"Stage {stage.name!r} makes one optimizer step per task, so loss balancing {self.balancer.name!r} has "
                "nothing to balance; use equal."
            )
        self.optimizers = StageOptimizers(stage.train, context.recipe, self.balancer.parameters)
        half = context.recipe.precision == "amp-fp16"
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=half)
        self.loss = torch.full((stage.steps, len(self.tasks)), float("nan"), device=context.device)
        self.present = np.zeros((stage.steps, len(self.tasks)), dtype=bool)
        self.macs_per_step = self.tasks_counted = 0
        self.checked = 0
        # Final trainings of all methods see one order of the data, so that they pair; earlier stages have their own.
        self.stream = "data-order" if stage.purpose == "final" else f"data-order/{stage.name}"
        self._batches: Iterator[Batch] | None = None
        self.trained = [parameter for group in stage.train for parameter in group.parameters]

    def steps_until(self, cycle: int, cycles: int) -> int:
        """Steps that are done when `cycle` ends; cycles share the stage's steps as equally as whole numbers allow."""
        first = self.stage.first_cycle
        return 0 if cycle < first else (cycle + 1 - first) * self.stage.steps // (cycles - first)

    def begin_phase(self, cycle: int, fresh: bool) -> None:
        """Freeze what the stage does not train, and let the method set its temperatures."""
        network = self.stage.network
        trained = {id(parameter) for parameter in self.trained}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        network.train()
        if fresh and self.stage.fresh_optimizer == "cycle":
            self.optimizers.clear_state()
        if self.stage.before_cycle is not None:
            self.stage.before_cycle(cycle)

    def batches(self) -> Iterator[Batch]:
        """Batches from the step that the stage has reached."""
        if self._batches is None:
            loader = self.context.loaders[self.stage.role]
            self._batches = loader.training(self.tasks, self.done, self.stage.steps, self.stream)
        return self._batches

    def prepare(self, batch: Batch) -> None:
        """Let the method look at the batch of the next step."""
        if self.stage.before_step is not None:
            self.optimizers.restart(self.stage.before_step(batch))

    def step(self, batch: Batch) -> int:
        """One batch: one optimizer step, or one for each task. Gives the number of optimizer steps made."""
        self.optimizers.set_rates(self.done, self.stage.steps)
        turns = [self.tasks] if self.stage.step == "joint" else [(task,) for task in self.tasks]
        made = 0
        for tasks in turns:
            made += self._update(batch, tasks)
        self.done += 1
        return made

    def _losses(self, batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        precision = self.context.recipe.precision
        if precision == "fp32":
            return self.stage.losses(batch, tasks)
        dtype = torch.bfloat16 if precision == "amp-bf16" else torch.float16
        with torch.autocast(self.context.device.type, dtype=dtype):
            return self.stage.losses(batch, tasks)

    def labelled(self, batch: Batch, tasks: Sequence[str]) -> list[str]:
        """Those of the tasks that have a valid label in the batch; asks the device only where the loader does not
        tell.
        """
        if batch.labelled is not None:
            return [task for task in tasks if task in batch.labelled]
        return [task for task in tasks if bool(self.kinds[task].valid(batch.targets[task]).any())]

    def _update(self, batch: Batch, tasks: Sequence[str]) -> int:
        """An update of the tasks that have a valid label in the batch; the others, heads included, stay as they are."""
        present = self.labelled(batch, tasks)
        if not present:
            return 0
        self.optimizers.zero_grad()
        losses = self._losses(batch, tasks)
        labelled = [task for task in present if task in losses]
        if not labelled:
            return 0
        self._remember(losses, labelled)
        weighted = [losses[task] * self.weights[task] for task in labelled]
        penalty = self.stage.penalty() if self.stage.penalty is not None else None
        scale = float(self.scaler.get_scale()) if self.scaler.is_enabled() else 1.0
        self.balancer.backward(weighted, penalty, self.trained, scale, labelled)
        self.optimizers.step(self.scaler)
        if self.balancer.needs_losses_after_step:
            with torch.no_grad():
                after = self._losses(batch, tasks)
            self.balancer.after_step([after[task] * self.weights[task] for task in labelled], labelled)
        if self.stage.after_step is not None:
            self.stage.after_step()
        return 1

    def _remember(self, losses: Mapping[str, Tensor], labelled: Sequence[str]) -> None:
        """Write the losses to the device's buffer, without waiting for them."""
        if len(labelled) == len(self.tasks):
            torch.stack([losses[task].detach().float() for task in labelled], out=self.loss[self.done])
            self.present[self.done] = True
            return
        for task in labelled:
            column = self.tasks.index(task)
            self.loss[self.done, column] = losses[task].detach()
            self.present[self.done, column] = True

    def never_labelled(self) -> list[str]:
        """Tasks that had no valid label in any batch so far."""
        return [task for column, task in enumerate(self.tasks) if not self.present[: self.done, column].any()]

    def check_losses(self) -> None:
        """Raise DivergedError for the first loss since the last look that is not finite or too large."""
        values = self.loss[self.checked : self.done].cpu().numpy()
        bad = self.present[self.checked : self.done] & ~(np.abs(values) <= self.context.recipe.max_loss)
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise DivergedError(self.stage.name, self.checked + row, self.tasks[column], float(values[row, column]))
        self.checked = self.done

    def result(self, cycles: int) -> StageResult:
        """Mean training loss of each task per cycle."""
        borders = [0, *(self.steps_until(cycle, cycles) for cycle in range(self.stage.first_cycle, cycles))]
        return StageResult(self._mean_losses(borders), self.done)

    def last_fifths(self) -> dict[str, list[float]]:
        """{task: mean training loss of the fourth fifth of the steps, and of the last}."""
        return self._mean_losses([self.stage.steps * part // 5 for part in (3, 4, 5)])

    def _mean_losses(self, borders: Sequence[int]) -> dict[str, list[float]]:
        """{task: mean loss of the steps between each two borders}; NaN where none had a valid label."""
        values = self.loss.cpu().double().numpy()
        means: dict[str, list[float]] = {task: [] for task in self.tasks}
        for start, end in itertools.pairwise(borders):
            for column, task in enumerate(self.tasks):
                chosen = values[start:end, column][self.present[start:end, column]]
                means[task].append(float(chosen.mean()) if len(chosen) else float("nan"))
        return means

    def state_dict(self) -> dict[str, Any]:
        """Everything but the network, which several stages may share."""
        return {
            "done": self.done,
            "optimizers": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "balancer": self.balancer.state_dict(),
            "loss": self.loss[: self.done].clone(),
            "present": torch.from_numpy(self.present[: self.done].copy()),
            "macs_per_step": self.macs_per_step,
            "tasks_counted": self.tasks_counted,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, finished: bool) -> None:
        """Put back what `state_dict` gave; of a finished stage only what its result needs."""
        self.done = self.checked = state["done"]
        self.loss[: self.done] = state["loss"].to(self.loss.device)
        self.present[: self.done] = state["present"].numpy()
        self.macs_per_step, self.tasks_counted = state["macs_per_step"], state["tasks_counted"]
        if not finished:
            self.optimizers.load_state_dict(state["optimizers"])
            self.scaler.load_state_dict(state["scaler"])
            self.balancer.load_state_dict(state["balancer"])
