"""Pictures as data: what a method shows of its search, apart from how it is drawn.

A method hands a `Figure` to its trainer, and the record keeps it as JSON. Reports draw it from that alone. Every panel
names its axes; no information is in a colour alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Heatmap(_Part):
    """A matrix. values: [rows][columns], None where there is none. low, high: ends of the colour scale, None for those
    of the values. centre: the value that is shown neutral, for quantities with a sign.
    marks: (row, column) of the cells that are framed (what was chosen, drawn or kept); mark_title says what that means.
    """

    kind: Literal["heatmap"] = "heatmap"
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    row_title: str = ""
    column_title: str = ""
    value_title: str
    low: float | None = None
    high: float | None = None
    centre: float | None = None
    marks: tuple[tuple[int, int], ...] = ()
    mark_title: str = ""

    @model_validator(mode="after")
    def _shape(self) -> Heatmap:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"values of {self.title!r} must be {len(self.rows)} x {len(self.columns)}")
        return self


class Series(_Part):
    """Points (x, y) with a label, in order of x. group: series of one group share a colour."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    group: str = ""

    @model_validator(mode="after")
    def _paired(self) -> Series:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.label!r} has {len(self.x)} x and {len(self.y)} y")
        return self


class Lines(_Part):
    """Curves, or points where `points` is set. marks: (x, y, text) of points that are named (the one that was taken).
    low, high: ends of the y axis, None for those of the values.
    """

    kind: Literal["lines"] = "lines"
    title: str
    series: tuple[Series, ...]
    x_title: str
    y_title: str
    points: bool = False
    marks: tuple[tuple[float, float, str], ...] = ()
    low: float | None = None
    high: float | None = None


class State(_Part):
    """A node of a layered graph, in its place from left to right."""

    name: str
    label: str


class Edge(_Part):
    """tasks: those that use it. role: what kind of edge it is (an inner edge, a read-in, a read-out).
    weight: None, or its importance in [0, 1].
    """

    source: int
    target: int
    tasks: tuple[str, ...]
    role: Literal["inner", "read-in", "read-out"] = "inner"
    weight: float | None = None


class Layered(_Part):
    """States in order with the edges between them; the union of all tasks and each task on its own.

    tasks: all of them in order, also those without an edge. A read-in comes from the first state (source 0), a read-out
    goes to the last one.
    """

    kind: Literal["layered"] = "layered"
    title: str
    tasks: tuple[str, ...]
    states: tuple[State, ...]
    edges: tuple[Edge, ...]


class Branch(_Part):
    """A node of a tree at one level. tasks: those that pass through it; parent: position in the level before, None at
    the root; parameters: of this node.
    """

    tasks: tuple[str, ...]
    parent: int | None
    parameters: int


class Tree(_Part):
    """A network that branches: levels from the image to the heads, with their nodes, drawn with widths by parameters.

    levels: a name for each level, and its nodes.
    """

    kind: Literal["tree"] = "tree"
    title: str
    levels: tuple[tuple[str, tuple[Branch, ...]], ...]


Panel = Annotated[Heatmap | Lines | Layered | Tree, Field(discriminator="kind")]


class Figure(_Part):
    """One picture. panels: side by side, in reading order."""

    title: str
    panels: Annotated[tuple[Panel, ...], Field(min_length=1)]
