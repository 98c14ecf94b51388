"""`multi_mnist`, the embedded default: two real digits on a canvas, with exact labels for six tasks. Spec: datasets 3.

Composition in the style of Sener & Koltun 2018 and Pareto-MTL 2019: 28 x 28 digits at the top left and bottom right of
a 36 x 36 canvas, pixel-wise maximum. Ours: the depth cue (ink dims with distance, so depth can be seen), the dense
tasks, the cut of the parts by source digit. Where the specification is silent, we chose as follows. Ink is rounded to
the nearest grey level before digits are compared, so that labels follow from the image. Random numbers are drawn per
part in the order: permutations of left, permutations of right, near side, near z, far z, jitter. Jitter moves boxes
inwards. A canvas of half the size holds digits that were averaged over 2 x 2 pixels, with the same draws.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from datasets import (
    SINGLE_INPUT,
    CachedSamples,
    DatasetLoader,
    DatasetOptions,
    DatasetSpec,
    IndexArray,
    InputData,
    MultiTaskDataset,
    ProtocolError,
    Sample,
    Split,
    TaskSpec,
    UsageError,
    register_dataset,
)
from datasets.mnist_digits import DIGIT_SIZE, HOME, LICENCE, PARTS, PARTS_OF_SPLIT, UInt8Array, load_digits, paste

if TYPE_CHECKING:
    from torch import Tensor

Labels = npt.NDArray[Any]

VERSION = "v1"
USES = 5  # how often each digit of a pool is used on each side
INK = 64  # smallest unscaled grey level that belongs to a digit
DIMMING = 0.2  # ink is multiplied by 1 - 0.2 (z - 1)
_CHUNK = 2500  # samples composed at a time; float64 canvases of all 14,000 would take 145 MB each

# sha256 of each part's image block (uint8 [N, size, size]) without jitter, by size and depth cue. A change is a new
# VERSION.
IMAGE_BLOCKS: Mapping[tuple[int, str, bool], str] = {
    (36, "fit", True): "8bc87d43eaf3689db25f936fdc6c2c55a5498d17f37059b928c2b007caf185ab",
    (36, "arch", True): "adb992a12ef1e1602869fff764f6471353566ad0b8fd2b823c1bce5a4dbcf1dc",
    (36, "val", True): "298c4958808ae8fb757e33b1fa41e46a4a87113413e065ec3642a0ad306e60b8",
    (36, "test", True): "313fea2775d6bc9d8e08a4597f64c0ed106663dd754d0639a1493f03381733ac",
    (36, "fit", False): "33fb98b51ac2b0ce93e1399f90d538dad3ff595fb666e0a7396d8bfc30ee25e3",
    (36, "arch", False): "abf0e59b880919cc1c1993caf1ead4ed5d057f249be33b9b0d9865cd8c5bec6e",
    (36, "val", False): "cbba679ecd4371bda8bf154fd647d59236bac983a38c231073f83c127a1a5bcf",
    (36, "test", False): "99a895f189b1bba6108cbc929628d29a1438a964b2cd8dba6c51be00c8d4fcda",
    (18, "fit", True): "41be32da6c58aaf577af422fae9650dad68dcf7575bfc33a376b3ff6c6cd115a",
    (18, "arch", True): "b901bd4102ef59768ce481286e30e63e320dda6e17bb7b6dace64988aa96ec70",
    (18, "val", True): "60d006029c206659d5e36264714c1d85793d3f3d933467b9ca79e6417525e39e",
    (18, "test", True): "194262db015dc1dc4e06a2a0f2710fbe20dcb8b4ba9ccdbb1a53661ee46c22d2",
    (18, "fit", False): "5d2eff12493528171436d49f436313c9e186b36a316862931bbcf28665cfaca1",
    (18, "arch", False): "16df3499f49d0c6bfd8ffdc88e41dd504002b24ca3271ac681caf4b2a6ffbfe4",
    (18, "val", False): "82ccd7c817d0ee25acaa110b9bf827457d1f6ec11adb603bf11e2e6a70d5aef5",
    (18, "test", False): "06d9882a3696edf34c6ad11f81038ee99a5dd5e3154946041559a21a63b18441",
}

# Mean and standard deviation of the train images in [0, 1], by size and depth cue.
_STATISTICS = {
    (36, True): (0.107, 0.244),
    (36, False): (0.152, 0.328),
    (18, True): (0.107, 0.221),
    (18, False): (0.151, 0.298),
}
_NEEDS_CUE = ("depth", "order")


class MultiMnistOptions(DatasetOptions):
    """How the canvases are drawn."""

    depth_cue: bool = Field(
        default=True, description="ink dims with distance; without it the tasks depth and order are not available"
    )
    jitter: int = Field(default=0, ge=0, le=2, description="largest move of a digit's box inwards, in pixels")
    size: Literal[36, 18] = Field(
        default=36, description="height and width of a canvas; at 18, digits are averaged over 2 x 2 pixels"
    )

    @model_serializer(mode="wrap")
    def _keys_stay(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Cells had keys before there were sizes; those of the first size keep them."""
        found: dict[str, object] = serialise(self)
        if self.size == 36:
            found.pop("size", None)
        return found


