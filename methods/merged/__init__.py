"""Model merging: the single-task networks of a cell become one by arithmetic on their weights.

`parameters`, `method` (the course), `arithmetic` (average, task arithmetic, TIES), `network` (bodies, graphs,
statistics), `selection` (coefficients from a grid), `surgery` (features corrected per task), `disagreement`, `telling`
and `pictures` (what a run reports), `fidelity` (where each part comes from).
"""

from methods.merged.method import Merged

__all__ = ["Merged"]
