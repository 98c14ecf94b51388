"""From single-task networks to groups, difficulties and the weights that survive (dmo 2, steps 2 to 7)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.contracts import Role, Trainer
from methods.control import tell_deviation
from methods.dmo.difficulty import CROSS_ENTROPIES, difficulties, mean_loss, sample_losses
from methods.dmo.grouping import Groups, groups_of, maximal_cliques, random_groups, read_groups
from methods.dmo.parameters import DmoParams, kept_fraction
from methods.dmo.pictures import similarity_figure
from methods.dmo.pruning import Survivors, n_union, survivors
from methods.dmo.similarity import combined, loss_similarity, resolved_threshold, weight_similarity
from methods.dmo.singles import Single
from methods.dmo.telling import tell_cliques, tell_similarity

_HALVINGS = 30  # of the range of a factor
_ALIKE = 0.001  # relative difference of numbers of weights that counts as none


def find_groups(p: DmoParams, trainer: Trainer, singles: Sequence[Single]) -> tuple[Groups, Groups]:
    """The groups of tasks that share a network, and those that were found: other ones under `random_groups`. Found are
    those that are given, or maximal cliques of similar tasks.
    """
    tasks = trainer.data.task_names
    if p.groups is not None:
        given = read_groups(p.groups, tasks)
        return given, given
    if len(tasks) == 1:
        return ((0,),), ((0,),)
    s_w = weight_similarity([list(single.weights.values()) for single in singles])
    s_l = loss_similarity([single.loss for single in singles])
    s = combined(s_w, s_l, p.alpha)
    known = np.nan_to_num(s, nan=0.0)
    tau_sim = resolved_threshold(known, p.threshold)
    cliques = maximal_cliques(known, tau_sim, p.clique_order)
    groups = found = groups_of(cliques)
    matrices = {"S_W": s_w, "S_L": s_l, "S": s}
    tell_similarity(trainer, matrices, p)
    tell_cliques(trainer, matrices, tau_sim, cliques, p)
    if p.random_groups:
        groups = random_groups(found, trainer.rng("groups"))
    trainer.figure("similarity", similarity_figure(matrices, groups, tasks))
    return groups, found


def difficulties_of(p: DmoParams, trainer: Trainer, singles: Sequence[Single]) -> list[float]:
    """d_t of every task, on fit without augmentation."""
    data = trainer.data
    losses = []
    for task, single in zip(data.tasks, singles, strict=True):
        values, n_batches = sample_losses(data, single.graph, task.name, trainer.batches(Role.FIT, tasks=[task.name]))
        trainer.charge(n_batches)
        losses.append(values / _scale(p, data, single) if len(values) else values)
    empty = [task.name for task, values in zip(data.tasks, losses, strict=True) if not len(values)]
    if empty:
        raise UsageError(f"Tasks {empty} have no valid label on fit, so dmo cannot tell how hard they are.")
    mu = mean_loss(losses, p.mu)
    d = difficulties(losses, mu)
    trainer.fact("mean loss mu", mu)
    for task, value in zip(data.tasks, d, strict=True):
        trainer.fact(f"difficulty, {task.name}", value)
    trainer.artifact("d", np.array(d))
    return d


def _scale(p: DmoParams, data: DatasetSpec, single: Single) -> float:
    """The divisor of a task's losses: 1, or its mean loss in the first cycle."""
    rule = p.difficulty_normalise
    if rule is None:
        rule = "none" if all(task.kind in CROSS_ENTROPIES for task in data.tasks) else "initial"
    if rule == "none":
        return 1.0
    first = next((value for value in single.loss if math.isfinite(value) and value > 0), None)
    if first is None:
        raise UsageError("difficulty_normalise: initial needs a positive loss in the first cycle; there is none.")
    return first


def prune(
    p: DmoParams, trainer: Trainer, singles: Sequence[Single], d: Sequence[float], groups: Groups, found: Groups
) -> list[Survivors]:
    """The surviving weights of each single-task network. d: difficulty of each task. groups, found: as `find_groups`
    gives them. Where they differ, all networks keep as much more or less as it takes for the groups to keep as many
    weights as those that were found would.
    """
    tasks = trainer.data.task_names
    q = [kept_fraction(value, p.tau) for value in d]
    if p.pruning == "equal":
        q = [statistics.fmean(q)] * len(q)
    elif p.pruning == "none":
        q = [1.0] * len(q)
    floored = sum(value < p.keep_floor for value in q)
    q = [max(value, p.keep_floor) for value in q]
    if groups != found:
        q = _of_equal_size(p, trainer, singles, q, groups, found)
    kept = _survivors(p, singles, q)
    for task, one, value in zip(tasks, kept, q, strict=True):
        trainer.fact(f"kept, {task}", 100 * value, "percent")
        trainer.fact(f"survivors, {task}", sum(one.counts))
    trainer.fact("networks at keep_floor", floored, f"of {len(tasks)}")
    trainer.fact("tensors at layer_floor", sum(one.n_floored for one in kept))
    trainer.artifact("q", np.array(q))
    trainer.artifact("survivors", np.array([one.counts for one in kept]))  # int [T, tensors]
    return kept


def _survivors(p: DmoParams, singles: Sequence[Single], q: Sequence[float]) -> list[Survivors]:
    """q: kept fraction of each network."""
    return [
        survivors(list(single.weights.values()), value, p.prune_scope, p.layer_floor)
        for single, value in zip(singles, q, strict=True)
    ]


def _of_equal_size(
    p: DmoParams, trainer: Trainer, singles: Sequence[Single], q: Sequence[float], groups: Groups, found: Groups
) -> list[float]:
    """Kept fractions with which `groups` keep as many weights as `found` do with q: q times one factor, by bisection.
    Tells how far the numbers are apart.
    """

    def kept(factor: float, groups: Groups) -> int:
        one = _survivors(p, singles, [min(1.0, factor * value) for value in q])
        return sum(n_union([one[task].masks for task in members]) for members in groups)

    wanted = kept(1.0, found)
    low, high = 0.0, 1.0 / min(q)
    factor, n = 1.0, kept(1.0, groups)
    for _ in range(_HALVINGS):
        if abs(n - wanted) <= _ALIKE * wanted:
            break
        low, high = (factor, high) if n < wanted else (low, factor)
        factor = (low + high) / 2
        n = kept(factor, groups)
    missed = abs(n - wanted) / wanted
    tell_deviation(trainer, "The random groups are {} from the size that they should have.", missed)
    return [min(1.0, factor * value) for value in q]