@dataclasses.dataclass(frozen=True)
class Canvases:
    """N composed samples of size s, from which the labels of every task follow.

    images: uint8 [N, s, s]. owner: uint8 [N, s, s], 0 paper, 1 left, 2 right digit. digits: int64 [N, 2].
    depth: float32 [N, 2], z of left and right. near: int64 [N], 0 left, 1 right. sources: int64 [N, 2], rows of the
    5,000 digits.
    """

    images: UInt8Array
    owner: UInt8Array
    digits: IndexArray
    depth: npt.NDArray[np.float32]
    near: IndexArray
    sources: IndexArray


def draw_sources(pool: IndexArray, state: np.random.RandomState) -> IndexArray:
    """int64 [USES x len(pool), 2]: pairs (left, right) of positions; each is USES times on each side, never on both.

    A pair of a digit with itself swaps its right half with the next pair, or with the first one after it where that
    would leave or make such a pair (two permutations may meet with the same digit). len(pool) >= 3.
    """
    left, right = (np.concatenate([state.permutation(pool) for _ in range(USES)]) for _ in range(2))
    for position in np.flatnonzero(left == right).tolist():
        digit = left[position]
        if right[position] != digit:
            continue  # an earlier swap has mended it
        mending = np.flatnonzero((left != digit) & (right != digit))
        later = mending[mending > position]
        other = later[0] if len(later) else mending[0]
        right[[position, other]] = right[[other, position]]
    return np.stack([left, right], axis=1).astype(np.int64)


@functools.lru_cache(maxsize=8)
def compose(part: str, depth_cue: bool = True, jitter: int = 0, size: int = 36) -> Canvases:
    """The samples of a part: fit, arch, val or test. A constant of the data version, independent of a cell's seed.

    Raises UsageError if the images differ from the frozen ones of this version.
    """
    digits = load_digits()
    seed = hashlib.sha256(f"multi_mnist/{VERSION}/{part}".encode()).digest()[:4]
    state = np.random.RandomState(int.from_bytes(seed, "big"))
    sources = draw_sources(digits.parts[part], state)
    count = len(sources)
    near = state.randint(0, 2, size=count)
    near_z, far_z = state.uniform(1, 2, size=count), state.uniform(3, 4, size=count)
    depth = np.where(near[:, None] == np.arange(2), near_z[:, None], far_z[:, None])
    offsets = state.randint(0, jitter + 1, size=(count, 2, 2)) if jitter else np.zeros((count, 2, 2), dtype=np.int64)
    factor = 1 - DIMMING * (depth - 1) if depth_cue else np.ones_like(depth)
    ink = digits.images if size == 36 else halved(digits.images)
    images, owner = (np.empty((count, size, size), dtype=np.uint8) for _ in range(2))
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        tie = near[rows] == 0 if depth_cue else np.ones(len(near[rows]), dtype=np.bool_)
        images[rows], owner[rows] = _merge(size, ink[sources[rows]], offsets[rows], factor[rows], tie)
    block = hashlib.sha256(images.tobytes()).hexdigest()
    if not jitter and block != IMAGE_BLOCKS[size, part, depth_cue]:
        raise UsageError(
            f"The images of multi_mnist/{part} differ from those of data version {VERSION} with numpy {np.__version__}."
        )
    labels = digits.labels[sources].astype(np.int64)
    return Canvases(images, owner, labels, depth.astype(np.float32), near.astype(np.int64), sources)


def halved(digits: UInt8Array) -> UInt8Array:
    """uint8 [N, 28, 28] -> [N, 14, 14]: the mean of every 2 x 2 pixels, rounded to the nearest, halves to even."""
    n, side = len(digits), DIGIT_SIZE // 2
    return np.rint(digits.reshape(n, side, 2, side, 2).mean((2, 4))).astype(np.uint8)


