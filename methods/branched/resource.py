"""The resource loss of BMTAS: expected compute of the tree that the architecture parameters describe.

R = sum_l G_l sum_k |k| p_l(k), k over the set partitions of the T tasks, p_l(k) the probability that layer l has the
nested grouping k when every task samples its copies from s_l = softmax(alpha_l). Source: branching search 2.4.

Symbols: s [L, T, T] probabilities (row = task, column = copy); q_l(k) = P(every cluster of k agrees at layer l);
Z[k, k'] = 1 where k' is k or coarser, so q = Z P(sampled), and the Moebius matrix M is its inverse.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.errors import UsageError
from methods.branched.choices import Estimator
from methods.branched.trees import Partition, canonical, is_refinement, set_partitions

MOST_TASKS = 7  # 877 partitions; of eight tasks 4,140, and a matrix of 137 MB


class GroupingTable:
    """The set partitions of T tasks with their order. partitions: coarsest first. counts: |k|, float64 [B].

    coarser: Z, float64 [B, B]. moebius: M = Z^-1. Raises UsageError for more than 7 tasks.
    """

    def __init__(self, n_tasks: int) -> None:
        if n_tasks > MOST_TASKS:
            raise UsageError(f"The resource loss lists partitions of up to {MOST_TASKS} tasks, not {n_tasks}.")
        self.partitions = sorted(map(canonical, set_partitions(n_tasks)), key=lambda k: (len(k), k))
        self.counts = torch.tensor([len(k) for k in self.partitions], dtype=torch.float64)
        self.coarser = torch.tensor(
            [[float(is_refinement(k, other)) for other in self.partitions] for k in self.partitions],
            dtype=torch.float64,
        )
        # Unitriangular with entries 0 and 1: its inverse is made of integers.
        self.moebius = torch.linalg.inv(self.coarser).round()

    def agreement(self, s: Tensor) -> Tensor:
        """q(k) for every k. s: [T, T] probabilities of one layer; gives [B]."""
        return torch.stack([self._agrees(s, k) for k in self.partitions])

    @staticmethod
    def _agrees(s: Tensor, partition: Partition) -> Tensor:
        clusters = [s[list(cluster)].prod(0).sum() if len(cluster) > 1 else s.new_ones(()) for cluster in partition]
        return torch.stack(clusters).prod()

    def sampled(self, s: Tensor) -> Tensor:
        """P(sampled = k) for every k, [B]: all choices of copies that induce k."""
        return self.moebius.to(s.device) @ self.agreement(s)


@functools.lru_cache(maxsize=MOST_TASKS)
def grouping_table(n_tasks: int) -> GroupingTable:
    """The table for `n_tasks` tasks, made once."""
    return GroupingTable(n_tasks)


def grouping_probabilities(s: Tensor, estimator: Estimator) -> list[Tensor]:
    """p_l(k) for every layer: float64 [B] each, in the order of `grouping_table(T).partitions`. s: [L, T, T].

    exact: F_l(k) = prod_{m <= l} q_m(k) is the probability that the nested grouping is k or coarser. bmtas: the
    recursion of the official code, which omits ancestors that are finer than the sample or incomparable to it: exact
    for two tasks, otherwise too large.
    """
    table = grouping_table(s.shape[1])
    coarser, moebius = table.coarser.to(s.device), table.moebius.to(s.device)
    found: list[Tensor] = []
    agreed = s.new_ones(len(table.partitions), dtype=torch.float64)
    for layer in s.double():
        q = table.agreement(layer)
        agreed = agreed * q
        if estimator == "exact":
            found.append(moebius @ agreed)
            continue
        p = moebius @ q
        if found:
            p = p * (coarser @ found[-1])
        rest = 1 - p[:-1].sum()  # the last partition is all-specific
        found.append(torch.cat([p[:-1], rest[None]]))
    return found


def expected_resource(alpha: Tensor, cost: Sequence[float], estimator: Estimator) -> Tensor:
    """R, float64 scalar, differentiable. alpha: [L, T, T] logits; cost: G_l."""
    table = grouping_table(alpha.shape[1])
    counts = table.counts.to(alpha.device)
    probabilities = grouping_probabilities(alpha.double().softmax(2), estimator)
    return torch.stack([g * (counts @ p) for g, p in zip(cost, probabilities, strict=True)]).sum()
