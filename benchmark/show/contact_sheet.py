"""Contact sheets: images of a data set with every label beside them, so that people see what a network will see.

Class maps have a colour a class and black where ignored; distances are `viridis` and normals the usual colours, both
grey where unknown. Labels without pixels stand above their image.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmark.show.drawing import save_drawing
from datasets.contracts import DatasetSpec, MultiTaskDataset, Sample, TaskSpec
from datasets.kinds import get_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_GOLDEN = 0.382  # of a turn
_UNKNOWN = (0.6, 0.6, 0.6)
_LONGEST_LABEL = 22  # characters above an image
_INCHES = 2.2  # of a picture
_LINE = 0.12  # inches of a line
_MOST_LINES = 6  # labels above an image, two lines each, for which there is room; attributes that are told one by one
_LONGEST_LINE = 36  # characters of a list above an image
_COLUMNS = 3  # of samples whose labels have no pixels


def contact_sheet(data: MultiTaskDataset, rows_per_input: int, stem: Path) -> list[Path]:
    """Draw samples at equal distances through a split, as PNG and SVG; returns the files. Raises FileError.

    A single-domain set has a row a sample; a multi-domain set a row a task with that task's samples.
    """
    spec = data.spec
    dense = [task for task in spec.tasks if get_kind(task.kind).dense]
    grid = _multi(data, rows_per_input) if spec.domains == "multi" else _single(data, rows_per_input, dense)
    if all(len(row) == 1 for row in grid):  # no label has pixels: no reason for one long column
        cells = [row[0] for row in grid]
        grid = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    n_columns = max(len(row) for row in grid)
    height, width = spec.native_size
    lines = max(above.count("\n") + 1 for row in grid for _, above in row)
    wide, high = _INCHES * max(1.0, width / height), _INCHES * max(1.0, height / width) + 0.5
    high += _LINE * max(0, lines - 2 * _MOST_LINES)
    size = (wide * n_columns, high * len(grid) + 0.4)
    title = f"{spec.name} · {spec.layout} · {data.split} · {spec.protocol} ({spec.tier})"
    return save_drawing(lambda: _draw(grid, size, title), stem, dpi=110)


def _draw(grid: Sequence[Sequence[Picture]], size: tuple[float, float], title: str) -> Drawing:
    import matplotlib.pyplot as plt

    n_columns = max(len(row) for row in grid)
    figure, axes = plt.subplots(len(grid), n_columns, figsize=size, squeeze=False, layout="constrained")
    for places, row in zip(axes, grid, strict=True):
        for place in places:
            place.set_axis_off()
        for place, (picture, above) in zip(places, row, strict=False):
            _show(place, picture, above)
    figure.suptitle(title, fontsize=11)
    return figure


Picture = tuple[Tensor, str]


def _spread(n: int, wanted: int) -> list[int]:
    """`wanted` positions at equal distances in a list of n, the first among them."""
    rows = min(wanted, n)
    return [number * n // rows for number in range(rows)]


def _single(data: MultiTaskDataset, n: int, dense: Sequence[TaskSpec]) -> list[list[Picture]]:
    (samples,) = data.inputs.values()
    rows = []
    for index in _spread(len(samples), n):
        sample = samples[index]
        row: list[Picture] = [(_image(sample), _title(data.spec, sample))]
        row += [(picture(sample["targets"][task.name], task), _task_title(task)) for task in dense]
        rows.append(row)
    return rows


def _multi(data: MultiTaskDataset, n: int) -> list[list[Picture]]:
    rows = []
    for samples in data.inputs.values():
        row: list[Picture] = []
        for index in _spread(len(samples), n):
            sample = samples[index]
            row.append((_image(sample), _title(data.spec, sample)))
            for task in data.spec.tasks:
                if task.name in sample["targets"] and get_kind(task.kind).dense:
                    row.append((picture(sample["targets"][task.name], task), _task_title(task)))
        rows.append(row)
    return rows


def _image(sample: Sample) -> Tensor:
    return sample["image"].as_subclass(Tensor).permute(1, 2, 0).clamp(0, 1)


def _title(spec: DatasetSpec, sample: Sample) -> str:
    """Id and the labels without pixels; of many yes-or-no labels the names of those that are true."""
    said = [str(sample["meta"]["id"])[-_LONGEST_LABEL:]]
    attributes = [task.name for task in spec.tasks if task.kind == "attribute"]
    many = len(attributes) > _MOST_LINES
    if many:
        said += _true_ones({name: float(sample["targets"][name]) for name in attributes})
    for task in spec.tasks:
        if many and task.kind == "attribute":
            continue
        if task.name in sample["targets"] and not get_kind(task.kind).dense:
            target = sample["targets"][task.name]
            if task.kind == "multilabel":
                names = task.class_names or [str(number) for number in range(task.channels)]
                said += [task.name, *_true_ones(dict(zip(names, target.tolist(), strict=True)))]
            else:
                said += [task.name, f"= {_label(target, task)}"]
    return "\n".join(said)


def _true_ones(values: Mapping[str, float]) -> list[str]:
    """Lines that name the labels which are true, and those which are ignored."""
    true = [name for name, value in values.items() if value == 1]
    unknown = [name for name, value in values.items() if math.isnan(value)]
    lines = textwrap.wrap(f"true: {', '.join(true) or 'none'}", _LONGEST_LINE)
    return lines + (textwrap.wrap(f"ignored: {', '.join(unknown)}", _LONGEST_LINE) if unknown else [])


def _label(target: Tensor, task: TaskSpec) -> str:
    value = target.item()
    if not bool(get_kind(task.kind).valid(target)):
        return "ignored"
    named = task.class_names[int(value)] if task.kind == "class" and task.class_names else ""
    return f"{value} ({named})"[:_LONGEST_LABEL] if named not in ("", str(value)) else f"{value:g}"


def _task_title(task: TaskSpec) -> str:
    return f"{task.name}{f' ({task.unit})' if task.unit else ''}"


def picture(target: Tensor, task: TaskSpec) -> Tensor:
    """Float [H, W, 3] in [0, 1] of a dense label; of several channels the first."""
    kind, plain = get_kind(task.kind), target.as_subclass(Tensor)
    valid = kind.valid(plain)
    if task.kind in ("semantic", "binary_map"):
        colours = torch.tensor(_class_colours(task.channels if task.kind == "semantic" else 2))
        shown = colours[torch.where(valid, plain, 0)]
        return torch.where(valid[..., None], shown, torch.zeros(3))
    if task.kind == "normals":
        shown = plain.permute(1, 2, 0) / 255 if task.frame == "encoded" else (plain.permute(1, 2, 0) + 1) / 2
        return torch.where(valid[..., None], shown.clamp(0, 1).float(), torch.tensor(_UNKNOWN))
    values = plain[0] if plain.ndim == 3 else plain
    known = ~values.isnan()
    return torch.where(known[..., None], _sequential(values, known), torch.tensor(_UNKNOWN))


def _class_colours(n: int) -> list[tuple[float, float, float]]:
    """The colour-blind safe palette where it reaches, else hues at equal distances; two classes: black and white."""
    import seaborn as sns

    if n == 2:
        return [(0.15, 0.15, 0.15), (0.95, 0.95, 0.95)]
    if n <= 10:
        return list(sns.color_palette("colorblind", n))
    step = next(step for step in range(round(n * _GOLDEN), n) if math.gcd(step, n) == 1)
    wheel = sns.husl_palette(n, s=0.85, l=0.6)
    return [wheel[number * step % n] for number in range(n)]  # neighbouring classes get hues that are far apart


def _sequential(values: Tensor, known: Tensor) -> Tensor:
    """viridis from the smallest to the largest known value."""
    import matplotlib

    filled = torch.where(known, values, 0).double()
    low, high = (float(filled[known].min()), float(filled[known].max())) if bool(known.any()) else (0.0, 1.0)
    scaled = (filled - low) / (high - low) if high > low and math.isfinite(high - low) else torch.zeros_like(filled)
    return torch.from_numpy(matplotlib.colormaps["viridis"](scaled.numpy())[..., :3]).float()


def _show(place: Axes, shown: Tensor, title: str) -> None:
    place.imshow(shown.numpy(), interpolation="nearest")
    place.set_title(title, fontsize=7)
