"""What the similarity of weights costs DMO: seconds and bytes, and how they grow with the number of tasks.

`pytest tests/perf/test_dmo.py -o addopts= -s` prints the figures.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import timm
import torch
from torch import Tensor

from methods.dmo.similarity import weight_similarity

TASKS = (3, 6, 12)


def networks(n_tasks: int) -> list[list[Tensor]]:
    """Weights of n ResNet-18 of 11 M weights each, no two alike."""
    shapes = [parameter.shape for parameter in timm.create_model("resnet18", num_classes=0).parameters()]
    random = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=random) for shape in shapes] for _ in range(n_tasks)]


def measured(n_tasks: int) -> tuple[float, int]:
    """Seconds (the least of three), and bytes by which resident memory grew beyond that of the weights themselves."""
    torch.set_num_threads(1)
    weights = networks(n_tasks)
    weight_similarity([tensor[:4] for tensor in weights])  # libraries are loaded before memory is read
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        weight_similarity(weights)
        seconds.append(time.perf_counter() - start)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


@pytest.mark.slow
def test_similarity_of_weights_is_streamed() -> None:
    """Memory beyond the weights is less than a quarter of one network's, however many tasks there are."""
    network = 11_176_512 * 4  # bytes
    for n_tasks in TASKS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # the peak is a process's
            seconds, grown = pool.submit(measured, n_tasks).result()
        print(f"\n{n_tasks} tasks of 11.2 M weights: {seconds:.2f} s, {grown / 1e6:.0f} MB beside the weights")
        assert grown <= network / 4
