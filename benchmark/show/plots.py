"""Pictures of records: every figure that a method stored, as PNG and SVG, from the record's files alone.

The conventions of all pictures stand here. Colours are those of seaborn's colour-blind safe palette, in the order of
the tasks; sequences are `viridis`, quantities with a neutral value `vlag`. No colour says what a label does not say.
Nothing here knows a method: a figure is data (`methods.figures`), and each kind of panel has one renderer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.records.documents import ArtifactEntry
from benchmark.records.record import Record
from benchmark.records.store import Store, safe_name
from benchmark.show.drawing import FORMATS, save_drawing
from methods.figures import Figure, Heatmap, Layered, Lines, Panel, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MAX_COLUMNS = 3  # panels side by side
MAX_WIDTH = 16.0  # inches; wider pictures cannot be read on a page
MAX_NAMED = 8  # more tasks or series than this cannot be told apart by colour
MAX_ANNOTATED = 240  # cells of a heatmap that carry their number
_INK, _FAINT = "#222222", "#b8b8b8"
_SHARED = "#dddddd"  # far from the grey that the eighth task has in the palette


def draw_records(records: Sequence[Record], store: Store, folder: Path) -> Iterator[Path]:
    """Draw the figures of the done records into a folder, those that are not there yet; gives the new files.

    A file's name says method, key, seed and figure. What the store does not hold, as where records are shipped alone,
    is left out: `absent_figures`. Raises StorageError where an artifact has changed.
    """
    for record, name, entry in _figures(records):
        stem = folder / figure_stem(record, name.removeprefix("figure-"))
        files = [stem.with_suffix(f".{form}") for form in FORMATS]
        if store.holds(entry) and not all(file.exists() for file in files):
            figure = Figure.model_validate_json(store.read_artifact(entry))
            yield from save(figure, stem, subtitle(record))


def absent_figures(records: Sequence[Record], store: Store) -> int:
    """How many figures of the done records the store does not hold."""
    return sum(not store.holds(entry) for _, _, entry in _figures(records))


def _figures(records: Sequence[Record]) -> Iterator[tuple[Record, str, ArtifactEntry]]:
    for record in records:
        for name, entry in sorted(record.artifacts.items()):
            if record.status == "done" and entry["kind"] == "figure":
                yield record, name, entry


def figure_stem(record: Record, name: str) -> str:
    """File name without suffix: method, start of the key, seed, figure."""
    return safe_name(f"{record.method}-{record.key[:8]}-seed{record.seed}-{name}")


def subtitle(record: Record) -> str:
    """What a picture is of, beneath its title."""
    return f"{record.title} · {record.key[:8]}"


def save(figure: Figure, stem: Path, beneath: str = "") -> list[Path]:
    """Write a figure as PNG and SVG, equal bytes for equal figures; gives the files."""
    return save_drawing(lambda: draw(figure, beneath), stem)


def draw(figure: Figure, beneath: str = "") -> Drawing:
    """The figure as a matplotlib drawing; the caller closes it."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    columns = 1 if any(panel.kind in ("layered", "tree") for panel in figure.panels) else MAX_COLUMNS
    sizes = [_size(panel) for panel in figure.panels]
    columns = max(1, min(columns, len(figure.panels), int(MAX_WIDTH // max(size[0] for size in sizes))))
    rows = math.ceil(len(figure.panels) / columns)
    width = max(size[0] for size in sizes) * columns
    heights = [max(size[1] for size in sizes[row * columns : (row + 1) * columns]) for row in range(rows)]
    with sns.axes_style("white"):
        drawing = plt.figure(figsize=(max(width, 5.0), sum(heights) + 0.8), layout="constrained")
        grid = drawing.subfigures(rows, columns, height_ratios=heights, squeeze=False)
        for position, panel in enumerate(figure.panels):
            part = grid[position // columns][position % columns]
            _RENDERERS[panel.kind](panel, part)
        drawing.suptitle(f"{figure.title}\n{beneath}" if beneath else figure.title, fontsize=11, color=_INK)
    return drawing


def _size(panel: Panel) -> tuple[float, float]:
    """(width, height) in inches that a panel needs to be readable."""
    if isinstance(panel, Heatmap):
        labels = max((len(row) for row in panel.rows), default=0) * 0.075
        cell = 0.62 if len(panel.columns) <= 12 else 0.42
        return max(3.2, labels + cell * len(panel.columns) + 1.4), max(2.2, 0.34 * len(panel.rows) + 1.5)
    if isinstance(panel, Lines):
        return 4.6, 3.4
    if isinstance(panel, Layered):
        rows = 1 + math.ceil(len(panel.tasks) / _task_columns(len(panel.tasks)))
        return max(8.0, 0.95 * len(panel.states)), 2.9 + 1.75 * (rows - 1)
    leaves = len(panel.levels[-1][1]) if panel.levels else 1
    return max(6.0, 1.15 * len(panel.levels) + 2.0), max(2.6, 0.42 * max(leaves, _n_tasks(panel)) + 1.4)


def _n_tasks(panel: Tree) -> int:
    return len({task for _, nodes in panel.levels for node in nodes for task in node.tasks})


def _task_columns(n_tasks: int) -> int:
    return 1 if n_tasks <= 3 else 2 if n_tasks <= 8 else 4


def task_colors(tasks: Sequence[str]) -> dict[str, Any]:
    """A colour for each task; from the colour-blind safe palette while it can tell them apart, else from `viridis`."""
    import seaborn as sns

    palette = "colorblind" if len(tasks) <= MAX_NAMED else "viridis"
    return dict(zip(tasks, sns.color_palette(palette, len(tasks)), strict=True))


# Heatmaps


def _heatmap(panel: Heatmap, part: Any) -> None:
    import numpy as np
    import seaborn as sns
    from matplotlib.patches import Rectangle

    axes = part.subplots()
    values = np.array([[math.nan if v is None else v for v in row] for row in panel.values], dtype=float)
    values = values.reshape(len(panel.rows), len(panel.columns))
    sns.heatmap(
        values,
        ax=axes,
        cmap="viridis" if panel.centre is None else "vlag",
        vmin=panel.low,
        vmax=panel.high,
        center=panel.centre,
        annot=values.size <= MAX_ANNOTATED,
        fmt=".2f",
        annot_kws={"fontsize": 7},
        linewidths=0.5,
        xticklabels=list(panel.columns),
        yticklabels=list(panel.rows),
        cbar_kws={"label": panel.value_title},
    )
    axes.set_facecolor("#e8e8e8")  # what has no value
    axes.tick_params(axis="y", rotation=0)
    axes.tick_params(axis="x", rotation=0 if max(map(len, panel.columns), default=0) <= 5 else 40)
    for row, column in panel.marks:
        frame = Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor="black", linewidth=1.8)
        axes.add_patch(frame)
    axes.set_xlabel(panel.column_title)
    axes.set_ylabel(panel.row_title)
    framed = f"\nframed: {panel.mark_title}" if panel.marks and panel.mark_title else ""
    axes.set_title(panel.title + framed, fontsize=9)


# Curves and points


def _lines(panel: Lines, part: Any) -> None:
    import seaborn as sns

    axes = part.subplots()
    groups = list(dict.fromkeys(series.group or series.label for series in panel.series))
    colors = dict(zip(groups, sns.color_palette("colorblind" if len(groups) <= 10 else "viridis", len(groups)),
                      strict=True))  # fmt: skip
    crowded = len(panel.series) > len(groups)
    labelled: set[str] = set()
    for series in panel.series:
        group = series.group or series.label
        label = None if group in labelled else group
        labelled.add(group)
        style = {"color": colors[group], "label": label}
        if panel.points:
            axes.scatter(series.x, series.y, s=22, **style)
        else:
            axes.plot(series.x, series.y, linewidth=0.9 if crowded else 1.6, alpha=0.75 if crowded else 1.0, **style)
    for x, y, text in panel.marks:
        axes.scatter([x], [y], s=60, facecolors="none", edgecolors=_INK, linewidths=1.4, zorder=3)
        axes.annotate(text, (x, y), xytext=(4, 6), textcoords="offset points", fontsize=7)
    if panel.low is not None or panel.high is not None:
        axes.set_ylim(panel.low, panel.high)
    axes.set_xlabel(panel.x_title)
    axes.set_ylabel(panel.y_title)
    axes.set_title(panel.title, fontsize=9)
    axes.grid(alpha=0.25)
    sns.despine(ax=axes)
    if 1 < len(groups) <= 12:
        axes.legend(fontsize=7, frameon=False)


# States in order


def _layered(panel: Layered, part: Any) -> None:
    columns = _task_columns(len(panel.tasks))
    rows = math.ceil(len(panel.tasks) / columns)
    top, below = part.subfigures(2, 1, height_ratios=[2.9, 1.75 * rows])
    colors = task_colors(panel.tasks)
    union = top.subplots()
    _states(union, panel)
    if len(panel.tasks) <= MAX_NAMED:
        _union_by_task(union, panel, colors)
    else:
        _union_by_count(union, top, panel)
    used = sum(edge.role == "inner" and bool(edge.tasks) for edge in panel.edges)
    reads = {role: sum(edge.role == role and bool(edge.tasks) for edge in panel.edges)
             for role in ("read-in", "read-out")}  # fmt: skip
    union.set_title(
        f"{panel.title}: union of {len(panel.tasks)} tasks, {used} inner edges, {reads['read-in']} read-ins "
        f"(▼ into the state), {reads['read-out']} read-outs (▲ out of it)",
        fontsize=9,
    )
    grid = below.subplots(rows, columns, squeeze=False)
    for position in range(rows * columns):
        axes = grid[position // columns][position % columns]
        if position >= len(panel.tasks):
            axes.set_axis_off()
            continue
        task = panel.tasks[position]
        _states(axes, panel, small=True)
        edges = [edge for edge in panel.edges if task in edge.tasks]
        color = colors[task] if len(panel.tasks) <= MAX_NAMED else _INK
        for edge in edges:
            _edge(axes, edge.source, edge.target, edge.role, color, 0.0, 1.6 if color is not _INK else 1.1)
        inner = sum(edge.role == "inner" for edge in edges)
        axes.set_title(f"{task}: {inner} inner edges", fontsize=8, color=_INK)


def _states(axes: Axes, panel: Layered, small: bool = False) -> None:
    n = len(panel.states)
    axes.scatter(range(n), [0] * n, s=90 if small else 330, color="white", edgecolors=_INK, zorder=4, linewidths=1.0)
    for position, state in enumerate(panel.states):
        axes.annotate(state.name, (position, 0), ha="center", va="center", fontsize=5 if small else 8, zorder=5)
        if not small and state.label:
            axes.annotate(state.label, (position, -1.02), ha="center", va="top", fontsize=6, color="#555555")
    longest = max((edge.target - edge.source for edge in panel.edges if edge.role == "inner"), default=1)
    axes.set_xlim(-0.6, n - 0.4)
    room = 0.45 if small else 0.85  # the legend of the union stands above its arcs
    axes.set_ylim(-1.35 if not small else -0.95, max(1.0, 0.42 * longest + room))
    axes.set_axis_off()


def _edge(axes: Axes, source: int, target: int, role: str, color: Any, shift: float, width: float) -> None:
    """An arc above the line for an inner edge; a marker above the state for a read-in, beneath it for a read-out."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    if role != "inner":
        state = target if role == "read-in" else source
        up = role == "read-in"
        x, y = state + shift, (-0.52 if up else -0.80)
        axes.scatter([x], [y], marker="v" if up else "^", s=26, color=[color], zorder=3, linewidths=0)
        return
    height = 0.42 * (target - source) + shift
    points = [(source, 0.0), (source, 1.33 * height), (target, 1.33 * height), (target, 0.0)]
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    axes.add_patch(PathPatch(Curve(points, codes), fill=False, edgecolor=color, linewidth=width, zorder=2))


def _union_by_task(axes: Axes, panel: Layered, colors: dict[str, Any]) -> None:
    """Every task that uses an edge draws a line of its own beside the others."""
    from matplotlib.lines import Line2D

    step = 0.09
    for edge in panel.edges:
        for number, task in enumerate(edge.tasks):
            shift = step * (number - (len(edge.tasks) - 1) / 2)
            _edge(axes, edge.source, edge.target, edge.role, colors[task], shift, 1.8)
    handles = [Line2D([], [], color=colors[task], linewidth=2, label=task) for task in panel.tasks]
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="upper right", ncols=min(4, len(handles)))


def _union_by_count(axes: Axes, part: Any, panel: Layered) -> None:
    """Too many tasks for colours: the colour says how many use an edge."""
    import matplotlib as mpl

    scale = mpl.colors.Normalize(1, len(panel.tasks))
    color = mpl.colormaps["viridis_r"]
    for edge in sorted(panel.edges, key=lambda edge: len(edge.tasks)):
        if edge.tasks:
            shade = color(scale(len(edge.tasks)))
            _edge(axes, edge.source, edge.target, edge.role, shade, 0.0, 1.0 + 2.0 * scale(len(edge.tasks)))
    ticks = mpl.ticker.MaxNLocator(integer=True)
    shades = mpl.cm.ScalarMappable(scale, color)
    part.colorbar(shades, ax=axes, label="tasks that use the edge", fraction=0.03, ticks=ticks)


# Trees


def _tree(panel: Tree, part: Any) -> None:
    from matplotlib.patches import Rectangle

    axes = part.subplots()
    tasks = [task for node in (panel.levels[0][1] if panel.levels else ()) for task in node.tasks]
    leaves = [task for node in (panel.levels[-1][1] if panel.levels else ()) for task in node.tasks] or tasks
    place = {task: float(number) for number, task in enumerate(leaves)}
    colors = task_colors(leaves)
    largest = max((node.parameters for _, nodes in panel.levels for node in nodes), default=1) or 1
    centres: list[list[float]] = []
    for level, (_, nodes) in enumerate(panel.levels):
        centres.append([sum(place[task] for task in node.tasks) / len(node.tasks) for node in nodes])
        for number, node in enumerate(nodes):
            y, height = centres[level][number], 0.18 + 0.62 * node.parameters / largest
            color = colors[node.tasks[0]] if len(node.tasks) == 1 else _SHARED
            if node.parent is not None and level:
                axes.plot(
                    [level - 1 + 0.32, level - 0.32], [centres[level - 1][node.parent], y], color=_FAINT, zorder=1
                )
            axes.add_patch(Rectangle((level - 0.32, y - height / 2), 0.64, height, facecolor=color, zorder=2))
            axes.annotate(_count(node.parameters), (level, y), ha="center", va="center", fontsize=6,
                          color=ink_on(color), zorder=3)  # fmt: skip
    last = len(panel.levels) - 1
    for number, node in enumerate(panel.levels[-1][1] if panel.levels else ()):
        axes.annotate(", ".join(node.tasks), (last + 0.42, centres[last][number]), va="center", fontsize=8)
    axes.set_xlim(-0.6, last + 1.7)
    axes.set_ylim(len(leaves) - 0.4, -0.6)
    axes.set_xticks(range(len(panel.levels)), [name for name, _ in panel.levels], rotation=30, fontsize=7)
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{panel.title} (height of a box: its parameters; light grey: shared)", fontsize=9)


def ink_on(color: Any) -> str:
    """White or the dark ink, whichever has the higher contrast (WCAG 2.2) on a colour."""
    from seaborn.utils import relative_luminance

    ground, ink = relative_luminance(color) + 0.05, relative_luminance(_INK) + 0.05
    return "white" if 1.05 / ground > ground / ink else _INK


def _count(number: int) -> str:
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return str(number)


_RENDERERS: dict[str, Callable[[Any, Any], None]] = {
    "heatmap": _heatmap,
    "lines": _lines,
    "layered": _layered,
    "tree": _tree,
}
