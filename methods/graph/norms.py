"""Norms with statistics, and if asked weights, of each task's own: in a network that is searched, and in one that is
fixed.

A `TaskGraph` is `per_task_stats` by itself: weights belong to operations, statistics to nodes, so an operation that
tasks feed with different inputs keeps a set for each. `TaskGraph.with_shared_statistics` is `shared`, `with_own_norms`
`per_task` (soft_sharing 0, dmo 4).

A searched network whose tasks feed different activations to one batch norm needs a set of statistics per task:
averaged over tasks they are wrong for each of them in eval mode (dag_search 5, adashare 2.7). Nothing is copied but the
statistics: batches of several tasks lie one behind the other, and `TaskNorms` lends a norm each task's tensors for its
part.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from methods.graph.copies import copied
from methods.graph.operations import Operation
from methods.graph.rules import BatchNormRule

_STATISTICS = ("running_mean", "running_var")
_GATHERED = (*_STATISTICS, "num_batches_tracked")
_WEIGHTS = ("weight", "bias")


class TaskNorms(nn.Module):
    """The statistics of all batch norms of some modules, a row for each task.

    rule: `shared` leaves the norms as they are; `per_task_stats` gives each task statistics of its own; `per_task`
    weights and biases too. After construction the norms hold no such tensors themselves: they run inside `each`, and
    `release` gives them back.
    """

    values: Tensor
    updates: Tensor

    def __init__(self, modules: Iterable[nn.Module], n_tasks: int, rule: BatchNormRule) -> None:
        super().__init__()
        found = {id(norm): norm for module in modules for norm in module.modules() if has_statistics(norm)}
        # Plain lists: the norms belong to their network.
        self._all = cast("list[_NormBase]", list(found.values()))
        self._norms = [] if rule == "shared" else self._all
        self._views: list[list[dict[str, Tensor]]] = []  # [task][norm]
        self._weight_names = _WEIGHTS if rule == "per_task" else ()
        rows = [self._take(norm) for norm in self._norms]
        flat = torch.cat([row for row, _, _ in rows]) if rows else torch.empty(0)
        self.register_buffer("values", flat.repeat(n_tasks, 1))
        counts = torch.stack([count for _, count, _ in rows]) if rows else torch.empty(0, dtype=torch.int64)
        self.register_buffer("updates", counts.repeat(n_tasks, 1))
        weights = [weight for _, _, own in rows for weight in own]
        self.weights = nn.Parameter(torch.cat(weights).repeat(n_tasks, 1)) if weights else None

    def _take(self, norm: _NormBase) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The norm's own tensors, which it loses."""
        own = [norm._parameters[name].detach() for name in self._names(norm)]  # type: ignore[union-attr]
        values = torch.cat([norm._buffers[name] for name in _STATISTICS])  # type: ignore[misc]
        count = norm._buffers["num_batches_tracked"]
        assert count is not None
        for name in _GATHERED:
            norm._buffers[name] = None
        for name in self._names(norm):
            norm._parameters[name] = None
        return values, count, own

    def _names(self, norm: _NormBase) -> list[str]:
        return [name for name in self._weight_names if norm.affine]

    @contextmanager
    def each(self, tasks: Sequence[int], sizes: Sequence[int], *, again: bool = False) -> Iterator[None]:
        """While inside, a batch of sum(sizes) images holds the batches of these tasks one behind the other, and every
        norm takes each part for itself, with that task's tensors.

        again: activations are computed a second time, so statistics, which have moved already, stay as they are.
        """
        if not self._views:
            self._views = [list(self._lendable(row)) for row in range(len(self.values))]
        # Views with a gradient: fresh ones for every pass.
        weights = [list(self._own_weights(task)) for task in tasks] if self.weights is not None else []
        for number, norm in enumerate(self._all):
            lent = [dict(self._views[task][number]) for task in tasks] if self._norms else [{} for _ in tasks]
            for tensors, own in zip(lent, weights, strict=False):
                tensors.update(own[number])
            norm.__dict__["forward"] = functools.partial(_part_by_part, norm, lent, sizes, again)
        try:
            yield
        finally:
            for norm in self._all:
                del norm.__dict__["forward"]

    def _lendable(self, task: int) -> Iterator[dict[str, Tensor]]:
        start = 0
        for number, norm in enumerate(self._norms):
            n = norm.num_features
            mean, variance = self.values[task, start : start + n], self.values[task, start + n : start + 2 * n]
            count = self.updates[task, number]
            yield {"running_mean": mean, "running_var": variance, "num_batches_tracked": count}
            start += 2 * n

    def _own_weights(self, task: int) -> Iterator[dict[str, Tensor]]:
        assert self.weights is not None
        row, start = self.weights[task], 0
        for norm in self._norms:
            names = self._names(norm)
            n = norm.num_features
            yield {name: row[start + k * n : start + (k + 1) * n] for k, name in enumerate(names)}
            start += n * len(names)

    @torch.no_grad()
    def broadcast(self, task: int = 0) -> None:
        """Give every task what one task has: after a training whose one pass served all of them."""
        self.values.copy_(self.values[task].clone().expand_as(self.values))
        self.updates.copy_(self.updates[task].clone().expand_as(self.updates))
        if self.weights is not None:
            self.weights.copy_(self.weights[task].clone().expand_as(self.weights))

    @torch.no_grad()
    def release(self) -> None:
        """Give every norm tensors of its own again: statistics and weights of the first task. The last call."""
        for norm, tensors in zip(self._norms, list(self._lendable(0)), strict=True):
            for name, value in tensors.items():
                norm.__dict__.pop(name, None)
                norm._buffers[name] = value.clone()
        if self.weights is not None:
            for norm, weights in zip(self._norms, self._own_weights(0), strict=True):
                for name, value in weights.items():
                    norm.__dict__.pop(name, None)
                    norm._parameters[name] = nn.Parameter(value.clone())

    def weights_of(self, task: int) -> dict[int, dict[str, Tensor]]:
        """{id of a norm: {name: value}} of this task's own weights, detached; empty unless the rule is `per_task`."""
        if self.weights is None:
            return {}
        own = self._own_weights(task)
        return {id(norm): {name: value.detach() for name, value in row.items()} for norm, row in
                zip(self._norms, own, strict=True)}  # fmt: skip

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TaskNorms:
        self._views = []  # they look into tensors that are about to be replaced
        return super()._apply(fn, recurse)


