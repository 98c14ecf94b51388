"""Loss balancing where a batch has no label for some tasks: what a balancer remembers, cut to the tasks that have one.

torchjd's objects are made for a fixed number of tasks and remember a number, or a row and a column, for each. A step
without labels of every task is made by an object for the labelled tasks alone, which starts from their part of that
memory; the part then goes back to its place, and what belongs to the other tasks stays as it was. FAMO's own Adam
counts its steps for all tasks together, as `torch.optim.SparseAdam` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Memory = dict[str, dict[str, Any]]  # {submodule: {attribute: value}}
_HISTORY, _COUNT, _KEY = "_previous_averages", "_n_batches", "_state_key"


def narrowed(memory: Memory, tasks: Tensor, n_tasks: int) -> Memory:
    """The part of a memory of `n_tasks` tasks that belongs to `tasks` (positions, int64, ascending)."""
    return {path: {name: _narrow(name, value, tasks, n_tasks) for name, value in part.items()}
            for path, part in memory.items()}  # fmt: skip


def widened(memory: Memory, part: Memory, tasks: Tensor, n_tasks: int) -> Memory:
    """A memory of all tasks with the `part` of some of them in its place; what is not yet there starts at 0."""
    return {path: {name: _widen(name, memory[path].get(name), value, tasks, n_tasks) for name, value in values.items()}
            for path, values in part.items()}  # fmt: skip


def _narrow(name: str, value: Any, tasks: Tensor, n_tasks: int) -> Any:
    if name == _COUNT and isinstance(value, int):  # of batches, from here on for each task
        value = torch.full((n_tasks,), float(value), device=tasks.device)
    if name == _HISTORY:
        value = _known_rates(value)
    if name == _KEY and value is not None:
        return (len(tasks), *value[1:])
    if isinstance(value, Tensor):
        where = tasks.to(value.device)
        for dim in range(min(value.ndim, 2)):
            value = value.index_select(dim, where) if value.shape[dim] == n_tasks else value
        return value
    if isinstance(value, dict):
        return {key: _narrow("", item, tasks, n_tasks) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_narrow("", item, tasks, n_tasks) for item in value)
    return value


def _widen(name: str, whole: Any, part: Any, tasks: Tensor, n_tasks: int) -> Any:
    if name == _HISTORY:
        return whole
    if name == _COUNT and isinstance(whole, int):
        whole = torch.full((n_tasks,), float(whole), device=tasks.device)
    if name == _KEY and part is not None:
        return (n_tasks, *part[1:])
    if isinstance(part, Tensor):
        sizes = [n_tasks if dim < 2 and size == len(tasks) else size for dim, size in enumerate(part.shape)]
        result = part.new_zeros(sizes) if whole is None else whole.clone()
        where = tasks.to(part.device)
        if part.ndim > 1 and part.shape[1] == len(tasks):
            result[where.unsqueeze(1), where] = part
        elif part.ndim and part.shape[0] == len(tasks):
            result[where] = part
        else:
            result = part
        return result
    if isinstance(part, dict):
        whole = whole or {}
        return {key: _widen("", whole.get(key), item, tasks, n_tasks) for key, item in part.items()}
    if isinstance(part, (list, tuple)):
        whole = whole if whole is not None and len(whole) == len(part) else [None] * len(part)
        return type(part)(_widen("", *pair, tasks, n_tasks) for pair in zip(whole, part, strict=True))
    return part


def _known_rates(history: list[Tensor]) -> list[Tensor]:
    """Mean losses of two cycles as dynamic weight averaging reads them: where one is unknown, the rate is 1."""
    if len(history) < 2:
        return history
    unknown = history[0].isnan() | history[1].isnan()
    return [torch.where(unknown, 1.0, losses) for losses in history]


def has_gaps(module: Any) -> bool:
    """Whether the mean loss of some task is unknown in a cycle that a balancer remembers. Reads from the device."""
    return any(bool(losses.isnan().any()) for losses in getattr(module, _HISTORY, []))


def end_cycle(module: Any) -> None:
    """`step` of an object that averages losses over a cycle; the history of a task without labels in it stays."""
    before = getattr(module, _HISTORY, [])
    module.step()
    after = getattr(module, _HISTORY, [])
    if after is before or not bool(after[-1].isnan().any()):
        return
    unlabelled = after[-1].isnan()
    none = torch.full_like(after[-1], float("nan"))
    older, newer = [none, none, *before][-2:]
    setattr(module, _HISTORY, [torch.where(unlabelled, older, newer), torch.where(unlabelled, newer, after[-1])])
