"""Pictures: drawn from a record's files alone, the same bytes each time, whatever a method put into them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from pydantic import ValidationError
from seaborn.utils import relative_luminance
from typer.testing import CliRunner

from benchmark.records.record import Record
from benchmark.records.store import StorageError, Store
from benchmark.report import app
from benchmark.show.plots import FORMATS, MAX_NAMED, absent_figures, draw, draw_records, ink_on, save, task_colors
from methods.figures import Branch, Edge, Figure, Heatmap, Layered, Lines, Series, State, Tree
from tests.unit.made_records import make_record

HEATMAP = Heatmap(
    title="affinity",
    rows=("left", "right"),
    columns=("left", "right"),
    values=((1.0, None), (0.2, 1.0)),
    value_title="correlation",
    centre=0.0,
    marks=((0, 1),),
    mark_title="merged",
)
LINES = Lines(
    title="gates",
    series=(Series(label="a", x=(0.0, 1.0), y=(0.5, 0.9)), Series(label="b", x=(0.0, 1.0), y=(0.5, 0.1))),
    x_title="cycle",
    y_title="sigma",
    marks=((1.0, 0.9, "kept"),),
)
TREE = Tree(
    title="tree",
    levels=(
        ("stem", (Branch(tasks=("a", "b"), parent=None, parameters=10),)),
        ("stage 1", (Branch(tasks=("a",), parent=0, parameters=10), Branch(tasks=("b",), parent=0, parameters=10))),
    ),
)


def layered(n_tasks: int) -> Layered:
    tasks = tuple(f"task{i}" for i in range(n_tasks))
    edges = (
        Edge(source=0, target=0, tasks=tasks, role="read-in"),
        Edge(source=0, target=1, tasks=tasks[:1]),
        Edge(source=0, target=2, tasks=()),
        Edge(source=1, target=2, tasks=tasks[1:]),
        Edge(source=2, target=2, tasks=tasks, role="read-out"),
    )
    states = tuple(State(name=f"v{i}", label=f"{i}") for i in range(3))
    return Layered(title="found", tasks=tasks, states=states, edges=edges)


FIGURES = {
    "heatmap": Figure(title="f", panels=(HEATMAP,)),
    "lines": Figure(title="f", panels=(LINES, LINES, LINES, LINES)),
    "points": Figure(title="f", panels=(LINES.model_copy(update={"points": True}),)),
    "tree": Figure(title="f", panels=(TREE,)),
    "two tasks": Figure(title="f", panels=(layered(2),)),
    "many tasks": Figure(title="f", panels=(layered(MAX_NAMED + 1),)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_as_png_and_svg_with_equal_bytes(name: str, tmp_path: Path) -> None:
    figure = Figure.model_validate_json(FIGURES[name].model_dump_json())
    assert figure == FIGURES[name]
    files = save(figure, tmp_path / "one", "beneath")
    again = save(figure, tmp_path / "two", "beneath")
    assert [file.suffix for file in files] == [f".{form}" for form in FORMATS]
    for first, second in zip(files, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in files[1].read_bytes()
    assert not plt.get_fignums()


def texts(figure: Figure) -> str:
    drawing = draw(figure, "the record")
    try:
        drawing.canvas.draw()
        found = [text.get_text() for part in [drawing, *drawing.findobj(plt.Axes)] for text in part.findobj(plt.Text)]
    finally:
        plt.close(drawing)
    return "\n".join(found)


def test_what_a_colour_means_also_stands_there_as_text() -> None:
    heatmap = texts(FIGURES["heatmap"])
    assert "correlation" in heatmap
    assert "framed: merged" in heatmap
    assert "the record" in heatmap
    two = texts(FIGURES["two tasks"])
    assert "2 inner edges, 1 read-ins" in two
    assert "task1: 1 inner edges" in two
    many = texts(FIGURES["many tasks"])
    assert "tasks that use the edge" in many
    assert f"task{MAX_NAMED}: 1 inner edges" in many
    assert "a" in texts(FIGURES["tree"])


def test_every_task_has_a_colour_of_its_own() -> None:
    for n in (2, 8, 20):
        assert len(set(task_colors([str(i) for i in range(n)]).values())) == n


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (HEATMAP, {"values": ((1.0,), (0.2, 1.0))}),
        (LINES.series[0], {"y": (1.0,)}),
        (HEATMAP, {"title": 3.5}),
        (HEATMAP, {"colour": "red"}),
        (HEATMAP, {"values": ((float("nan"), 0.0), (0.0, 0.0))}),
    ],
)
def test_a_figure_that_says_nothing_is_refused(kind: Heatmap, change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        type(kind).model_validate({**kind.model_dump(), **change})


def stored(store: Store, figure: Figure) -> Record:
    first = make_record("some_method")
    entry = store.write_artifact(first.key, "figure-found", figure.model_dump_json().encode(), "figure")
    return store.write(dataclasses.replace(first, artifacts={"figure-found": entry}))


def test_figures_of_records_are_drawn_once_and_named_after_their_cell(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = stored(store, FIGURES["heatmap"])
    drawn = list(draw_records([record], store, tmp_path / "figures"))
    assert [file.name for file in drawn] == [f"some_method-{record.key[:8]}-seed0-found.{form}" for form in FORMATS]
    assert list(draw_records([record], store, tmp_path / "figures")) == []
    drawn[0].unlink()
    assert len(list(draw_records([record], store, tmp_path / "figures"))) == 2


def test_what_the_folder_does_not_hold_is_left_out_and_counted(tmp_path: Path) -> None:
    """Records are shipped without the files of what methods found; `report --figures` ended in an error."""
    store = Store(tmp_path / "run")
    record = stored(store, FIGURES["heatmap"])
    assert absent_figures([record], store) == 0
    (store.root / record.artifacts["figure-found"]["file"]).unlink()
    assert list(draw_records([record], store, tmp_path / "figures")) == []
    assert absent_figures([record], store) == 1
    result = CliRunner().invoke(app, [str(store.root), "--figures", str(tmp_path / "figures")])
    assert result.exit_code == 0
    assert f"1 figure of what methods found is not in {store.root}" in " ".join(result.output.split())


def test_a_figure_that_was_changed_on_disk_is_not_drawn(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = stored(store, FIGURES["heatmap"])
    file = tmp_path / record.artifacts["figure-found"]["file"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "title": "forged"}))
    with pytest.raises(StorageError, match="does not match"):
        list(draw_records([record], store, tmp_path / "figures"))


def test_numbers_in_boxes_can_be_read_on_every_colour_of_a_task() -> None:
    """3 to 1 at least, which white on the palette's pale colours is not."""
    assert (ink_on("#000000"), ink_on("#ffffff")) == ("white", "#222222")
    for color in (*task_colors([str(number) for number in range(MAX_NAMED)]).values(), "#dddddd"):
        low, high = sorted(relative_luminance(one) + 0.05 for one in (color, ink_on(color)))
        assert high / low >= 3
