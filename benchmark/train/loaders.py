"""From roles of samples to batches on the device: order, augmentation, normalisation.

The order of the data is a function of (seed, stream, step) and of nothing else, so a resumed run sees what an
uninterrupted one would have seen, and every method sees the same batches. Sets that fit in memory are gathered as
tensors, a few microseconds a batch; others go through torch's DataLoader.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.contracts import SINGLE_INPUT, Batch, DatasetSpec, IndexArray, InputData, Sample
from datasets.errors import UsageError
from datasets.images.augmentation import Augmentation
from datasets.images.transforms import Normalise, collate, one_channel
from datasets.kinds import get_kind
from methods.contracts import Role
from methods.streams import generator, seed_of

Transform = Callable[[Sample], Sample]
Valid = Mapping[str, Callable[[Tensor], Tensor]]  # {task: which of its labels count, as `Kind.valid`}
Part = tuple[Tensor, dict[str, Tensor], frozenset[str] | None, Tensor]  # images, targets, labelled tasks, positions
EVALUATION_BATCH = 256  # most images at once; no effect on results beyond rounding, metrics accumulate sums
# Most values of images and of predictions at their resolution at once: 256 RGB images of 418 x 418 with pooled heads,
# 9 of 480 x 640 with 44 channels of dense heads. What a network holds between its layers grows alike.
EVALUATION_VALUES = 2**27
NORMALISED_VALUES = 2**24  # most values of images that are kept normalised: 64 MiB, twice that with mirror images
STEPS_AHEAD = 32  # of which the draws are made at once: between two steps of training each would find cold caches


@dataclasses.dataclass(frozen=True)
class RoleSamples:
    """The samples of one input that have a role: positions 0 .. len - 1 map to `indices` of `data`."""

    data: InputData
    indices: IndexArray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def ids(self) -> list[str]:
        """Stable ids of the samples, in the order of their positions."""
        return [self.data.ids[index] for index in self.indices.tolist()]


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """How images enter a network: channels, normalisation of images in [0, 1], device, memory format."""

    in_chans: int
    normalise: Normalise
    device: torch.device
    channels_last: bool = False


class SampleOrder:
    """An endless sequence of positions: one permutation of all samples after another, each from its own seed."""

    def __init__(self, n_samples: int, batch_size: int, seed: int, stream: str) -> None:
        self.n_samples, self.batch_size, self.seed, self.stream = n_samples, batch_size, seed, stream
        self._epochs: dict[int, Tensor] = {}

    def epoch(self, number: int) -> Tensor:
        """The permutation of one epoch, int64 [n_samples]."""
        if number not in self._epochs:
            self._epochs = {key: value for key, value in self._epochs.items() if key == number - 1}
            random = generator(self.seed, self.stream if number == 0 else f"{self.stream}/{number}")
            self._epochs[number] = torch.randperm(self.n_samples, generator=random)
        return self._epochs[number]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(positions of a step, the epoch of each), both int64 [batch_size]. A batch may reach into the next epoch."""
        start = step * self.batch_size
        epoch, offset = divmod(start, self.n_samples)
        positions = self.epoch(epoch)[offset : offset + self.batch_size]
        epochs = torch.full((self.batch_size,), epoch)
        missing = self.batch_size - len(positions)
        if missing:
            epochs[-missing:] += 1
            positions = torch.cat([positions, self.epoch(epoch + 1)[:missing]])
        return positions, epochs


