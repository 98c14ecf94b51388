"""Floors: what the best constant prediction scores on report, once for the data of a table.

Constants are fitted on the role fit, and where a kind offers several, the best for a metric is chosen there too; report
is only measured. The evaluators are those of the networks. Labels are read in batches, without images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from benchmark.records.evidence import SCHEMA, Floor, FloorsFile, floors_key, read_floors, write_floors
from benchmark.records.record import curve_json
from benchmark.records.store import Store
from benchmark.train.evaluate import scores_of
from benchmark.train.loaders import RoleSamples
from benchmark.train.roles import LoadedData
from datasets.contracts import DatasetSpec, IndexArray
from datasets.errors import UsageError
from datasets.kinds import get_kind
from datasets.protocols import get_protocol
from methods.contracts import Role, Score

BATCH_CACHED, BATCH_READ = 512, 16  # labels at once, of data in memory and of files
MAX_FIT = 2000  # samples that a constant is fitted on, evenly spaced, where labels are maps or are read from files
Inputs = Mapping[str, RoleSamples]
Scores = dict[str, dict[str, dict[str, Score]]]  # {task: {candidate: {metric: score}}}


def keep_floors(store: Store, document: Mapping[str, object], spec: DatasetSpec, data: LoadedData) -> None:
    """Write the floors of a cell's data unless they are there. document: the data of the cell. Raises StorageError."""
    key = floors_key(document, data.roles, data.content)
    with store.lock(key, timeout_s=float("inf")):
        if not _are_kept(store, key):
            tasks, n_fit = floors(spec, data.samples[Role.FIT], data.samples[Role.REPORT])
            write_floors(store.root, FloorsFile(SCHEMA, key, spec.name, n_fit, tasks))


def _are_kept(store: Store, key: str) -> bool:
    try:
        return read_floors(store.root, key) is not None
    except UsageError:  # a file that cannot be trusted is written anew
        return False


def floors(spec: DatasetSpec, fit: Inputs, report: Inputs) -> tuple[dict[str, tuple[Floor, ...]], dict[str, int]]:
    """({task: floor of each of its metrics}, {task: samples that its constant was fitted on}). A task without a valid
    label on fit has no floors.
    """
    read = {name: _thinned(spec, name, samples) for name, samples in fit.items()}
    fitted = {task.name: get_kind(task.kind).constants(task) for task in spec.tasks}
    for labels in _labels(spec, read):
        for task, label in labels.items():
            fitted[task].update(label)
    candidates = {task: found for task, one in fitted.items() if (found := one.candidates())}
    rivals = {task: found for task, found in candidates.items() if len(found) > 1}
    on_fit, on_report = _scores(spec, rivals, read), _scores(spec, candidates, report)
    result = {}
    for task, found in candidates.items():
        chosen = {metric: _best(metric, list(found), on_fit.get(task, {})) for metric in spec.task(task).metrics}
        result[task] = tuple(_floor(metric, name, on_report[task]) for metric, name in chosen.items())
    return result, {task: len(read[spec.input_of(task)]) for task in candidates}


def _thinned(spec: DatasetSpec, name: str, samples: RoleSamples) -> RoleSamples:
    """The samples of the input `name`, or `MAX_FIT` of them where all would take long."""
    maps = any(get_kind(task.kind).dense for task in spec.tasks if spec.input_of(task.name) == name)
    if len(samples) <= MAX_FIT or not (maps or samples.data.cached() is None):
        return samples
    positions = np.linspace(0, len(samples) - 1, MAX_FIT).round().astype(np.int64)
    return RoleSamples(samples.data, samples.indices[positions])


def _labels(spec: DatasetSpec, inputs: Inputs) -> Iterator[dict[str, Tensor]]:
    """{task: labels [B, ...]} of every sample once, input after input, on the CPU."""
    for name, samples in inputs.items():
        tasks = [task for task in spec.task_names if spec.input_of(task) == name]
        cached = samples.data.cached()
        targets = {} if cached is None else {task: cached.targets[task] for task in tasks}  # made when asked for
        size = BATCH_READ if cached is None else BATCH_CACHED
        for start in range(0, len(samples), size):
            rows: IndexArray = samples.indices[start : start + size]
            if cached is not None:
                chosen = torch.from_numpy(np.ascontiguousarray(rows))
                yield {task: values.index_select(0, chosen) for task, values in targets.items()}
            else:
                read = [samples.data.labels(row) for row in rows.tolist()]
                yield {task: torch.stack([labels[task] for labels in read]) for task in tasks}


def _scores(spec: DatasetSpec, candidates: Mapping[str, Mapping[str, Tensor]], inputs: Inputs) -> Scores:
    """Of every candidate [C] of every task, by the evaluators that judge networks."""
    flags = get_protocol(spec.protocol, spec.name)
    kinds = {task: get_kind(spec.task(task).kind) for task in candidates}
    evaluators = {
        task: {name: kinds[task].evaluator(spec.task(task), flags) for name in found}
        for task, found in candidates.items()
    }
    for labels in _labels(spec, inputs) if candidates else ():
        for task, found in candidates.items():
            if task in labels:
                for name, constant in found.items():
                    evaluators[task][name].update(kinds[task].repeated(constant, labels[task]), labels[task])
    return {task: {name: scores_of(one) for name, one in found.items()} for task, found in evaluators.items()}


def _best(metric: str, names: list[str], scores: Mapping[str, Mapping[str, Score]]) -> str:
    """The candidate with the best score on fit, the first on ties and where none has one."""
    best, best_value = names[0], float("-inf")
    for name in names:
        score = scores.get(name, {}).get(metric)
        if score is not None and score.value is not None:
            value = score.value if score.higher_is_better else -score.value
            if value > best_value:
                best, best_value = name, value
    return best


def _floor(metric: str, name: str, scores: Mapping[str, Mapping[str, Score]]) -> Floor:
    score = scores[name][metric]
    value = None if score.value is None else curve_json([score.value])[0]
    return Floor(metric, value, score.unit, score.higher_is_better, name)
