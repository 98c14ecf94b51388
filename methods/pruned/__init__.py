"""Pruning for several tasks: a weight goes only if no task wants it.

X. Sun, A. Hassani, Z. Wang, G. Huang, H. Shi, "DiSparse: Disentangled Sparsification for Multitask Model Compression",
CVPR 2022, pp. 12382-12392; code: https://github.com/SHI-Labs/DiSparse-Multitask-Model-Compression. The rule
`soft_threshold` is that of M. Xiang et al., "AdapMTL", ACM MM 2024, https://arxiv.org/abs/2408.03913; code:
https://github.com/MitchellX/AdapMTL.

Symbols: T tasks, L_t loss of task t; W the prunable weights of the backbone, n of them, w one of them; m a mask of
ones over W; c_t [n] saliency for task t; K_t the top rho of c_t; M = OR_t K_t the mask, |M| / n its density; B batches.

In reading order: `parameters`, `saliency` (c_t, K_t, M), `network` (training under masks), `dynamic` (masks that change
in training), `soft_threshold`, `method` (the course), `telling`. `Pruned.fidelity` lists what is the papers', the
codes' and ours. Not supported: pruned heads, loss weights from a sliding window (a balancing), structured masks.
"""

from methods.pruned.method import Pruned

__all__ = ["Pruned"]
