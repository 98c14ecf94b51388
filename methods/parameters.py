"""Parameters of methods: validated, frozen, and marked where a tuning tries them or where they came later."""

from __future__ import annotations

import dataclasses

from datasets.settings import Checked


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The range within which `benchmark.tune` tries a parameter: `rate: Annotated[float, Tuned(1e-3, 1e-1)]`.

    log: values are drawn evenly on a logarithmic scale. Raises ValueError for a range that holds nothing.
    """

    low: float
    high: float
    log: bool = True

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"Tuned({self.low}, {self.high}, log={self.log}): expected low < high, above 0 with log")


@dataclasses.dataclass(frozen=True)
class Later:
    """Marks a parameter that a method got after records were made: `new: Annotated[bool, Later()] = False`. At its
    default it is no part of a cell's identity, so that older cells keep their keys and stay rows of their tables.
    """


MOST_TUNED = 2  # parameters of one method: a search over more of them is no longer told by five trials


def _is_later(mark: object) -> bool:
    return isinstance(mark, Later)


class MethodParams(Checked):
    """Base of every method's parameters: unknown keys are errors, values are frozen."""

    def document(self) -> dict[str, object]:
        """The parameters as a cell stores them, JSON values: all of them, but those marked `Later` only where they are
        asked for.
        """
        values: dict[str, object] = self.model_dump(mode="json")
        asked = self.model_dump(mode="json", exclude_defaults=True)
        later = {name for name, field in type(self).model_fields.items() if any(map(_is_later, field.metadata))}
        return {name: value for name, value in values.items() if name not in later or name in asked}

    @classmethod
    def tuned(cls) -> dict[str, Tuned]:
        """The parameters that tuning tries, with their ranges. Raises TypeError for more than `MOST_TUNED`."""
        found = {
            name: mark for name, field in cls.model_fields.items() for mark in field.metadata if isinstance(mark, Tuned)
        }
        if len(found) > MOST_TUNED:
            raise TypeError(f"{cls.__name__} marks {', '.join(found)} as Tuned; expected at most {MOST_TUNED}")
        return found
