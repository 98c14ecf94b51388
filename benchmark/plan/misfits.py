"""Methods that have no form on a cell of a crossed suite: left out with the reason, or an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from datasets.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A row that its method refuses on some data and backbone. row: what crosses with them; title: of the row there,
    for people; table: key of the table that lacks it; why: one line. own: whether the suite is at fault: its parameters
    are refused where the method's defaults are not, or the row is the baseline of Delta_m.
    """

    row: bytes
    title: str
    table: str
    why: str
    own: bool


def require_fits(misfits: Sequence[Misfit], fitting: Collection[bytes]) -> None:
    """Raise UsageError where a refusal is a mistake: no row fits, or parameters of the suite's own fit nowhere.

    fitting: the rows that fit some data and backbone of the suite.
    """
    for misfit in misfits:
        if not fitting or (misfit.own and misfit.row not in fitting):
            raise UsageError(misfit.why)
