"""The operating point of a search: how far its logits can move, and by which rate. Spec: evidence 3.

Adam moves a logit by about its rate in every update, so `rate x updates` is what it can move in a stage. A search in
which this is too little ends where it began, and says nothing of the method. Rates are therefore given per stage: by
default a logit can move by the same total at any budget.
"""

from __future__ import annotations

MOVEMENT = 8.0  # of a logit over the search, by default: twice REACH, since not every update has the same sign
REACH = 4.0  # takes a gate from sigma(-2) = .12 to sigma(2) = .88


class StuckNote(str):
    """What the plan notes of a search that cannot leave its start. A tuning proposes no such setting."""


def rate_of(given: float | None, updates: int, movement: float = MOVEMENT) -> float:
    """The learning rate of logits: the given one, or the one whose updates add up to `movement`."""
    return movement / updates if given is None else given


def reach_notes(name: str, rate: float, updates: int, needed: float = REACH) -> list[str]:
    """A `StuckNote` of a search whose logits cannot move by `needed`. name: of the parameter with the rate."""
    if rate * updates >= needed * (1 - 1e-9):  # movement / updates x updates is not movement in floats
        return []
    total = f"{name} {rate:g} x {updates} updates = {rate * updates:.2g} < {needed:.2g}"
    return [StuckNote(f"{total}: the search cannot leave its start")]
