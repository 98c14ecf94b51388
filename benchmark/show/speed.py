"""Measurements of a sweep as files: one CSV with every number, and pictures of speed against batch size.

Both take the labels of rows, so that they read as the tables do. Nothing here measures.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli import say
from benchmark.escape import CsvWriter
from benchmark.records.measurements import MeasurementFile, NetworkEntry, SpeedSettings
from benchmark.records.store import safe_name
from benchmark.show.drawing import FORMATS, save_drawing
from datasets.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing
    from rich.console import Console
    from rich.table import Table

    from benchmark.records.record import Record

_SETTINGS = ("device", "batch", "dtype", "memory_format", "execution", "threads")
CSV_COLUMNS = (
    *("table", "data", "backbone", "network", "method", "seed", "graph", "mode", "device_name", *_SETTINGS),
    *("status", "message", "images_per_s", "images_per_s_low", "images_per_s_high", "predictions_per_s"),
    *("step_ms", "step_ms_p10", "step_ms_p90", "r", "r_stl", "ref_images_per_s", "aa", "peak_bytes"),
    *("compile_s", "graphs", "graph_breaks", "flags", "started"),
)


@dataclasses.dataclass(frozen=True)
class NamedMeasurement:
    """A measurement with what tables call its parts. data, backbone: of the table's head; labels: {graph hash: row}."""

    measurement: MeasurementFile
    data: str
    backbone: str
    labels: Mapping[str, str]


def as_csv(measured: Sequence[NamedMeasurement]) -> str:
    """One line a network, mode and setting, numbers in full precision, empty where there is none.

    device: cpu or cuda, device_name: its model. images_per_s: median, with low and high over calls or rounds. r: to the
    plain backbone, ref_images_per_s: its speed; r_stl: to the single-task networks. aa: ratio of two copies of the
    backbone. flags: of the measurement and the network, separated by spaces. started: UTC. A measurement whose
    reference failed is one line without a network.
    """
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(CSV_COLUMNS)
    for named in measured:
        entries: Sequence[NetworkEntry | None] = named.measurement.networks or (None,)
        lines = (_csv_line(named, entry) for entry in entries)
        writer.writerows([line.get(column, "") for column in CSV_COLUMNS] for line in lines)
    return out.getvalue()


def _csv_line(named: NamedMeasurement, entry: NetworkEntry | None) -> dict[str, object]:
    measurement = named.measurement
    settings = measurement.settings
    reference = (measurement.reference.get("ref") or {}).get("images_per_s") or {}
    line: dict[str, object] = {
        "table": measurement.table,
        "data": named.data,
        "backbone": named.backbone,
        "device_name": measurement.device,
        **{name: getattr(settings, name) for name in _SETTINGS},
        "status": measurement.status,
        "message": measurement.message,
        "ref_images_per_s": reference.get("median"),
        "aa": measurement.aa,
        "flags": " ".join(measurement.flags),
        "started": measurement.started,
    }
    if entry is None:
        return line
    speed, step = entry.images_per_s, entry.step_ms
    line |= {
        "network": named.labels.get(entry.graph, entry.method),
        **{name: getattr(entry, name) for name in ("method", "seed", "graph", "mode", "status", "predictions_per_s")},
        "r": entry.r,
        "r_stl": entry.r_stl,
        "peak_bytes": (entry.memory or {}).get("peak_bytes"),
        "flags": " ".join((*measurement.flags, *entry.flags)),
    }
    line["message"] = entry.message
    if speed is not None:
        line |= {"images_per_s": speed.median, "images_per_s_low": speed.low, "images_per_s_high": speed.high}
    if step is not None:
        line |= {"step_ms": step.median, "step_ms_p10": step.p10, "step_ms_p90": step.p90}
    if entry.compile is not None:
        line |= {"compile_s": entry.compile.get("seconds")}
        line |= {name: entry.compile.get(name) for name in ("graphs", "graph_breaks")}
    return line


# Pictures


def check_plot(where: Path) -> None:
    """Raise UsageError where `--plot` names a file that is neither PNG nor SVG."""
    if where.suffix and where.suffix.removeprefix(".") not in FORMATS and not where.is_dir():
        raise UsageError(f"--plot {where}: expected a folder, or a file that ends in .png or .svg.")


