"""What a cell has spent, by purpose. Spec: measurement 4."""

from __future__ import annotations

import dataclasses
from typing import Any

from methods.contracts import Purpose


@dataclasses.dataclass
class Spending:
    """optimizer_steps and forward_passes are counted apart: a step per task makes T of the former of one batch.

    images: images seen in training, an image of every input counted once per batch. seconds: of training on the device.
    train_macs: multiply-accumulates of forward and backward passes, counted on the first step of each stage.
    """

    optimizer_steps: int = 0
    forward_passes: int = 0
    images: int = 0
    seconds: float = 0.0
    train_macs: int = 0

    def add(self, other: Spending) -> None:
        """Add another account to this one."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass
class Ledger:
    """Accounts of search and final training, clocks of what is neither, and the work taken over from other cells.

    unrun_seconds: what the steps beyond a run's step limit would have taken, at the pace of those that ran.
    """

    search: Spending = dataclasses.field(default_factory=Spending)
    final: Spending = dataclasses.field(default_factory=Spending)
    evaluation_seconds: float = 0.0
    io_seconds: float = 0.0
    unrun_seconds: float = 0.0
    reused_from: list[str] = dataclasses.field(default_factory=list)

    def account(self, purpose: Purpose) -> Spending:
        """The account of a purpose."""
        return self.search if purpose == "search" else self.final

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Ledger:
        """What `to_json` gave."""
        spending = {name: Spending(**values[name]) for name in ("search", "final")}
        return cls(**{**values, **spending})
