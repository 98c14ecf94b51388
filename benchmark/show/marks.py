"""How a row looks: colour and shape by its place in the table, for the page and the pictures alike.

Six shapes and eight colours tell 24 rows apart; after them they repeat.
"""

from __future__ import annotations

LIGHT = ("#0072b2", "#c04f00", "#00805e", "#a8578b", "#7a6a00", "#2b7fb8", "#a86f00", "#555b61")
DARK = ("#56b4e9", "#ff8a3d", "#2ccb9f", "#e39bc4", "#f0e442", "#9dc9f5", "#e69f00", "#b9c0c7")  # on a dark page
# Name in matplotlib; outline around (0, 0) as an SVG path, five to seven pixels to each side.
SHAPES = (
    ("o", "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"),
    ("s", "M-5 -5h10v10h-10z"),
    ("^", "M0 -6L6 5H-6z"),
    ("D", "M0 -7L6 0L0 7L-6 0z"),
    ("v", "M0 6L6 -5H-6z"),
    ("P", "M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z"),
)
N_STYLES = 24  # the least common multiple of both


def color_of(row: int) -> int:
    """Position of the row's colour in LIGHT and DARK."""
    return row % len(LIGHT)


def shape_of(row: int) -> int:
    """Position of the row's shape in SHAPES."""
    return row % len(SHAPES)