class InputLoader:
    """Batches of one input in one role. tasks: those whose targets are loaded. valid: with it batches tell which tasks
    have a valid label in them, without asking the device.
    """

    def __init__(
        self,
        samples: RoleSamples,
        tasks: Sequence[str],
        form: InputFormat,
        *,
        augment: Transform | None,
        seed: int,
        workers: int,
        valid: Valid | None = None,
    ) -> None:
        self.samples, self.tasks, self.form, self.valid = samples, tuple(tasks), form, valid
        self.augment, self.seed, self.workers = augment, seed, workers
        # On the device once: `Normalise` would copy its constants there for every batch.
        self._mean, self._std = (
            torch.tensor(values[: form.in_chans], device=form.device).view(1, -1, 1, 1)
            for values in (form.normalise.mean, form.normalise.std)
        )
        self._tensors: tuple[Tensor, dict[str, Tensor]] | None = None
        self._partial: dict[str, Tensor] | None = None
        cached = samples.data.cached()
        self._is_cached = cached is not None
        if cached is not None and cached.images.shape[1] not in (1, 3):
            raise UsageError(
                f"Images in memory have {cached.images.shape[1]} channels, {samples.data.ids[0]!r} first; expected "
                "[N, C, H, W] with C = 1 (gray) or 3 (RGB)."
            )

    def _cached_tensors(self) -> tuple[Tensor, dict[str, Tensor]]:
        """(images, targets) of this role on the device, made when a role is first read: most runs read two of five.
        Where that takes little memory, images are float [N, H, W, C], normalised once, and N more that are mirrored
        follow them if the recipe flips; else uint8 [N, C, H, W].
        """
        if self._tensors is None:
            cached = self.samples.data.cached()
            assert cached is not None
            whole = np.array_equal(self.samples.indices, np.arange(len(cached.images)))
            positions = torch.from_numpy(np.ascontiguousarray(self.samples.indices))

            def part(values: Tensor) -> Tensor:
                return (values if whole else values.index_select(0, positions)).to(self.form.device)

            images = part(one_channel(cached.images) if self.form.in_chans == 1 else cached.images)
            if len(images) * self.form.in_chans * images[0, 0].numel() <= NORMALISED_VALUES:
                images = self._normalise(images).permute(0, 2, 3, 1).contiguous()
                if self._flip_of_batches() is not None:
                    images = torch.cat([images, images.flip(2)])
            self._tensors = images, {task: part(cached.targets[task]) for task in self.tasks}
        return self._tensors

    def training(self, order: SampleOrder, first_step: int, steps: int) -> Iterator[Part]:
        """The parts of each step from `first_step` to `steps`, augmented where the recipe says so."""
        flip = self._flip_of_batches()
        if self._is_cached and (self.augment is None or flip is not None):
            for start in range(first_step, steps, STEPS_AHEAD):
                drawn = [order.batch(step) for step in range(start, min(start + STEPS_AHEAD, steps))]
                positions, epochs = (torch.stack(each) for each in zip(*drawn, strict=True))
                mirrored = [None] * len(drawn) if flip is None else self._mirrored(positions, epochs, flip)
                for batch, flips, labelled in zip(positions, mirrored, self._labelled(positions), strict=True):
                    yield *self._gather(batch, flips), labelled, batch
            return
        keys = []
        for step in range(first_step, steps):
            positions, epochs = order.batch(step)
            keys.append(list(zip(positions.tolist(), epochs.tolist(), strict=True)))
        yield from self._load(keys, self.augment)

    def ordered(
        self, n_samples: int | None, batch_size: int, draw_seed: int | None = None, shuffled: bool = False
    ) -> Iterator[Part]:
        """The first `n_samples` (all by default) once each, in order, the last batch as short as it comes, no
        augmentation. draw_seed: a random `n_samples` instead, in ascending order, or as drawn where `shuffled`: files
        are often sorted by class, and batches would be too.
        """
        count = len(self.samples) if n_samples is None else min(n_samples, len(self.samples))
        chosen = torch.arange(count)
        if draw_seed is not None:
            drawn = torch.randperm(len(self.samples), generator=generator(draw_seed, "drawn-samples"))
            chosen = drawn[:count] if shuffled else drawn[:count].sort().values
        chunks = chosen.split(batch_size)
        if self._is_cached:
            for positions in chunks:
                yield *self._gather(positions), self._labelled(positions[None])[0], positions
            return
        yield from self._load([[(int(position), 0) for position in chunk] for chunk in chunks], None)

    def _partly_labelled(self, valid: Valid) -> dict[str, Tensor]:
        """{task: bool [samples], has a valid label, on the CPU} of the tasks that lack some; made once."""
        if self._partial is None:
            cached = self.samples.data.cached()
            assert cached is not None
            positions = torch.from_numpy(np.ascontiguousarray(self.samples.indices))
            has = {task: valid[task](cached.targets[task]) for task in self.tasks}
            each = {task: part.reshape(len(part), -1).any(dim=1)[positions] for task, part in has.items()}
            self._partial = {task: one for task, one in each.items() if not bool(one.all())}
        return self._partial

    def _flip_of_batches(self) -> float | None:
        """Probability of a flip where that is all of the augmentation and no label has pixels, which flip by rules of
        their kinds; else None. Gathered batches are ten times faster than samples one by one.
        """
        spec = self.samples.data.spec
        if not isinstance(self.augment, Augmentation) or any(
            get_kind(spec.task(name).kind).dense for name in self.tasks
        ):
            return None
        return self.augment.flip

    def _mirrored(self, positions: Tensor, epochs: Tensor, p: float) -> Tensor:
        """bool [S, B]: which samples of S batches are flipped; the draws of `_Items`."""
        ids, random, draw, draws = self.samples.data.ids, torch.Generator(), torch.empty(1), []
        indices = self.samples.indices[positions.flatten().numpy()].tolist()
        for index, epoch in zip(indices, epochs.flatten().tolist(), strict=True):
            random.manual_seed(_augmentation_seed(self.seed, epoch, ids[index]))
            draws.append(draw.uniform_(generator=random).item())
        return torch.tensor(draws).view(positions.shape) < p

    def _labelled(self, positions: Tensor) -> list[frozenset[str] | None]:
        """For each of S batches, positions [S, B], the tasks that have a valid label in it; None without `valid`."""
        if self.valid is None:
            return [None] * len(positions)
        has = {task: each[positions].any(dim=1).tolist() for task, each in self._partly_labelled(self.valid).items()}
        return [
            frozenset(task for task in self.tasks if task not in has or has[task][batch])
            for batch in range(len(positions))
        ]

    def _gather(self, positions: Tensor, mirrored: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        all_images, all_targets = self._cached_tensors()
        where = positions.to(self.form.device, non_blocking=True)
        if all_images.dtype == torch.uint8:
            images = all_images.index_select(0, where)
            if mirrored is not None:
                images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
            images = self._normalise(images)
        else:
            rows = positions if mirrored is None else positions + len(self.samples) * mirrored
            rows = rows.to(self.form.device, non_blocking=True)
            images = self._arranged(all_images.index_select(0, rows).permute(0, 3, 1, 2))
        return images, {task: values.index_select(0, where) for task, values in all_targets.items()}

    def _load(self, keys: Sequence[Sequence[tuple[int, int]]], augment: Transform | None) -> Iterator[Part]:
        loader = DataLoader(
            _Items(self.samples, self.tasks, augment, self.seed, gray=self.form.in_chans == 1),
            batch_sampler=keys,  # type: ignore[arg-type]  # keys are (position, epoch), which DataLoader passes through
            num_workers=self.workers,
            collate_fn=functools.partial(_collate, self.valid),
            pin_memory=self.form.device.type == "cuda",
            # A worker of a run was spawned, and its children would be: without the plug-ins that it has imported.
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else the loader draws from the global stream
        )
        device = self.form.device
        for images, targets, labelled, positions in loader:
            moved = {task: value.to(device, non_blocking=True) for task, value in targets.items()}
            yield self._normalise(images.to(device, non_blocking=True)), moved, labelled, positions

    def _normalise(self, images: Tensor) -> Tensor:
        """uint8 or float in [0, 1], [B, C, H, W] -> normalised [B, in_chans, H, W]; a gray channel fills all."""
        if images.dtype == torch.uint8:
            images = images.to(torch.float32).div_(255)
        if self.form.normalise.bgr:
            images = images.flip(1)
        return self._arranged(images.sub(self._mean).div_(self._std))

    def _arranged(self, images: Tensor) -> Tensor:
        form = torch.channels_last if self.form.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=form)


