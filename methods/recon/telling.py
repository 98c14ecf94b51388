"""What a run of Recon reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.contracts import Trainer
from methods.recon.conflicts import Conflicts
from methods.recon.layers import Layer
from methods.recon.parameters import ReconParams
from methods.recon.pictures import layers_figure, scores_figure
from methods.recon.selection import ranking


def tell_layers(
    trainer: Trainer, layers: Sequence[Layer], selected: Sequence[int], n_parts: int, found: Conflicts | None
) -> None:
    """Which layers have copies. selected: their positions; n_parts: stem, blocks and tail; found: by a search."""
    norms = sum(layers[k].is_norm for k in selected)
    trainer.fact("layers with copies", len(selected), f"of {len(layers)}")
    trainer.fact("norms among them", 100 * norms / len(selected) if selected else None, "percent")
    first = min((layers[k].part for k in selected), default=None)
    trainer.fact("first part that is split", None if first is None else first + 1, f"of {n_parts}, the stem is 1")
    trainer.artifact("selected", np.isin(np.arange(len(layers)), selected))  # bool [n]
    trainer.chosen(layers[k].name for k in selected)
    trainer.figure("layers", layers_figure(layers, selected, found, len(trainer.data.tasks)))


def tell_conflicts(p: ReconParams, trainer: Trainer, layers: Sequence[Layer], found: Conflicts, n_cut: int) -> None:
    """What the search has counted. n_cut: the number of layers that it selects."""
    trainer.artifact("conflicts", found.n)  # int64 [n]
    trainer.artifact("rate", found.rate)  # float64 [n]
    trainer.artifact("excess", found.excess)  # float64 [n]
    trainer.fact("pairs of gradients compared", found.pairs)
    trainer.fact("pairs that conflict", 100 * float(found.rate.mean()), "percent")
    trainer.fact("pairs of random gradients that would", 100 * float(found.chance.mean()), "percent")
    both = set(ranking(found.rate)[:n_cut]) & set(ranking(found.excess)[:n_cut])
    trainer.fact("layers that rate and excess both select", len(both), f"of {n_cut}")
    if not found.pairs:
        trainer.flag("No batch of the search had labels of two tasks: layers were taken in the order of the network.")
    elif not found.n.any():
        trainer.flag("No gradients conflicted in the search: layers were taken in the order of the network.")
    scores = found.excess if p.score == "excess" else found.rate
    trainer.figure("conflicts", scores_figure(layers, found, scores, n_cut, p.score))
