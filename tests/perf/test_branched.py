"""Figures of branched networks: affinities, selection, a tree's forward pass. Source: branched 2.4, issue 6.

Not part of the test command. `pytest tests/perf/test_branched.py -o addopts= -s` prints what was measured. Seconds are
CPU seconds of one thread, so that neighbours on the machine do not count; set OMP_NUM_THREADS=1 for the BLAS of scipy.
"""

from __future__ import annotations

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


def names(n: int) -> list[str]:
    return [str(number) for number in range(n)]


def test_affinities_of_twenty_tasks() -> None:
    generation = time.process_time()
    for _ in features(N, D):
        pass
    generation = time.process_time() - generation
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = affinity(features(N, D), names(N), names(D))
    seconds = time.process_time() - start - generation
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"\nK = {K}, D = {D}, N = {N}, F = {F}: {seconds:.1f} CPU s, peak memory grew by {grown:.2f} GiB")
    assert found.values.shape == (D, N, N)
    assert seconds < 15
    assert grown < 1


def scipy_loop(values: list[torch.Tensor], n_pairs: int) -> tuple[list[np.ndarray], float, float]:
    """What a loop over image pairs does: seconds for so many pairs of one task, and for one pair of tasks."""
    rows = values[0].numpy()
    start = time.process_time()
    for a, b in itertools.islice(itertools.combinations(range(K), 2), n_pairs):
        1 - scipy.stats.pearsonr(rows[a], rows[b]).statistic
    pearson = time.process_time() - start
    upper = [1 - np.corrcoef(x.double())[np.triu_indices(K, 1)] for x in values]
    start = time.process_time()
    scipy.stats.spearmanr(upper[0], upper[1])
    return upper, pearson, time.process_time() - start


def test_affinities_against_a_loop_of_scipy_calls() -> None:
    """The loop's time is extrapolated from 2,000 of its 124,750 image pairs; nothing else of it is estimated."""
    values = [x for _, _, x in features(2, 1)]
    n_pairs = 2000
    _, pearson, spearman = scipy_loop(values, n_pairs)
    loop = 2 * pearson * (K * (K - 1) / 2) / n_pairs + spearman
    start = time.process_time()
    affinity([(i, 0, x) for i, x in enumerate(values)], names(2), names(1))
    ours = time.process_time() - start
    print(f"\ntwo tasks, one location: {ours:.2f} CPU s, scipy loop {loop:.1f}: {loop / ours:.0f} x")
    assert loop >= 10 * ours


def random_affinities(n_tasks: int, n_locations: int) -> np.ndarray:
    a = np.random.default_rng(0).uniform(0, 1, (n_locations, n_tasks, n_tasks))
    a = (a + a.transpose(0, 2, 1)) / 2
    a[:, range(n_tasks), range(n_tasks)] = 1
    return a


@pytest.mark.parametrize(("n_tasks", "limit_s"), [(5, 5), (6, 60)])
def test_exhaustive_selection(n_tasks: int, limit_s: float) -> None:
    a = random_affinities(n_tasks, 8)
    start = time.process_time()
    front = exhaustive_front(affinity_problem(a, (13, 17, 29, 41, 67, 113, 187, 301), 11))
    seconds = time.process_time() - start
    print(f"\nN = {n_tasks}, D = 8: the whole front of {len(front)} trees in {seconds:.2f} CPU s")
    assert seconds < limit_s


def test_beam_selection() -> None:
    a, per_copy = random_affinities(40, 13), tuple(range(1, 14))
    budget = 10 * sum(per_copy)
    start = time.process_time()
    front = beam_front(affinity_problem(a, per_copy, 0), a, budget, Beam())
    seconds = time.process_time() - start
    print(f"\nN = 40, D = 13, width 10: {seconds:.1f} CPU s")
    assert within(front, budget).size <= budget
    assert seconds < 60


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