def _part_by_part(
    norm: _NormBase, lent: Sequence[dict[str, Tensor]], sizes: Sequence[int], again: bool, x: Tensor
) -> Tensor:
    """The norm of x, float [sum(sizes), ...], each part with the tensors that it is lent."""
    outputs = []
    for part, tensors in zip(x.split(list(sizes)), lent, strict=True):
        norm.__dict__.update(tensors)
        if again:
            norm.__dict__.update({name: getattr(norm, name).clone() for name in _GATHERED})
        outputs.append(type(norm).forward(norm, part))
        if again:
            for name in _GATHERED:
                del norm.__dict__[name]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a norm that gathers statistics over batches."""
    return isinstance(module, _NormBase) and module.track_running_stats


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the norms that gather statistics, once each."""
    norms = [part for part in module.modules() if has_statistics(part)]
    return list({id(p): p for norm in norms for p in norm.parameters(recurse=False)}.values())


def other_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Every parameter that belongs to no norm that gathers statistics, once each."""
    own = {id(p) for p in norm_parameters(module)}
    return [p for p in module.parameters() if id(p) not in own]


def with_own_norms(operation: Operation) -> Operation:
    """A copy of an operation under the norm rule `per_task`: its batch norms have weights and statistics of their own,
    with the same values; every other weight stays shared. An operation without such a norm is returned as it is.

    Its parameters count as `added`; those that are shared count where they came from.
    """
    if not norm_parameters(operation.module):
        return operation
    module = copied(operation.module, other_parameters(operation.module))
    return dataclasses.replace(operation, module=module, origin="added")
