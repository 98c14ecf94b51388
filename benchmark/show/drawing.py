"""From a matplotlib drawing to bytes and files: one place for what makes pictures of equal numbers equal."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records.store import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FORMATS = ("png", "svg")


def picture_bytes(
    make: Callable[[], Drawing],
    formats: Sequence[str] = FORMATS,
    *,
    dpi: int = 150,
    grow: bool = False,
    salt: str = "sharebench",
    text: bool = False,
) -> dict[str, bytes]:
    """{format: what `make` draws}, equal bytes for equal drawings; the drawing is closed.

    dpi: of PNG, and of images within SVG. grow: widen the picture rather than cut a long legend at its edge. salt: of
    the identifiers in SVG, which must differ within one page. text: keep text as text in SVG, not as outlines.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    found = {}
    # Without the salt and the date two drawings of one figure would differ; a $ in a name starts no formula.
    with matplotlib.rc_context(
        {
            "svg.hashsalt": salt,
            "svg.fonttype": "none" if text else "path",
            "pdf.fonttype": 42,  # TrueType, which journals ask for
            "font.size": 9,
            "text.parse_math": False,
        }
    ):
        drawing = make()
        for form in formats:
            buffer = io.BytesIO()
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
            drawing.savefig(buffer, format=form, dpi=dpi, metadata=metadata, bbox_inches="tight" if grow else None)
            found[form] = buffer.getvalue()
        plt.close(drawing)
    return found


def save_drawing(
    make: Callable[[], Drawing],
    stem: Path,
    *,
    dpi: int = 150,
    grow: bool = False,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Write what `make` draws in each format beside the others; returns the files. dpi, grow: as `picture_bytes`.

    Raises StorageError where a file cannot be written.
    """
    written = []
    for form, data in picture_bytes(make, formats, dpi=dpi, grow=grow).items():
        written.append(stem.with_name(f"{stem.name}.{form}"))
        write_atomic(written[-1], data)
    return written