def _merge(
    size: int,
    pairs: UInt8Array,
    offsets: IndexArray,
    factor: npt.NDArray[np.float64],
    left_wins_ties: npt.NDArray[np.bool_],
) -> tuple[UInt8Array, UInt8Array]:
    """(images, owner), uint8 [n, size, size]. pairs: [n, 2, d, d]; offsets: [n, 2, (row, column)]; factor: [n, 2]."""
    slack = size - pairs.shape[-1]
    left = paste(size, pairs[:, 0], offsets[:, 0, 0], offsets[:, 0, 1])
    right = paste(size, pairs[:, 1], slack - offsets[:, 1, 0], slack - offsets[:, 1, 1])
    dim_left = np.rint(left * factor[:, 0, None, None]).astype(np.uint8)
    dim_right = np.rint(right * factor[:, 1, None, None]).astype(np.uint8)
    left_wins = (dim_left > dim_right) | ((dim_left == dim_right) & left_wins_ties[:, None, None])
    owner = np.where(left >= INK, np.where((right >= INK) & ~left_wins, 2, 1), np.where(right >= INK, 2, 0))
    return np.maximum(dim_left, dim_right), owner.astype(np.uint8)


def _semseg(canvases: Canvases, rows: slice) -> Labels:
    classes = np.pad(canvases.digits[rows] + 1, ((0, 0), (1, 0)))  # [n, 3]: class of paper, left, right
    owner = canvases.owner[rows].astype(np.int64)
    return np.take_along_axis(classes, owner.reshape(len(owner), -1), axis=1).reshape(owner.shape)


def _depth(canvases: Canvases, rows: slice) -> Labels:
    values = np.pad(canvases.depth[rows], ((0, 0), (1, 0)), constant_values=np.nan)
    owner = canvases.owner[rows].astype(np.int64)
    return np.take_along_axis(values, owner.reshape(len(owner), -1), axis=1).reshape(owner.shape)


def _edge(canvases: Canvases, rows: slice) -> Labels:
    owner = canvases.owner[rows]
    differs = np.zeros(owner.shape, dtype=np.bool_)
    vertical, horizontal = owner[:, 1:] != owner[:, :-1], owner[:, :, 1:] != owner[:, :, :-1]
    differs[:, 1:] |= vertical
    differs[:, :-1] |= vertical
    differs[:, :, 1:] |= horizontal
    differs[:, :, :-1] |= horizontal
    return (differs & (owner > 0)).astype(np.int64)


_LABELS: Mapping[str, Callable[[Canvases, slice], Labels]] = {
    "left": lambda canvases, rows: canvases.digits[rows, 0].copy(),
    "right": lambda canvases, rows: canvases.digits[rows, 1].copy(),
    "semseg": _semseg,
    "depth": _depth,
    "edge": _edge,
    "order": lambda canvases, rows: canvases.near[rows].copy(),
}


def _target(task: str, canvases: Canvases, rows: slice) -> Tensor:
    """The labels [n, ...] of some samples for a task."""
    import torch

    return torch.from_numpy(_LABELS[task](canvases, rows))


