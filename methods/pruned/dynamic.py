"""Masks that change in training: small weights go, and those grow that any task has large gradients for (DiSparse,
dynamic).

Symbols: n_l weights of tensor l; k_l those that it keeps when masks are fixed, by Erdos-Renyi-kernel; r(s) the share of
k_l that is dropped at step s; G_t the weights that task t grows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from methods.graph.task_graph import TaskGraph
from methods.pruned.network import MaskedNetwork
from methods.pruned.parameters import PrunedParams
from methods.pruned.saliency import gradient_sums, overlaps
from methods.sparsity import Masks, largest, n_kept, n_survivors, union_of

_ERK_POWER = 0.9  # of the released code; 1 in the paper on Erdos-Renyi-kernel
_FEWEST_HALVED = 4  # images; below, a half would have fewer than two, of which no batch norm has a variance


def erdos_renyi_kernel(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Density of each tensor, in (0, 1]: proportional to (sum of its shape / its size)^.9, such that all together have
    `density`. Tensors that would exceed 1 are dense, and the others share what is left.
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [(sum(shape) / size) ** _ERK_POWER for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while len(dense) < len(sizes):
        free = [number for number in range(len(sizes)) if number not in dense]
        left = density * sum(sizes) - sum(sizes[number] for number in dense)
        epsilon = left / sum(raw[number] * sizes[number] for number in free)
        full = {number for number in free if epsilon * raw[number] > 1}
        if not full:
            return [1.0 if number in dense else epsilon * raw[number] for number in range(len(sizes))]
        dense |= full
    return [1.0] * len(sizes)


def apportioned(shares: Sequence[float], sizes: Sequence[int], total: int, floor: int) -> list[int]:
    """Whole numbers k_l that add up to `total`: shares of sizes rounded down, then one more for the largest remainders.
    At least `floor` each, or the size; floors may lift the sum above `total`.
    """
    exact = [share * size for share, size in zip(shares, sizes, strict=True)]
    found = [max(min(floor, size), min(size, math.floor(value))) for value, size in zip(exact, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda number: found[number] - exact[number])
    for number in order:
        if sum(found) >= total:
            break
        found[number] = min(sizes[number], found[number] + 1)
    return found


def random_masks(shapes: Sequence[torch.Size], counts: Sequence[int], rng: torch.Generator) -> Masks:
    """Masks that keep counts[l] random weights of tensor l."""
    masks = []
    for shape, count in zip(shapes, counts, strict=True):
        mask = torch.zeros(shape.numel(), dtype=torch.bool)
        mask[torch.randperm(shape.numel(), generator=rng)[:count]] = True
        masks.append(mask.view(shape))
    return masks


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Masks change at steps 0, every, 2 every, .. before `end`; at `end` they are cut to the target, and stay."""

    every: int
    end: int
    drop_rate: float

    @classmethod
    def of(cls, params: PrunedParams, steps: int) -> Schedule:
        """The schedule of a training of `steps`."""
        every = max(1, round(params.update_every * steps))
        return cls(every, min(round(params.update_until * steps), steps - 1), params.drop_rate)

    @property
    def changes(self) -> int:
        """How often masks change before they are cut."""
        return -(-self.end // self.every)

    def rate(self, step: int) -> float:
        """r(s) = drop_rate / 2 (1 + cos(pi s / end)): 0 at the end."""
        return 0.5 * self.drop_rate * (1 + math.cos(math.pi * step / self.end)) if self.end else 0.0


class DynamicNetwork(MaskedNetwork):
    """A masked network whose masks follow the gradients of the tasks.

    step: batches seen so far. overlap: int64 [tensors, T, T], |G_t and G_u| summed over changes. Both are buffers.
    """

    step: Tensor
    overlap: Tensor

    def __init__(
        self,
        graph: TaskGraph,
        weights: Sequence[nn.Parameter],
        data: DatasetSpec,
        params: PrunedParams,
        steps: int,
        rng: torch.Generator,
    ) -> None:
        shapes, sizes = [weight.shape for weight in weights], [weight.numel() for weight in weights]
        target = n_survivors(params.density, sum(sizes))
        shares = erdos_renyi_kernel(shapes, params.density)
        self.targets = apportioned(shares, sizes, target, params.layer_floor)  # k_l
        super().__init__(graph, weights, random_masks(shapes, self.targets, rng))
        self.data, self.floor = data, params.layer_floor
        self.schedule = Schedule.of(params, steps)
        n_tasks, device = len(data.tasks), weights[0].device
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("overlap", torch.zeros(len(sizes), n_tasks, n_tasks, dtype=torch.int64, device=device))

    def change(self, batch: Batch) -> list[tuple[nn.Parameter, Tensor]] | None:
        """Change masks if it is time to. batch: of the step that follows. The weights that grew, by tensor, or None
        where masks stay.
        """
        step, schedule = int(self.step), self.schedule
        self.step += 1
        if step == schedule.end:
            self.drop(0.0)
        if step >= schedule.end or step % schedule.every:
            return None
        self.drop(schedule.rate(step))
        sums, _ = gradient_sums(self.data, self, self.weights, halves(batch))
        return self.grow(sums)

    @property
    def density(self) -> float:
        """The share of W that is kept now: above the target after masks have grown by what any task wants."""
        return n_kept(self.masks) / sum(weight.numel() for weight in self.weights)

    @torch.no_grad()
    def drop(self, rate: float) -> None:
        """Keep the largest (1 - rate) k_l weights of each tensor."""
        for weight, mask, target in zip(self.weights, self.masks, self.targets, strict=True):
            count = max(min(self.floor, target), target - round(rate * target))
            magnitudes = torch.where(mask, weight.abs(), -1.0)  # what is pruned comes last
            mask.logical_and_(_top(magnitudes, count))
        self.prune()

    @torch.no_grad()
    def grow(self, sums: Sequence[Sequence[Tensor]]) -> list[tuple[nn.Parameter, Tensor]]:
        """Fill each tensor up to k_l, for every task, with the pruned weights of its largest gradients; gives the
        weights that grew. sums: [T][tensors].

        Grown weights are 0, as all that was pruned (S8).
        """
        grown: list[Masks] = [[] for _ in sums]
        for number, (mask, target) in enumerate(zip(self.masks, self.targets, strict=True)):
            count = min(target - int(mask.sum()), int((~mask).sum()))
            for own, by_tensor in zip(grown, sums, strict=True):
                own.append(_top(torch.where(mask, -1.0, by_tensor[number]), count))
        self.overlap += overlaps(grown).to(self.overlap.device)
        new = union_of(grown)
        for mask, chosen in zip(self.masks, new, strict=True):
            mask.logical_or_(chosen)
        return list(zip(self.weights, new, strict=True))


def _top(values: Tensor, count: int) -> Tensor:
    """bool of the shape of `values`: the `count` largest."""
    if count < 1:
        return torch.zeros_like(values, dtype=torch.bool)
    return largest(values.flatten(), count).view(values.shape)


def halves(batch: Batch) -> Iterator[Batch]:
    """The two halves of a batch (the released code's); the whole where a half would be too small."""
    smallest = min(len(images) for images in batch.images.values())
    parts = 2 if smallest >= _FEWEST_HALVED else 1

    def part(values: Tensor, number: int) -> Tensor:
        return values.tensor_split(parts)[number]

    for number in range(parts):
        yield Batch(
            images={name: part(values, number) for name, values in batch.images.items()},
            targets={name: part(values, number) for name, values in batch.targets.items()},
            index={name: part(values, number) for name, values in batch.index.items()},
        )
