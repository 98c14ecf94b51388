"""What the labels of a task of your own are, and how they are stored: said where it cannot be computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from datasets.contracts import TaskSpec
from datasets.errors import UsageError
from datasets.kinds import Kind, get_kind
from datasets.kinds.metrics import computed_metrics
from datasets.on_disk.files import Array, FileError

METRICS: Mapping[str, tuple[str, ...]] = {  # of a kind, where a task names none; of other kinds the first one
    "attribute": ("accuracy", "balanced_accuracy"),
    "binary_map": ("max_iou", "best_f1"),
    "depth": ("abs_err", "rel_err"),
    "multilabel": ("mean_average_precision", "f1"),
    "normals": ("mean_angle", "within_11_25"),
    "scalar": ("abs_err", "rmse"),
    "semantic": ("miou", "pixel_acc"),
}
IGNORED_CLASS = -1  # of labels without pixels


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of one task. `list kinds` says what each kind holds.

    classes: names, or how many there are; left out, they are counted (the highest id and one) or, in class folders and
    tables, the different names in the order of the alphabet. metrics: of `list metrics`, the first one is the task's;
    left out, the usual ones. unit: of numbers, such as metre. weight: of the loss.
    ids: of the files, in the order of the classes, or {id in the files: class}; left out, they are 0, 1, 2 ...
    ignore: what the files hold where nothing is known (label images: 255 unless it is said; other files: nothing).
    scale: numbers in the files times this are in the unit.
    folder, suffix: of label images in `ImageFolders`: where they lie, and what their names have behind the image's.
    column: of its table; several for `multilabel`.
    """

    kind: str
    classes: Sequence[str] | int | None = None
    metrics: Sequence[str] = ()
    unit: str = ""
    weight: float = 1.0
    ids: Sequence[int] | Mapping[int, int] | None = None
    ignore: float | None = None
    scale: float = 1.0
    folder: str = ""
    suffix: str = ""
    column: str | Sequence[str] = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes where they are said."""
        return () if self.classes is None or isinstance(self.classes, int) else tuple(self.classes)

    @property
    def class_of(self) -> Mapping[int, int] | None:
        """{id in the files: class}; None where they are the same."""
        if self.ids is None or isinstance(self.ids, Mapping):
            return self.ids
        return {number: index for index, number in enumerate(self.ids)}

    def n_classes(self, highest: Callable[[], int]) -> int:
        """How many classes there are. highest: gives the highest class id that the labels hold, where nothing says."""
        if self.classes is not None:
            return self.classes if isinstance(self.classes, int) else len(self.classes)
        return (highest() if self.class_of is None else max(self.class_of.values())) + 1

    def task(self, name: str, channels: int, class_names: Sequence[str] = (), *, partial: bool = False) -> TaskSpec:
        """The task of that name. partial: some images have no label. Raises UsageError as `TaskSpec`."""
        metrics = tuple(self.metrics) or METRICS.get(self.kind) or tuple(computed_metrics(self.kind))[:1]
        names = self.names or tuple(class_names)
        if names and len(names) != channels:
            raise UsageError(f"Task {name!r}: {channels} classes, and names of {len(names)}.")
        return TaskSpec(name, self.kind, channels, metrics, names, self.weight, self.unit, partial=partial)


def kind_of(name: str, labels: Labels) -> Kind:
    """The kind of a task. Raises UnknownNameError naming the task."""
    try:
        return get_kind(labels.kind)
    except UsageError as error:
        raise type(error)(f"Task {name!r}: {error}") from None


def classes_of(stored: Array, labels: Labels, kind: Kind, where: object, default_ignore: int | None = None) -> Array:
    """int64, shape of `stored`: classes of ids, with the kind's value where they are ignored.

    where: for messages. Raises FileError for numbers that are not whole and, if `ids` are said, for others.
    """
    if stored.dtype.kind not in "biuf" or (stored.dtype.kind == "f" and not np.array_equal(stored, np.floor(stored))):
        raise FileError(f"{where}: expected whole numbers as class ids, found {stored.dtype} {list(stored.shape)}.")
    ids = stored.astype(np.int64)
    ignore = default_ignore if labels.ignore is None else int(labels.ignore)
    fill = IGNORED_CLASS if kind.fill is None else int(kind.fill)
    known = labels.class_of
    if known is None:
        return ids if ignore is None or ignore == fill else np.where(ids == ignore, fill, ids)
    values, inverse = np.unique(ids, return_inverse=True)
    other = [int(value) for value in values if value not in known and value != ignore]
    if other:
        listed = ", ".join(map(str, known))
        raise FileError(
            f"{where}: holds the id {other[0]}; expected {listed}"
            + (f", or {ignore}" if ignore is not None else "")
            + ": name it in ids, or in ignore."
        )
    table = np.array([fill if value == ignore else known[int(value)] for value in values], dtype=np.int64)
    mapped: Array = table[inverse.reshape(ids.shape)]
    return mapped


def numbers_of(stored: Array, labels: Labels, where: object) -> Array:
    """float32, shape of `stored`: numbers in their unit, NaN where they are ignored. Raises FileError."""
    if stored.dtype.kind not in "biuf":
        raise FileError(f"{where}: expected numbers, found {stored.dtype} {list(stored.shape)}.")
    values = stored.astype(np.float32) * np.float32(labels.scale)
    return values if labels.ignore is None else np.where(stored == labels.ignore, np.float32(np.nan), values)
