"""AdaShare: one backbone; every task learns which of its blocks it executes and which it skips.

X. Sun, R. Panda, R. Feris, K. Saenko, "AdaShare: Learning What To Share For Efficient Deep Multi-Task Learning",
NeurIPS 2020, https://arxiv.org/abs/1911.12423; official code https://github.com/sunxm2357/AdaShare (branches `master`
and `domainnet`).

Symbols: K tasks, L units (blocks that can be skipped, l = 1 the shallowest); A [K, L, 2] logits, column 0 = execute,
column 1 = skip; alpha = softmax(A)[..., 0] [K, L]; Z = A[..., 0]; tau temperature; c completed cycles; n unlocked
units, always the last ones; F_l residual branch and S_l shortcut of unit l.

In reading order: `parameters` and `presets` (what can be set), `policy` (sampling, curriculum, temperature, losses),
`network` (the search's forward pass and its batch-norm rules), `deployment` (a policy becomes a task graph; its size),
`schedule`, `method` (the course), `search` and `retraining` (its stages), `judging` (which policy is the best). What
follows the official code, what is recalled from the paper and what is ours is listed in `AdaShare.fidelity`. Not
supported: the official layout of dilations (a backbone's own option, equal for all methods of a table) and selection on
the test split.
"""

from methods.adashare.method import AdaShare

__all__ = ["AdaShare"]
