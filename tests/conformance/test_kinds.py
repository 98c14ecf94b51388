"""Every registered kind states its constants, and its evaluators accept them: a table without floors is no evidence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datasets.contracts import TaskSpec
from datasets.kinds import get_kind, kind_names
from datasets.kinds.metrics import computed_metrics


def a_task(name: str) -> TaskSpec:
    """A task of the kind with all of its metrics, of the fewest channels that fit."""
    metrics = tuple(computed_metrics(name))
    fewest = 3 if name == "normals" else get_kind(name).fewest_channels
    return TaskSpec("task", name, fewest, metrics)


def labels_of(task: TaskSpec) -> Tensor:
    """Four legal labels, and a fifth that is ignored."""
    kind = get_kind(task.kind)
    shape = (5, *kind.target_shape(task, (4, 3)))
    random = torch.Generator().manual_seed(0)
    if kind.floating:
        labels = torch.randint(0, 2, shape, generator=random).float() + (1 if task.kind == "depth" else 0)
        if task.kind == "normals":
            labels = torch.nn.functional.normalize(labels + 0.1, dim=1)
    else:
        labels = torch.randint(0, max(2, task.channels), shape, generator=random)
    labels[4] = kind.fill if kind.fill is not None else math.nan if kind.floating else -1
    return labels


@pytest.mark.parametrize("name", kind_names())
def test_every_kind_has_floors(name: str) -> None:
    task, kind = a_task(name), get_kind(name)
    labels = labels_of(task)
    assert bool(kind.valid(labels[:4]).any())
    assert not bool(kind.valid(labels[4:]).any())
    constants = kind.constants(task)
    assert constants.candidates() == {}, "no label, no constant"
    constants.update(labels[4:])
    assert constants.candidates() == {}, "a label that is ignored counts"
    constants.update(labels)
    found = constants.candidates()
    assert found
    values: dict[str, list[float]] = {metric: [] for metric in task.metrics}
    for constant in found.values():
        assert constant.shape == (kind.head_channels(task),)
        evaluator = kind.evaluator(task)
        evaluator.update(kind.repeated(constant, labels), labels)
        for metric, result in evaluator.result().items():
            values[metric] += [] if result.value is None else [result.value]
    assert all(values.values()), values
