"""The only training loop: stages take turns, and a training that was stopped goes on where its checkpoint was written.

In every cycle each stage has a phase, in every phase its share of the steps; `fit` is an alternation of one stage. A
step reads no value back from the device; losses are written to a buffer there and are looked at every `CHECK_EVERY`
steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmark.train.checkpoints import Checkpoints
from benchmark.train.selection import BestOnSelect
from benchmark.train.stage import Progress, StageRun, TrainingContext
from benchmark.train.state import CellState
from datasets.contracts import Batch
from methods.contracts import Metrics, Stage, StageResult
from methods.graph.cost import MacCounter
from methods.streams import seed_of

CHECK_EVERY = 50  # steps between looks at the losses; each look waits for the device
TELL_EVERY_S = 0.25  # between two messages of progress


@dataclasses.dataclass
class Stopwatch:
    """The seconds of a phase by what they went into: training, or waiting for data. A lap ends where the next starts,
    so that none counts twice; a lap that nobody takes was a pause.
    """

    trained: float = 0.0
    waited: float = 0.0
    _since: float = dataclasses.field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before


class Alternation:
    """Stages in turn, from the first step or from a checkpoint to the last.

    number: of trainings that the cell has had before; it tells checkpoints and noise apart. evaluate: the metrics of a
    network on select.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        cycles: int,
        number: int,
        context: TrainingContext,
        state: CellState,
        checkpoints: Checkpoints,
        evaluate: Callable[[nn.Module, Sequence[str]], Metrics],
    ) -> None:
        self.cycles, self.number = cycles, number
        self.context, self.state, self.checkpoints = context, state, checkpoints
        self.runs = [StageRun(stage, context) for stage in stages]
        self.networks = list({id(stage.network): stage.network for stage in stages}.values())
        self.signature = [[s.name, s.steps, s.role.value, s.purpose, s.step, cycles] for s in stages]
        self.best: BestOnSelect | None = None
        # Who watches the select role: only the final training, and only where the cell's rule asks for it.
        if context.selection.rule != "last" and len(stages) == 1 and stages[0].purpose == "final":
            self.best = BestOnSelect(self.runs[0], evaluate, state.log)
        self._resumed: dict[str, Any] | None = None  # a checkpoint that has not been put back yet
        self._told = 0.0

    def run(self) -> list[StageResult]:
        """Train every stage to its end; the result of each."""
        device = self.context.device
        stored = self.checkpoints.load(self.number, self.signature)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Dropout and random balancers read the global stream.
            torch.manual_seed(seed_of(self.context.seed, f"noise/{self.number}/{self.runs[0].stage.name}"))
            if stored is None:
                self._train()
            elif stored[1]:
                self._repeat_cycle_starts(self.cycles - 1, None)
                self._restore(stored[0], finished=True)
            else:
                self._resumed = stored[0]
                self._train()
        return [run.result(self.cycles) for run in self.runs]

    def _train(self) -> None:
        if self._resumed is not None:  # phases that are over are not begun again
            for run, state in zip(self.runs, self._resumed["runs"], strict=True):
                run.done = state["done"]
        for cycle in range(self.cycles):
            for run in self.runs:
                end = run.steps_until(cycle, self.cycles)
                if run.done < end:
                    self._begin(run, cycle)
                    self._phase(run, end)
        if self._resumed is not None:  # stopped after the last step, before the end was written
            self._repeat_cycle_starts(self.cycles - 1, None)
            self._restore(self._resumed)
        if self.best is not None:
            self._take_best(self.best)
        self._save(finished=True)

    def _begin(self, run: StageRun, cycle: int) -> None:
        """Begin a phase, or go on with the one that was stopped."""
        stored, self._resumed = self._resumed, None
        if stored is None:
            run.begin_phase(cycle, fresh=True)
            return
        self._repeat_cycle_starts(cycle, run)
        if stored["mid_phase"]:
            run.begin_phase(cycle, fresh=False)
            self._restore(stored)  # after `before_cycle`, which may reset what the checkpoint then puts back
        else:
            self._restore(stored)
            run.begin_phase(cycle, fresh=True)

    def _phase(self, run: StageRun, end: int) -> None:
        """Train a stage up to step `end`."""
        batches, watch = run.batches(), Stopwatch()
        while run.done < end:
            batch = next(batches)
            watch.waited += watch.lap()
            self._step(run, batch)
            if run.done % CHECK_EVERY == 0:
                run.check_losses()
            watch.trained += watch.lap()
            if self.best is not None:
                self.best.look(run)
            self._tell(run)
            if run.done < end and self._checkpoint_due(run):
                self._charge(run, watch)
                self._save(mid_phase=True)
            watch.lap()
        if self.context.device.type == "cuda":
            torch.cuda.synchronize(self.context.device)
        watch.trained += watch.lap()
        self._charge(run, watch)
        run.check_losses()
        run.balancer.end_cycle()
        if self._checkpoint_due(run):
            self._save()

    def _step(self, run: StageRun, batch: Batch) -> None:
        """One batch, and its work on the account."""
        account = self.state.ledger.account(run.stage.purpose)
        if run.stage.before_step is not None:
            look = MacCounter()  # of every look: few of them do any work
            with look:
                run.prepare(batch)
            account.train_macs += look.macs
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

    def _charge(self, run: StageRun, watch: Stopwatch) -> None:
        """Put the seconds on their accounts, and start anew."""
        ledger = self.state.ledger
        ledger.account(run.stage.purpose).seconds += watch.trained
        ledger.io_seconds += watch.waited
        ledger.unrun_seconds += run.unrun * (watch.trained + watch.waited)
        watch.trained = watch.waited = 0.0

    def _tell(self, run: StageRun) -> None:
        now = time.monotonic()
        if now - self._told > TELL_EVERY_S or run.done == run.stage.steps:
            self._told = now
            self.context.report_progress(Progress(run.stage.name, run.done, run.stage.steps))

    def _take_best(self, best: BestOnSelect) -> None:
        best.restore()
        self.state.selected = {"step": best.step}
        if best.note():
            self.state.flag(best.note())

    # Checkpoints

    def _checkpoint_due(self, run: StageRun) -> bool:
        if self.context.checkpoint_steps is not None:
            return run.done % self.context.checkpoint_steps == 0
        return self.checkpoints.age_s > self.context.checkpoint_s

    def _save(self, *, finished: bool = False, mid_phase: bool = False) -> None:
        device, states = self.context.device, [run.state_dict() for run in self.runs]
        if finished:
            for state in states:
                state.update(optimizers=[], scaler={}, balancer={})
        payload = {
            "signature": self.signature,
            "runs": states,
            "networks": [network.state_dict() for network in self.networks],
            "global_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            **self.state.state_dict(),
            "mid_phase": mid_phase,
            "best": self.best.state_dict() if self.best is not None and not finished else None,
        }
        self.checkpoints.save(self.number, payload, finished=finished)

    def _restore(self, stored: dict[str, Any], *, finished: bool = False) -> None:
        for network, state in zip(self.networks, stored["networks"], strict=True):
            network.load_state_dict(state)
        for run, state in zip(self.runs, stored["runs"], strict=True):
            run.load_state_dict(state, finished=finished)
        torch.set_rng_state(stored["global_random"])
        if stored["cuda_random"] is not None and self.context.device.type == "cuda":
            torch.cuda.set_rng_state(stored["cuda_random"], self.context.device)
        self.state.load_state_dict(stored)
        if self.best is not None and stored["best"] is not None:
            self.best.load_state_dict(stored["best"])

    def _repeat_cycle_starts(self, cycle: int, current: StageRun | None) -> None:
        """Let every stage set again what it had set at the start of its latest phase, in order.

        current: the stage whose phase in `cycle` comes next; None where all phases up to `cycle` are over.
        """
        latest: dict[int, int] = {}
        for past in range(cycle + 1):
            for number, run in enumerate(self.runs):
                if past == cycle and run is current:
                    break
                before = run.steps_until(past - 1, self.cycles) if past else 0
                if run.steps_until(past, self.cycles) > before:
                    latest.pop(number, None)
                    latest[number] = past  # dictionaries keep the order of insertion: the order in time
        for number, past in latest.items():
            start = self.runs[number].stage.before_cycle
            if start is not None:
                start(past)
