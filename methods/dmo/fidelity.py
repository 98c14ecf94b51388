"""Where each part of DMO comes from; `list dmo` prints it."""

from __future__ import annotations

from methods.contracts import Fidelity, Reference, Statement

FIDELITY = Fidelity(
    citation="S. Choi, H. Jin, E. Kim, Task-Aware Dynamic Model Optimization for Multi-Task Learning, IEEE Access "
    "11:137709-137717, 2023",
    link="https://doi.org/10.1109/ACCESS.2023.3339793",
    references=(
        Reference(
            "choi2023task",
            "article",
            ("S. Choi", "H. Jin", "E. Kim"),
            "Task-Aware Dynamic Model Optimization for Multi-Task Learning",
            "IEEE Access 11",
            2023,
            "https://doi.org/10.1109/ACCESS.2023.3339793",
        ),
    ),
    statements=(
        Statement("paper", "Single-task networks; similarity of weights and of losses; maximal cliques; pruning by "
                  "1 - exp(-d / tau); survivors of a group merged, the hardest task's weight first; retraining."),
        Statement("official code", "W is every convolution and linear layer of the backbone, pruned by one threshold; "
                  "alpha .5; cliques by size, then mean S; heads anew; all else from the hardest task."),
        Statement("official code", "The code is a first author's re-implementation (sujin-1013/task-aware-DMO), which "
                  "did not produce the article's tables."),
        Statement("default", "Loss curves are correlated over cycles (article: silent; code: epochs)."),
        Statement("default", "tau_sim is a quantile of the pairs, .667; code: .45; two tasks need a number. The "
                  "article's second threshold, tau_BK = .8, is not explained; tau_bk takes the place of tau_sim."),
        Statement("default", "init: shared starts all networks alike; then S_W and S_L are near 1 and a quantile ranks "
                  "small differences. independent is the protocol of the published re-run."),
        Statement("default", "Exactly k weights survive; the code's threshold keeps ties. keep_floor .01 and "
                  "layer_floor 1; the code has neither, so easy-only groups are almost all norms and heads."),
        Statement("default", "mu needs losses in one unit: divided by each task's first mean loss where kinds differ."),
        Statement("paper", "Classification only. Dense tasks: the mean loss over valid pixels (ours)."),
        Statement("official code", "recipe: published. SGD .9, rate .1, decay 5e-4, cosine, batch 64, 25 epochs, "
                  "groups likewise, short loaders cycled to the longest. Batch, crops and flips are the cell's."),
        Statement("default", "A task's norm statistics are its own where it has images of its own; code: one set."),
        Statement("derived", "Groups share no parameter, so they are trained one after another."),
        Statement("default", "Controls: pruning none or equal, random_groups, groups of single tasks. Masks are "
                  "unstructured: nothing is saved in memory or time without sparse kernels."),
        Statement("default", "random_groups: as many weights as the groups that were found would keep; all networks "
                  "keep as much more or less as that takes."),
    ),
)  # fmt: skip