def draw_speed(measured: Sequence[NamedMeasurement], where: Path) -> list[Path]:
    """Draw images/s and r against batch size, one picture per table and mode, as PNG and SVG; returns the files.

    where: a folder, or a file (`x.png` gives x.png and x.svg; several pictures add table and mode to its name). Facets
    are the settings other than batch; networks have colours, markers and, in a legend beside the plot, their names.
    Raises UsageError where nothing was measured, StorageError where a file cannot be written.
    """
    check_plot(where)
    pictures: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for named in measured:
        for line in _points(named):
            pictures.setdefault((named.measurement.table, line["mode"]), []).append(line)
    if not pictures:
        raise UsageError("Nothing was measured that could be drawn.")
    is_file = where.suffix.removeprefix(".") in FORMATS
    written = []
    for (table, mode), lines in pictures.items():
        own = safe_name(f"{table[:8]}-{mode}")
        stem = where.with_suffix("") if is_file else where / f"throughput-{own}"
        if is_file and len(pictures) > 1:
            stem = stem.with_name(f"{stem.name}-{own}")
        # grow: a long name in the legend widens the picture rather than being cut at its edge
        written += save_drawing(lambda lines=lines: _draw(lines), stem, grow=True)  # type: ignore[misc]
    return written


def _points(named: NamedMeasurement) -> Iterator[dict[str, Any]]:
    """Two points a network: its images/s and its r; and the backbone's own images/s."""
    measurement = named.measurement
    about = {
        "title": f"{named.data} · {named.backbone}",
        "batch": measurement.settings.batch,
        "setting": measurement.settings,
        "device": measurement.device,
    }
    modes = dict.fromkeys(entry.mode for entry in measurement.networks if entry.images_per_s is not None)
    for mode in modes:
        if measurement.aa is not None:
            speed = measurement.reference["ref"]["images_per_s"]["median"]
            reference = f"ref ({measurement.reference['what']})"
            yield {**about, "mode": mode, "network": reference, "quantity": IMAGES, "value": speed}
    for entry in measurement.networks:
        if entry.images_per_s is not None:
            line = {**about, "mode": entry.mode, "network": named.labels.get(entry.graph, entry.method)}
            yield {**line, "quantity": IMAGES, "value": entry.images_per_s.median}
            if entry.r is not None:
                yield {**line, "quantity": RELATIVE, "value": entry.r}


_MARKERS = "os^DvPX<>*"
IMAGES, RELATIVE = "images/s", "r (images/s relative to ref)"


def _setting_text(settings: SpeedSettings) -> str:
    """The settings that a facet stands for."""
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return f"{settings.device}, {settings.dtype}, {settings.memory_format}, {threads}, {settings.execution}"


def _draw(lines: Sequence[dict[str, Any]]) -> Drawing:
    import pandas as pd
    import seaborn as sns

    frame = pd.DataFrame([{**line, "setting": _setting_text(line["setting"])} for line in lines])
    names = list(dict.fromkeys(frame["network"]))
    with sns.axes_style("whitegrid"):
        grid = sns.relplot(
            frame,
            kind="line",
            x="batch",
            y="value",
            row="setting",
            col="quantity",
            col_order=[IMAGES, RELATIVE],
            hue="network",
            style="network",
            hue_order=names,
            style_order=names,
            palette=sns.color_palette("colorblind" if len(names) <= 10 else "viridis", len(names)),
            markers=[_MARKERS[number % len(_MARKERS)] for number in range(len(names))],
            dashes=False,
            errorbar=None,
            height=3.0,
            aspect=1.4,
            facet_kws={"sharey": "col", "sharex": True},
        )
    _label_axes(grid, frame)
    return grid.figure


def _label_axes(grid: Any, frame: pd.DataFrame) -> None:
    batches = sorted(frame["batch"].unique())
    for (setting, quantity), axes in grid.axes_dict.items():
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_title(setting, fontsize=9)
        axes.set(xlabel="batch size", ylabel=quantity)
        if quantity == RELATIVE:
            axes.axhline(1.0, color="#222222", linewidth=0.8, linestyle=":")
        else:
            axes.set_ylim(bottom=0)
    devices = ", ".join(dict.fromkeys(frame["device"]))
    title = f"{frame['title'].iloc[0]}\n{frame['mode'].iloc[0]} · {devices}"
    grid.figure.suptitle(title, fontsize=11, y=1.0, verticalalignment="bottom")


NEVER_ON_CUDA = (
    "the CUDA path of this measurement has not yet been run on a GPU: check its numbers before you rely on them"
)


_WIDEST = 10_000  # characters


def show(
    measurement: MeasurementFile,
    labels: Mapping[str, str],
    records: Sequence[Record],
    console: Console,
    eager: Mapping[tuple[str, str], float] | None = None,
) -> None:
    """Print one measurement: the settings of all rows, what the A/A ratio says about differences, and the rows.

    eager: what `eager_speeds` found; each network's gain over it is a column.
    """
    from benchmark.tables.labels import table_head

    head = table_head(records)
    say(console, f"\n{head['data']} · {head['backbone']}")
    for line in _about(measurement):
        say(console, line)
    if measurement.status == "done":
        _print_whole(_table(measurement, labels, eager or {}), console)


def _print_whole(table: Table, console: Console) -> None:
    """Print a table in the width that it needs: numbers that a narrow terminal or a pipe would cut are no numbers."""
    from rich.console import Console

    width = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    # A console of its own: rich never prints wider than the console is, whatever width it is asked for.
    Console(file=console.file, width=width, force_terminal=console.is_terminal).print(table)