class _Targets(Mapping[str, "Tensor"]):
    """Targets of all samples, made when asked for: held as int64 maps they would take ten times the images' memory."""

    def __init__(self, canvases: Canvases, tasks: tuple[str, ...]) -> None:
        self._canvases, self._tasks = canvases, tasks

    def __getitem__(self, task: str) -> Tensor:
        if task not in self._tasks:
            raise KeyError(task)
        return _target(task, self._canvases, slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


class MultiMnistInput(InputData):
    """The canvases of one split with the targets of the spec's tasks."""

    def __init__(self, split: Split, spec: DatasetSpec, options: MultiMnistOptions) -> None:
        parts = PARTS_OF_SPLIT[split]
        pieces = {part: compose(part, options.depth_cue, options.jitter, options.size) for part in parts}
        self.canvases = _join(list(pieces.values()))
        self.spec, self.split = spec, split
        self.ids = [f"{part}/{index:05d}" for part, piece in pieces.items() for index in range(len(piece.images))]
        self.units = self.ids
        self.sources = self.canvases.sources
        if split == "train":
            borders = np.cumsum([0] + [len(piece.images) for piece in pieces.values()])
            self.parts = {
                part: np.arange(first, last, dtype=np.int64)
                for part, first, last in zip(parts, borders[:-1], borders[1:], strict=True)
            }

    def sample(self, row: int) -> Sample:
        """Image float32 [3, size, size], the gray canvas in all channels."""
        import torch
        from torchvision import tv_tensors

        gray = torch.from_numpy(self.canvases.images[row]).to(torch.float32).div(255)
        targets = {task: _target(task, self.canvases, slice(row, row + 1))[0] for task in self.spec.task_names}
        meta: dict[str, object] = {
            "id": self.ids[row],
            "dataset": self.spec.name,
            "layout": self.spec.layout,
            "split": self.split,
            "size": self.spec.native_size,
        }
        return {"image": tv_tensors.Image(gray.repeat(3, 1, 1)), "targets": targets, "meta": meta}

    def cached(self) -> CachedSamples:
        """Images uint8 [N, 1, size, size]; each target is made at the moment it is looked up."""
        import torch

        images = torch.from_numpy(self.canvases.images).unsqueeze(1)
        return CachedSamples(images, _Targets(self.canvases, self.spec.task_names))

    def content_hash(self) -> str:
        """sha256 over images and everything that labels follow from; the same for every choice of tasks."""
        digest = hashlib.sha256()
        for field in dataclasses.fields(Canvases):
            digest.update(np.ascontiguousarray(getattr(self.canvases, field.name)).tobytes())
        return digest.hexdigest()


def _join(pieces: list[Canvases]) -> Canvases:
    if len(pieces) == 1:
        return pieces[0]
    names = [field.name for field in dataclasses.fields(Canvases)]
    return Canvases(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})


_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_DEPTH_METRICS = ("abs_err", "rel_err", "rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
_TASKS = (
    TaskSpec("left", "class", 10, ("accuracy",), _DIGIT_NAMES),
    TaskSpec("right", "class", 10, ("accuracy",), _DIGIT_NAMES),
    TaskSpec("semseg", "semantic", 11, ("miou", "pixel_acc"), ("background", *_DIGIT_NAMES)),
    TaskSpec("depth", "depth", 1, _DEPTH_METRICS, unit="z"),
    TaskSpec("edge", "binary_map", 1, ("best_f1", "f_dilated"), positive_weight=0.9),
    TaskSpec("order", "class", 2, ("accuracy",), ("left is near", "right is near")),
)


@register_dataset("multi_mnist")
class MultiMnist(DatasetLoader):
    """17,500 / 2,500 / 5,000 canvases from 3,500 / 500 / 1,000 digits. Needs no data root."""

    Options = MultiMnistOptions

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """All six tasks; without the depth cue, the four that do not need it."""
        assert isinstance(options, MultiMnistOptions)
        if protocol != "standard":
            raise ProtocolError(f"multi_mnist has no labels for protocol {protocol!r}; it offers 'standard'.")
        changed = [f"{name}={value}" for name, value in options.model_dump(exclude_defaults=True).items()]
        mean, std = _STATISTICS[options.size, options.depth_cue]
        counts = {part: 10 * USES * (last - first) for part, (first, last) in PARTS.items()}
        return DatasetSpec(
            name="multi_mnist",
            layout="embedded",
            version="+".join([VERSION, *changed]).lower(),
            protocol=protocol,
            domains="single",
            tasks=tuple(task for task in _TASKS if options.depth_cue or task.name not in _NEEDS_CUE),
            splits={split: sum(counts[part] for part in parts) for split, parts in PARTS_OF_SPLIT.items()},
            native_size=(options.size, options.size),
            mean=(mean, mean, mean),
            std=(std, std, std),
            licence=LICENCE,
            home=HOME,
            tier="verified on genuine files",
        )

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """All but `order`, which follows from depth."""
        return tuple(name for name in spec.task_names if name != "order")

    def unavailable(self, options: DatasetOptions, layout: str | None = None) -> Mapping[str, str]:
        """Without the depth cue: depth and order."""
        assert isinstance(options, MultiMnistOptions)
        reason = "it needs depth_cue: true; without the cue no image shows which digit is near"
        return {} if options.depth_cue else dict.fromkeys(_NEEDS_CUE, reason)

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """Compose the parts of a split (seconds, once a process)."""
        assert isinstance(options, MultiMnistOptions)
        return MultiTaskDataset(spec, split, {SINGLE_INPUT: MultiMnistInput(split, spec, options)})
