"""What a cell's trainings have gathered so far: a checkpoint holds all of it, and a resumed run starts with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmark.train.ledger import Ledger
from methods.streams import generator


@dataclasses.dataclass
class CellState:
    """seed: of the cell, for the method's streams. selected: the step of the final training that was kept, empty where
    there was none.
    """

    seed: int
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    artifacts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    selected: dict[str, int] = dataclasses.field(default_factory=dict)
    flags: list[str] = dataclasses.field(default_factory=list)
    generators: dict[str, torch.Generator] = dataclasses.field(default_factory=dict)

    def rng(self, name: str) -> torch.Generator:
        """The stream `method/<name>`, the same object each time."""
        if name not in self.generators:
            self.generators[name] = generator(self.seed, f"method/{name}")
        return self.generators[name]

    def log(self, name: str, value: float) -> None:
        """Append a value to a curve."""
        self.curves.setdefault(name, []).append(float(value))

    def flag(self, text: str) -> None:
        """Keep a sentence, once."""
        if text not in self.flags:
            self.flags.append(text)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "generators": {name: random.get_state() for name, random in self.generators.items()},
            "curves": {name: list(values) for name, values in self.curves.items()},
            "artifacts": {name: torch.from_numpy(np.array(array)) for name, array in self.artifacts.items()},
            "ledger": self.ledger.to_json(),
            "selected": dict(self.selected),
            "flags": list(self.flags),
        }

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; flags that were raised meanwhile stay."""
        for name, state in stored["generators"].items():
            self.rng(name).set_state(state)
        self.curves = {name: list(values) for name, values in stored["curves"].items()}
        self.artifacts = {name: array.numpy() for name, array in stored["artifacts"].items()}
        self.ledger = Ledger.from_json(stored["ledger"])
        self.selected = dict(stored["selected"])
        for text in stored["flags"]:
            self.flag(text)
