"""Which checkpoint of the final training is kept. Spec: measurement 1.4; nothing here ever reads the report role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from benchmark.records.delta import delta_m
from benchmark.records.documents import MetricEntry
from benchmark.records.record import metrics_json
from benchmark.train.stage import StageRun
from methods.contracts import Metrics

Entries = Mapping[str, Mapping[str, MetricEntry]]


class BestOnSelect:
    """Keeps the state of the final network with the highest Delta_m on select, the earliest on ties (measurement 1.4).

    The baseline is the single-task network of the same seed; a single-task training takes its own first evaluation
    that can be one. A look without a Delta_m (a metric or its baseline is 0 or not measured, as happens early in a
    training) is left out; where there is none with one, the last step is kept. left_out: {step: reason}.
    """

    def __init__(
        self,
        run: StageRun,
        evaluate: Callable[[nn.Module, Sequence[str]], Metrics],
        log: Callable[[str, float], None],
    ) -> None:
        self.run, self.evaluate, self.log = run, evaluate, log
        self.single_task = run.context.single_task
        evaluations = run.context.selection.evaluations
        self.points = {(k + 1) * run.stage.steps // evaluations for k in range(evaluations)} - {0}
        self.baseline: Entries | None = None
        self.score = float("-inf")
        self.step = 0
        self.state: dict[str, Tensor] | None = None
        self.left_out: dict[int, str] = {}

    def look(self, run: StageRun) -> None:
        """Evaluate where a point is reached, and keep the state where it is the best so far."""
        if run.done not in self.points:
            return
        score = self._delta(self.evaluate(run.stage.network, run.tasks), run.tasks)
        self.log("select/delta_m", float("nan") if score is None else score)
        if score is not None and score > self.score:
            self.score, self.step = score, run.done
            self.state = {name: value.detach().clone() for name, value in run.stage.network.state_dict().items()}

    def _delta(self, metrics: Metrics, tasks: Sequence[str]) -> float | None:
        baseline = self.baseline or self._references(metrics_json(metrics), tasks)
        delta = delta_m(metrics_json(metrics), baseline, tasks)
        if delta.value is not None or self.single_task is not None:  # no evaluation without a Delta_m is a baseline
            self.baseline = baseline
        if delta.value is None:
            self.left_out[self.run.done] = delta.reason or "not measured"
        return delta.value

    def note(self) -> str:
        """What to say of looks that were left out; empty where all counted."""
        if not self.left_out:
            return ""
        step, reason = next(iter(self.left_out.items()))
        kept = "" if self.state is not None else "; none was left, so the last step is kept"
        return (
            f"best-on-select left out {len(self.left_out)} of {len(self.points)} looks at select, the first at step "
            f"{step}: {reason}{kept}."
        )

    def _references(self, first: Entries, tasks: Sequence[str]) -> Entries:
        if self.single_task is None:
            return first
        references = {}
        for task in tasks:
            network = self.single_task(task).graph.network()
            references[task] = metrics_json(self.evaluate(network, [task]))[task]
        return references

    def restore(self) -> None:
        """Put the best state into the network; the last one stays where no look had a Delta_m."""
        if self.state is None:
            self.step = self.run.done
        else:
            self.run.stage.network.load_state_dict(self.state)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "baseline": self.baseline,
            "score": self.score,
            "step": self.step,
            "state": self.state,
            "left_out": dict(self.left_out),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.baseline, self.score, self.step = state["baseline"], state["score"], state["step"]
        self.state, self.left_out = state["state"], dict(state["left_out"])