def _about(measurement: MeasurementFile) -> Iterator[str]:
    from benchmark.records.measurements import same_speed_within

    settings = measurement.settings
    facts = [f"batch {settings.batch}", settings.dtype, settings.memory_format, f"threads {settings.threads}"]
    facts += [settings.execution, measurement.device]
    facts += [f"residency {measurement.residency}"] if measurement.residency else []
    yield ", ".join(facts)
    if settings.device == "cuda":
        yield NEVER_ON_CUDA
    if measurement.aa is None:
        yield f"ref ({measurement.reference['what']}): {measurement.status}: {measurement.message}"
        return
    samples = f"{measurement.protocol['pairs']} pairs" if measurement.form == "pairs" else (
        f"{measurement.protocol['rounds']} rounds"
    )  # fmt: skip
    speed = measurement.reference["ref"]["images_per_s"]["median"]
    flags = [*measurement.flags, *(f"ref {flag}" for flag in measurement.reference["ref"]["flags"])]
    yield (
        f"ref = {measurement.reference['what']}, {speed:,.0f} images/s; {samples}; A/A {measurement.aa:.3f}"
        f"{' (' + ', '.join(flags) + ')' if flags else ''}; "
        f"differences below {100 * same_speed_within(measurement.aa):.1f} % are no differences"
    )


def eager_speeds(measurement: MeasurementFile, measured: Sequence[NamedMeasurement]) -> dict[tuple[str, str], float]:
    """{(graph, mode): images/s} of the fastest eager measurement of the same table, device, batch, dtype and threads.
    Empty for an eager measurement.
    """

    def shared(other: MeasurementFile) -> tuple[object, ...]:
        settings = other.settings
        return other.table, settings.device, settings.batch, settings.dtype, settings.threads

    found: dict[tuple[str, str], float] = {}
    if measurement.settings.execution == "eager":
        return found
    for named in measured:
        other = named.measurement
        if other.settings.execution == "eager" and shared(other) == shared(measurement):
            for entry in other.networks:
                if entry.images_per_s is not None:
                    key = entry.graph, entry.mode
                    found[key] = max(found.get(key, 0.0), entry.images_per_s.median)
    return found


def _gain(entry: NetworkEntry, eager: Mapping[tuple[str, str], float]) -> float | None:
    before = eager.get((entry.graph, entry.mode))
    return None if before is None or entry.images_per_s is None else entry.images_per_s.median / before


def _table(measurement: MeasurementFile, labels: Mapping[str, str], eager: Mapping[tuple[str, str], float]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    step = "latency ms" if measurement.settings.batch == 1 else "step ms"
    table = Table(box=None, pad_edge=False)
    columns = ["network", "mode", "images/s ↑", "[min, max]", "predictions/s", step, "[p10, p90]", "r ↑", "r_stl ↑"]
    compiled = measurement.settings.execution == "compiled"
    columns += ["x eager ↑"] if eager else []
    columns += ["compiled in s", "graphs", "breaks"] if compiled else []
    with_memory = any(entry.memory for entry in measurement.networks)
    columns += ["peak MB"] if with_memory else []
    for name in (*columns, "flags"):
        table.add_column(name, justify="left" if name in ("network", "mode", "flags") else "right", no_wrap=True)
    for entry in measurement.networks:
        cells = [labels.get(entry.graph, entry.method), entry.mode, *_numbers(entry)]
        if eager:
            cells.append(_text(_gain(entry, eager), ".2f"))
        if compiled:
            cells += [_text((entry.compile or {}).get(name), form) for name, form in _COMPILE]
        if with_memory:
            peak = (entry.memory or {}).get("peak_bytes")
            cells.append(_text(None if peak is None else peak / 1e6, ",.0f"))
        table.add_row(*map(escape, cells), ", ".join((() if entry.status == "done" else (entry.status,)) + entry.flags))
    return table


_COMPILE = (("seconds", ".1f"), ("graphs", "d"), ("graph_breaks", "d"))


def _numbers(entry: NetworkEntry) -> list[str]:
    """images/s, [min, max], predictions/s, step, [p10, p90], r, r_stl."""
    speed, step = entry.images_per_s, entry.step_ms
    if speed is None or step is None:
        return [_text(None, "")] * 7
    form = ".3g" if step.median < 100 else ",.0f"
    return [
        _text(speed.median, ",.0f"),
        f"[{speed.low:,.0f}, {speed.high:,.0f}]",
        _text(entry.predictions_per_s, ",.0f"),
        _text(step.median, form),
        f"[{step.p10:{form}}, {step.p90:{form}}]",
        _text(entry.r, ".3f"),
        _text(entry.r_stl, ".3f"),
    ]


def _text(value: float | None, form: str) -> str:
    from benchmark.tables.labels import DASH

    return DASH if value is None else format(value, form)
