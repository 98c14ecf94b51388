"""The base of what users set in YAML: options of data sets, steps of augmentation, parameters of methods, suites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Checked(BaseModel):
    """Frozen. Unknown keys are errors, and so are truth values in place of numbers: YAML reads yes, no, on and off as
    truth values, and Python calculates with them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        leaves = list(_leaves(cls.model_fields[str(info.field_name)].annotation))
        is_number = any(leaf in (int, float) or type(leaf) in (int, float) for leaf in leaves)
        takes_any = any(leaf is bool or leaf is Any or isinstance(leaf, bool) for leaf in leaves)
        # The mapping of a nested model is that model's to check.
        nested = any(isinstance(leaf, type) and issubclass(leaf, BaseModel) for leaf in leaves)
        if is_number and not takes_any and _holds_truth_value(value, into_mappings=not nested):
            raise ValueError("takes no truth value (YAML reads yes, no, on and off as true and false)")
        return value


def _leaves(annotation: object) -> Iterator[object]:
    """The types and values that an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def _holds_truth_value(value: object, into_mappings: bool) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_truth_value(item, into_mappings) for item in value)
    if isinstance(value, Mapping) and into_mappings:
        return any(_holds_truth_value(item, into_mappings) for item in value.values())
    return isinstance(value, bool)
