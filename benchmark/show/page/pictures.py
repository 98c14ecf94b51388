"""What methods found, as pictures within the page: the drawings of `benchmark.show.plots`, each an image of its own.

An image cannot run scripts and shares no ids with the page, whatever stands in a label.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator, Sequence

from benchmark.records.record import Record
from benchmark.records.store import StorageError, Store
from benchmark.show.drawing import picture_bytes
from benchmark.show.plots import draw, figure_stem, subtitle
from methods.figures import Figure

MAX_PICTURES = 24  # on one page; a drawing takes about a second
MAX_BYTES = 5_000_000  # of all pictures of a page, as they stand in it


@dataclasses.dataclass(frozen=True)
class Picture:
    """title: of the figure; beneath: of which record; uri: the SVG image; problem: why there is none, else ""."""

    title: str
    beneath: str
    uri: str
    problem: str = ""


@dataclasses.dataclass
class Budget:
    """What may still be drawn on the page. left_out: figures that did not fit; absent: those whose files a folder of
    records alone does not hold.
    """

    pictures: int = MAX_PICTURES
    n_bytes: int = MAX_BYTES
    left_out: int = 0
    absent: int = 0


def pictures_of(record: Record, store: Store, budget: Budget) -> Iterator[Picture]:
    """The figures of a record in the order of their names, as long as the budget lasts."""
    for name, entry in sorted(record.artifacts.items()):
        if entry["kind"] != "figure":
            continue
        if budget.pictures <= 0:
            budget.left_out += 1
            continue
        if not (store.root / entry["file"]).is_file():
            budget.absent += 1
            continue
        try:
            figure = Figure.model_validate_json(store.read_artifact(entry))
        except (StorageError, ValueError) as error:
            yield Picture(name, subtitle(record), "", str(error).splitlines()[0])
            continue
        uri = _image(figure, figure_stem(record, name))
        if len(uri) > budget.n_bytes:
            budget.left_out += 1
            continue
        budget.pictures -= 1
        budget.n_bytes -= len(uri)
        yield Picture(figure.title, subtitle(record), uri)


def n_figures(records: Sequence[Record]) -> int:
    """How many figures records hold."""
    return sum(entry["kind"] == "figure" for record in records for entry in record.artifacts.values())


def _image(figure: Figure, salt: str) -> str:
    # Text stays text: half the size of outlines, and sharp at any zoom.
    image = picture_bytes(lambda: draw(figure), ["svg"], dpi=100, salt=salt, text=True)["svg"]
    return "data:image/svg+xml;base64," + base64.b64encode(image).decode("ascii")
