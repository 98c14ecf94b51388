"""Which weights each task wants to keep, and the mask that serves all of them (DiSparse, static and pretrained).

c_t [tensors] saliency of task t, in the shapes of W; K_t its set; M = OR_t K_t.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from methods.graph.norms import has_statistics
from methods.plain import task_losses
from methods.pruned.parameters import Saliency
from methods.sparsity import Masks

_FEWEST_IMAGES = 2  # a batch norm in train mode has no variance of one


@contextlib.contextmanager
def in_train_mode(network: nn.Module) -> Iterator[None]:
    """Within the block norms use the statistics of each batch, as in training; what they have gathered stays as it
    was.
    """
    buffers = [b for part in network.modules() if has_statistics(part) for b in part.buffers(recurse=False)]
    gathered = [buffer.clone() for buffer in buffers]
    mode = network.training
    network.train()
    try:
        yield
    finally:
        network.train(mode)
        with torch.no_grad():
            for buffer, value in zip(buffers, gathered, strict=True):
                buffer.copy_(value)


def gradient_sums(
    data: DatasetSpec, network: nn.Module, weights: Sequence[Tensor], batches: Iterable[Batch]
) -> tuple[list[list[Tensor]], list[int]]:
    """(sum_b |dL_t / dw| of every task [T][tensors], batches that counted for each task), in train mode.

    A task sees the batches that hold its images and a valid label of it. Losses are those of each task alone, without
    the tasks' weights.
    """
    losses_of = task_losses(data, network)
    sums = [[torch.zeros_like(weight) for weight in weights] for _ in data.tasks]
    counts = [0] * len(data.tasks)
    with in_train_mode(network):
        for batch in batches:
            numbers = [t for t, task in enumerate(data.task_names) if _counts(data, task, batch)]
            names = [data.task_names[t] for t in numbers]
            losses = losses_of(batch, names) if names else {}
            for t, name in zip(numbers, names, strict=True):
                counts[t] += 1
                found = torch.autograd.grad(
                    losses[name], list(weights), retain_graph=name != names[-1], allow_unused=True
                )
                for total, gradient in zip(sums[t], found, strict=True):
                    if gradient is not None:
                        total += gradient.abs()
    return sums, counts


def _counts(data: DatasetSpec, task: str, batch: Batch) -> bool:
    """Whether a batch says something of a task."""
    images = batch.images.get(data.input_of(task))
    if images is None or len(images) < _FEWEST_IMAGES:
        return False
    if batch.labelled is not None:
        return task in batch.labelled
    return bool(get_kind(data.task(task).kind).valid(batch.targets[task]).any())


def require_labels(data: DatasetSpec, counts: Sequence[int]) -> None:
    """Raise UsageError for tasks without a gradient. counts: batches that counted for each task."""
    silent = [task for task, count in zip(data.task_names, counts, strict=True) if not count]
    if silent:
        raise UsageError(f"Tasks {silent} have no valid label on fit, so nobody knows which weights they want to keep.")


@torch.no_grad()
def scores(kind: Saliency, sums: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """c_t of one task. sums: its sum_b |dL_t / dw|; of no meaning for `magnitude`.

    As m multiplies w, dL / dm = w dL / dw at m = 1. The released code divides c_t by its sum, which changes no order.
    """
    match kind:
        case "gradient":
            return [weight.abs() * total for weight, total in zip(weights, sums, strict=True)]
        case "gradient_weight2":
            return [weight.square() * total for weight, total in zip(weights, sums, strict=True)]
        case "magnitude":
            return [weight.abs() for weight in weights]


@torch.no_grad()
def ranks(values: Sequence[Tensor], layer_floor: int) -> Tensor:
    """The rank of each weight, int64 [n]: a set of the top k holds ranks 0 to k - 1. Of equal scores the lower index
    comes first, where a threshold would keep all of them. The `layer_floor` best of each tensor are in every set.
    """
    flat = torch.cat([value.flatten() for value in values])
    found = torch.empty(len(flat), dtype=torch.int64, device=flat.device)
    found[flat.argsort(descending=True, stable=True)] = torch.arange(len(flat), device=flat.device)
    for part in found.split([value.numel() for value in values]):
        part[part.argsort()[:layer_floor]] = 0  # in place: `part` is a view
    return found


def solved_size(all_ranks: Sequence[Tensor], target: int) -> int:
    """k, the size of each task's set, such that their union is nearest to `target` weights; the smaller one on ties.

    A weight is in the union as soon as k exceeds its lowest rank, so the union of every k is a count of lowest ranks.
    """
    lowest = torch.stack(list(all_ranks)).amin(0).sort().values
    k = int(lowest[min(target, len(lowest)) - 1]) + 1  # the smallest whose union has at least `target`
    with_k, with_less = (int((lowest < size).sum()) for size in (k, k - 1))
    return k if k == 1 or with_k - target < target - with_less else k - 1


def sets_of(all_ranks: Sequence[Tensor], k: int, shapes: Sequence[torch.Size]) -> list[Masks]:
    """K_t of each task in the shapes of W."""
    sizes = [shape.numel() for shape in shapes]
    return [
        [part.view(shape) for part, shape in zip((rank < k).split(sizes), shapes, strict=True)] for rank in all_ranks
    ]


def overlaps(sets: Sequence[Masks]) -> Tensor:
    """Weights that two tasks have in common, int64 [tensors, T, T]; the diagonal holds the sizes of the sets."""
    found = torch.zeros(len(sets[0]), len(sets), len(sets), dtype=torch.int64)
    for number, kept in enumerate(zip(*sets, strict=True)):
        for i, one in enumerate(kept):
            for j, other in enumerate(kept[: i + 1]):
                found[number, i, j] = found[number, j, i] = int((one & other).sum())
    return found
