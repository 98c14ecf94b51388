"""How hard a task is for its own network: the fraction of its samples above the mean loss (dmo 2, step 5).

L^t_n: loss of sample n under the final network of task t, in eval mode, without augmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from datasets.contracts import Batch, DatasetSpec
from datasets.kinds import get_kind
from datasets.protocols import get_protocol
from methods.dmo.parameters import MuRule
from methods.graph.task_graph import TaskGraph

CROSS_ENTROPIES = frozenset({"class", "semantic", "attribute", "binary_map"})  # kinds whose losses share a unit


@torch.no_grad()
def sample_losses(data: DatasetSpec, graph: TaskGraph, task: str, batches: Iterable[Batch]) -> tuple[Tensor, int]:
    """L^t_n of every sample with a valid label, float64 [N_t] on the CPU, and the number of batches. Of dense tasks the
    mean over an image's valid pixels.
    """
    spec, flags = data.task(task), get_protocol(data.protocol, data.name)
    kind = get_kind(spec.kind)
    network = graph.network()
    mode = network.training
    network.eval()
    losses: list[Tensor] = []
    n_batches = 0
    try:
        for batch in batches:
            n_batches += 1
            predictions = network(batch.images, (task,))[task].float().cpu()  # each sample is looked at by the host
            targets = batch.targets[task].cpu()
            for n in range(len(targets)):
                if bool(kind.valid(targets[n : n + 1]).any()):
                    losses.append(kind.loss(predictions[n : n + 1], targets[n : n + 1], spec, flags).double())
    finally:
        network.train(mode)
    return torch.stack(losses) if losses else torch.empty(0, dtype=torch.float64), n_batches


def mean_loss(losses: Sequence[Tensor], rule: MuRule = "mean_of_task_means") -> float:
    """mu, the mean over tasks of their mean losses (eq. 2), or over all samples."""
    if rule == "pooled":
        return float(torch.cat(list(losses)).mean())
    return float(torch.stack([values.mean() for values in losses]).mean())


def difficulties(losses: Sequence[Tensor], mu: float) -> list[float]:
    """d_t = (1 / N_t) sum_n 1[L^t_n >= mu] (eq. 3), in [0, 1]."""
    return [float((values >= mu).double().mean()) for values in losses]