class _Items(Dataset[tuple[Sample, int]]):
    """Samples by (position, epoch), augmented with a seed of their own, whatever the number of workers."""

    def __init__(
        self, samples: RoleSamples, tasks: tuple[str, ...], augment: Transform | None, seed: int, *, gray: bool
    ) -> None:
        self.samples, self.tasks, self.augment, self.seed, self.gray = samples, tasks, augment, seed, gray

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int]:
        position, epoch = key
        index = int(self.samples.indices[position])
        sample = self.samples.data[index]
        sample["targets"] = {task: sample["targets"][task] for task in self.tasks}
        if self.gray:
            sample["image"] = one_channel(sample["image"])
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed also prepares every kind of device, which takes longer than the augmentation.
                torch.default_generator.manual_seed(_augmentation_seed(self.seed, epoch, self.samples.data.ids[index]))
                sample = self.augment(sample)
        return sample, position


def _augmentation_seed(seed: int, epoch: int, sample: str) -> int:
    return seed_of(seed, f"augmentation/{epoch}/{sample}")


def _collate(valid: Valid | None, items: Sequence[tuple[Sample, int]]) -> Part:
    images, targets = collate([sample for sample, _ in items])
    labelled = None
    if valid is not None:
        labelled = frozenset(task for task, labels in targets.items() if bool(valid[task](labels).any()))
    return images, targets, labelled, torch.tensor([position for _, position in items])


