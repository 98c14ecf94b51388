"""Faults of pydantic as one line."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from datasets.errors import Fault, first_fault


class _Pair(BaseModel, extra="forbid"):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _in_order(self) -> _Pair:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class _Pairs(BaseModel):
    pairs: list[_Pair]


def fault_of(model: type[BaseModel], document: object) -> Fault:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    return first_fault(caught.value)


def test_a_fault_names_the_place_and_what_was_given() -> None:
    fault = fault_of(_Pairs, {"pairs": [{}, {"low": "x", "high": "y"}]})
    assert (fault.where, fault.kind, fault.given) == ("pairs.1.low", "int_parsing", "x")
    assert str(fault).startswith("pairs.1.low: Input should be a valid integer")
    assert fault_of(_Pair, {"middle": 1}).kind == "extra_forbidden"


def test_a_fault_of_the_whole_has_no_place_and_our_own_words() -> None:
    assert str(fault_of(_Pair, {"low": 2})) == "low is above high"
    assert str(fault_of(_Pairs, {"pairs": [{"low": 2}]})) == "pairs.0: low is above high"
