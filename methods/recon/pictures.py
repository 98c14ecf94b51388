"""Pictures of Recon: the scores of all layers with the cut, and which layers get copies."""

from __future__ import annotations

from collections.abc import Sequence

from methods.figures import Figure, Heatmap, Lines, Series
from methods.recon.conflicts import Conflicts, FloatArray
from methods.recon.layers import Layer


def scores_figure(layers: Sequence[Layer], found: Conflicts, scores: FloatArray, n_cut: int, what: str) -> Figure:
    """The rate of conflicts from the image to the tail beside that of random gradients, and the scores by rank with the
    cut behind the first `n_cut`. scores: float [n], those that rank; what: their name.
    """
    places = tuple(float(k) for k in range(1, len(layers) + 1))
    rates = Lines(
        title="from the image to the tail",
        series=(
            Series(label="rate of conflicts", x=places, y=_floats(found.rate)),
            Series(label="of random gradients", x=places, y=_floats(found.chance)),
        ),
        x_title="layer",
        y_title="share of the pairs of tasks",
        low=0.0,
    )
    falling = sorted(_floats(scores), reverse=True)
    edge = ((float(n_cut), falling[n_cut - 1], f"cut: {n_cut} of {len(layers)} layers"),) if n_cut else ()
    ranks = Lines(
        title="by rank",
        series=(Series(label=what, x=places, y=tuple(falling)),),
        x_title="rank of the layer",
        y_title=f"conflict score ({what})",
        points=True,
        marks=edge,
    )
    return Figure(title="How often gradients conflict in each layer", panels=(rates, ranks))


def layers_figure(layers: Sequence[Layer], selected: Sequence[int], found: Conflicts | None, n_tasks: int) -> Figure:
    """A column for each layer, framed where it has copies: both scores of it, or without a search how many copies."""
    if found is None:
        rows = {"copies": tuple(float(n_tasks if k in selected else 1) for k in range(len(layers)))}
    else:
        rows = {"rate": _floats(found.rate), "excess": _floats(found.excess)}
    panel = Heatmap(
        title="from the image to the tail",
        rows=tuple(rows),
        columns=tuple(layer.name for layer in layers),
        values=tuple(rows.values()),
        row_title="of each layer",
        column_title="layer",
        value_title="copies" if found is None else "share of the pairs of tasks",
        marks=tuple((row, k) for row in range(len(rows)) for k in selected),
        mark_title="a copy per task",
    )
    return Figure(title="Which layers get a copy per task", panels=(panel,))


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(map(float, values))
