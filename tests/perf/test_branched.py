"""Figures of branched networks: affinities, selection, a tree's forward pass. Source: branched 2.4, issue 6.

Not part of the test command. `pytest tests/perf/test_branched.py -o addopts= -s` prints what was measured. Bounds are
on CPU seconds of one thread, so that neighbours on the machine do not count; wall seconds are printed beside them. Set
OMP_NUM_THREADS=1 for the BLAS of scipy.
"""

from __future__ import annotations

import dataclasses
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from methods.branched.affinity import affinity
from methods.branched.counting import TreeCounter
from methods.branched.network import initial_copies, tree_graph
from methods.branched.segments import segments_of
from methods.branched.selection import Beam, affinity_problem, beam_front, exhaustive_front, within
from methods.branched.trees import nested, of_labels
from tests.perf.abba import ratio
from tests.perf.test_figures import SIZE, tasks_of
from tests.unit.harness import toy_trainer

K, D, N, F = 500, 8, 20, 4096


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def features(n_tasks: int, n_locations: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Features of tasks that have something in common."""
    for i, d in itertools.product(range(n_tasks), range(n_locations)):
        common = torch.randn(K, F, generator=torch.Generator().manual_seed(d))
        yield i, d, common + torch.randn(K, F, generator=torch.Generator().manual_seed(100 + i * n_locations + d))


@dataclasses.dataclass
class Clock:
    """CPU and wall seconds since it was made."""

    cpu_start: float = dataclasses.field(default_factory=time.process_time)
    wall_start: float = dataclasses.field(default_factory=time.perf_counter)

    def read(self) -> tuple[float, float]:
        return time.process_time() - self.cpu_start, time.perf_counter() - self.wall_start


def names(n: int) -> list[str]:
    return [str(number) for number in range(n)]


def test_affinities_of_twenty_tasks() -> None:
    generation = Clock()
    for _ in features(N, D):
        pass
    drawn = generation.read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = Clock()
    found = affinity(features(N, D), names(N), names(D))
    cpu, wall = (whole - part for whole, part in zip(clock.read(), drawn, strict=True))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"\nK = {K}, D = {D}, N = {N}, F = {F}: {cpu:.1f} CPU s, {wall:.1f} wall s; memory grew by {grown:.2f} GiB")
    assert found.values.shape == (D, N, N)
    assert cpu < 15
    assert grown < 1


def scipy_loop(values: list[torch.Tensor], n_pairs: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """What a loop over image pairs does: CPU and wall seconds for so many pairs of one task, and for two tasks."""
    rows = values[0].numpy()
    clock = Clock()
    for a, b in itertools.islice(itertools.combinations(range(K), 2), n_pairs):
        1 - scipy.stats.pearsonr(rows[a], rows[b]).statistic
    pearson = clock.read()
    upper = [1 - np.corrcoef(x.double())[np.triu_indices(K, 1)] for x in values]
    clock = Clock()
    scipy.stats.spearmanr(upper[0], upper[1])
    return pearson, clock.read()


def test_affinities_against_a_loop_of_scipy_calls() -> None:
    """The loop's time is extrapolated from 2,000 of its 124,750 image pairs; nothing else of it is estimated."""
    values = [x for _, _, x in features(2, 1)]
    n_pairs = 2000
    pearson, spearman = scipy_loop(values, n_pairs)
    share = n_pairs / (K * (K - 1) / 2)
    loop, loop_wall = (2 * one / share + other for one, other in zip(pearson, spearman, strict=True))
    clock = Clock()
    affinity([(i, 0, x) for i, x in enumerate(values)], names(2), names(1))
    ours, wall = clock.read()
    print(
        f"\ntwo tasks, one location: {ours:.2f} CPU s, {wall:.2f} wall s; scipy loop {loop:.1f} CPU s, {loop_wall:.1f} "
        f"wall s: {loop / ours:.0f} x"
    )
    assert loop >= 10 * ours


def random_affinities(n_tasks: int, n_locations: int) -> np.ndarray:
    a = np.random.default_rng(0).uniform(0, 1, (n_locations, n_tasks, n_tasks))
    a = (a + a.transpose(0, 2, 1)) / 2
    a[:, range(n_tasks), range(n_tasks)] = 1
    return a


@pytest.mark.parametrize(("n_tasks", "limit_s"), [(5, 5), (6, 60)])
def test_exhaustive_selection(n_tasks: int, limit_s: float) -> None:
    a = random_affinities(n_tasks, 8)
    clock = Clock()
    front = exhaustive_front(affinity_problem(a, (13, 17, 29, 41, 67, 113, 187, 301), 11))
    cpu, wall = clock.read()
    print(f"\nN = {n_tasks}, D = 8: the whole front of {len(front)} trees in {cpu:.2f} CPU s, {wall:.2f} wall s")
    assert cpu < limit_s


def test_beam_selection() -> None:
    a, per_copy = random_affinities(40, 13), tuple(range(1, 14))
    budget = 10 * sum(per_copy)
    clock = Clock()
    front = beam_front(affinity_problem(a, per_copy, 0), a, budget, Beam())
    cpu, wall = clock.read()
    print(f"\nN = 40, D = 13, width 10: {cpu:.1f} CPU s, {wall:.1f} wall s")
    assert within(front, budget).size <= budget
    assert cpu < 60


def test_counting_random_trees() -> None:
    """Parameters and MACs of a deep backbone at once, for the most tasks that are counted."""
    rng = np.random.default_rng(0)
    per_copy = [rng.integers(1_000, 3_000_000, 16).tolist() for _ in range(2)]
    totals = [3 * sum(one) for one in per_copy]
    clock = Clock()
    counter = TreeCounter(8, per_copy, [int(0.95 * t) for t in totals], [int(1.05 * t) for t in totals])
    n_trees = counter.total()
    counter.draw(torch.Generator().manual_seed(0))
    cpu, wall = clock.read()
    print(f"\nN = 8, D = 16: {n_trees:.2e} trees of a size counted and one drawn in {cpu:.1f} CPU s, {wall:.1f} wall s")
    assert cpu < 60


@pytest.mark.parametrize("batch_size", [1, 64])
def test_joint_forward_of_a_tree_against_its_nodes(batch_size: int, tmp_path: Path) -> None:
    """The nodes one after another on inputs that are ready: what the graph adds is the difference."""
    spec = tasks_of(3)
    trainer = toy_trainer(tmp_path, size=SIZE, data=spec)
    segments = segments_of(trainer.backbone(), spec, "stage")
    tree = nested([of_labels(row) for row in ([0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 2])])
    graph = tree_graph(trainer, tree, *initial_copies(trainer, segments, tree))
    module = graph.module().eval()
    images = {"image": torch.randn(batch_size, 3, SIZE, SIZE)}
    with torch.inference_mode():
        values = dict(images)
        calls = []
        for node in graph.reachable():
            inputs = [values[value.name] for value in node.inputs]
            values[node.name] = node.module(*inputs)
            calls.append((node.module, inputs))

        def nodes() -> None:
            for part, inputs in calls:
                part(*inputs)

        found = ratio(lambda: module(images), nodes, bound=1.05, pairs=300 if batch_size == 1 else 60)
    assert found.passes