class RoleLoader:
    """Batches of one role over all inputs of a data set."""

    def __init__(
        self, role: Role, spec: DatasetSpec, inputs: Mapping[str, InputLoader], batch_size: int, seed: int
    ) -> None:
        self.role, self.spec, self.inputs, self.batch_size, self.seed = role, spec, dict(inputs), batch_size, seed

    def inputs_of(self, tasks: Sequence[str]) -> list[str]:
        """Inputs that these tasks read, in a fixed order."""
        wanted = {self.spec.input_of(task) for task in tasks}
        return [name for name in self.spec.inputs if name in wanted]

    def n_samples(self, name: str) -> int:
        """Samples of one input."""
        return len(self.inputs[name].samples)

    def evaluation_batch(self, tasks: Sequence[str]) -> int:
        """Images that are evaluated at once: as many as `EVALUATION_VALUES` allows, at least 1."""
        height, width = self.spec.native_size
        channels = dict.fromkeys(self.inputs_of(tasks), 3)
        for task in map(self.spec.task, tasks):
            kind = get_kind(task.kind)
            channels[self.spec.input_of(task.name)] += kind.head_channels(task) if kind.dense else 0
        return max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // (height * width * max(channels.values()))))

    def training(self, tasks: Sequence[str], first_step: int, steps: int, stream: str) -> Iterator[Batch]:
        """Batches of a stage. stream: `data-order`; multi-domain inputs append their name to it (measurement 5)."""
        names = self.inputs_of(tasks)
        streams = []
        for name in names:
            count = self.n_samples(name)
            if count < self.batch_size:
                raise UsageError(
                    f"Role {self.role.value} of {self.spec.name} has {count} samples of input {name!r}, fewer than "
                    f"a batch of {self.batch_size}; set recipe.batch_size to at most {count}."
                )
            order = SampleOrder(
                count, self.batch_size, self.seed, stream if name == SINGLE_INPUT else f"{stream}/{name}"
            )
            streams.append(self.inputs[name].training(order, first_step, steps))
        for parts in zip(*streams, strict=True):
            yield self._batch(names, parts, tasks)

    def ordered(
        self,
        tasks: Sequence[str],
        n_samples: int | None = None,
        batch_size: int | None = None,
        draw_seed: int | None = None,
        n_batches: int | None = None,
    ) -> Iterator[Batch]:
        """Batches in fixed order without augmentation; of several inputs in turn, each batch with one input.
        batch_size: None takes `evaluation_batch`. n_batches: so many of each input instead, of the size of a training's
        and shuffled.
        """
        size = self.evaluation_batch(tasks) if batch_size is None else batch_size
        if n_batches is not None:
            n_samples, size = n_batches * self.batch_size, self.batch_size
            draw_seed = seed_of(self.seed, "shuffled") if draw_seed is None else draw_seed
        for name in self.inputs_of(tasks):
            for part in self.inputs[name].ordered(n_samples, size, draw_seed, n_batches is not None):
                yield self._batch([name], [part], tasks)

    @staticmethod
    def _batch(names: Sequence[str], parts: Sequence[Part], tasks: Sequence[str]) -> Batch:
        targets = {task: value for part in parts for task, value in part[1].items() if task in tasks}
        told = [part[2] for part in parts if part[2] is not None]
        return Batch(
            images={name: part[0] for name, part in zip(names, parts, strict=True)},
            targets=targets,
            index={name: part[3] for name, part in zip(names, parts, strict=True)},
            labelled=frozenset().union(*told) if len(told) == len(parts) else None,
        )
